//! Preference files with one JSON object per line: splitting into lines and parsing one of them.

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::column;
use super::draft::{Draft, Matrix, Scalar, SegmentDraft, Side, shorten};
use super::row::RowKind;
use crate::error::{Result, RewardError};
use crate::preference::Message;

/// The lines of a file with their numbers, without line ends, empty ones left out.
///
/// A line longer than the limit is an error, after which the iteration goes on with the next line; after an error of the
/// file system it ends.
#[derive(Debug)]
pub struct Lines {
    path: PathBuf,
    reader: BufReader<File>,
    max_line_bytes: usize,
    line: u64,
    is_done: bool,
}

impl Lines {
    pub(crate) fn open(path: &Path, max_line_bytes: usize) -> Result<Self> {
        let file = File::open(path).map_err(|source| RewardError::File { action: "open", path: path.to_path_buf(), source })?;
        let reader = BufReader::with_capacity(1 << 17, file);
        Ok(Self { path: path.to_path_buf(), reader, max_line_bytes, line: 0, is_done: false })
    }

    /// Reads the next line into `buffer`, whose contents are replaced, and returns its number; nothing at the end.
    ///
    /// # Errors
    /// [`RewardError::Row`] if the line is longer than the limit, [`RewardError::File`] if the file cannot be read.
    pub fn next_into(&mut self, buffer: &mut Vec<u8>) -> Result<Option<u64>> {
        while !self.is_done {
            buffer.clear();
            // Room for the longest allowed line and the two bytes of its end.
            let most = (self.max_line_bytes as u64).saturating_add(2);
            let read = (&mut self.reader).take(most).read_until(b'\n', buffer).and_then(|n_bytes| {
                let is_whole = buffer.last() == Some(&b'\n');
                if n_bytes as u64 == most && !is_whole {
                    self.reader.skip_until(b'\n')?;
                }
                Ok(n_bytes)
            });
            let n_bytes = read.map_err(|source| {
                self.is_done = true;
                RewardError::File { action: "read", path: self.path.clone(), source }
            })?;
            if n_bytes == 0 {
                self.is_done = true;
                break;
            }
            self.line += 1;
            if buffer.last() == Some(&b'\n') {
                buffer.pop();
            }
            if buffer.last() == Some(&b'\r') {
                buffer.pop();
            }
            if buffer.len() > self.max_line_bytes {
                *buffer = Vec::new();
                let reason = format!("the line is longer than {} bytes; raise `max_line_bytes` if it should be", self.max_line_bytes);
                return Err(RewardError::Row { path: self.path.clone(), line: self.line, reason });
            }
            if self.line == 1 && buffer.starts_with(b"\xEF\xBB\xBF") {
                buffer.drain(..3);
            }
            if !buffer.iter().all(u8::is_ascii_whitespace) {
                return Ok(Some(self.line));
            }
        }
        Ok(None)
    }
}

impl Iterator for Lines {
    type Item = Result<(u64, Vec<u8>)>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut buffer = Vec::new();
        self.next_into(&mut buffer).map(|line| line.map(|line| (line, buffer))).transpose()
    }
}

/// Parses one line; the error is the reason in words.
pub(crate) fn parse(bytes: &[u8], kind: RowKind) -> Result<Draft<'_>, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let at = error.valid_up_to();
        format!("not UTF-8: byte {} of the line is 0x{:02X}; save the file as UTF-8", at + 1, bytes[at])
    })?;
    let mut deserializer = serde_json::Deserializer::from_str(text);
    deserializer
        .deserialize_map(RowVisitor(kind))
        .and_then(|draft| deserializer.end().map(|()| draft))
        .map_err(|error| explain(text, &error))
}

/// What a message of the parser means for the author of the file.
fn explain(text: &str, error: &serde_json::Error) -> String {
    let message = error.to_string();
    let message = message.rfind(" at line ").map_or(message.as_str(), |end| &message[..end]);
    let column = error.column();
    if message.contains("EOF while parsing") {
        return format!(
            "the object does not end on this line ({message}): the file was cut off, or an object was spread over several lines"
        );
    }
    let before = text.as_bytes().get(column.saturating_sub(2)..).unwrap_or_default();
    for (start, shown) in [(0, "NaN"), (1, "NaN"), (0, "-Infinity"), (1, "-Infinity"), (0, "Infinity"), (1, "Infinity")] {
        if before.get(start..).is_some_and(|rest| rest.starts_with(shown.as_bytes())) {
            let at = column.saturating_sub(2) + 1 + start;
            return format!("{shown} at column {at} is not a number that JSON knows; numbers must be finite");
        }
    }
    if message.contains("trailing characters") {
        return format!("something follows the object at column {column}; write one object per line");
    }
    // Columns count from 1; 0 stands for a place that the parser does not know.
    if column == 0 { message.to_string() } else { format!("{message} (column {column})") }
}

/// A key of an object, borrowed if it has no escapes.
#[derive(serde::Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

/// Puts the name of a column before the message of the parser.
fn named<E: serde::de::Error>(name: impl fmt::Display) -> impl FnOnce(E) -> E {
    move |error| {
        let message = error.to_string();
        // Messages of this file name their column themselves.
        if message.starts_with('`') { error } else { E::custom(format!("`{name}`: {message}")) }
    }
}

/// Fills a column, once.
fn fill<E: serde::de::Error, T>(slot: &mut Option<T>, is_seen: &mut bool, name: &str, value: Option<T>) -> Result<(), E> {
    if std::mem::replace(is_seen, true) {
        return Err(E::custom(format!("`{name}` stands twice in the row")));
    }
    *slot = value;
    Ok(())
}

struct RowVisitor(RowKind);

impl<'de> Visitor<'de> for RowVisitor {
    type Value = Draft<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            RowKind::Pairs => "an object with `chosen` and `rejected`",
            RowKind::JudgedCompletions => "an object with `prompt`, `completion` and `label`",
            RowKind::Completions => "an object with `prompt` and `completion`, `messages` or `text`",
            RowKind::Prompts => "an object with `prompt`",
        })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut draft = Draft::default();
        let known = column::known(self.0);
        let mut seen = vec![false; known.len()];
        while let Some(Key(key)) = map.next_key()? {
            let Some(at) = known.iter().position(|known| *known == key) else {
                map.next_value::<IgnoredAny>()?;
                draft.unknown.push(key.into_owned());
                continue;
            };
            let name = known[at];
            let is_seen = &mut seen[at];
            if column::SIDES.contains(&name) {
                let value = map.next_value_seed(SideSeed { name, unknown: &mut draft.unknown }).map_err(named(name))?;
                let slot = draft.side_mut(name).ok_or_else(|| A::Error::custom(format!("`{name}` is not read here")))?;
                fill(slot, is_seen, name, value)?;
            } else if name == "margin" {
                // Read in single precision at once: two roundings could miss the nearest number.
                let value = map.next_value().map_err(named(name))?;
                fill(&mut draft.margin, is_seen, name, value)?;
            } else {
                let value = map.next_value_seed(ScalarSeed).map_err(named(name))?;
                let slot = draft.scalar_mut(name).ok_or_else(|| A::Error::custom(format!("`{name}` is not read here")))?;
                fill(slot, is_seen, name, value)?;
            }
        }
        Ok(draft)
    }
}

/// Reads a single value; nothing for null.
struct ScalarSeed;

impl<'de> DeserializeSeed<'de> for ScalarSeed {
    type Value = Option<Scalar<'de>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ScalarSeed {
    type Value = Option<Scalar<'de>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
        Ok(Some(Scalar::Bool(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
        Ok(Some(Scalar::Whole(value.into())))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
        Ok(Some(Scalar::Whole(value.into())))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Self::Value, E> {
        Ok(Some(Scalar::Real(value)))
    }

    fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Self::Value, E> {
        Ok(Some(Scalar::Text(Cow::Borrowed(value))))
    }

    fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
        Ok(Some(Scalar::Text(Cow::Owned(value.to_string()))))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Some(Scalar::Nested))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Some(Scalar::Nested))
    }
}

/// Reads `prompt`, `chosen` or `rejected`; nothing for null.
struct SideSeed<'u> {
    name: &'static str,
    unknown: &'u mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for SideSeed<'_> {
    type Value = Option<Side<'de>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for SideSeed<'_> {
    type Value = Option<Side<'de>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text, a list of messages or a segment")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Self::Value, E> {
        Ok(Some(Side::Plain(Cow::Borrowed(value))))
    }

    fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
        Ok(Some(Side::Plain(Cow::Owned(value.to_string()))))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut messages = Vec::new();
        loop {
            let at = messages.len() + 1;
            let seed = SideSeed { name: self.name, unknown: &mut *self.unknown };
            match seq.next_element_seed(MessageSeed(seed)).map_err(named(format_args!("{}, message {at}", self.name)))? {
                Some(message) => messages.push(message),
                None => return Ok(Some(Side::Messages(messages))),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let side = self.name;
        let mut segment = SegmentDraft::default();
        let (mut role, mut content) = (None, None);
        let mut n_fields = 0_usize;
        let mut is_seen = [false; 7];
        while let Some(Key(key)) = map.next_key()? {
            n_fields += 1;
            let field = |field: &str| format!("{side}.{field}");
            match key.as_ref() {
                "observations" => {
                    let name = field("observations");
                    let value = map.next_value_seed(MatrixSeed(&name)).map_err(named(&name))?;
                    fill(&mut segment.observations, &mut is_seen[0], &name, Some(value))?;
                }
                "actions" => {
                    let name = field("actions");
                    let value = map.next_value_seed(MatrixSeed(&name)).map_err(named(&name))?;
                    fill(&mut segment.actions, &mut is_seen[1], &name, Some(value))?;
                }
                "rewards" => {
                    let name = field("rewards");
                    let value = map.next_value().map_err(named(&name))?;
                    fill(&mut segment.rewards, &mut is_seen[2], &name, value)?;
                }
                "terminated" => {
                    let name = field("terminated");
                    let mut value = None;
                    fill(&mut value, &mut is_seen[3], &name, map.next_value::<Option<bool>>().map_err(named(&name))?)?;
                    segment.terminated = value.unwrap_or(false);
                }
                "policy" => {
                    let name = field("policy");
                    let mut value = None;
                    fill(&mut value, &mut is_seen[4], &name, map.next_value::<Option<String>>().map_err(named(&name))?)?;
                    segment.policy = value.unwrap_or_default();
                }
                "role" | "from" => {
                    let name = field(&key);
                    fill(&mut role, &mut is_seen[5], &name, Some(map.next_value().map_err(named(&name))?))?;
                }
                "content" | "value" => {
                    let name = field(&key);
                    fill(&mut content, &mut is_seen[6], &name, Some(map.next_value().map_err(named(&name))?))?;
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    self.unknown.push(field(&shorten(&key)));
                }
            }
        }
        match (role, content) {
            (Some(role), Some(content)) if is_seen[..5] == [false; 5] => Ok(Some(Side::Messages(vec![message(role, content)]))),
            (None, None) if is_seen[..5] != [false; 5] => Ok(Some(Side::Segment(segment))),
            _ => Err(A::Error::custom(format!(
                "`{side}` is an object of {n_fields} fields that is neither a message (`role`, `content`) nor a segment (`observations`, `actions`)"
            ))),
        }
    }
}

/// One message, in either spelling. Roles of the older spelling get their present names.
pub(crate) fn message(role: String, content: String) -> Message {
    let role = match role.as_str() {
        "human" => "user".to_string(),
        "gpt" => "assistant".to_string(),
        _ => role,
    };
    Message { role, content }
}

struct MessageSeed<'u>(SideSeed<'u>);

impl<'de> DeserializeSeed<'de> for MessageSeed<'_> {
    type Value = Message;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for MessageSeed<'_> {
    type Value = Message;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a message with `role` and `content`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut role, mut content): (Option<String>, Option<String>) = (None, None);
        let mut is_seen = [false; 2];
        while let Some(Key(key)) = map.next_key()? {
            match key.as_ref() {
                "role" | "from" => fill(&mut role, &mut is_seen[0], &key, map.next_value()?)?,
                "content" | "value" => fill(&mut content, &mut is_seen[1], &key, map.next_value()?)?,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    self.0.unknown.push(format!("{}.{}", self.0.name, shorten(&key)));
                }
            }
        }
        match (role, content) {
            (Some(role), Some(content)) => Ok(message(role, content)),
            (None, _) => Err(A::Error::custom("no `role`")),
            _ => Err(A::Error::custom("no text in `content`")),
        }
    }
}

/// Numbers in steps: `[[..], ..]`, or `[..]` for one number per step.
struct MatrixSeed<'n>(&'n str);

impl<'de> DeserializeSeed<'de> for MatrixSeed<'_> {
    type Value = Matrix;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for MatrixSeed<'_> {
    type Value = Matrix;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of steps")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut matrix = Matrix::default();
        while seq.next_element_seed(StepSeed(&mut matrix)).map_err(named(format_args!("{}, step {}", self.0, matrix.steps + 1)))?.is_some()
        {
            matrix.close_step(|| format!("`{}`", self.0)).map_err(A::Error::custom)?;
        }
        Ok(matrix)
    }
}

/// The numbers of one step.
///
/// Whether a step is a list or a number is known only when it is read, so single numbers come in double precision. Their
/// second rounding misses the nearest number in single precision only where the first ends exactly between two of them;
/// numbers in lists are rounded once, and lists are what is written.
struct StepSeed<'m>(&'m mut Matrix);

impl<'de> DeserializeSeed<'de> for StepSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for StepSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number or a list of numbers")
    }

    fn visit_i64<E>(self, value: i64) -> Result<(), E> {
        self.0.numbers.push(value as f32);
        Ok(())
    }

    fn visit_u64<E>(self, value: u64) -> Result<(), E> {
        self.0.numbers.push(value as f32);
        Ok(())
    }

    fn visit_f64<E>(self, value: f64) -> Result<(), E> {
        self.0.numbers.push(value as f32);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while let Some(number) = seq.next_element()? {
            self.0.numbers.push(number);
        }
        Ok(())
    }
}
