//! Rows that are no pairs: judged completions, texts to imitate, prompts alone, and pairs that know a reference.

use steadfast_reward::dataset::RowKind;
use steadfast_reward::{TextCompletion, TextPrompt};

use super::*;

fn open(file: &Scratch, kind: RowKind) -> Result<PreferenceFile, RewardError> {
    PreferenceFile::open_as(file.path(), kind, &ReadOptions::default())
}

/// The one row of a file.
fn one(line: &str, kind: RowKind) -> Row {
    let (rows, _) = open(&jsonl(line), kind).and_then(|file| file.read()).unwrap_or_else(|error| panic!("{line}: {error}"));
    rows.into_iter().next().unwrap()
}

fn completion(line: &str, kind: RowKind) -> (Text, Text, Option<bool>) {
    let Row::Completion(TextCompletion { prompt, completion, label, .. }) = one(line, kind) else { panic!("{line}: no completion") };
    (prompt, completion, label)
}

fn refused(line: &str, kind: RowKind, parts: &[&str]) {
    let shown = open(&jsonl(line), kind).unwrap_err().to_string();
    assert!(shown.contains("pairs.jsonl:1: ") && parts.iter().all(|part| shown.contains(part)), "{line}: {shown}");
}

fn golden_as(name: &str, kind: RowKind) -> (Vec<Row>, ReadReport) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/preferences");
    PreferenceFile::open_as(folder.join(name), kind, &ReadOptions::default()).and_then(|file| file.read()).unwrap()
}

#[test]
fn parquet_holds_the_rows_of_jsonl() {
    for (name, kind, n_rows, what) in [
        ("judged", RowKind::JudgedCompletions, 10, Kind::Completions),
        ("judged", RowKind::Completions, 10, Kind::Completions),
        ("judged", RowKind::Prompts, 10, Kind::Prompts),
        ("judged_chats", RowKind::JudgedCompletions, 6, Kind::Completions),
        ("messages", RowKind::Completions, 5, Kind::Completions),
        ("conversations_older", RowKind::Completions, 5, Kind::Completions),
        ("whole_texts", RowKind::Completions, 4, Kind::Completions),
        ("prompts", RowKind::Prompts, 4, Kind::Prompts),
        ("with_reference", RowKind::Pairs, 5, Kind::Texts),
    ] {
        let (rows, report) = golden_as(&format!("{name}.jsonl"), kind);
        let (theirs, their_report) = golden_as(&format!("{name}.parquet"), kind);
        assert_eq!((&rows, &report), (&theirs, &their_report), "{name}");
        assert_eq!((rows.len(), rows[0].kind()), (n_rows, what), "{name}");
    }
}

#[test]
fn golden_rows_say_what_was_written() {
    let (rows, report) = golden_as("judged.parquet", RowKind::JudgedCompletions);
    let Row::Completion(row) = &rows[3] else { panic!("no completion") };
    assert_eq!((&row.prompt, &row.completion, row.label), (&plain("question 3? 日本"), &plain(" answer 3 é"), Some(false)));
    assert!(report.warnings().is_empty(), "{:?}", report.warnings());
    let (rows, _) = golden_as("messages.parquet", RowKind::Completions);
    let Row::Completion(row) = &rows[1] else { panic!("no completion") };
    let whole = chat(&[("system", "be brief"), ("user", "q 1"), ("assistant", "a 1")]);
    assert_eq!((&row.id[..], &row.prompt, &row.completion), ("m1", &chat(&[]), &whole));
    let (rows, _) = golden_as("conversations_older.parquet", RowKind::Completions);
    let Row::Completion(row) = &rows[4] else { panic!("no completion") };
    assert_eq!(row.completion, chat(&[("user", "q 4"), ("assistant", "a 4")]));
    let (rows, report) = golden_as("prompts.parquet", RowKind::Prompts);
    assert_eq!(rows[2], Row::Prompt(TextPrompt { id: "3".into(), prompt: plain("tell me 2") }));
    assert_eq!(report.warnings(), ["column `answer` (4 rows) is not read"]);
    let (rows, _) = golden_as("with_reference.parquet", RowKind::Pairs);
    let Row::Texts(row) = &rows[2] else { panic!("no pair") };
    assert_eq!(row.reference_log_probs, Some([-3.5, -0.2]));
}

#[test]
fn completions_come_in_many_spellings() {
    let judged = RowKind::JudgedCompletions;
    assert_eq!(completion(r#"{"prompt":"p","completion":"c","label":true}"#, judged), (plain("p"), plain("c"), Some(true)));
    assert_eq!(completion(r#"{"completion":"c","label":0}"#, judged), (plain(""), plain("c"), Some(false)));
    let mixed = r#"{"prompt":[{"role":"user","content":"p"}],"completion":"c"}"#;
    let talk = (chat(&[("user", "p")]), chat(&[("assistant", "c")]), None);
    assert_eq!(completion(mixed, RowKind::Completions), talk);
    assert_eq!(completion(r#"{"prompt":"p","completion":[{"from":"gpt","value":"c"}]}"#, RowKind::Completions), talk);
    assert_eq!(completion(r#"{"conversations":[{"from":"human","value":"p"}],"completion":"c"}"#, RowKind::Completions), talk);
    assert_eq!(completion(r#"{"text":"t"}"#, RowKind::Completions), (plain(""), plain("t"), None));
    let whole = r#"{"conversations":[{"from":"human","value":"p"},{"from":"gpt","value":"c"}]}"#;
    assert_eq!(completion(whole, RowKind::Completions), (chat(&[]), chat(&[("user", "p"), ("assistant", "c")]), None));
    let prompt = Row::Prompt(TextPrompt { id: "1".into(), prompt: chat(&[("user", "p")]) });
    assert_eq!(one(r#"{"prompt":[{"role":"user","content":"p"}],"completion":"unread"}"#, RowKind::Prompts), prompt);
}

#[test]
fn rows_that_cannot_be_used_say_why() {
    let judged = RowKind::JudgedCompletions;
    refused(r#"{"prompt":"p","completion":"c"}"#, judged, &["no `label`", "(true or false)"]);
    refused(r#"{"prompt":"p","completion":"c","lable":true}"#, judged, &["no `label`", "did you mean `label` by `lable`?"]);
    refused(r#"{"prompt":"p","completion":"c","label":"good"}"#, judged, &["`label` must be true or false, got text"]);
    refused(r#"{"prompt":"p","label":true}"#, judged, &["no `completion`"]);
    refused(r#"{"prompt":"p","chosen":"a","rejected":"b","label":true}"#, judged, &["no `completion`", "the row is a pair"]);
    refused(r#"{"prompt":"p","completion":" ","label":true}"#, judged, &["the completion is empty"]);
    refused(r#"{"prompt":"p","completion":"c","text":"t"}"#, RowKind::Completions, &["both `completion` and `text`"]);
    refused(r#"{"messages":[{"role":"user","content":"x"}],"text":"t"}"#, RowKind::Completions, &["both `messages` and `text`"]);
    refused(r#"{"prompt":"p","text":"t"}"#, RowKind::Completions, &["`text` is the whole text"]);
    refused(r#"{"txet":"t"}"#, RowKind::Completions, &["no `completion`", "did you mean `text` by `txet`?"]);
    refused(r#"{"messages":[]}"#, RowKind::Completions, &["the completion is empty"]);
    refused(r#"{"question":"p"}"#, RowKind::Prompts, &["no `prompt`", "question"]);
    refused(r#"{"prompt":""}"#, RowKind::Prompts, &["`prompt` is empty"]);
    refused(r#"{"prompt":"p","chosen":"a","rejected":"b","logp_ref_chosen":-1}"#, RowKind::Pairs, &["only one of `logp_ref_chosen`"]);
    refused(r#"{"chosen":"a","rejected":"b","logp_ref_chosen":-1,"logp_ref_rejected":0.5}"#, RowKind::Pairs, &["at most 0", "0.5"]);
    let shown = open(&jsonl(""), judged).unwrap_err().to_string();
    assert!(shown.contains("is empty; a file of judged completions has"), "{shown}");
}

#[test]
fn missing_columns_of_parquet_are_named() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/preferences");
    let shown = |name: &str, kind| PreferenceFile::open_as(folder.join(name), kind, &ReadOptions::default()).unwrap_err().to_string();
    assert!(shown("texts.parquet", RowKind::JudgedCompletions).contains("no column `completion` and no `label`"));
    assert!(shown("texts.parquet", RowKind::Completions).contains("no column `completion`"));
    assert!(shown("whole_texts.parquet", RowKind::Prompts).contains("no column `prompt`; the columns are text"));
}

#[test]
fn opposite_judgements_are_contradictions() {
    let line = |id: u8, label: bool| format!("{{\"id\":{id},\"prompt\":\"p\",\"completion\":\"c\",\"label\":{label}}}\n");
    let lines: String = [line(1, true), line(2, false), line(3, true)].concat();
    let (_, report) = open(&jsonl(lines), RowKind::JudgedCompletions).unwrap().read().unwrap();
    assert_eq!((report.contradictions, report.duplicates), (2, 1));
}

#[test]
fn rows_are_written_as_they_are_read() {
    let single = |prompt, completion, label| Row::Completion(TextCompletion { id: "1".into(), prompt, completion, label });
    let pair = TextPair { prompt: plain("p"), chosen: plain("a"), rejected: plain("b") };
    let reference = Preference { id: "1".into(), pair, reference_log_probs: Some([-1.25, -0.1]), ..Preference::default() };
    for (row, kind) in [
        (single(plain("p"), plain("c"), Some(false)), RowKind::JudgedCompletions),
        (single(plain(""), plain("c"), None), RowKind::Completions),
        (single(chat(&[("user", "p")]), chat(&[("assistant", "c")]), Some(true)), RowKind::JudgedCompletions),
        (single(chat(&[]), chat(&[("user", "p"), ("assistant", "c")]), None), RowKind::Completions),
        (Row::Prompt(TextPrompt { id: "1".into(), prompt: plain("p") }), RowKind::Prompts),
        (Row::Prompt(TextPrompt { id: "1".into(), prompt: chat(&[("user", "p"), ("user", "q")]) }), RowKind::Prompts),
        (Row::Texts(reference), RowKind::Pairs),
    ] {
        for name in ["a.jsonl", "a.parquet"] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join(name);
            let mut writer = PreferenceWriter::create(&path).unwrap();
            writer.write(&row).unwrap();
            writer.finish().unwrap();
            let (rows, _) = PreferenceFile::open_as(&path, kind, &ReadOptions::default()).unwrap().read().unwrap();
            assert_eq!(rows, std::slice::from_ref(&row), "{name}");
        }
    }
    let blank = single(plain("p"), plain(""), None);
    assert!(write_jsonl_row(&mut Vec::new(), &blank).unwrap_err().to_string().contains("the completion is empty"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn damaged_files_are_read_or_refused(
        at in any::<proptest::sample::Index>(),
        byte in any::<u8>(),
        name in 0..5_usize,
        is_parquet in any::<bool>(),
        kind in 0..4_usize,
    ) {
        let name = ["judged", "judged_chats", "messages", "conversations_older", "whole_texts"][name];
        let name = format!("{name}.{}", if is_parquet { "parquet" } else { "jsonl" });
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/preferences");
        let mut bytes = std::fs::read(folder.join(&name)).unwrap();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let kind = [RowKind::Pairs, RowKind::JudgedCompletions, RowKind::Completions, RowKind::Prompts][kind];
        let options = ReadOptions { skip_bad_rows: true, max_line_bytes: 1 << 20 };
        for end in [bytes.len(), at] {
            let file = Scratch::new(&name, &bytes[..end]);
            let _ = PreferenceFile::open_as(file.path(), kind, &options).and_then(|file| file.read());
        }
    }
}
