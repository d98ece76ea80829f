//! Preference files: what is read, what is refused and how it is said, and that nothing is lost on the way.
#![allow(clippy::unwrap_used)]

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
    assert_bad_line(GOOD, r#"{"prompt":"p","chosen":"a"}"#, &["pairs.jsonl:2: no `rejected`"]);
    assert_bad_line(
        GOOD,
        r#"{"prompt":"p","choosen":"a","rejected":"b"}"#,
        &["pairs.jsonl:2: no `chosen`; ", "choosen", "did you mean `chosen`"],
    );
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

#[test]
fn bad_segments_are_named_with_line_and_reason() {
    let bad = |chosen: &str, rejected: &str| format!(r#"{{"chosen":{chosen},"rejected":{rejected}}}"#);
    let good = r#"{"observations":[[1,2]],"actions":[[0.5]]}"#;
    let cases: [(&str, &str, &[&str]); 15] = [
        (r#"{"observations":[[1,2],[3]],"actions":[[1],[1]]}"#, good, &["`chosen.observations`: step 2 has width 1, step 1 has width 2"]),
        (r#"{"observations":[[1,null]],"actions":[[1]]}"#, good, &["`chosen.observations, step 1`", "null"]),
        (r#"{"observations":[[1,2],null],"actions":[[1],[1]]}"#, good, &["`chosen.observations, step 2`", "null"]),
        (r#"{"observations":[[1,NaN]],"actions":[[1]]}"#, good, &["NaN at column 31 is not a number"]),
        (r#"{"observations":[[1,1e39]],"actions":[[1]]}"#, good, &["`chosen.observations, step 1`", "number out of range"]),
        (r#"{"observations":[[1,2]],"actions":[1e39]}"#, good, &["`chosen.actions`, step 1: inf is not a finite"]),
        (r#"{"observations":[[1,2]],"actions":[[1],[2]]}"#, good, &["1 observations but 2 actions"]),
        (r#"{"observations":[[1,2]],"actions":[[1]],"rewards":[1,2]}"#, good, &["1 observations but 2 rewards"]),
        (r#"{"observations":[],"actions":[]}"#, good, &["`chosen.observations` is empty"]),
        (r#"{"observations":[[1,2]]}"#, good, &["`chosen` has no `actions`"]),
        (good, good, &["are the same"]),
        (good, r#"{"observations":[[1,2],[3,4]],"actions":[[1],[2]]}"#, &["`chosen` has 1 steps, the other 2", "terminated"]),
        (good, r#"{"observations":[[1,2,3]],"actions":[[1]]}"#, &["width 2, `rejected.observations` has width 3"]),
        (
            r#"{"observations":[[1,2,3]],"actions":[[0.5]]}"#,
            r#"{"observations":[[1,2,4]],"actions":[[0.5]]}"#,
            &["width 3", "but 2 and 1 in the first row"],
        ),
        (r#"{"role":"user","observations":[[1,2]],"actions":[[0.5]]}"#, good, &["neither a message", "nor a segment"]),
    ];
    for (chosen, rejected, parts) in cases {
        assert_bad_line(SEGMENT, bad(chosen, rejected), parts);
    }
    assert_bad_line(SEGMENT, GOOD, &["a pair of texts, but the first row is a pair of segments"]);
}

#[test]
fn shorter_segments_may_end_with_the_task() {
    let short =
        r#"{"chosen":{"observations":[[1]],"actions":[2],"terminated":true},"rejected":{"observations":[[1],[2]],"actions":[0,1]}}"#;
    let (rows, report) = jsonl(short).read().unwrap();
    let Row::Segments(row) = &rows[0] else { panic!("not segments") };
    assert_eq!((row.pair.chosen.steps, row.pair.rejected.steps), (1, 2));
    assert_eq!(row.pair.rejected.actions, [0.0, 1.0]);
    assert!(row.pair.chosen.terminated);
    assert_eq!((row.id.as_str(), report.missing_ids), ("1", 1));
}

#[test]
fn whole_files_that_cannot_be_used_say_what_to_do() {
    let cases: [(&str, &[u8], &str); 11] = [
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b"\xEF\xBB\xBF\r\n \n", "holds no rows"),
        ("a.json", b" [\n{\"chosen\":\"a\"}]", "jq -c '.[]'"),
        ("a.jsonl", b"\x1F\x8B\x08\0", "compressed with gzip"),
        ("a.jsonl", b"\xFF\xFE{\0", "UTF-16"),
        ("a.csv", b"chosen,rejected\na,b\n", "neither JSONL"),
        ("a.parquet", b"{\"chosen\":\"a\"}", "does not begin with PAR1"),
        ("a.parquet", b"PAR1", "may be damaged or cut off"),
        ("a.parquet", b"PAR1\0\0\0\0PAR1", "may be damaged or cut off"),
        ("a.parquet", b"PARE\0\0\0\0", "encrypted"),
        ("a.parquet", b"", "is empty"),
    ];
    for (name, contents, part) in cases {
        let shown = match Scratch::new(name, contents).open() {
            Err(error @ RewardError::Content { .. }) => error.to_string(),
            other => panic!("{name}: {other:?}"),
        };
        assert!(shown.contains(name) && shown.contains(part), "{part} is not in: {shown}");
    }
    let missing = PreferenceFile::open("no/such/file.jsonl", &ReadOptions::default()).unwrap_err();
    assert!(matches!(missing, RewardError::File { action: "open", .. }), "{missing}");
    let folder = Scratch::new("x", "");
    let shown = PreferenceFile::open(folder.folder.path(), &ReadOptions::default()).unwrap_err().to_string();
    assert!(shown.contains("is a folder"), "{shown}");
    let all_bad = jsonl("{}\n{}\n").open_skipping().unwrap_err().to_string();
    assert!(all_bad.contains("no row can be used; the first, in line 1: no `chosen` and no `rejected`"), "{all_bad}");
}

#[test]
fn a_bad_first_row_is_an_error_at_once_or_skipped() {
    let file = jsonl(format!("{{}}\n{GOOD}\n"));
    assert!(matches!(file.open(), Err(RewardError::Row { line: 1, .. })));
    let (rows, report) = file.open_skipping().unwrap().read().unwrap();
    assert_eq!((rows.len(), report.bad), (1, 1));
}

#[test]
fn line_ends_empty_lines_and_the_byte_order_mark_are_tolerated() {
    let (a, b) = (r#"{"prompt":"p","chosen":"a","rejected":"b"}"#, r#"{"prompt":"q","chosen":"a","rejected":"b"}"#);
    let file = jsonl(format!("\u{FEFF}\r\n{a}\r\n\n  \t\n{b}"));
    let lines: Vec<u64> = file.open().unwrap().rows().unwrap().map(|row| row.unwrap().0).collect();
    assert_eq!(lines, [2, 5]);
    let file = jsonl(format!("\u{FEFF}{a}\n"));
    assert_eq!(file.read().unwrap().0.len(), 1);
}

#[test]
fn the_last_line_may_lack_its_end_but_not_its_contents() {
    let whole = format!("{GOOD}\n{}", GOOD.replace('p', "q"));
    for cut in 1..GOOD.len() {
        let file = jsonl(&whole[..whole.len() - cut]);
        match file.read() {
            Err(RewardError::Row { line: 2, reason, .. }) => assert!(reason.contains("was cut off"), "{reason}"),
            other => panic!("cut {cut}: {other:?}"),
        }
    }
    assert_eq!(jsonl(&whole).read().unwrap().0.len(), 2);
}

#[test]
fn a_long_line_is_a_bad_row_and_the_next_one_is_read() {
    let long = format!(r#"{{"prompt":"{}","chosen":"a","rejected":"b"}}"#, "x".repeat(1000));
    let last = GOOD.replace('p', "q");
    let file = jsonl(format!("{GOOD}\n{long}\n{last}\n"));
    let options = ReadOptions { skip_bad_rows: true, max_line_bytes: GOOD.len() };
    let open = PreferenceFile::open(file.path(), &options).unwrap();
    let mut rows = open.rows().unwrap();
    let lines: Vec<u64> = rows.by_ref().map(|row| row.unwrap().0).collect();
    assert_eq!((lines, rows.n_bad()), (vec![1, 3], 1));
    let (_, report) = open.read().unwrap();
    assert!(report.bad_rows[0].reason.contains("longer than 42 bytes; raise `max_line_bytes`"), "{:?}", report.bad_rows);
    // One byte less refuses the good ones, too.
    let options = ReadOptions { max_line_bytes: GOOD.len() - 1, ..options };
    assert!(PreferenceFile::open(file.path(), &options).is_err());
}

#[test]
fn prompts_are_found_in_whole_conversations() {
    let pair = text_pair(r#"{"chosen":"\n\nHuman: Hi\n\nAssistant: Hello there","rejected":"\n\nHuman: Hi\n\nAssistant: Help"}"#);
    assert_eq!(pair, TextPair { prompt: plain("\n\nHuman: Hi\n\nAssistant:"), chosen: plain(" Hello there"), rejected: plain(" Help") });
    let pair = text_pair(
        r#"{"chosen":[{"role":"user","content":"Hi"},{"role":"assistant","content":"a"}],"rejected":[{"role":"user","content":"Hi"},{"role":"assistant","content":"b"}]}"#,
    );
    let expected = TextPair { prompt: chat(&[("user", "Hi")]), chosen: chat(&[("assistant", "a")]), rejected: chat(&[("assistant", "b")]) };
    assert_eq!(pair, expected);
    // The older spelling, and one message instead of a list.
    let older =
        r#"{"conversations":[{"from":"human","value":"Hi"}],"chosen":{"from":"gpt","value":"a"},"rejected":{"from":"gpt","value":"b"}}"#;
    assert_eq!(text_pair(older), expected);
    // A prompt in plain text beside whole conversations, and before answers in plain text.
    let both = r#"{"prompt":"Hi","chosen":[{"role":"user","content":"Hi"},{"role":"assistant","content":"a"}],"rejected":[{"role":"user","content":"Hi"},{"role":"assistant","content":"b"}]}"#;
    assert_eq!(text_pair(both), expected);
    let mixed = r#"{"prompt":"Hi","chosen":[{"role":"assistant","content":"a"}],"rejected":[{"role":"assistant","content":"b"}]}"#;
    assert_eq!(text_pair(mixed), expected);
    let answers = r#"{"prompt":[{"role":"user","content":"Hi"}],"chosen":"a","rejected":"b"}"#;
    assert_eq!(text_pair(answers), expected);
}

#[test]
fn optional_columns_are_read() {
    let line = r#"{"id":17,"prompt":"p","chosen":"a","rejected":"b","margin":0.1,"annotator_id":"ann","flipped":true,"gold_chosen":0.1,"gold_rejected":-2,"label":0.5}"#;
    let (rows, report) = jsonl(line).read().unwrap();
    let Row::Texts(row) = &rows[0] else { panic!("not texts") };
    assert_eq!((row.id.as_str(), row.margin, row.annotator.as_deref(), row.equal), ("17", Some(0.1), Some("ann"), true));
    assert_eq!(row.truth, Truth { flipped: Some(true), gold_chosen: Some(0.1), gold_rejected: Some(-2.0) });
    assert_eq!(report, ReadReport { rows: 1, used: 1, ties: 1, ..ReadReport::default() });
    let (rows, _) =
        jsonl(r#"{"chosen":"a","rejected":"b","margin":null,"flipped":null,"id":null,"label":1,"equal":false}"#).read().unwrap();
    let Row::Texts(row) = &rows[0] else { panic!("not texts") };
    assert_eq!((row.id.as_str(), row.margin, row.equal, row.truth), ("1", None, false, Truth::default()));
}

#[test]
fn the_report_counts_what_is_remarkable() {
    let lines = [
        r#"{"id":"a","prompt":"p","chosen":"x","rejected":"y","source":"web","anotator_id":"ann"}"#,
        r#"{"id":"b","prompt":"p","chosen":"y","rejected":"x","source":"web"}"#,
        r#"{"id":"c","prompt":"p","chosen":"x","rejected":"y"}"#,
        r#"{"id":"d","prompt":"q","chosen":"y","rejected":"x","equal":true}"#,
        r#"{"id":"e","prompt":"q","chosen":"x","rejected":"y","equal":true}"#,
        r#"{"prompt":"r","chosen":"x","rejected":"y"}"#,
        r#"{"prompt":"r","chosen":"x","rejected":"x"}"#,
        r#"{"prompt":"r","chosen":"x"}"#,
        r#"{"prompt":"r","chosen":[{"role":"u","content":"x","name":"n"},{"role":"u","content":"z","name":"n"}],"rejected":[{"role":"u","content":"y"}]}"#,
    ];
    let (rows, report) = jsonl(lines.join("\n")).open_skipping().unwrap().read().unwrap();
    assert_eq!(rows.len(), 7);
    assert_eq!((report.rows, report.used, report.bad, report.identical), (9, 7, 2, 1));
    assert_eq!((report.ties, report.duplicates, report.contradictions, report.missing_ids), (2, 2, 2, 2));
    let columns: Vec<_> = report.unknown_columns.iter().map(|c| (c.name.as_str(), c.rows, c.suggestion.as_deref())).collect();
    assert_eq!(columns, [("anotator_id", 1, Some("annotator_id")), ("chosen.name", 1, None), ("source", 2, None)]);
    assert_eq!(report.bad_rows.iter().map(|row| row.line).collect::<Vec<_>>(), [7, 8]);
    let warnings = report.warnings().join("\n");
    for part in ["2 of 9 rows cannot be used", "line 8: no `rejected`", "2 rows contradict", "did you mean `annotator_id`?"] {
        assert!(warnings.contains(part), "{part} is not in: {warnings}");
    }
    assert!(serde_json::to_string(&report).unwrap().contains(r#""contradictions":2"#));
}

#[test]
fn ten_bad_rows_are_shown_and_all_are_counted() {
    let file = jsonl(format!("{GOOD}\n{}", "{}\n".repeat(25)));
    let (_, report) = file.open_skipping().unwrap().read().unwrap();
    assert_eq!((report.bad, report.bad_rows.len(), report.bad_rows[9].line), (25, 10, 11));
}

#[test]
fn an_identifier_may_stand_once() {
    let line = |id: &str| format!(r#"{{{id}"prompt":"p","chosen":"a","rejected":"b"}}"#);
    let twice = jsonl([line(r#""id":"x","#), line(r#""id":"y","#), line(r#""id":"x","#)].join("\n"));
    for file in [twice.open().unwrap(), twice.open_skipping().unwrap()] {
        let shown = file.read().unwrap_err().to_string();
        assert!(shown.contains("pairs.jsonl:3: the id `x` already stands in line 1"), "{shown}");
    }
    let clash = jsonl([line(r#""id":2,"#), line("")].join("\n"));
    let shown = clash.read().unwrap_err().to_string();
    assert!(shown.contains(":2: the id `2` (the line number, as the row has none) already stands in line 1"), "{shown}");
}

#[test]
fn lines_parsed_elsewhere_are_the_same_entries() {
    let file = golden("texts.jsonl").unwrap();
    let direct: Vec<Entry> = file.entries().unwrap().map(Result::unwrap).collect();
    let lines: Vec<(u64, Vec<u8>)> = file.lines().unwrap().unwrap().map(Result::unwrap).collect();
    let parsed: Vec<Entry> = std::thread::scope(|scope| {
        let (file, (first, second)) = (&file, lines.split_at(lines.len() / 2));
        let parse =
            move |part: &[(u64, Vec<u8>)]| part.iter().map(|(line, bytes)| file.parse_line(*line, bytes).unwrap()).collect::<Vec<_>>();
        let other = scope.spawn(move || parse(second));
        let mut all = parse(first);
        all.extend(other.join().unwrap());
        all
    });
    assert_eq!(direct.len(), 40);
    assert_eq!(direct, parsed);
}

fn golden(name: &str) -> Result<PreferenceFile, RewardError> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/preferences");
    PreferenceFile::open(folder.join(name), &ReadOptions::default())
}

#[test]
fn files_of_other_programs_hold_the_same_rows_in_both_formats() {
    let files = [
        ("texts.parquet", "texts.jsonl", 40),
        ("texts_none.parquet", "texts_small.jsonl", 8),
        ("texts_gzip.parquet", "texts_small.jsonl", 8),
        ("texts_brotli.parquet", "texts_small.jsonl", 8),
        ("texts_lz4.parquet", "texts_small.jsonl", 8),
        ("texts_v2.parquet", "texts_small.jsonl", 8),
        ("conversations.parquet", "conversations.jsonl", 12),
        ("conversations_implicit.parquet", "conversations_implicit.jsonl", 12),
        ("segments.parquet", "segments.jsonl", 7),
        ("segments_double.parquet", "segments.jsonl", 7),
    ];
    for (parquet, lines, n_rows) in files {
        let file = golden(parquet).unwrap();
        assert_eq!(file.format(), Format::Parquet);
        assert!(file.lines().unwrap().is_none());
        let (rows, report) = file.read().unwrap();
        let (expected, expected_report) = golden(lines).unwrap().read().unwrap();
        assert_eq!(rows, expected, "{parquet}");
        assert_eq!((rows.len(), &report), (n_rows, &expected_report), "{parquet}");
        // A second pass finds the same.
        assert_eq!(file.rows().unwrap().map(|row| row.unwrap().1).collect::<Vec<_>>(), expected);
    }
    let file = golden("segments.parquet").unwrap();
    assert_eq!((file.kind(), file.segment_widths()), (Kind::Segments, Some((3, 1))));
    let (rows, _) = golden("conversations_implicit.parquet").unwrap().read().unwrap();
    let (explicit, _) = golden("conversations.parquet").unwrap().read().unwrap();
    assert_eq!(rows, explicit);
    let (_, report) = golden("texts.parquet").unwrap().read().unwrap();
    assert_eq!(report.unknown_columns[0].name, "source");
}

#[test]
fn parquet_files_that_cannot_be_used_say_what_to_do() {
    let cases: [(&str, &[&str]); 3] = [
        ("misspelled.parquet", &["has no column `chosen`", "prompt, choosen, rejected", "did you mean `chosen` by `choosen`?"]),
        ("unpaired.parquet", &["single judged completions", "`chosen`"]),
        ("numbers.parquet", &["column `chosen` has the type INT64"]),
    ];
    for (name, parts) in cases {
        let shown = golden(name).unwrap_err().to_string();
        for part in parts {
            assert!(shown.contains(part) && shown.contains(name), "{part} is not in: {shown}");
        }
    }
    if cfg!(feature = "zstd") {
        assert_eq!(golden("texts_zstd.parquet").unwrap().read().unwrap(), golden("texts_small.jsonl").unwrap().read().unwrap());
    } else {
        let shown = golden("texts_zstd.parquet").unwrap_err().to_string();
        for part in ["`id` is compressed with zstd", "snappy", "--features zstd"] {
            assert!(shown.contains(part), "{part} is not in: {shown}");
        }
    }
}

#[test]
fn bad_rows_of_parquet_files_are_named() {
    let file = golden("bad_rows.parquet").unwrap();
    let mut rows = file.rows().unwrap();
    assert_eq!(rows.next().unwrap().unwrap().0, 1);
    let shown = rows.next().unwrap().unwrap_err().to_string();
    assert!(shown.contains("bad_rows.parquet:2: no `chosen`"), "{shown}");
    assert!(rows.next().is_none());
    let reasons: Vec<String> = file.entries().unwrap().filter_map(|entry| entry.err().map(|error| error.to_string())).collect();
    let expected = [":2: no `chosen`", ":3: `chosen` and `rejected` are the same", ":4: `margin` must be finite", ":5: `chosen` is empty"];
    assert_eq!(reasons.len(), expected.len(), "{reasons:?}");
    for (reason, part) in reasons.iter().zip(expected) {
        assert!(reason.contains(part), "{part} is not in: {reason}");
    }
}

fn any_label<P>(id: usize, pair: P, seed: u8, margin: f32, gold: f64) -> Preference<P> {
    let bit = |at: u8| seed >> at & 1 == 1;
    Preference {
        id: format!("id {id}"),
        pair,
        equal: bit(0),
        margin: bit(1).then_some(margin),
        annotator: bit(2).then(|| "ann".to_string()),
        truth: Truth { flipped: bit(3).then_some(bit(4)), gold_chosen: bit(5).then_some(gold), gold_rejected: bit(6).then_some(-gold) },
    }
}

fn finite() -> impl Strategy<Value = f32> {
    any::<u32>().prop_map(f32::from_bits).prop_filter("finite", |number| number.is_finite())
}

fn words() -> impl Strategy<Value = String> {
    prop_oneof![any::<String>(), "[a-c \\n\"\\\\]{0,6}"]
}

fn any_text_row() -> impl Strategy<Value = (TextPair, u8, f32, f64)> {
    let plain = (words(), words(), words()).prop_map(|texts| {
        let (prompt, chosen, rejected) = texts;
        TextPair { prompt: Text::Plain(prompt), chosen: Text::Plain(chosen + "x"), rejected: Text::Plain(rejected + "y") }
    });
    (plain, any::<u8>(), finite(), -1e300..1e300_f64)
}

fn any_chat() -> impl Strategy<Value = Vec<Message>> {
    proptest::collection::vec((words(), words()), 0..3)
        .prop_map(|messages| messages.iter().map(|(role, content)| message(role, content)).collect())
}

fn any_chat_row() -> impl Strategy<Value = (TextPair, u8, f32, f64)> {
    let chats = (any_chat(), any_chat(), any_chat()).prop_map(|(prompt, mut chosen, mut rejected)| {
        chosen.push(message("assistant", "x"));
        rejected.push(message("assistant", "y"));
        // The older names of roles are translated, so they do not come back.
        let present =
            |messages: Vec<Message>| Text::Conversation(messages.into_iter().filter(|m| m.role != "human" && m.role != "gpt").collect());
        TextPair { prompt: present(prompt), chosen: present(chosen), rejected: present(rejected) }
    });
    (chats, any::<u8>(), finite(), -1e300..1e300_f64)
}

fn any_segment(steps: usize, widths: (usize, usize)) -> impl Strategy<Value = Segment> {
    let numbers = |n: usize| proptest::collection::vec(finite(), n);
    (numbers(steps * widths.0), numbers(steps * widths.1), numbers(steps), any::<(bool, bool)>(), "[a-z 0-9]{0,8}").prop_map(
        move |(observations, actions, rewards, (has_rewards, terminated), policy)| {
            let rewards = if has_rewards { rewards } else { Vec::new() };
            Segment { steps, observations, actions, rewards, terminated, policy }
        },
    )
}

fn any_segment_rows() -> impl Strategy<Value = Vec<(SegmentPair, u8, f32, f64)>> {
    (1..4_usize, 1..3_usize).prop_flat_map(|widths| {
        let pair = (1..6_usize).prop_flat_map(move |steps| (any_segment(steps, widths), any_segment(steps, widths)));
        let pair = pair.prop_filter("different", |(a, b)| a.observations != b.observations);
        let pair = pair.prop_map(|(chosen, rejected)| SegmentPair { chosen, rejected });
        proptest::collection::vec((pair, any::<u8>(), finite(), -1e300..1e300_f64), 1..8)
    })
}

/// Bits of all numbers of a segment: what must come back, zeros with their sign.
fn bits(rows: &[Row]) -> Vec<u32> {
    let segments = rows.iter().filter_map(|row| match row {
        Row::Segments(row) => Some([&row.pair.chosen, &row.pair.rejected]),
        Row::Texts(_) => None,
    });
    let numbers = segments.flatten().flat_map(|segment| [&segment.observations, &segment.actions, &segment.rewards]);
    numbers.flatten().map(|number| number.to_bits()).collect()
}

fn assert_round_trip(rows: &[Row]) {
    let folder = tempfile::tempdir().unwrap();
    for name in ["pairs.jsonl", "pairs.parquet"] {
        let path = folder.path().join(name);
        let mut writer = PreferenceWriter::create(&path).unwrap();
        rows.iter().for_each(|row| writer.write(row).unwrap());
        assert!(!path.exists());
        writer.finish().unwrap();
        let (read, report) = PreferenceFile::open(&path, &ReadOptions::default()).unwrap().read().unwrap();
        assert_eq!(read, rows, "{name}");
        assert_eq!(bits(&read), bits(rows), "{name}");
        assert_eq!((report.used, report.bad, report.missing_ids), (rows.len() as u64, 0, 0));
        assert!(report.unknown_columns.is_empty(), "{report:?}");
        // Written again, the rows are the same bytes.
        let (first, again) = (std::fs::read(&path).unwrap(), folder.path().join(format!("again-{name}")));
        let mut writer = PreferenceWriter::create(&again).unwrap();
        read.iter().for_each(|row| writer.write(row).unwrap());
        writer.finish().unwrap();
        assert_eq!(std::fs::read(&again).unwrap(), first, "{name}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 4, "nothing temporary is left");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn texts_survive_both_formats(rows in proptest::collection::vec(any_text_row(), 1..8)) {
        let rows = rows.into_iter().enumerate();
        assert_round_trip(&rows.map(|(id, (pair, seed, margin, gold))| Row::Texts(any_label(id, pair, seed, margin, gold))).collect::<Vec<_>>());
    }

    #[test]
    fn conversations_survive_both_formats(rows in proptest::collection::vec(any_chat_row(), 1..8)) {
        let rows = rows.into_iter().enumerate();
        assert_round_trip(&rows.map(|(id, (pair, seed, margin, gold))| Row::Texts(any_label(id, pair, seed, margin, gold))).collect::<Vec<_>>());
    }

    #[test]
    fn segments_survive_both_formats(rows in any_segment_rows()) {
        let rows = rows.into_iter().enumerate();
        assert_round_trip(&rows.map(|(id, (pair, seed, margin, gold))| Row::Segments(any_label(id, pair, seed, margin, gold))).collect::<Vec<_>>());
    }
}

/// Reads a file to its end whatever is in it; true if every row was good.
fn read_anything(name: &str, contents: &[u8]) -> bool {
    let file = Scratch::new(name, contents);
    let options = ReadOptions { skip_bad_rows: true, max_line_bytes: 1 << 20 };
    PreferenceFile::open(file.path(), &options).and_then(|file| file.read()).is_ok_and(|(_, report)| report.bad == 0)
}

fn golden_bytes(name: &str) -> Vec<u8> {
    std::fs::read(golden(name).unwrap().path()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_bytes_are_read_or_refused(contents in proptest::collection::vec(any::<u8>(), 0..300), is_parquet in any::<bool>()) {
        let mut bytes = if is_parquet { b"PAR1".to_vec() } else { Vec::new() };
        bytes.extend_from_slice(&contents);
        read_anything("a.jsonl", &bytes);
        if is_parquet {
            bytes.extend_from_slice(&(contents.len() as u32).to_le_bytes());
            bytes.extend_from_slice(b"PAR1");
            read_anything("a.parquet", &bytes);
        }
    }

    #[test]
    fn damaged_lines_are_read_or_refused(at in any::<proptest::sample::Index>(), byte in any::<u8>(), kind in 0..3_usize) {
        let mut bytes = golden_bytes(["texts_small.jsonl", "conversations.jsonl", "segments.jsonl"][kind]);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        read_anything("a.jsonl", &bytes);
        bytes.truncate(at);
        read_anything("a.jsonl", &bytes);
    }

    #[test]
    fn damaged_parquet_is_read_or_refused(
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4),
        at_end in any::<bool>(),
        kind in 0..5_usize,
    ) {
        let name = ["texts_none.parquet", "texts.parquet", "conversations.parquet", "segments.parquet", "texts_v2.parquet"][kind];
        let mut bytes = golden_bytes(name);
        // The metadata at the end is where a wrong number does most harm.
        let start = if at_end { bytes.len().saturating_sub(1500) } else { 0 };
        for (at, byte) in &changes {
            let at = start + at.index(bytes.len() - start);
            bytes[at] = *byte;
        }
        read_anything("a.parquet", &bytes);
        let cut = start + changes[0].0.index(bytes.len() - start);
        prop_assert!(!read_anything("a.parquet", &bytes[..cut]));
    }
}

#[test]
fn rows_that_no_file_can_hold_are_refused() {
    let mut segment = Segment { steps: 1, observations: vec![f32::NAN], actions: vec![1.0], ..Segment::default() };
    let row = |chosen: &Segment| {
        let rejected = Segment { steps: 1, observations: vec![1.0], actions: vec![1.0], ..Segment::default() };
        Row::Segments(Preference { id: "s".into(), pair: SegmentPair { chosen: chosen.clone(), rejected }, ..Preference::default() })
    };
    let mut out = Vec::new();
    let shown = write_jsonl_row(&mut out, &row(&segment)).unwrap_err().to_string();
    assert!(shown.contains("pair `s`") && shown.contains("not finite"), "{shown}");
    segment.observations = vec![1.0, 2.0, 3.0];
    segment.steps = 2;
    let shown = write_jsonl_row(&mut out, &row(&segment)).unwrap_err().to_string();
    assert!(shown.contains("3 numbers for 2 steps"), "{shown}");
    assert!(out.is_empty());
}

#[test]
fn a_parquet_file_holds_one_kind_and_is_left_alone_until_it_is_whole() {
    let file = Scratch::new("pairs.parquet", "old");
    let text = Row::Texts(Preference {
        id: "t".into(),
        pair: TextPair { prompt: plain(""), chosen: plain("a"), rejected: plain("b") },
        ..Preference::default()
    });
    let talk = Row::Texts(Preference {
        id: "c".into(),
        pair: TextPair { prompt: plain(""), chosen: chat(&[("assistant", "a")]), rejected: chat(&[("assistant", "b")]) },
        ..Preference::default()
    });
    let mut writer = PreferenceWriter::create(file.path()).unwrap();
    writer.write(&text).unwrap();
    let shown = writer.write(&talk).unwrap_err().to_string();
    assert!(shown.contains("pair `c` is a pair of conversations, the first row a pair of plain texts"), "{shown}");
    drop(writer);
    assert_eq!(std::fs::read(file.path()).unwrap(), b"old");
    assert_eq!(std::fs::read_dir(file.folder.path()).unwrap().count(), 1);
    let mut writer = PreferenceWriter::create(file.path()).unwrap();
    writer.write(&talk).unwrap();
    writer.finish().unwrap();
    let (rows, _) = file.read().unwrap();
    let Row::Texts(row) = &rows[0] else { panic!("not texts") };
    assert_eq!(row.pair.prompt, chat(&[]));
    assert!(PreferenceWriter::create(file.path()).unwrap().finish().is_err());
}

#[test]
fn keys_come_in_a_fixed_order() {
    let (rows, _) = jsonl(format!("{SEGMENT}\n")).read().unwrap();
    let mut line = Vec::new();
    write_jsonl_row(&mut line, &rows[0]).unwrap();
    let expected = r#"{"id":"s","chosen":{"observations":[[1.0,2.0],[3.0,4.0]],"actions":[[0.5],[1.0]]},"rejected":{"observations":[[1.0,2.0],[3.0,5.0]],"actions":[[0.5],[1.0]]}}"#;
    assert_eq!(String::from_utf8(line).unwrap(), format!("{expected}\n"));
}

/// Peak memory of this process in bytes since the last call with true, as Linux counts it; nothing elsewhere.
fn peak_memory(is_reset: bool) -> Option<u64> {
    if is_reset {
        std::fs::write("/proc/self/clear_refs", "5").ok()?;
    }
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_ascii_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib << 10)
}

/// Numbers without a pattern that compression could find (the mixing of splitmix64).
fn scatter(a: usize, b: usize) -> u64 {
    let mut x = (a as u64) << 32 | b as u64;
    for factor in [0xBF58_476D_1CE4_E5B9_u64, 0x94D0_49BB_1331_11EB] {
        x = (x ^ x >> 30).wrapping_add(0x9E37_79B9_7F4A_7C15).wrapping_mul(factor);
    }
    x ^ x >> 31
}

fn text_row(id: usize, n_words: usize) -> Row {
    let say = |salt: usize| {
        let words = ["the ", "value ", "of ", "\"it\" ", "matters\n", "überall ", "and ", "gradient "];
        (0..n_words).map(|at| words[scatter(salt, at) as usize % words.len()]).collect::<String>()
    };
    let pair = TextPair { prompt: Text::Plain(say(id)), chosen: Text::Plain(say(id + 1) + "a"), rejected: Text::Plain(say(id + 2) + "b") };
    Row::Texts(any_label(id, pair, 0b0111_1010, 0.25, id as f64 / 3.0))
}

fn segment_row(id: usize, steps: usize) -> Row {
    let numbers = |n: usize, salt: usize| (0..n).map(|at| (scatter(id * 7 + salt, at) as u32 as f32) * 1e-7 - 200.0).collect::<Vec<f32>>();
    let segment = |salt: usize| Segment {
        steps,
        observations: numbers(steps * 17, salt),
        actions: numbers(steps * 6, salt + 1),
        rewards: numbers(steps, salt + 2),
        terminated: false,
        policy: format!("step {id}"),
    };
    let pair = SegmentPair { chosen: segment(0), rejected: segment(3) };
    Row::Segments(any_label(id, pair, 0b0111_1010, 0.25, id as f64 / 3.0))
}

#[test]
#[ignore = "writes 200 MB for each case and reports speed; run with --release and --nocapture"]
fn large_files_are_read_in_constant_memory() {
    let folder = tempfile::tempdir().unwrap();
    let cases: [(&str, usize, fn(usize) -> Row); 4] = [
        ("texts.jsonl", 200 << 20, |id| text_row(id, 100)),
        ("texts.parquet", 200 << 20, |id| text_row(id, 100)),
        ("segments.jsonl", 200 << 20, |id| segment_row(id, 25)),
        ("segments.parquet", 200 << 20, |id| segment_row(id, 25)),
    ];
    for (name, n_bytes, make) in cases {
        let path = folder.path().join(name);
        let mut writer = PreferenceWriter::create(&path).unwrap();
        let mut line = Vec::new();
        let (mut written, mut n_rows) = (0, 0);
        while written < n_bytes {
            let row = make(n_rows);
            line.clear();
            write_jsonl_row(&mut line, &row).unwrap();
            writer.write(&row).unwrap();
            written += line.len();
            n_rows += 1;
        }
        writer.finish().unwrap();
        let before = peak_memory(true);
        let clock = std::time::Instant::now();
        let file = PreferenceFile::open(&path, &ReadOptions::default()).unwrap();
        assert_eq!(file.rows().unwrap().map(|row| row.unwrap()).filter(|(_, row)| !row.id().is_empty()).count(), n_rows);
        let stream = clock.elapsed().as_secs_f64();
        let clock = std::time::Instant::now();
        file.scan(|_, _| Ok(())).unwrap();
        let scan = clock.elapsed().as_secs_f64();
        let grown = before.zip(peak_memory(false)).map(|(before, after)| after.saturating_sub(before));
        let megabytes = written as f64 / 1e6;
        println!(
            "{name}: {n_rows} rows, {megabytes:.0} MB as JSON, {} MB on disk; rows {:.0} MB/s, scan {:.0} MB/s, peak memory {:?} MB more",
            std::fs::metadata(&path).unwrap().len() / 1_000_000,
            megabytes / stream,
            megabytes / scan,
            grown.map(|bytes| bytes / 1_000_000)
        );
        assert!(grown.is_none_or(|bytes| bytes < 64 << 20), "{name}: {grown:?} bytes more");
    }
}

#[test]
#[ignore = "writes files for `tests/golden/generate/preference_files.py check`"]
fn files_for_other_readers() {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("preference_files");
    std::fs::create_dir_all(&folder).unwrap();
    for name in ["texts", "conversations", "segments"] {
        let (rows, _) = golden(&format!("{name}.jsonl")).unwrap().read().unwrap();
        write_both(&folder, name, &rows);
    }
    // Enough for several row groups.
    write_both(&folder, "large", &(0..30_000).map(|id| text_row(id, 100)).collect::<Vec<_>>());
    write_both(&folder, "large_segments", &(0..9_000).map(|id| segment_row(id, 25)).collect::<Vec<_>>());
    println!("{}", folder.display());
}

fn write_both(folder: &std::path::Path, name: &str, rows: &[Row]) {
    for extension in ["jsonl", "parquet"] {
        let mut writer = PreferenceWriter::create(folder.join(format!("{name}.{extension}"))).unwrap();
        rows.iter().for_each(|row| writer.write(row).unwrap());
        writer.finish().unwrap();
    }
}
