//! Preference files: what is read, what is refused and how it is said, and that nothing is lost on the way.
#![allow(clippy::unwrap_used)]

mod completions;
mod damage;
mod large;
mod parquet;
mod read;
mod refused;
mod round_trip;

use std::path::PathBuf;

use proptest::prelude::*;
use steadfast_reward::dataset::{Entry, Format, Kind, PreferenceFile, PreferenceWriter, ReadOptions, ReadReport, Row, write_jsonl_row};
use steadfast_reward::{Message, Preference, RewardError, Segment, SegmentPair, Text, TextPair, Truth};
use tempfile::TempDir;

/// A file in a folder that lives as long as this.
struct Scratch {
    folder: TempDir,
    name: String,
}

impl Scratch {
    fn new(name: &str, contents: impl AsRef<[u8]>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(name), contents).unwrap();
        Self { folder, name: name.to_string() }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join(&self.name)
    }

    fn open(&self) -> Result<PreferenceFile, RewardError> {
        PreferenceFile::open(self.path(), &ReadOptions::default())
    }

    fn open_skipping(&self) -> Result<PreferenceFile, RewardError> {
        PreferenceFile::open(self.path(), &ReadOptions { skip_bad_rows: true, ..ReadOptions::default() })
    }

    fn read(&self) -> Result<(Vec<Row>, ReadReport), RewardError> {
        self.open()?.read()
    }
}

fn jsonl(contents: impl AsRef<[u8]>) -> Scratch {
    Scratch::new("pairs.jsonl", contents)
}

fn message(role: &str, content: &str) -> Message {
    Message { role: role.to_string(), content: content.to_string() }
}

fn plain(text: &str) -> Text {
    Text::Plain(text.to_string())
}

fn chat(messages: &[(&str, &str)]) -> Text {
    Text::Conversation(messages.iter().map(|(role, content)| message(role, content)).collect())
}

/// A pair of texts.
const GOOD: &str = r#"{"prompt":"p","chosen":"a","rejected":"b"}"#;
/// A pair of segments of two steps, observations of width 2, actions of width 1.
const SEGMENT: &str = r#"{"id":"s","chosen":{"observations":[[1,2],[3,4]],"actions":[[0.5],[1]]},"rejected":{"observations":[[1,2],[3,5]],"actions":[[0.5],[1]]}}"#;

/// A file of `tests/golden/generate/preference_files.py`.
fn golden(name: &str) -> Result<PreferenceFile, RewardError> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/preferences");
    PreferenceFile::open(folder.join(name), &ReadOptions::default())
}

/// A label whose optional parts are told by the bits of `seed`.
fn any_label<P>(id: usize, pair: P, seed: u8, margin: f32, gold: f64) -> Preference<P> {
    let bit = |at: u8| seed >> at & 1 == 1;
    Preference {
        id: format!("id {id}"),
        pair,
        equal: bit(0),
        margin: bit(1).then_some(margin),
        annotator: bit(2).then(|| "ann".to_string()),
        truth: Truth { flipped: bit(3).then_some(bit(4)), gold_chosen: bit(5).then_some(gold), gold_rejected: bit(6).then_some(-gold) },
        reference_log_probs: bit(7).then_some([-f64::from(margin).abs(), -gold.abs()]),
    }
}
