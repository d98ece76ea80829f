//! Rows and files that cannot be used: the line, the reason, the remedy.

use super::*;

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
    assert_bad_line(GOOD, "chosen,rejected", &["expected value (column 1)"]);
    assert_bad_line(GOOD, "NaN", &["NaN at column 1 is not a number"]);
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
