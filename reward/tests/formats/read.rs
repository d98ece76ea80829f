//! What rows say, and what is counted.

use super::*;

/// The only pair of texts of a file of one line.
fn text_pair(line: &str) -> TextPair {
    let (rows, _) = jsonl(line).read().unwrap();
    match rows.into_iter().next() {
        Some(Row::Texts(row)) => row.pair,
        other => panic!("no pair of texts: {other:?}"),
    }
}

#[test]
fn explicit_prompts_are_taken_as_they_are() {
    let pair = text_pair(GOOD);
    assert_eq!(pair, TextPair { prompt: plain("p"), chosen: plain("a"), rejected: plain("b") });
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
fn numbers_in_lists_are_rounded_once_and_single_ones_twice() {
    // Just above the middle of 1 and the next number in single precision; in double precision exactly the middle.
    let line = r#"{"chosen":{"observations":[[1.00000005960464477539062500001]],"actions":[1.00000005960464477539062500001]},"rejected":{"observations":[[0.1]],"actions":[0.1]}}"#;
    let (rows, _) = jsonl(line).read().unwrap();
    let Row::Segments(row) = &rows[0] else { panic!("not segments") };
    assert_eq!((row.pair.chosen.observations[0], row.pair.chosen.actions[0]), (1.0 + f32::EPSILON, 1.0));
    assert_eq!((row.pair.rejected.observations[0], row.pair.rejected.actions[0]), (0.1, 0.1));
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
