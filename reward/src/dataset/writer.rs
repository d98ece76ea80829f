//! Writing of preference files, in the schema that [`reader`](super::reader) reads.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::ser::{SerializeSeq as _, Serializer};

use super::parquet::ParquetWriter;
use super::reader::Format;
use super::row::Row;
use crate::error::{Result, RewardError};
use crate::preference::{Preference, Segment, Text};

/// A row as a JSON object; the order of the fields is the order of the keys.
#[derive(Serialize)]
struct JsonRow<'a, T> {
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt: Option<JsonText<'a>>,
    chosen: T,
    rejected: T,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    equal: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    margin: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    annotator_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flipped: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gold_chosen: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gold_rejected: Option<f64>,
}

impl<'a, T> JsonRow<'a, T> {
    fn new<P>(row: &'a Preference<P>, prompt: Option<JsonText<'a>>, chosen: T, rejected: T) -> Self {
        Self {
            id: &row.id,
            prompt,
            chosen,
            rejected,
            equal: row.equal,
            margin: row.margin,
            annotator_id: row.annotator.as_deref(),
            flipped: row.truth.flipped,
            gold_chosen: row.truth.gold_chosen,
            gold_rejected: row.truth.gold_rejected,
        }
    }
}

struct JsonText<'a>(&'a Text);

impl Serialize for JsonText<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Text::Plain(text) => serializer.serialize_str(text),
            Text::Conversation(messages) => messages.serialize(serializer),
        }
    }
}

#[derive(Serialize)]
struct JsonSegment<'a> {
    observations: JsonSteps<'a>,
    actions: JsonSteps<'a>,
    #[serde(skip_serializing_if = "<[f32]>::is_empty")]
    rewards: &'a [f32],
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    terminated: bool,
    #[serde(skip_serializing_if = "str::is_empty")]
    policy: &'a str,
}

impl<'a> JsonSegment<'a> {
    fn new(segment: &'a Segment) -> Self {
        Self {
            observations: JsonSteps { steps: segment.steps, numbers: &segment.observations },
            actions: JsonSteps { steps: segment.steps, numbers: &segment.actions },
            rewards: &segment.rewards,
            terminated: segment.terminated,
            policy: &segment.policy,
        }
    }
}

/// Numbers as a list of steps.
struct JsonSteps<'a> {
    steps: usize,
    numbers: &'a [f32],
}

impl Serialize for JsonSteps<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut seq = serializer.serialize_seq(Some(self.steps))?;
        for step in self.numbers.chunks(self.numbers.len() / self.steps) {
            seq.serialize_element(step)?;
        }
        seq.end()
    }
}

/// What a reader would refuse and what no file can hold.
pub(crate) fn check(row: &Row) -> Result<()> {
    let data_error = |reason: String| Err(RewardError::Data(format!("pair `{}`: {reason}", row.id())));
    let (margin, truth) = match row {
        Row::Segments(row) => (row.margin, row.truth),
        Row::Texts(row) => (row.margin, row.truth),
    };
    let singles = [margin.map(f64::from), truth.gold_chosen, truth.gold_rejected];
    if singles.iter().flatten().any(|number| !number.is_finite()) {
        return data_error("`margin` and the true values must be finite".to_string());
    }
    let Row::Segments(row) = row else { return Ok(()) };
    for (name, segment) in [("chosen", &row.pair.chosen), ("rejected", &row.pair.rejected)] {
        let steps = segment.steps;
        for (field, numbers) in [("observations", &segment.observations), ("actions", &segment.actions)] {
            if steps == 0 || numbers.is_empty() || !numbers.len().is_multiple_of(steps) {
                return data_error(format!("`{name}.{field}` holds {} numbers for {steps} steps", numbers.len()));
            }
        }
        if !segment.rewards.is_empty() && segment.rewards.len() != steps {
            return data_error(format!("`{name}` has {} rewards for {steps} steps", segment.rewards.len()));
        }
        if [&segment.observations, &segment.actions, &segment.rewards].iter().any(|numbers| numbers.iter().any(|n| !n.is_finite())) {
            return data_error(format!("`{name}` holds a number that is not finite"));
        }
    }
    Ok(())
}

/// Appends a row to `out` as one line of JSON with its line end. Keys come in a fixed order, and numbers as the shortest
/// decimal that reads back equal, so equal rows are equal bytes.
///
/// # Errors
/// [`RewardError::Data`] if a number is not finite or the arrays of a segment do not fit its steps.
pub fn write_jsonl_row(out: &mut Vec<u8>, row: &Row) -> Result<()> {
    check(row)?;
    let written = match row {
        Row::Texts(row) => {
            let pair = &row.pair;
            let line = JsonRow::new(row, Some(JsonText(&pair.prompt)), JsonText(&pair.chosen), JsonText(&pair.rejected));
            serde_json::to_writer(&mut *out, &line)
        }
        Row::Segments(row) => {
            let (chosen, rejected) = (JsonSegment::new(&row.pair.chosen), JsonSegment::new(&row.pair.rejected));
            serde_json::to_writer(&mut *out, &JsonRow::new(row, None, chosen, rejected))
        }
    };
    written.map_err(|error| RewardError::Data(format!("pair `{}`: {error}", row.id())))?;
    out.push(b'\n');
    Ok(())
}

/// Writes rows as JSONL.
#[derive(Debug)]
pub struct JsonlWriter<W: Write> {
    out: W,
    line: Vec<u8>,
}

impl<W: Write> JsonlWriter<W> {
    /// Rows will be appended to `out`, each with one call of `write_all`.
    pub fn new(out: W) -> Self {
        Self { out, line: Vec::new() }
    }

    /// Appends a row.
    ///
    /// # Errors
    /// [`RewardError::Data`] as [`write_jsonl_row`], [`RewardError::File`] if writing fails.
    pub fn write(&mut self, row: &Row) -> Result<()> {
        self.line.clear();
        write_jsonl_row(&mut self.line, row)?;
        self.out.write_all(&self.line).map_err(stream_error)
    }

    /// Flushes and returns what was written to.
    ///
    /// # Errors
    /// [`RewardError::File`] if flushing fails.
    pub fn finish(mut self) -> Result<W> {
        self.out.flush().map_err(stream_error)?;
        Ok(self.out)
    }
}

fn stream_error(source: std::io::Error) -> RewardError {
    RewardError::File { action: "write", path: PathBuf::from("preferences"), source }
}

/// Writes a preference file in the format that its extension names, `.parquet` or anything else for JSONL.
///
/// The rows go to a temporary name beside the file, which [`Self::finish`] renames; a writer dropped before leaves an
/// existing file as it was.
#[derive(Debug)]
pub struct PreferenceWriter {
    path: PathBuf,
    temporary: PathBuf,
    sink: Option<Sink>,
}

#[derive(Debug)]
enum Sink {
    Jsonl(JsonlWriter<BufWriter<File>>),
    Parquet(Box<ParquetWriter>),
}

impl PreferenceWriter {
    /// Begins a file.
    ///
    /// # Errors
    /// [`RewardError::File`] if the temporary file cannot be created.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let is_parquet = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("parquet"));
        let format = if is_parquet { Format::Parquet } else { Format::Jsonl };
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(format!(".{}.tmp", std::process::id()));
        let temporary = path.with_file_name(name);
        let file = File::create(&temporary).map_err(|source| RewardError::File { action: "create", path: path.clone(), source })?;
        let sink = match format {
            Format::Jsonl => Sink::Jsonl(JsonlWriter::new(BufWriter::with_capacity(1 << 17, file))),
            Format::Parquet => Sink::Parquet(Box::new(ParquetWriter::new(path.clone(), file))),
        };
        Ok(Self { path, temporary, sink: Some(sink) })
    }

    /// Appends a row.
    ///
    /// # Errors
    /// [`RewardError::Data`] if the row cannot be written: numbers that are not finite, or in a Parquet file a row of
    /// another kind than the first. [`RewardError::File`] if writing fails.
    pub fn write(&mut self, row: &Row) -> Result<()> {
        let written = match self.sink.as_mut().expect("the sink is taken by `finish`, which consumes the writer") {
            Sink::Jsonl(writer) => writer.write(row),
            Sink::Parquet(writer) => writer.write(row),
        };
        written.map_err(|error| at_path(error, &self.path))
    }

    /// Completes the file and gives it its name.
    ///
    /// # Errors
    /// [`RewardError::File`] if writing or renaming fails; [`RewardError::Data`] for a Parquet file without rows.
    pub fn finish(mut self) -> Result<()> {
        let file_error = |source| RewardError::File { action: "write", path: self.path.clone(), source };
        let file = match self.sink.take().expect("the sink is taken here only") {
            Sink::Jsonl(writer) => {
                writer.finish().map_err(|error| at_path(error, &self.path))?.into_inner().map_err(|error| file_error(error.into_error()))?
            }
            Sink::Parquet(writer) => writer.finish().map_err(|error| at_path(error, &self.path))?,
        };
        file.sync_all().map_err(file_error)?;
        fs::rename(&self.temporary, &self.path).map_err(file_error)
    }
}

impl Drop for PreferenceWriter {
    fn drop(&mut self) {
        // After `finish` the temporary name is gone; otherwise nothing may be left behind, and failing to remove it is no
        // worse than leaving it.
        let _ = fs::remove_file(&self.temporary);
    }
}

/// Puts the path of the file into errors of a stream.
fn at_path(error: RewardError, path: &Path) -> RewardError {
    match error {
        RewardError::File { action, source, .. } => RewardError::File { action, path: path.to_path_buf(), source },
        other => other,
    }
}
