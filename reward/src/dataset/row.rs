//! One row of a preference file.

use twox_hash::xxhash3_128::Hasher as Xxh3;

use crate::preference::{Segment, SegmentPreference, Text, TextCompletion, TextPreference, TextPrompt};

/// What a file is read for: which columns its rows need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum RowKind {
    /// Two things of which one was preferred: `chosen`, `rejected`, mostly `prompt`.
    #[default]
    Pairs,
    /// Single completions that somebody judged: `prompt`, `completion`, `label` (true or false).
    JudgedCompletions,
    /// Texts to imitate: `prompt` and `completion`; or the whole as `messages` (or `conversations`) or `text`. A `label` is
    /// read if there is one.
    Completions,
    /// Prompts alone: `prompt` (or `conversations`). Other columns may be there and are not read.
    Prompts,
}

/// What the rows of a file are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Trajectory segments.
    Segments,
    /// Texts.
    Texts,
    /// Single completions.
    Completions,
    /// Prompts alone.
    Prompts,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Segments => "pair of segments",
            Self::Texts => "pair of texts",
            Self::Completions => "single completion",
            Self::Prompts => "prompt",
        })
    }
}

/// A row as a file holds it.
#[derive(Debug, Clone, PartialEq)]
pub enum Row {
    /// Between two trajectory segments.
    Segments(SegmentPreference),
    /// Between two texts.
    Texts(TextPreference),
    /// A single completion.
    Completion(TextCompletion),
    /// A prompt alone.
    Prompt(TextPrompt),
}

impl Row {
    /// What the row is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Segments(_) => Kind::Segments,
            Self::Texts(_) => Kind::Texts,
            Self::Completion(_) => Kind::Completions,
            Self::Prompt(_) => Kind::Prompts,
        }
    }

    /// Identifier of the row.
    pub fn id(&self) -> &str {
        match self {
            Self::Segments(row) => &row.id,
            Self::Texts(row) => &row.id,
            Self::Completion(row) => &row.id,
            Self::Prompt(row) => &row.id,
        }
    }

    /// True if the annotator found both equally good.
    pub fn equal(&self) -> bool {
        match self {
            Self::Segments(row) => row.equal,
            Self::Texts(row) => row.equal,
            Self::Completion(_) | Self::Prompt(_) => false,
        }
    }

    /// The contents of the pair in the order of its label, and in the opposite order, as 128-bit hashes. A tie has no
    /// order, so both are the same. Of a judged completion the opposite is the opposite judgement.
    pub(crate) fn contents(&self) -> Contents {
        let (prompt, chosen, rejected) = match self {
            Self::Segments(row) => (0, hash_segment(&row.pair.chosen), hash_segment(&row.pair.rejected)),
            Self::Texts(row) => (hash_text(&row.pair.prompt), hash_text(&row.pair.chosen), hash_text(&row.pair.rejected)),
            Self::Completion(row) => {
                // The judgement stands on one of two sides, so that the opposite one is the opposite order.
                let completion = hash_text(&row.completion);
                let sides = match row.label {
                    None => (completion, completion),
                    Some(true) => (completion, 0),
                    Some(false) => (0, completion),
                };
                (hash_text(&row.prompt), sides.0, sides.1)
            }
            Self::Prompt(row) => (hash_text(&row.prompt), 0, 0),
        };
        let hash = |tag: u8, first: u128, second: u128| {
            let mut hasher = Xxh3::new();
            hasher.write(&[tag]);
            [prompt, first, second].iter().for_each(|part: &u128| hasher.write(&part.to_le_bytes()));
            hasher.finish_128()
        };
        if self.equal() {
            let both = hash(1, chosen.min(rejected), chosen.max(rejected));
            return Contents { ordered: both, reversed: both };
        }
        Contents { ordered: hash(0, chosen, rejected), reversed: hash(0, rejected, chosen) }
    }
}

/// What all rows of a file have in common, taken from the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    Texts,
    Completions,
    Prompts,
    /// Widths of observations and actions.
    Segments(usize, usize),
}

impl Shape {
    /// The shape of a row whose segments, if it has any, have at least one step.
    pub(crate) fn of(row: &Row) -> Self {
        match row {
            Row::Texts(_) => Self::Texts,
            Row::Completion(_) => Self::Completions,
            Row::Prompt(_) => Self::Prompts,
            Row::Segments(row) => {
                let segment = &row.pair.chosen;
                Self::Segments(segment.observations.len() / segment.steps, segment.actions.len() / segment.steps)
            }
        }
    }

    pub(crate) fn kind(self) -> Kind {
        match self {
            Self::Texts => Kind::Texts,
            Self::Completions => Kind::Completions,
            Self::Prompts => Kind::Prompts,
            Self::Segments(..) => Kind::Segments,
        }
    }

    /// Why a row does not fit a file whose first row has this shape, if it does not.
    pub(crate) fn check(self, row: &Row) -> Result<(), String> {
        match (self, Self::of(row)) {
            (expected, got) if expected == got => Ok(()),
            (Self::Segments(observation, action), Self::Segments(got_observation, got_action)) => Err(format!(
                "observations of width {got_observation} and actions of width {got_action}, but {observation} and {action} in the \
                 first row; all segments of a file come from one task"
            )),
            (expected, got) => Err(format!("a {}, but the first row is a {}; split the file", got.kind(), expected.kind())),
        }
    }
}

/// See [`Row::contents`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Contents {
    pub ordered: u128,
    pub reversed: u128,
}

/// A usable row with where it stood and what was remarkable about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Line of a JSONL file, row of a Parquet file, from 1.
    pub line: u64,
    /// The row itself.
    pub row: Row,
    /// True if the row has no `id`; the line number stands in for it.
    pub missing_id: bool,
    /// Names of columns that are not read.
    pub unknown: Vec<String>,
    pub(crate) contents: Contents,
}

impl Entry {
    pub(crate) fn new(line: u64, row: Row, missing_id: bool, unknown: Vec<String>) -> Self {
        let contents = row.contents();
        Self { line, row, missing_id, unknown, contents }
    }
}

/// 128-bit hash of an identifier.
pub(crate) fn hash_id(id: &str) -> u128 {
    Xxh3::oneshot(id.as_bytes())
}

fn hash_text(text: &Text) -> u128 {
    match text {
        Text::Plain(text) => Xxh3::oneshot(text.as_bytes()),
        Text::Conversation(messages) => {
            let mut hasher = Xxh3::new();
            for message in messages {
                // Lengths keep the border between two strings.
                for part in [&message.role, &message.content] {
                    hasher.write(&(part.len() as u64).to_le_bytes());
                    hasher.write(part.as_bytes());
                }
            }
            hasher.finish_128()
        }
    }
}

fn hash_segment(segment: &Segment) -> u128 {
    let mut hasher = Xxh3::new();
    hasher.write(&(segment.steps as u64).to_le_bytes());
    hasher.write(&[u8::from(segment.terminated)]);
    let mut bytes = Vec::with_capacity(4 * segment.observations.len().max(segment.actions.len()));
    for numbers in [&segment.observations, &segment.actions] {
        bytes.clear();
        // Adding zero makes one number of the two zeros, as `==` does.
        bytes.extend(numbers.iter().flat_map(|number| (number + 0.0).to_le_bytes()));
        hasher.write(&bytes);
    }
    hasher.finish_128()
}
