//! What is written comes back, to the bit.

use super::*;

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
        _ => None,
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

#[test]
fn rows_that_no_file_can_hold_are_refused() {
    let mut segment = Segment { steps: 1, observations: vec![f32::NAN], actions: vec![1.0], ..Segment::default() };
    let row = |chosen: &Segment| {
        let rejected = Segment { steps: 1, observations: vec![1.0], actions: vec![1.0], ..Segment::default() };
        Row::Segments(Preference { id: "s".into(), pair: SegmentPair { chosen: chosen.clone(), rejected }, ..Preference::default() })
    };
    let mut out = Vec::new();
    let shown = write_jsonl_row(&mut out, &row(&segment)).unwrap_err().to_string();
    assert!(shown.contains("pair `s`: `chosen.observations`, step 1: NaN is not a finite"), "{shown}");
    segment.observations = vec![1.0, 2.0, 3.0];
    segment.steps = 2;
    let shown = write_jsonl_row(&mut out, &row(&segment)).unwrap_err().to_string();
    assert!(shown.contains("3 numbers for 2 steps"), "{shown}");
    assert!(out.is_empty());
}

#[test]
fn what_a_reader_refuses_a_writer_refuses_by_the_name_of_the_pair() {
    let segment = |steps: usize, width: usize, action: f32, terminated| Segment {
        steps,
        observations: vec![1.0; steps * width],
        actions: vec![action; steps],
        terminated,
        ..Segment::default()
    };
    let segments = |id: &str, chosen: Segment, rejected: Segment| {
        Row::Segments(Preference { id: id.into(), pair: SegmentPair { chosen, rejected }, ..Preference::default() })
    };
    let texts = |id: &str, prompt: Text, chosen: Text, rejected: Text| {
        Row::Texts(Preference { id: id.into(), pair: TextPair { prompt, chosen, rejected }, ..Preference::default() })
    };
    let whole = segment(3, 2, 1.0, false);
    let mut without_reward = segment(3, 2, 0.0, false);
    without_reward.rewards = vec![1.0];
    let talk = chat(&[("assistant", "a"), ("user", "b")]);
    let bad = [
        (segments("same", whole.clone(), whole.clone()), "are the same"),
        (segments("short", whole.clone(), segment(2, 2, 1.0, false)), "`rejected` has 2 steps, the other 3"),
        (segments("wide", whole.clone(), segment(3, 4, 1.0, false)), "width 2, `rejected.observations` has width 4"),
        (segments("rewards", without_reward, whole.clone()), "3 observations but 1 rewards"),
        (segments("none", whole.clone(), Segment { terminated: true, ..Segment::default() }), "0 numbers for 0 steps"),
        (texts("same", plain("p"), plain("a"), plain("a")), "are the same"),
        (texts("blank", plain("p"), plain("a"), plain(" \n")), "`rejected` is empty"),
        (texts("kinds", plain("p"), plain("a"), talk.clone()), "both must be the same"),
        (texts("no more", plain(""), talk.clone(), chat(&[("assistant", "a"), ("user", " ")])), "`rejected` is empty"),
    ];
    let folder = tempfile::tempdir().unwrap();
    for (row, part) in bad {
        let shown = write_jsonl_row(&mut Vec::new(), &row).unwrap_err().to_string();
        assert!(shown.starts_with(&format!("pair `{}`: ", row.id())) && shown.contains(part), "{shown}");
        for name in ["pairs.jsonl", "pairs.parquet"] {
            let mut writer = PreferenceWriter::create(folder.path().join(name)).unwrap();
            assert_eq!(writer.write(&row).unwrap_err().to_string(), shown, "{name}");
        }
    }
    // What the first row allows is known only to the writer of a whole file.
    let good = segments("good", whole, segment(2, 2, 1.0, true));
    let later = [
        (
            segments("wide", segment(3, 4, 1.0, false), segment(3, 4, 0.0, false)),
            "width 4 and actions of width 1, but 2 and 1 in the first row",
        ),
        (texts("texts", plain("p"), plain("a"), plain("b")), "a pair of texts, but the first row is a pair of segments"),
    ];
    for name in ["pairs.jsonl", "pairs.parquet"] {
        let path = folder.path().join(name);
        let mut writer = PreferenceWriter::create(&path).unwrap();
        writer.write(&good).unwrap();
        for (row, part) in &later {
            let shown = writer.write(row).unwrap_err().to_string();
            assert!(shown.starts_with(&format!("pair `{}`: ", row.id())) && shown.contains(part), "{name}: {shown}");
        }
        writer.finish().unwrap();
        let (rows, _) = PreferenceFile::open(&path, &ReadOptions::default()).unwrap().read().unwrap();
        assert_eq!(rows, std::slice::from_ref(&good), "{name}: refused rows leave nothing behind");
    }
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
