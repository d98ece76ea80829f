//! Writing of preference files, in the schema that [`reader`](super::reader) reads.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::ser::{SerializeSeq as _, Serializer};

use super::draft::{check_completion, check_prompt, check_segment_pair, check_text_pair};
use super::parquet::ParquetWriter;
use super::reader::Format;
use super::row::{Row, Shape};
use crate::error::{Result, RewardError};
use crate::preference::{Preference, Segment, Text, Truth};

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
    #[serde(skip_serializing_if = "Option::is_none")]
    logp_ref_chosen: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logp_ref_rejected: Option<f64>,
}

/// A single completion, or a prompt alone, as a JSON object.
#[derive(Serialize)]
struct JsonCompletion<'a> {
    id: &'a str,
    prompt: JsonText<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    completion: Option<JsonText<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<bool>,
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
            logp_ref_chosen: row.reference_log_probs.map(|log_probs| log_probs[0]),
            logp_ref_rejected: row.reference_log_probs.map(|log_probs| log_probs[1]),
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

/// Refuses what a reader would refuse of a row.
fn check(row: &Row) -> Result<()> {
    let (margin, truth, reference, fault) = match row {
        Row::Segments(row) => (row.margin, row.truth, row.reference_log_probs, check_segment_pair(&row.pair)),
        Row::Texts(row) => (row.margin, row.truth, row.reference_log_probs, check_text_pair(&row.pair)),
        Row::Completion(row) => (None, Truth::default(), None, check_completion(row)),
        Row::Prompt(row) => (None, Truth::default(), None, check_prompt(row)),
    };
    let fault = match reference.iter().flatten().all(|log_prob| log_prob.is_finite() && *log_prob <= 0.0) {
        true => fault,
        false => Err("log-probabilities of the reference must be finite and at most 0".to_string()),
    };
    let singles = [margin.map(f64::from), truth.gold_chosen, truth.gold_rejected];
    let fault = match singles.iter().flatten().all(|number| number.is_finite()) {
        true => fault,
        false => Err("`margin` and the true values must be finite".to_string()),
    };
    fault.map_err(|reason| RewardError::Data(format!("pair `{}`: {reason}", row.id())))
}

/// Refuses what a reader would refuse of the rows of one file.
#[derive(Debug, Default)]
pub(super) struct RowCheck {
    /// The shape of the first row.
    first: Option<Shape>,
}

impl RowCheck {
    pub(super) fn check(&mut self, row: &Row) -> Result<()> {
        check(row)?;
        let first = *self.first.get_or_insert_with(|| Shape::of(row));
        first.check(row).map_err(|reason| RewardError::Data(format!("pair `{}`: {reason}", row.id())))
    }
}

/// Appends a row to `out` as one line of JSON with its line end. Keys come in a fixed order, and numbers as the shortest
/// decimal that reads back equal, so equal rows are equal bytes.
///
/// # Errors
/// [`RewardError::Data`] naming the pair if a reader would refuse the row: numbers that are not finite, arrays of a segment
/// that do not fit its steps, segments that cannot be compared, a blank answer, two that are the same.
pub fn write_jsonl_row(out: &mut Vec<u8>, row: &Row) -> Result<()> {
    check(row)?;
    append_jsonl_row(out, row)
}

/// Appends a row that has been checked.
fn append_jsonl_row(out: &mut Vec<u8>, row: &Row) -> Result<()> {
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
        Row::Completion(row) => {
            let (prompt, completion) = (JsonText(&row.prompt), Some(JsonText(&row.completion)));
            serde_json::to_writer(&mut *out, &JsonCompletion { id: &row.id, prompt, completion, label: row.label })
        }
        Row::Prompt(row) => {
            let line = JsonCompletion { id: &row.id, prompt: JsonText(&row.prompt), completion: None, label: None };
            serde_json::to_writer(&mut *out, &line)
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
    row_check: RowCheck,
}

impl<W: Write> JsonlWriter<W> {
    /// Rows will be appended to `out`, each with one call of `write_all`.
    pub fn new(out: W) -> Self {
        Self { out, line: Vec::new(), row_check: RowCheck::default() }
    }

    /// Appends a row.
    ///
    /// # Errors
    /// [`RewardError::Data`] as [`write_jsonl_row`], and if the row is of another kind or task than the first;
    /// [`RewardError::File`] if writing fails.
    pub fn write(&mut self, row: &Row) -> Result<()> {
        self.row_check.check(row)?;
        self.line.clear();
        append_jsonl_row(&mut self.line, row)?;
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
    /// [`RewardError::Data`] if the row cannot be written: as [`JsonlWriter::write`], and in a Parquet file plain texts after
    /// conversations or the other way round. [`RewardError::File`] if writing fails.
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
