//! Preference files: what is read, what is refused and how it is said, and that nothing is lost on the way.

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

/// The only pair of texts of a file of one line.
fn text_pair(line: &str) -> TextPair {
    let (rows, _) = jsonl(line).read().unwrap();
    match rows.into_iter().next() {
        Some(Row::Texts(row)) => row.pair,
        other => panic!("no pair of texts: {other:?}"),
    }
}

const GOOD: &str = r#"{"prompt":"p","chosen":"a","rejected":"b"}"#;
const SEGMENT: &str = r#"{"id":"s","chosen":{"observations":[[1,2],[3,4]],"actions":[[0.5],[1]]},"rejected":{"observations":[[1,2],[3,5]],"actions":[[0.5],[1]]}}"#;

/// A good first line, then `bad`: the error must name line 2 and hold every one of the parts.
fn assert_bad_line(good: &str, bad: impl AsRef<[u8]>, parts: &[&str]) {
    let mut contents = good.as_bytes().to_vec();
    contents.push(b'\n');
    contents.extend_from_slice(bad.as_ref());
    contents.push(b'\n');
    let file = jsonl(contents);
    let error = file.read().unwrap_err();
    let shown = error.to_string();
    let RewardError::Row { line, .. } = error else { panic!("not the error of a row: {shown}") };
    assert_eq!(line, 2, "{shown}");
    assert!(shown.contains("pairs.jsonl:2: "), "{shown}");
    for part in parts {
        assert!(shown.contains(part), "`{part}` is not in: {shown}");
    }
    // The same row is counted, not lost, if bad rows are skipped.
    let (rows, report) = file.open_skipping().unwrap().read().unwrap();
    assert_eq!((rows.len(), report.rows, report.used, report.bad), (1, 2, 1, 1));
    assert_eq!(report.bad_rows[0].line, 2);
    assert!(shown.ends_with(&report.bad_rows[0].reason), "{shown}");
}

#[test]
fn explicit_prompts_are_taken_as_they_are() {
    let pair = text_pair(GOOD);
    assert_eq!(pair, TextPair { prompt: plain("p"), chosen: plain("a"), rejected: plain("b") });
}

#[test]
fn bad_lines_are_named_with_line_and_reason() {
    assert_bad_line(GOOD, r#"{"prompt":"p","chosen":"a"}"#, &["no `rejected`"]);
    assert_bad_line(GOOD, r#"{"prompt":"p","choosen":"a","rejected":"b"}"#, &["no `chosen`", "choosen", "did you mean `chosen`"]);
    assert_bad_line(GOOD, r#"{"prompt":"p","chosen":null,"rejected":"b"}"#, &["no `chosen`"]);
    assert_bad_line(GOOD, r#"{"prompt":"p","completion":"a","label":true}"#, &["single judged completion", "`rejected`"]);
    assert_bad_line(GOOD, r#"{"chosen_ids":[1],"rejected_ids":[2]}"#, &["token numbers"]);
    assert_bad_line(GOOD, r#"{"prompt":"p","chosen":"a","rejected":"a"}"#, &["are the same"]);
    assert_bad_line(GOOD, r#"{"prompt":"p","chosen":" ","rejected":"a"}"#, &["`chosen` is empty"]);
    assert_bad_line(GOOD, r#"{"prompt":"p","chosen":3,"rejected":"a"}"#, &["`chosen`", "integer `3`"]);
    assert_bad_line(GOOD, r#"{"prompt":"p","chosen":"a","chosen":"c","rejected":"b"}"#, &["`chosen` stands twice"]);
    assert_bad_line(
        GOOD,
        r#"{"prompt":"p","chosen":"a","rejected":[{"role":"u","content":"c"}]}"#,
        &["`chosen` is text", "a list of messages"],
    );
    assert_bad_line(
        GOOD,
        r#"{"chosen":[{"role":"u"}],"rejected":[{"role":"u","content":"c"}]}"#,
        &["`chosen, message 1`", "no text in `content`"],
    );
    assert_bad_line(GOOD, r#"{"chosen":[{"role":"u","content":null}],"rejected":"b"}"#, &["`chosen, message 1`", "no text in `content`"]);
    assert_bad_line(GOOD, r#"{"prompt":"p","chosen":"a","rejected":"b""#, &["does not end on this line"]);
    assert_bad_line(GOOD, r#"{"prompt":"p","chosen":"a","rejected":"b"} {}"#, &["something follows", "column 44"]);
    assert_bad_line(GOOD, r#"{"prompt":"p","chosen":"a","rejected":"b","margin":NaN}"#, &["NaN", "column 52"]);
    assert_bad_line(GOOD, r#"{"prompt":"p","chosen":"a","rejected":"b","gold_chosen":-Infinity}"#, &["-Infinity", "column 57"]);
    assert_bad_line(GOOD, r#"{"prompt":"p","chosen":"a","rejected":"b","margin":1e60}"#, &["`margin`", "number out of range"]);
    assert_bad_line(GOOD, r#"{"prompt":"p","chosen":"a","rejected":"b","flipped":"no"}"#, &["`flipped` must be true or false"]);
    assert_bad_line(GOOD, r#"{"prompt":"p","chosen":"a","rejected":"b","label":0}"#, &["`label` is 0", "swap"]);
    assert_bad_line(GOOD, r#"{"prompt":"p","chosen":"a","rejected":"b","id":1.5}"#, &["`id` must be text"]);
    assert_bad_line(GOOD, b"{\"prompt\":\"p\xFF\",\"chosen\":\"a\",\"rejected\":\"b\"}", &["not UTF-8: byte 13 ", "0xFF"]);
    assert_bad_line(GOOD, "[1]", &["an object with `chosen` and `rejected`"]);
    assert_bad_line(GOOD, "chosen,rejected", &["expected value"]);
    assert_bad_line(GOOD, SEGMENT, &["a pair of segments, but the first row is a pair of texts"]);
}
