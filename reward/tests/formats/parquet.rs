//! Parquet files that pyarrow and `datasets` wrote.

use super::*;

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

/// A pair of segments of `steps` steps whose numbers are all the same, save one.
fn constant_row(id: usize, steps: usize) -> Row {
    let segment = |last: f32| {
        let mut actions = vec![0.5; steps];
        actions[steps - 1] = last;
        Segment { steps, observations: vec![0.25; steps], actions, ..Segment::default() }
    };
    let pair = SegmentPair { chosen: segment(1.0), rejected: segment(2.0) };
    Row::Segments(Preference { id: id.to_string(), pair, ..Preference::default() })
}

fn write_parquet(rows: &[Row]) -> Scratch {
    let file = Scratch::new("pairs.parquet", "");
    let mut writer = PreferenceWriter::create(file.path()).unwrap();
    rows.iter().for_each(|row| writer.write(row).unwrap());
    writer.finish().unwrap();
    file
}

#[test]
fn rows_are_limited_by_what_they_decode_to() {
    // Four lists of a million numbers each, of which the file holds little more than that they are long.
    let steps = 1_000_000;
    let long = constant_row(0, steps);
    let file = write_parquet(std::slice::from_ref(&long));
    let n_bytes = std::fs::metadata(file.path()).unwrap().len();
    assert!(n_bytes < 100_000, "{n_bytes} bytes are no short file");
    // A number in single precision takes 8 bytes with its levels.
    let open =
        |file: &Scratch, max_line_bytes, skip_bad_rows| PreferenceFile::open(file.path(), &ReadOptions { skip_bad_rows, max_line_bytes });
    for skip_bad_rows in [false, true] {
        match open(&file, 32 * steps, skip_bad_rows) {
            Err(RewardError::Content { reason, .. }) => {
                assert!(reason.contains("a row of row group 1 takes") && reason.contains("raise `max_line_bytes`"), "{reason}");
            }
            other => panic!("{other:?}"),
        }
    }
    let (rows, _) = open(&file, 33 * steps, false).unwrap().read().unwrap();
    assert_eq!(rows, [long]);

    // Among short rows the long one is a bad row like a long line.
    let rows: Vec<Row> = (0..100).map(|id| constant_row(id, if id == 40 { 100_000 } else { 10 })).collect();
    let file = write_parquet(&rows);
    let (read, report) = open(&file, 500_000, true).unwrap().read().unwrap();
    assert_eq!((read.len(), report.bad, report.bad_rows[0].line), (99, 1, 41));
    let reason = &report.bad_rows[0].reason;
    assert!(reason.contains("takes 800000 bytes in this row, more than 500000; raise `max_line_bytes`"), "{reason}");
    assert_eq!(read, rows.iter().filter(|row| row.id() != "40").cloned().collect::<Vec<_>>());
}
