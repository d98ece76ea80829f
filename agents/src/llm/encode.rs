//! From prompts and completions, plain text or messages, to token sequences, with every change counted.
//!
//! Prompt and completion are tokenised together, as the model would see them, and the completion is what follows the
//! tokens of the prompt alone. For conversations the prompt ends with the beginning of an answer (the generation prompt),
//! so the first token of the completion is the first that the model writes. The prompt's tokens are always those that
//! generation starts from: where tokens merge across the border, both sides are tokenised separately (counted as
//! [`EncodeReport::boundary_mismatches`]; TRL shortens the prompt instead, so that training and generation differ).
//!
//! Special tokens: plain text gets what the tokenizer puts before a text (usually the beginning-of-sequence token) and an
//! end-of-sequence token behind the completion, each only if it is not there already; what a chat template writes stays as
//! it is. Longer sequences lose the end of the completion.

use std::fmt;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use steadfast_envs::text::Message;

use super::sequence::TokenSequence;
use super::tokenizer::Tokenizer;
use crate::AgentError;

/// What counts of a conversation without a prompt of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConversationLoss {
    /// Every token but the first, those of users and system included, as TRL does.
    #[default]
    Everything,
    /// The last message, which must be the assistant's; what stands before is the prompt.
    LastAnswer,
}

/// How texts become token sequences.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EncodeConfig {
    /// Most tokens of prompt and completion together, at least 2. What is too long loses the end of its completion; if the
    /// prompt alone is that long, the row is dropped.
    pub max_tokens: usize,
    /// What counts of a conversation without a prompt of its own (`messages`).
    pub conversation_loss: ConversationLoss,
}

impl Default for EncodeConfig {
    fn default() -> Self {
        Self { max_tokens: 1024, conversation_loss: ConversationLoss::Everything }
    }
}

/// A text to be tokenised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextInput<'a> {
    /// Plain text.
    Plain(&'a str),
    /// Messages, which the chat template renders.
    Messages(&'a [Message]),
}

impl TextInput<'_> {
    fn is_blank(self) -> bool {
        match self {
            Self::Plain(text) => text.trim().is_empty(),
            Self::Messages(messages) => messages.iter().all(|message| message.content.trim().is_empty()),
        }
    }

    fn describe(self) -> &'static str {
        match self {
            Self::Plain(_) => "plain text",
            Self::Messages(_) => "a list of messages",
        }
    }
}

/// What happened to the rows of a data set on their way to tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct EncodeReport {
    /// Rows: pairs of completions, or single ones.
    pub rows: u64,
    /// Rows that became token sequences.
    pub kept: u64,
    /// Rows dropped because the prompt alone reaches `max_tokens`.
    pub prompts_too_long: u64,
    /// Pairs dropped because both sides became the same tokens, usually by truncation.
    pub identical: u64,
    /// Completions of kept rows that lost their end.
    pub truncated: u64,
    /// Tokens that truncation took from kept rows.
    pub truncated_tokens: u64,
    /// Completions of kept rows whose first characters would have merged with the end of the prompt into one token.
    pub boundary_mismatches: u64,
    /// Completions of kept rows before which the chat template writes something else than the generation prompt.
    pub template_mismatches: u64,
    /// Completions of kept rows without an end-of-sequence token, because the tokenizer has none.
    pub without_end: u64,
    /// Tokens of the prompts of kept rows, a prompt once per completion.
    pub prompt_tokens: u64,
    /// Tokens of the completions of kept rows.
    pub completion_tokens: u64,
    /// Length of the longest sequence.
    pub longest: u64,
}

impl EncodeReport {
    /// Adds the counts of other rows.
    pub fn merge(&mut self, other: &Self) {
        let sums = [
            (&mut self.rows, other.rows),
            (&mut self.kept, other.kept),
            (&mut self.prompts_too_long, other.prompts_too_long),
            (&mut self.identical, other.identical),
            (&mut self.truncated, other.truncated),
            (&mut self.truncated_tokens, other.truncated_tokens),
            (&mut self.boundary_mismatches, other.boundary_mismatches),
            (&mut self.template_mismatches, other.template_mismatches),
            (&mut self.without_end, other.without_end),
            (&mut self.prompt_tokens, other.prompt_tokens),
            (&mut self.completion_tokens, other.completion_tokens),
        ];
        for (sum, more) in sums {
            *sum += more;
        }
        self.longest = self.longest.max(other.longest);
    }

    /// What the user should know, one sentence each; empty if nothing was changed.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let mut warn = |count: u64, text: &str| {
            if count > 0 {
                warnings.push(format!("{count} {text}"));
            }
        };
        warn(self.prompts_too_long, "rows are dropped because the prompt alone reaches `max_tokens`; raise it, or shorten the prompts");
        warn(self.identical, "pairs are dropped because both sides became the same tokens, usually by truncation at `max_tokens`");
        let cut = format!("completions lost their end at `max_tokens`, {} tokens in all", self.truncated_tokens);
        warn(self.truncated, &cut);
        warn(
            self.boundary_mismatches,
            "completions would have merged with the end of their prompt into one token and were tokenised separately; end prompts where a \
             token ends, and begin completions with the space",
        );
        warn(
            self.template_mismatches,
            "completions follow something else than the generation prompt in the chat template; they were put behind the generation prompt, \
             where the model will write them",
        );
        warn(self.without_end, "completions have no end-of-sequence token, because the tokenizer names none (`eos_token`)");
        warnings
    }
}

impl fmt::Display for EncodeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of {} rows, {} prompt and {} completion tokens, longest sequence {}",
            self.kept, self.rows, self.prompt_tokens, self.completion_tokens, self.longest
        )?;
        self.warnings().iter().try_for_each(|warning| write!(f, "\n{warning}"))
    }
}

/// A completion behind its prompt, before it is cut.
struct Joined {
    sequence: TokenSequence,
    boundary_mismatch: bool,
    template_mismatch: bool,
    without_end: bool,
}

/// Turns texts into token sequences. `place` says in errors which row is meant, as `pairs.jsonl:12`.
#[derive(Debug, Clone)]
pub struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    config: EncodeConfig,
    end_of_sequence: Vec<u32>,
}

impl<'a> Encoder<'a> {
    /// An encoder.
    ///
    /// # Errors
    /// [`AgentError::Config`] if `max_tokens` is below 2.
    pub fn new(tokenizer: &'a Tokenizer, config: &EncodeConfig) -> Result<Self, AgentError> {
        if config.max_tokens < 2 {
            let (field, got) = ("max_tokens".to_string(), config.max_tokens.to_string());
            return Err(AgentError::Config { field, expected: "at least 2".to_string(), got });
        }
        Ok(Self { tokenizer, config: config.clone(), end_of_sequence: tokenizer.end_of_sequence() })
    }

    /// The tokens that generation starts from, of any length.
    ///
    /// # Errors
    /// [`AgentError::Model`] naming the row if the prompt is empty or cannot be rendered or tokenised.
    pub fn prompt(&self, prompt: TextInput<'_>, place: &str) -> Result<Vec<u32>, AgentError> {
        let tokens = match prompt {
            TextInput::Plain(text) => self.plain(text),
            TextInput::Messages([]) => return Err(row_error(place, "the prompt is empty")),
            TextInput::Messages(messages) => {
                self.tokenizer.render_chat(messages, true).and_then(|text| self.tokenizer.encode(&text, false))
            }
        };
        let tokens = tokens.map_err(|error| at_row(place, error))?;
        if tokens.is_empty() {
            return Err(row_error(place, "the prompt is empty, and the tokenizer puts no token before a text; generation starts from one"));
        }
        Ok(tokens)
    }

    /// A completion behind its prompt; nothing if the prompt alone is too long. Without a prompt (empty text or no messages)
    /// the token that the tokenizer puts before a text is the prompt, or else the first token of the completion, which then
    /// does not count.
    ///
    /// # Errors
    /// [`AgentError::Model`] naming the row: a completion that is empty or ends with two end-of-sequence tokens, a
    /// conversation beside plain text, a text that cannot be rendered or tokenised.
    pub fn completion(
        &self,
        prompt: TextInput<'_>,
        completion: TextInput<'_>,
        place: &str,
        report: &mut EncodeReport,
    ) -> Result<Option<TokenSequence>, AgentError> {
        report.rows += 1;
        let joined = self.join(prompt, completion, "completion", place)?;
        if joined.sequence.prompt_len >= self.config.max_tokens {
            report.prompts_too_long += 1;
            return Ok(None);
        }
        report.kept += 1;
        Ok(Some(self.cut(joined, report)))
    }

    /// Two completions behind their prompt; nothing if the prompt alone is too long or both become the same tokens.
    ///
    /// # Errors
    /// As [`Encoder::completion`], naming the side.
    pub fn pair(
        &self,
        prompt: TextInput<'_>,
        chosen: TextInput<'_>,
        rejected: TextInput<'_>,
        place: &str,
        report: &mut EncodeReport,
    ) -> Result<Option<[TokenSequence; 2]>, AgentError> {
        report.rows += 1;
        let sides = [self.join(prompt, chosen, "chosen", place)?, self.join(prompt, rejected, "rejected", place)?];
        if sides.iter().any(|side| side.sequence.prompt_len >= self.config.max_tokens) {
            report.prompts_too_long += 1;
            return Ok(None);
        }
        let mut changes = EncodeReport::default();
        let [chosen, rejected] = sides.map(|side| self.cut(side, &mut changes));
        if chosen == rejected {
            report.identical += 1;
            return Ok(None);
        }
        report.merge(&changes);
        report.kept += 1;
        Ok(Some([chosen, rejected]))
    }

    /// Rows `0..n_rows` by all threads of the current pool, in their order: `encode` gets the number of the row and counts
    /// into the report it is given. Results and counts do not depend on the number of threads.
    ///
    /// # Errors
    /// That of the first row that fails.
    pub fn rows<T: Send>(
        n_rows: usize,
        encode: impl Fn(usize, &mut EncodeReport) -> Result<Option<T>, AgentError> + Sync,
    ) -> Result<(Vec<Option<T>>, EncodeReport), AgentError> {
        let encode_one = |row: usize| {
            let mut report = EncodeReport::default();
            encode(row, &mut report).map(|encoded| (encoded, report))
        };
        let encoded: Vec<Result<_, AgentError>> = (0..n_rows).into_par_iter().with_min_len(16).map(encode_one).collect();
        let mut total = EncodeReport::default();
        let mut rows = Vec::with_capacity(n_rows);
        for row in encoded {
            let (row, report) = row?;
            total.merge(&report);
            rows.push(row);
        }
        Ok((rows, total))
    }

    /// Tokens of plain text with what stands before every text, once.
    fn plain(&self, text: &str) -> Result<Vec<u32>, AgentError> {
        let tokens = self.tokenizer.encode(text, false)?;
        let prefix = self.tokenizer.prefix();
        Ok(if tokens.starts_with(prefix) { tokens } else { [prefix, &tokens].concat() })
    }

    fn join(&self, prompt: TextInput<'_>, completion: TextInput<'_>, side: &str, place: &str) -> Result<Joined, AgentError> {
        if completion.is_blank() {
            return Err(row_error(place, format!("the {side} is empty; an empty answer cannot be scored: remove the row")));
        }
        let joined = match (prompt, completion) {
            (TextInput::Plain(prompt), TextInput::Plain(completion)) => self.join_plain(prompt, completion),
            (TextInput::Messages([]) | TextInput::Plain(""), TextInput::Messages(messages)) => match self.config.conversation_loss {
                ConversationLoss::Everything => self.whole_conversation(messages),
                ConversationLoss::LastAnswer => match messages.split_last() {
                    Some((last, before)) if last.role == "assistant" && !before.is_empty() => {
                        self.join_messages(before, std::slice::from_ref(last))
                    }
                    Some((last, _)) if last.role == "assistant" => self.whole_conversation(messages),
                    _ => return Err(row_error(place, format!("the last message of the {side} is not the assistant's"))),
                },
            },
            (TextInput::Messages(prompt), TextInput::Messages(completion)) => self.join_messages(prompt, completion),
            (prompt, completion) => {
                let (prompt, completion) = (prompt.describe(), completion.describe());
                return Err(row_error(place, format!("the prompt is {prompt}, the {side} is {completion}; both must be the same")));
            }
        };
        let mut joined = joined.map_err(|error| at_row(place, error))?;
        let sequence = &mut joined.sequence;
        if sequence.prompt_len == 0 {
            // Nothing stands before the first token, so nothing can be said of it.
            sequence.prompt_len = 1;
        }
        if sequence.tokens.len() <= sequence.prompt_len {
            return Err(row_error(place, format!("the {side} has no token that could be scored; remove the row")));
        }
        if let Some(eos) = self.tokenizer.eos()
            && let [.., before, last] = sequence.completion()
            && [*before, *last] == [eos; 2]
        {
            let text = self.tokenizer.eos_text().unwrap_or_default();
            return Err(row_error(place, format!("the {side} ends with two end-of-sequence tokens `{text}`; remove them from the text")));
        }
        Ok(joined)
    }

    fn join_plain(&self, prompt: &str, completion: &str) -> Result<Joined, AgentError> {
        let prompt_tokens = self.plain(prompt)?;
        let whole = self.plain(&[prompt, completion].concat())?;
        let mut joined = self.behind(prompt_tokens, whole, completion)?;
        let tokens = &mut joined.sequence.tokens;
        if !tokens.last().is_some_and(|last| self.end_of_sequence.contains(last)) {
            match self.tokenizer.eos() {
                Some(eos) => tokens.push(eos),
                None => joined.without_end = true,
            }
        }
        Ok(joined)
    }

    fn join_messages(&self, prompt: &[Message], completion: &[Message]) -> Result<Joined, AgentError> {
        let beginning = self.tokenizer.render_chat(prompt, true)?;
        let whole = self.tokenizer.render_chat(&[prompt, completion].concat(), false)?;
        let prompt_tokens = self.tokenizer.encode(&beginning, false)?;
        if let Some(answer) = whole.strip_prefix(&*beginning) {
            return self.behind(prompt_tokens, self.tokenizer.encode(&whole, false)?, answer);
        }
        let shared = beginning.char_indices().zip(whole.chars()).find(|((_, a), b)| a != b).map_or(whole.len(), |((at, _), _)| at);
        let answer = whole.get(shared..).unwrap_or_default();
        let together = self.tokenizer.encode(&[&*beginning, answer].concat(), false)?;
        self.behind(prompt_tokens, together, answer).map(|joined| Joined { template_mismatch: true, ..joined })
    }

    fn whole_conversation(&self, messages: &[Message]) -> Result<Joined, AgentError> {
        let tokens = self.tokenizer.encode(&self.tokenizer.render_chat(messages, false)?, false)?;
        let sequence = TokenSequence { tokens, prompt_len: 0 };
        Ok(Joined { sequence, boundary_mismatch: false, template_mismatch: false, without_end: false })
    }

    /// The completion is what follows the prompt, or `completion` on its own if the prompt's last token merged with it.
    fn behind(&self, prompt: Vec<u32>, whole: Vec<u32>, completion: &str) -> Result<Joined, AgentError> {
        let prompt_len = prompt.len();
        let is_prefix = whole.starts_with(&prompt);
        let tokens = if is_prefix { whole } else { [prompt, self.tokenizer.encode(completion, false)?].concat() };
        let sequence = TokenSequence { tokens, prompt_len };
        Ok(Joined { sequence, boundary_mismatch: !is_prefix, template_mismatch: false, without_end: false })
    }

    fn cut(&self, joined: Joined, report: &mut EncodeReport) -> TokenSequence {
        let mut sequence = joined.sequence;
        let surplus = sequence.tokens.len().saturating_sub(self.config.max_tokens);
        sequence.tokens.truncate(self.config.max_tokens);
        report.truncated += u64::from(surplus > 0);
        report.truncated_tokens += surplus as u64;
        report.boundary_mismatches += u64::from(joined.boundary_mismatch);
        report.template_mismatches += u64::from(joined.template_mismatch);
        report.without_end += u64::from(joined.without_end);
        report.prompt_tokens += sequence.prompt_len as u64;
        report.completion_tokens += sequence.completion().len() as u64;
        report.longest = report.longest.max(sequence.tokens.len() as u64);
        sequence
    }
}

fn row_error(place: &str, reason: impl Into<String>) -> AgentError {
    AgentError::Model { place: place.to_string(), reason: reason.into() }
}

/// Puts the row before an error of the tokenizer.
fn at_row(place: &str, error: AgentError) -> AgentError {
    row_error(place, error.to_string())
}

/// On which side rows of a batch are filled up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PaddingSide {
    /// Before the prompt, as for generation elsewhere.
    Left,
    /// Behind the completion, as for training elsewhere.
    Right,
}

/// Sequences filled up to one length, `[row, position]`: for display and for other tools. Models of this crate take
/// sequences as they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PaddedBatch {
    /// Length of every row, that of the longest sequence.
    pub width: usize,
    /// Token ids, the padding token where a row is filled up.
    pub ids: Vec<u32>,
    /// True at the tokens of a sequence, false at padding.
    pub attention_mask: Vec<bool>,
    /// True at the tokens of a completion.
    pub completion_mask: Vec<bool>,
}

impl PaddedBatch {
    /// Fills up sequences with the token `pad`, which may be any, also one that sequences have.
    pub fn new(sequences: &[TokenSequence], side: PaddingSide, pad: u32) -> Self {
        let width = sequences.iter().map(|sequence| sequence.tokens.len()).max().unwrap_or(0);
        let size = width * sequences.len();
        let mut batch = Self { width, ids: vec![pad; size], attention_mask: vec![false; size], completion_mask: vec![false; size] };
        for (row, sequence) in sequences.iter().enumerate() {
            let len = sequence.tokens.len();
            let start = row * width + if side == PaddingSide::Left { width - len } else { 0 };
            batch.ids[start..start + len].copy_from_slice(&sequence.tokens);
            batch.attention_mask[start..start + len].fill(true);
            batch.completion_mask[start + sequence.prompt_len.min(len)..start + len].fill(true);
        }
        batch
    }

    /// Number of rows.
    pub fn n_rows(&self) -> usize {
        self.ids.len() / self.width.max(1)
    }

    /// The sequences without padding, whichever side it is on.
    ///
    /// # Errors
    /// [`AgentError::Model`] naming the row if its tokens or those of its completion are not one stretch, or if its
    /// completion does not end where the row does; [`AgentError::Shape`] if the arrays have different lengths.
    pub fn sequences(&self) -> Result<Vec<TokenSequence>, AgentError> {
        let shapes = [self.ids.len(), self.attention_mask.len(), self.completion_mask.len()];
        if shapes != [self.n_rows() * self.width; 3] {
            let expected = vec![self.n_rows(), self.width];
            return Err(AgentError::Shape { op: "padded batch".to_string(), expected, got: shapes.to_vec() });
        }
        let rows = self.ids.chunks(self.width.max(1)).zip(self.attention_mask.chunks(self.width.max(1)));
        let rows = rows.zip(self.completion_mask.chunks(self.width.max(1))).enumerate();
        rows.map(|(row, ((ids, attention), completion))| {
            let fail = |reason: &str| row_error(&format!("padded batch, row {row}"), reason);
            let start = attention.iter().position(|&is_token| is_token).unwrap_or(0);
            let len = attention[start..].iter().take_while(|&&is_token| is_token).count();
            if attention[start + len..].contains(&true) {
                return Err(fail("padding stands between tokens"));
            }
            let prompt_len = completion[start..start + len].iter().take_while(|&&is_completion| !is_completion).count();
            let n_completion = completion.iter().filter(|&&is_completion| is_completion).count();
            if n_completion != len - prompt_len || completion[start + prompt_len..start + len].contains(&false) {
                return Err(fail("the completion is not the end of the row's tokens"));
            }
            Ok(TokenSequence { tokens: ids[start..start + len].to_vec(), prompt_len })
        })
        .collect()
    }
}

/// A batch as the model sees it, for people: per row the text with all special tokens, then one line per token with its
/// position, id, part (`prompt`, `completion`, `padding`) and spelling. Padding has no position.
///
/// # Errors
/// [`AgentError::Model`] naming the row if a token is not in the vocabulary.
pub fn show(tokenizer: &Tokenizer, sequences: &[TokenSequence], side: PaddingSide) -> Result<String, AgentError> {
    use std::fmt::Write as _;
    let pad = tokenizer.pad().or(tokenizer.eos()).unwrap_or(0);
    let batch = PaddedBatch::new(sequences, side, pad);
    let mut out = String::new();
    for (row, sequence) in sequences.iter().enumerate() {
        let text = tokenizer.decode(&sequence.tokens, false).map_err(|error| at_row(&format!("row {row}"), error))?;
        let n_completion = sequence.completion().len();
        let n_padding = batch.width - sequence.tokens.len();
        // Writing to a string cannot fail.
        let _ = writeln!(out, "row {row}: {} prompt, {n_completion} completion, {n_padding} padding tokens", sequence.prompt_len);
        for line in text.split('\n') {
            let _ = writeln!(out, "  | {line}");
        }
        let _ = writeln!(out, "  position        id  part        token");
        let mut position = 0;
        for at in row * batch.width..(row + 1) * batch.width {
            let id = batch.ids[at];
            let (part, shown) = match (batch.attention_mask[at], batch.completion_mask[at]) {
                (false, _) => ("padding", "-".to_string()),
                (_, is_completion) => {
                    position += 1;
                    (if is_completion { "completion" } else { "prompt" }, (position - 1).to_string())
                }
            };
            let token = tokenizer.token(id).unwrap_or_default();
            let _ = writeln!(out, "  {shown:>8}  {id:>8}  {part:<10}  {}", token.escape_debug());
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEMPLATE: &str = "{{ bos_token }}{% for m in messages %} {{ m.role }} {{ m.content }}{{ ' </s>' if m.role == 'assistant' }}\
        {% endfor %}{% if add_generation_prompt %} assistant{% endif %}";

    fn tokenizer(bos: Option<&str>) -> Tokenizer {
        let words = ["<pad>", "<s>", "</s>", "user", "assistant", "red", "green", "blue"].map(str::to_string);
        Tokenizer::from_words(&words, None, bos, "</s>", "<pad>").unwrap().with_chat_template(TEMPLATE).unwrap()
    }

    fn encode(tokenizer: &Tokenizer, max_tokens: usize, prompt: &str, completion: &str) -> (Option<TokenSequence>, EncodeReport) {
        let config = EncodeConfig { max_tokens, ..EncodeConfig::default() };
        let mut report = EncodeReport::default();
        let encoder = Encoder::new(tokenizer, &config).unwrap();
        let (prompt, completion) = (TextInput::Plain(prompt), TextInput::Plain(completion));
        (encoder.completion(prompt, completion, "f:1", &mut report).unwrap(), report)
    }

    fn say(role: &str, content: &str) -> Message {
        Message { role: role.to_string(), content: content.to_string() }
    }

    #[test]
    fn special_tokens_are_there_once() {
        let with_bos = tokenizer(Some("<s>"));
        let wanted = Some(TokenSequence::new(&[1, 5], &[6, 7, 2]));
        assert_eq!(encode(&with_bos, 99, "red", " green blue").0, wanted);
        assert_eq!(encode(&with_bos, 99, "<s> red", " green blue </s>").0, wanted);
        assert_eq!(encode(&tokenizer(None), 99, "red", " green").0, Some(TokenSequence::new(&[5], &[6, 2])));
        // Without a prompt.
        assert_eq!(encode(&with_bos, 99, "", "green").0, Some(TokenSequence::new(&[1], &[6, 2])));
        assert_eq!(encode(&tokenizer(None), 99, "", "green").0, Some(TokenSequence::new(&[6], &[2])));
    }

    #[test]
    fn truncation_is_counted_and_long_prompts_are_dropped() {
        let tokenizer = tokenizer(Some("<s>"));
        let (sequence, report) = encode(&tokenizer, 4, "red", " green blue");
        assert_eq!(sequence, Some(TokenSequence::new(&[1, 5], &[6, 7])));
        assert_eq!((report.truncated, report.truncated_tokens, report.longest), (1, 1, 4));
        let (sequence, report) = encode(&tokenizer, 2, "red", " green blue");
        assert_eq!((sequence, report.prompts_too_long, report.kept, report.rows), (None, 1, 0, 1));
        assert!(report.to_string().contains("0 of 1 rows") && report.to_string().contains("1 rows are dropped"), "{report}");
    }

    #[test]
    fn a_pair_that_truncation_makes_equal_is_dropped() {
        let tokenizer = tokenizer(None);
        let encoder = Encoder::new(&tokenizer, &EncodeConfig { max_tokens: 2, ..EncodeConfig::default() }).unwrap();
        let mut report = EncodeReport::default();
        let [prompt, chosen, rejected] = ["red", " green blue", " green red"].map(TextInput::Plain);
        assert_eq!(encoder.pair(prompt, chosen, rejected, "f:1", &mut report).unwrap(), None);
        assert_eq!((report.identical, report.truncated), (1, 0));
    }

    #[test]
    fn the_completion_starts_behind_the_generation_prompt() {
        let tokenizer = tokenizer(Some("<s>"));
        let encoder = Encoder::new(&tokenizer, &EncodeConfig::default()).unwrap();
        let mut report = EncodeReport::default();
        let (prompt, answer) = ([say("user", "red")], [say("assistant", "blue")]);
        let (prompt, answer) = (TextInput::Messages(&prompt), TextInput::Messages(&answer));
        let sequence = encoder.completion(prompt, answer, "f:1", &mut report).unwrap();
        assert_eq!(sequence, Some(TokenSequence::new(&[1, 3, 5, 4], &[7, 2])));
        assert_eq!(encoder.prompt(prompt, "f:1").unwrap(), [1, 3, 5, 4]);
        assert!(report.warnings().is_empty());
        let whole = [say("user", "red"), say("assistant", "blue")];
        let sequence = encoder.completion(TextInput::Messages(&[]), TextInput::Messages(&whole), "f:1", &mut report).unwrap();
        assert_eq!(sequence, Some(TokenSequence::new(&[1], &[3, 5, 4, 7, 2])));
        let config = EncodeConfig { conversation_loss: ConversationLoss::LastAnswer, ..EncodeConfig::default() };
        let encoder = Encoder::new(&tokenizer, &config).unwrap();
        let sequence = encoder.completion(TextInput::Messages(&[]), TextInput::Messages(&whole), "f:1", &mut report).unwrap();
        assert_eq!(sequence, Some(TokenSequence::new(&[1, 3, 5, 4], &[7, 2])));
    }

    #[test]
    fn what_the_template_changes_before_an_answer_is_counted() {
        let template =
            "{% for m in messages %} {{ m.role }} {{ m.content }}{% endfor %}{% if add_generation_prompt %} assistant red {% endif %}";
        let tokenizer = tokenizer(None).with_chat_template(template).unwrap();
        let encoder = Encoder::new(&tokenizer, &EncodeConfig::default()).unwrap();
        let mut report = EncodeReport::default();
        let (prompt, answer) = ([say("user", "red")], [say("assistant", "blue")]);
        let sequence = encoder.completion(TextInput::Messages(&prompt), TextInput::Messages(&answer), "f:1", &mut report).unwrap();
        // The shared text ends behind "assistant ".
        assert_eq!((sequence.map(|s| s.prompt_len), report.template_mismatches), (Some(4), 1));
    }

    #[test]
    fn rows_that_cannot_be_scored_are_named() {
        let tokenizer = tokenizer(None);
        let encoder = Encoder::new(&tokenizer, &EncodeConfig::default()).unwrap();
        let shown = |prompt, completion| {
            encoder.completion(prompt, completion, "pairs.jsonl:7", &mut EncodeReport::default()).unwrap_err().to_string()
        };
        let plain = TextInput::Plain;
        assert!(shown(plain("red"), plain(" ")).starts_with("pairs.jsonl:7: the completion is empty"));
        assert!(shown(plain("red"), plain(" blue </s> </s>")).contains("two end-of-sequence tokens `</s>`"));
        assert!(shown(plain("red"), plain(" pink")).contains("at `pink`"));
        let conversation = [say("user", "red")];
        assert!(shown(plain("red"), TextInput::Messages(&conversation)).contains("the prompt is plain text, the completion is a list"));
        assert!(encoder.prompt(plain(""), "p:1").unwrap_err().to_string().starts_with("p:1: the prompt is empty"));
        assert!(Encoder::new(&tokenizer, &EncodeConfig { max_tokens: 1, ..EncodeConfig::default() }).is_err());
    }

    #[test]
    fn rows_come_in_order_and_the_first_error_counts() {
        let tokenizer = tokenizer(None);
        let encoder = Encoder::new(&tokenizer, &EncodeConfig::default()).unwrap();
        let texts: Vec<String> = (0..100).map(|row| format!(" {}", if row % 2 == 0 { "green" } else { "blue red" })).collect();
        let encode = |row: usize, report: &mut EncodeReport| {
            encoder.completion(TextInput::Plain("red"), TextInput::Plain(&texts[row]), &format!("f:{row}"), report)
        };
        let (rows, report) = Encoder::rows(100, encode).unwrap();
        assert_eq!((report.kept, report.completion_tokens), (100, 50 * 5));
        assert!(rows.iter().enumerate().all(|(row, s)| s.as_ref().unwrap().completion().len() == 2 + row % 2));
        let fail =
            |row: usize, report: &mut EncodeReport| if row < 40 { encode(row, report) } else { Err(row_error(&row.to_string(), "bad")) };
        assert_eq!(Encoder::rows(100, fail).unwrap_err().to_string(), "40: bad");
    }

    #[test]
    fn padding_is_taken_off_again() {
        let sequences = [TokenSequence::new(&[1, 5], &[6]), TokenSequence::new(&[7], &[5, 6, 0, 2])];
        for side in [PaddingSide::Left, PaddingSide::Right] {
            let batch = PaddedBatch::new(&sequences, side, 0);
            assert_eq!((batch.width, batch.n_rows()), (5, 2));
            assert_eq!(batch.sequences().unwrap(), sequences);
        }
        let left = PaddedBatch::new(&sequences, PaddingSide::Left, 0);
        assert_eq!(left.ids, [0, 0, 1, 5, 6, 7, 5, 6, 0, 2]);
        let mut torn = left.clone();
        torn.attention_mask[7] = false;
        assert!(torn.sequences().unwrap_err().to_string().contains("row 1: padding stands between tokens"));
        let mut torn = left;
        torn.completion_mask[9] = false;
        assert!(torn.sequences().unwrap_err().to_string().contains("row 1: the completion is not the end"));
        assert_eq!(PaddedBatch::new(&[], PaddingSide::Left, 0).sequences().unwrap(), []);
    }

    #[test]
    fn a_shown_batch_has_a_line_per_token() {
        let tokenizer = tokenizer(Some("<s>"));
        let sequences = [TokenSequence::new(&[1, 5], &[6, 2]), TokenSequence::new(&[1, 5], &[2])];
        let shown = show(&tokenizer, &sequences, PaddingSide::Right).unwrap();
        assert!(shown.contains("row 1: 2 prompt, 1 completion, 1 padding tokens\n  | <s> red </s>\n"), "{shown}");
        assert!(shown.contains("\n         2         6  completion  green\n"), "{shown}");
        assert!(shown.contains("\n         -         0  padding     <pad>\n"), "{shown}");
        assert!(show(&tokenizer, &[TokenSequence::new(&[99], &[1])], PaddingSide::Left).unwrap_err().to_string().contains("row 0"));
    }
}
