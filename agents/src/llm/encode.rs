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

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use steadfast_envs::text::Message;

use super::encode_report::EncodeReport;
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

pub(super) fn row_error(place: &str, reason: impl Into<String>) -> AgentError {
    AgentError::Model { place: place.to_string(), reason: reason.into() }
}

/// Puts the row before an error of the tokenizer.
pub(super) fn at_row(place: &str, error: AgentError) -> AgentError {
    row_error(place, error.to_string())
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
        assert!(shown(plain("red"), plain(" pink")).contains("cannot encode `pink`"));
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
}
