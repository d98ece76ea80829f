//! A row as a file spells it, before it is checked: the meeting point of the JSONL and the Parquet reader.

use std::borrow::Cow;

use super::column;
use super::prompt::{shared_messages, shared_prefix};
use super::row::{Entry, Row, RowKind};
use crate::preference::{Message, Preference, Segment, SegmentPair, Text, TextCompletion, TextPair, TextPrompt, Truth};

/// Why an identical pair is a bad row.
pub(crate) const IDENTICAL: &str = "`chosen` and `rejected` are the same; such a pair teaches nothing: remove it";

/// A single value of a column.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Scalar<'a> {
    Bool(bool),
    /// Whole numbers of every width that files hold.
    Whole(i128),
    Real(f64),
    Text(Cow<'a, str>),
    /// A list or an object.
    Nested,
}

impl Scalar<'_> {
    fn describe(&self) -> String {
        match self {
            Self::Bool(value) => value.to_string(),
            Self::Whole(value) => value.to_string(),
            Self::Real(value) => value.to_string(),
            Self::Text(_) => "text".to_string(),
            Self::Nested => "a list or an object".to_string(),
        }
    }

    fn number(&self, column: &str) -> Result<f64, String> {
        let number = match self {
            Self::Whole(value) => *value as f64,
            Self::Real(value) => *value,
            other => return Err(format!("`{column}` must be a number, got {}", other.describe())),
        };
        if number.is_finite() { Ok(number) } else { Err(format!("`{column}` must be finite, got {number}")) }
    }

    fn truth(&self, column: &str) -> Result<bool, String> {
        match self {
            Self::Bool(value) => Ok(*value),
            Self::Whole(0) => Ok(false),
            Self::Whole(1) => Ok(true),
            other => Err(format!("`{column}` must be true or false, got {}", other.describe())),
        }
    }

    fn name(self, column: &str) -> Result<String, String> {
        match self {
            Self::Text(text) => Ok(text.into_owned()),
            Self::Whole(value) => Ok(value.to_string()),
            other => Err(format!("`{column}` must be text or a whole number, got {}", other.describe())),
        }
    }
}

/// Numbers in steps of one width.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Matrix {
    pub steps: usize,
    pub width: usize,
    pub numbers: Vec<f32>,
}

impl Matrix {
    /// Closes a step whose numbers have been pushed.
    pub(crate) fn close_step(&mut self, at: impl Fn() -> String) -> Result<(), String> {
        let width = self.numbers.len() - self.steps * self.width;
        if self.steps == 0 {
            self.width = width;
        } else if width != self.width {
            return Err(format!("{}: step {} has width {width}, step 1 has width {}", at(), self.steps + 1, self.width));
        }
        self.steps += 1;
        Ok(())
    }
}

/// A segment before it is checked.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct SegmentDraft {
    pub observations: Option<Matrix>,
    pub actions: Option<Matrix>,
    pub rewards: Option<Vec<f32>>,
    pub terminated: bool,
    pub policy: String,
}

impl SegmentDraft {
    /// The segment, if its parts fit together; the rest is for [`check_segment_pair`].
    fn assemble(self, side: &str) -> Result<Segment, String> {
        let missing = |field: &str| format!("`{side}` has no `{field}`; a segment needs `observations` and `actions`");
        let observations = self.observations.ok_or_else(|| missing("observations"))?;
        let actions = self.actions.ok_or_else(|| missing("actions"))?;
        let steps = observations.steps;
        if steps == 0 || observations.width == 0 {
            return Err(format!("`{side}.observations` is empty; a segment has at least one step"));
        }
        if actions.steps != steps {
            return Err(format!("`{side}` has {steps} observations but {} actions; there is one action for each", actions.steps));
        }
        if actions.width == 0 {
            return Err(format!("`{side}.actions` holds empty actions"));
        }
        Ok(Segment {
            steps,
            observations: observations.numbers,
            actions: actions.numbers,
            rewards: self.rewards.unwrap_or_default(),
            terminated: self.terminated,
            policy: self.policy,
        })
    }
}

/// One of the two things before it is checked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Side<'a> {
    Plain(Cow<'a, str>),
    Messages(Vec<Message>),
    Segment(SegmentDraft),
}

impl Side<'_> {
    fn describe(&self) -> &'static str {
        match self {
            Self::Plain(_) => "text",
            Self::Messages(_) => "a list of messages",
            Self::Segment(_) => "a segment",
        }
    }
}

/// A row before it is checked.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Draft<'a> {
    pub id: Option<Scalar<'a>>,
    pub prompt: Option<Side<'a>>,
    pub conversations: Option<Side<'a>>,
    pub chosen: Option<Side<'a>>,
    pub rejected: Option<Side<'a>>,
    pub completion: Option<Side<'a>>,
    pub messages: Option<Side<'a>>,
    pub text: Option<Side<'a>>,
    pub equal: Option<Scalar<'a>>,
    pub label: Option<Scalar<'a>>,
    pub margin: Option<f32>,
    pub annotator: Option<Scalar<'a>>,
    pub flipped: Option<Scalar<'a>>,
    pub gold_chosen: Option<Scalar<'a>>,
    pub gold_rejected: Option<Scalar<'a>>,
    pub logp_ref_chosen: Option<Scalar<'a>>,
    pub logp_ref_rejected: Option<Scalar<'a>>,
    /// Columns that are not read.
    pub unknown: Vec<String>,
}

impl<'a> Draft<'a> {
    /// Where the column of a text or segment belongs.
    pub(crate) fn side_mut(&mut self, name: &str) -> Option<&mut Option<Side<'a>>> {
        Some(match name {
            "prompt" => &mut self.prompt,
            "conversations" => &mut self.conversations,
            "chosen" => &mut self.chosen,
            "rejected" => &mut self.rejected,
            "completion" => &mut self.completion,
            "messages" => &mut self.messages,
            "text" => &mut self.text,
            _ => return None,
        })
    }

    /// Where the column of a single value belongs; `margin` is none of them, as it is read in single precision.
    pub(crate) fn scalar_mut(&mut self, name: &str) -> Option<&mut Option<Scalar<'a>>> {
        Some(match name {
            "id" => &mut self.id,
            "equal" => &mut self.equal,
            "label" => &mut self.label,
            "annotator_id" => &mut self.annotator,
            "flipped" => &mut self.flipped,
            "gold_chosen" => &mut self.gold_chosen,
            "gold_rejected" => &mut self.gold_rejected,
            "logp_ref_chosen" => &mut self.logp_ref_chosen,
            "logp_ref_rejected" => &mut self.logp_ref_rejected,
            _ => return None,
        })
    }

    /// The row, or the reason why it cannot be used.
    pub(crate) fn finish(self, line: u64, kind: RowKind) -> Result<Entry, String> {
        match kind {
            RowKind::Pairs => self.finish_pair(line),
            RowKind::JudgedCompletions | RowKind::Completions => self.finish_completion(line, kind),
            RowKind::Prompts => self.finish_prompt(line),
        }
    }

    fn finish_pair(mut self, line: u64) -> Result<Entry, String> {
        let (chosen, rejected) = match (self.chosen.take(), self.rejected.take()) {
            (Some(chosen), Some(rejected)) => (chosen, rejected),
            (None, None) => return Err(self.missing_side("no `chosen` and no `rejected`")),
            (None, Some(_)) => return Err(self.missing_side("no `chosen`")),
            (Some(_), None) => return Err(self.missing_side("no `rejected`")),
        };
        let equal = self.is_tie()?;
        if self.margin.is_some_and(|margin| !margin.is_finite()) {
            return Err("`margin` must be finite".to_string());
        }
        let (id, missing_id) = self.take_id(line)?;
        let annotator = self.annotator.take().map(|name| name.name("annotator_id")).transpose()?;
        let truth = Truth {
            flipped: self.flipped.take().map(|value| value.truth("flipped")).transpose()?,
            gold_chosen: self.gold_chosen.take().map(|value| value.number("gold_chosen")).transpose()?,
            gold_rejected: self.gold_rejected.take().map(|value| value.number("gold_rejected")).transpose()?,
        };
        let margin = self.margin;
        let reference = |value: Option<Scalar<'_>>, column: &str| value.map(|value| value.number(column)).transpose();
        let reference_log_probs = match (
            reference(self.logp_ref_chosen.take(), "logp_ref_chosen")?,
            reference(self.logp_ref_rejected.take(), "logp_ref_rejected")?,
        ) {
            (Some(chosen), Some(rejected)) => match [chosen, rejected].iter().find(|&&log_prob| log_prob > 0.0) {
                None => Some([chosen, rejected]),
                Some(log_prob) => {
                    return Err(format!("a log-probability is at most 0, but `logp_ref_chosen` or `logp_ref_rejected` is {log_prob}"));
                }
            },
            (None, None) => None,
            _ => return Err("only one of `logp_ref_chosen` and `logp_ref_rejected` is given; give both or none".to_string()),
        };
        let row = match (chosen, rejected) {
            (Side::Segment(chosen), Side::Segment(rejected)) => {
                if let Some(prompt) = self.prompt.or(self.conversations) {
                    return Err(format!("a pair of segments has no prompt, but `prompt` holds {}", prompt.describe()));
                }
                let pair = SegmentPair { chosen: chosen.assemble("chosen")?, rejected: rejected.assemble("rejected")? };
                check_segment_pair(&pair)?;
                Row::Segments(Preference { id, pair, equal, margin, annotator, truth, reference_log_probs })
            }
            (chosen, rejected) => {
                let pair = assemble_texts(self.prompt, self.conversations, chosen, rejected)?;
                check_text_pair(&pair)?;
                Row::Texts(Preference { id, pair, equal, margin, annotator, truth, reference_log_probs })
            }
        };
        Ok(Entry::new(line, row, missing_id, self.unknown))
    }

    fn take_id(&mut self, line: u64) -> Result<(String, bool), String> {
        match self.id.take() {
            Some(id) => Ok((id.name("id")?, false)),
            None => Ok((line.to_string(), true)),
        }
    }

    fn finish_completion(mut self, line: u64, kind: RowKind) -> Result<Entry, String> {
        let label = self.label.take().map(|value| value.truth("label")).transpose()?;
        if kind == RowKind::JudgedCompletions && label.is_none() {
            return Err(self.missing("no `label`", kind, "a judged completion has `prompt`, `completion` and `label` (true or false)"));
        }
        let (id, missing_id) = self.take_id(line)?;
        let wholes = [("messages", self.messages.take()), ("text", self.text.take())];
        let mut wholes = wholes.into_iter().filter_map(|(name, side)| Some((name, side?)));
        let (prompt, completion) = match (self.completion.take(), wholes.next()) {
            (Some(_), Some((name, _))) => return Err(format!("both `completion` and `{name}` are given; keep one")),
            (Some(completion), None) => {
                let prompt = match (self.prompt.take(), self.conversations.take()) {
                    (Some(_), Some(_)) => return Err("both `prompt` and `conversations` are given; keep one".to_string()),
                    (prompt, conversations) => prompt.or(conversations),
                };
                assemble_completion(prompt, completion)?
            }
            (None, Some((name, whole))) => {
                if let Some((other, _)) = wholes.next() {
                    return Err(format!("both `{name}` and `{other}` are given; keep one"));
                }
                if self.prompt.is_some() || self.conversations.is_some() {
                    return Err(format!("`{name}` is the whole text, but there is a prompt besides; write `prompt` and `completion`"));
                }
                (None, whole_text(whole, name)?)
            }
            (None, None) => match (self.conversations.take(), &self.prompt) {
                (Some(whole), None) if kind == RowKind::Completions => (None, whole_text(whole, "conversations")?),
                (conversations, _) => {
                    self.conversations = conversations;
                    let remedy = match kind {
                        RowKind::JudgedCompletions => "a judged completion has `prompt`, `completion` and `label` (true or false)",
                        _ => "a text to imitate is `prompt` and `completion`, or the whole as `messages` or `text`",
                    };
                    return Err(self.missing("no `completion`", kind, remedy));
                }
            },
        };
        let prompt = prompt.unwrap_or_else(|| match &completion {
            Text::Plain(_) => Text::Plain(String::new()),
            Text::Conversation(_) => Text::Conversation(Vec::new()),
        });
        let row = TextCompletion { id, prompt, completion, label };
        check_completion(&row)?;
        Ok(Entry::new(line, Row::Completion(row), missing_id, self.unknown))
    }

    fn finish_prompt(mut self, line: u64) -> Result<Entry, String> {
        let prompt = match (self.prompt.take(), self.conversations.take()) {
            (Some(_), Some(_)) => return Err("both `prompt` and `conversations` are given; keep one".to_string()),
            (Some(prompt), None) => whole_text(prompt, "prompt")?,
            (None, Some(prompt)) => whole_text(prompt, "conversations")?,
            (None, None) => return Err(self.missing("no `prompt`", RowKind::Prompts, "a row is an object with `prompt`")),
        };
        let (id, missing_id) = self.take_id(line)?;
        let row = TextPrompt { id, prompt };
        check_prompt(&row)?;
        Ok(Entry::new(line, Row::Prompt(row), missing_id, self.unknown))
    }

    /// Says that a column is missing, and which one may be meant to be it.
    fn missing(&self, missing: &str, kind: RowKind, remedy: &str) -> String {
        let has = |name: &str| self.unknown.iter().any(|unknown| unknown == name);
        if kind != RowKind::Pairs && has("chosen") && has("rejected") {
            return format!("{missing}: the row is a pair (`chosen`, `rejected`); {remedy}");
        }
        let mut reason = missing.to_string();
        if self.unknown.is_empty() {
            reason += &format!("; {remedy}");
        } else {
            let shown: Vec<String> = self.unknown.iter().take(20).map(|name| shorten(name)).collect();
            reason += &format!("; the columns that are not read are {}", shown.join(", "));
        }
        for name in &self.unknown {
            if let Some(meant) = column::suggestion(name, kind) {
                reason += &format!("; did you mean `{meant}` by `{}`?", shorten(name));
                break;
            }
        }
        reason
    }

    /// Says that sides are missing, and what the row may be instead of a pair.
    fn missing_side(&self, missing: &str) -> String {
        let has = |name: &str| self.unknown.iter().any(|unknown| unknown == name);
        if has("completion") {
            return "the row is a single judged completion (`completion`, `label`), not a pair; two completions of the same prompt \
                    make a pair: write them as `prompt`, `chosen`, `rejected`"
                .to_string();
        }
        if has("chosen_ids") || has("chosen_input_ids") {
            return "the row holds token numbers; write the texts themselves as `prompt`, `chosen`, `rejected`".to_string();
        }
        self.missing(missing, RowKind::Pairs, "a row is an object with `chosen` and `rejected`")
    }

    fn is_tie(&mut self) -> Result<bool, String> {
        let equal = self.equal.take().map(|value| value.truth("equal")).transpose()?;
        let label = match self.label.take() {
            // Words belong to somebody else's scheme; the order of the pair is what counts here.
            None => None,
            Some(Scalar::Text(_) | Scalar::Nested) => {
                self.unknown.push("label".to_string());
                None
            }
            Some(Scalar::Bool(true) | Scalar::Whole(1)) => Some(false),
            Some(Scalar::Real(1.0)) => Some(false),
            Some(Scalar::Real(0.5)) => Some(true),
            Some(other) => {
                return Err(format!(
                    "`label` is {}; in a row with `chosen` and `rejected` it is 1 or, for a tie, 0.5: swap the two if `rejected` won",
                    other.describe()
                ));
            }
        };
        match (equal, label) {
            (Some(equal), Some(label)) if equal != label => Err(format!("`equal` is {equal}, but `label` says the opposite")),
            (equal, label) => Ok(equal.or(label).unwrap_or(false)),
        }
    }
}

/// A name, cut so that a message stays readable.
pub(crate) fn shorten(name: &str) -> String {
    match name.char_indices().nth(40) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.to_string(),
    }
}

/// Why a pair of segments cannot be used, if it cannot. Readers and writers refuse the same.
pub(crate) fn check_segment_pair(pair: &SegmentPair) -> Result<(), String> {
    check_segment("chosen", &pair.chosen)?;
    check_segment("rejected", &pair.rejected)?;
    let widths = |segment: &Segment| [segment.observations.len() / segment.steps, segment.actions.len() / segment.steps];
    for (field, (a, b)) in ["observations", "actions"].into_iter().zip(widths(&pair.chosen).into_iter().zip(widths(&pair.rejected))) {
        if a != b {
            return Err(format!("`chosen.{field}` has width {a}, `rejected.{field}` has width {b}; both come from one task"));
        }
    }
    let (long, short, name) = if pair.chosen.steps < pair.rejected.steps {
        (&pair.rejected, &pair.chosen, "chosen")
    } else {
        (&pair.chosen, &pair.rejected, "rejected")
    };
    if short.steps < long.steps && !short.terminated {
        return Err(format!(
            "`{name}` has {} steps, the other {}; a shorter segment must end with the end of the task (`terminated`: true)",
            short.steps, long.steps
        ));
    }
    let (a, b) = (&pair.chosen, &pair.rejected);
    if a.observations == b.observations && a.actions == b.actions && a.terminated == b.terminated {
        return Err(IDENTICAL.to_string());
    }
    Ok(())
}

/// Why a segment cannot be used, if it cannot: arrays that do not fit its steps, numbers that are not finite.
fn check_segment(side: &str, segment: &Segment) -> Result<(), String> {
    let Segment { steps, observations, actions, rewards, .. } = segment;
    let steps = *steps;
    for (field, numbers) in [("observations", observations), ("actions", actions)] {
        if steps == 0 || numbers.is_empty() || !numbers.len().is_multiple_of(steps) {
            return Err(format!("`{side}.{field}` holds {} numbers for {steps} steps", numbers.len()));
        }
    }
    if !rewards.is_empty() && rewards.len() != steps {
        return Err(format!("`{side}` has {steps} observations but {} rewards; leave `rewards` out or give one for each", rewards.len()));
    }
    for (field, numbers) in [("observations", observations), ("actions", actions), ("rewards", rewards)] {
        if let Some((at, number)) = numbers.iter().enumerate().find(|(_, number)| !number.is_finite()) {
            let step = at * steps / numbers.len() + 1;
            return Err(format!("`{side}.{field}`, step {step}: {number} is not a finite 32-bit number"));
        }
    }
    Ok(())
}

/// The pair that the columns of a row stand for.
fn assemble_texts(
    prompt: Option<Side<'_>>,
    conversations: Option<Side<'_>>,
    chosen: Side<'_>,
    rejected: Side<'_>,
) -> Result<TextPair, String> {
    let prompt = match (prompt, conversations) {
        (Some(_), Some(_)) => return Err("both `prompt` and `conversations` are given; keep one".to_string()),
        (prompt, conversations) => prompt.or(conversations),
    };
    Ok(match (prompt, chosen, rejected) {
        (Some(Side::Segment(_)), _, _) => return Err("`prompt` must be text or a list of messages, got a segment".to_string()),
        (Some(Side::Plain(prompt)), Side::Plain(chosen), Side::Plain(rejected)) => TextPair {
            prompt: Text::Plain(prompt.into_owned()),
            chosen: Text::Plain(chosen.into_owned()),
            rejected: Text::Plain(rejected.into_owned()),
        },
        (None, Side::Plain(chosen), Side::Plain(rejected)) => {
            let end = shared_prefix(&chosen, &rejected);
            TextPair {
                prompt: Text::Plain(chosen[..end].to_string()),
                chosen: Text::Plain(chosen[end..].to_string()),
                rejected: Text::Plain(rejected[end..].to_string()),
            }
        }
        (Some(Side::Messages(prompt)), Side::Plain(chosen), Side::Plain(rejected)) => {
            let answer =
                |text: Cow<'_, str>| Text::Conversation(vec![Message { role: "assistant".to_string(), content: text.into_owned() }]);
            TextPair { prompt: Text::Conversation(prompt), chosen: answer(chosen), rejected: answer(rejected) }
        }
        (Some(Side::Messages(prompt)), Side::Messages(chosen), Side::Messages(rejected)) => {
            TextPair { prompt: Text::Conversation(prompt), chosen: Text::Conversation(chosen), rejected: Text::Conversation(rejected) }
        }
        // Beside whole conversations a prompt in plain text only repeats their beginning.
        (prompt, Side::Messages(mut chosen), Side::Messages(mut rejected)) => {
            let n_shared = shared_messages(&chosen, &rejected);
            rejected.drain(..n_shared);
            let mut shared: Vec<Message> = chosen.drain(..n_shared).collect();
            if let (true, Some(Side::Plain(prompt))) = (shared.is_empty(), prompt)
                && !prompt.trim().is_empty()
            {
                shared.push(Message { role: "user".to_string(), content: prompt.into_owned() });
            }
            TextPair { prompt: Text::Conversation(shared), chosen: Text::Conversation(chosen), rejected: Text::Conversation(rejected) }
        }
        (_, chosen, rejected) => {
            return Err(format!("`chosen` is {}, `rejected` is {}; both must be the same", chosen.describe(), rejected.describe()));
        }
    })
}

/// A prompt, if there is one, and what answers it.
fn assemble_completion(prompt: Option<Side<'_>>, completion: Side<'_>) -> Result<(Option<Text>, Text), String> {
    Ok(match (prompt, completion) {
        (Some(Side::Segment(_)), _) => return Err("`prompt` must be text or a list of messages, got a segment".to_string()),
        (_, Side::Segment(_)) => return Err("`completion` must be text or a list of messages, got a segment".to_string()),
        (Some(Side::Messages(prompt)), Side::Plain(text)) => {
            let answer = Message { role: "assistant".to_string(), content: text.into_owned() };
            (Some(Text::Conversation(prompt)), Text::Conversation(vec![answer]))
        }
        (Some(Side::Plain(prompt)), Side::Messages(completion)) => {
            let asked = match prompt.trim().is_empty() {
                true => Vec::new(),
                false => vec![Message { role: "user".to_string(), content: prompt.into_owned() }],
            };
            (Some(Text::Conversation(asked)), Text::Conversation(completion))
        }
        (prompt, completion) => (prompt.map(|prompt| whole_text(prompt, "prompt")).transpose()?, whole_text(completion, "completion")?),
    })
}

fn whole_text(side: Side<'_>, name: &str) -> Result<Text, String> {
    match side {
        Side::Plain(text) => Ok(Text::Plain(text.into_owned())),
        Side::Messages(messages) => Ok(Text::Conversation(messages)),
        Side::Segment(_) => Err(format!("`{name}` must be text or a list of messages, got a segment")),
    }
}

/// Why a single completion cannot be used, if it cannot. Readers and writers refuse the same.
pub(crate) fn check_completion(row: &TextCompletion) -> Result<(), String> {
    match (&row.prompt, &row.completion) {
        (_, completion) if completion.is_blank() => {
            Err("the completion is empty; an empty answer cannot be learned from: remove the row".to_string())
        }
        (Text::Plain(_), Text::Plain(_)) | (Text::Conversation(_), Text::Conversation(_)) => Ok(()),
        _ => Err("one of prompt and completion is text, the other a list of messages; both must be the same".to_string()),
    }
}

/// Why a prompt cannot be used, if it cannot. Readers and writers refuse the same.
pub(crate) fn check_prompt(row: &TextPrompt) -> Result<(), String> {
    if row.prompt.is_blank() { Err("`prompt` is empty; remove the row".to_string()) } else { Ok(()) }
}

/// Why a pair of texts cannot be used, if it cannot. Readers and writers refuse the same.
pub(crate) fn check_text_pair(pair: &TextPair) -> Result<(), String> {
    let TextPair { prompt, chosen, rejected } = pair;
    if chosen == rejected {
        return Err(IDENTICAL.to_string());
    }
    let is_blank = match (prompt, chosen, rejected) {
        (_, Text::Plain(_), Text::Plain(_)) | (Text::Conversation(_), Text::Conversation(_), Text::Conversation(_)) => {
            [chosen.is_blank(), rejected.is_blank()]
        }
        // Read again, what both conversations begin with becomes the prompt and is no part of the answers.
        (Text::Plain(_), Text::Conversation(chosen), Text::Conversation(rejected)) => {
            let n_shared = shared_messages(chosen, rejected);
            [chosen, rejected].map(|messages| messages[n_shared..].iter().all(|message| message.content.trim().is_empty()))
        }
        _ => return Err("one of `chosen` and `rejected` is text, the other a list of messages; both must be the same".to_string()),
    };
    match is_blank {
        [true, _] => Err("`chosen` is empty; an empty answer cannot be scored: remove the pair".to_string()),
        [_, true] => Err("`rejected` is empty; an empty answer cannot be scored: remove the pair".to_string()),
        _ => Ok(()),
    }
}
