//! `steadfast audit`: what it finds, what it writes, what it refuses.

use steadfast_reward::dataset::{PreferenceWriter, Row};
use steadfast_reward::testing::Lexicon;

use crate::command::{Place, names};

/// Pairs of texts from which a thousand labels teach enough.
fn write_texts(place: &Place, name: &str, pairs: usize, change: impl Fn(&mut steadfast_reward::TextPreference)) {
    let mut writer = PreferenceWriter::create(place.path(name)).unwrap();
    let lexicon = Lexicon { pairs, words: 40, vocabulary: 300, ..Default::default() };
    for mut preference in lexicon.preferences() {
        change(&mut preference);
        writer.write(&Row::Texts(preference)).unwrap();
    }
    writer.finish().unwrap();
}

struct Line {
    margin: f64,
    outlier: f64,
    suspicion: f64,
    flipped: Option<bool>,
}

fn table(place: &Place, name: &str) -> Vec<Line> {
    let bytes = place.read(name);
    let records = csv::Reader::from_reader(bytes.as_slice()).into_records();
    let line = |(i, record): (usize, Result<csv::StringRecord, csv::Error>)| {
        let record = record.unwrap();
        assert_eq!(record[0], (i + 1).to_string());
        let number = |column: usize| record[column].parse().unwrap();
        Line { margin: number(3), outlier: number(4), suspicion: number(5), flipped: record[6].parse().ok() }
    };
    records.enumerate().map(line).collect()
}

fn summary(place: &Place, name: &str) -> serde_json::Value {
    serde_json::from_slice(&place.read(name)).unwrap()
}

#[test]
fn wrong_labels_of_texts_are_ranked_first() {
    let place = Place::new();
    write_texts(&place, "pairs.jsonl", 1000, |_| {});
    let answer = place.succeed(&["audit", "pairs.jsonl", "--threads", "1"]);
    insta::assert_snapshot!("suspects", answer.out);
    assert!(!answer.err.contains("means nothing"), "{}", answer.err);
    assert_eq!(names(&place.path("pairs-audit")), ["audit.csv", "precision_recall.png", "precision_recall.svg", "summary.json"]);

    let lines = table(&place, "pairs-audit/audit.csv");
    assert_eq!(lines.len(), 1000);
    assert!(lines.windows(2).all(|w| w[0].margin <= w[1].margin && w[0].outlier >= w[1].outlier));
    assert!(lines.iter().all(|l| (l.suspicion - 1.0 / (1.0 + l.margin.exp())).abs() < 1e-5));
    let wrong = |lines: &[Line]| lines.iter().filter(|l| l.flipped == Some(true)).count() as f64 / lines.len() as f64;
    let (first, all) = (wrong(&lines[..100]), wrong(&lines));
    assert!(first > 2.5 * all, "{first} of the first hundred, {all} of all");
    let summary = summary(&place, "pairs-audit/summary.json");
    assert_eq!(summary["detection"]["rate"], all);
    assert_eq!(summary["read"]["used"], 1000);
    assert_eq!(summary["settings"]["loss"]["r3m"]["lambda"], 0.75);
    assert_eq!(summary["is_informative"], true);
}

#[test]
fn the_same_bytes_for_any_number_of_threads_and_both_formats() {
    let place = Place::new();
    write_texts(&place, "pairs.jsonl", 600, |_| {});
    write_texts(&place, "pairs.parquet", 600, |_| {});
    place.succeed(&["audit", "pairs.jsonl", "-o", "one", "--threads", "1"]);
    place.succeed(&["audit", "pairs.jsonl", "-o", "two", "--threads", "2"]);
    for file in names(&place.path("one")) {
        assert!(place.read(&format!("one/{file}")) == place.read(&format!("two/{file}")), "{file} depends on the threads");
    }
    place.succeed(&["audit", "pairs.parquet", "-o", "parquet"]);
    assert_eq!(place.read("one/audit.csv"), place.read("parquet/audit.csv"));
}

#[test]
fn without_a_truth_the_margins_are_drawn() {
    let place = Place::new();
    write_texts(&place, "pairs.jsonl", 300, |p| p.truth = Default::default());
    let answer = place.succeed(&["audit", "pairs.jsonl", "--loss", "cross_entropy", "--folds", "2", "--epochs", "2"]);
    assert!(!answer.out.contains("AUROC") && answer.out.contains("models of 2 folds"), "{}", answer.out);
    assert_eq!(names(&place.path("pairs-audit")), ["audit.csv", "margins.png", "margins.svg", "summary.json"]);
    assert!(table(&place, "pairs-audit/audit.csv").iter().all(|l| l.flipped.is_none() && l.outlier == 0.0));
    // Nothing of an audit stays when it is replaced by another.
    write_texts(&place, "known.jsonl", 300, |_| {});
    place.fail(2, &["audit", "known.jsonl", "-o", "pairs-audit"]);
    place.succeed(&["audit", "known.jsonl", "-o", "pairs-audit", "--force"]);
    assert_eq!(names(&place.path("pairs-audit")), ["audit.csv", "precision_recall.png", "precision_recall.svg", "summary.json"]);
}

#[test]
fn labels_that_nothing_explains_are_reported_as_such() {
    let place = Place::new();
    let mut writer = PreferenceWriter::create(place.path("noise.jsonl")).unwrap();
    let lexicon = Lexicon { pairs: 400, words: 20, vocabulary: 300, valued: 0.0, ..Default::default() };
    lexicon.preferences().for_each(|preference| writer.write(&Row::Texts(preference)).unwrap());
    writer.finish().unwrap();
    let answer = place.succeed(&["audit", "noise.jsonl"]);
    assert!(answer.out.contains("the ranking means nothing") && answer.err.contains("the ranking means nothing"), "{}", answer.out);
    assert_eq!(summary(&place, "noise-audit/summary.json")["is_informative"], false);
}

#[test]
fn wrong_labels_of_segments_are_ranked_first() {
    let place = Place::new();
    // The reward is the first number of the observation; labels of every seventh pair are wrong.
    let mut text = String::new();
    let mut state = 1_u64;
    let mut draw = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f64 / (1_u64 << 23) as f64 - 1.0
    };
    for i in 0..400 {
        let mut segment = || {
            let observations: Vec<[f64; 2]> = (0..5).map(|_| [draw(), draw()]).collect();
            let value: f64 = observations.iter().map(|o| o[0]).sum();
            (serde_json::json!({ "observations": observations, "actions": [0, 1, 0, 1, 1], "policy": "a dice" }), value)
        };
        let (mut a, mut b) = (segment(), segment());
        let flipped = i % 7 == 0;
        if (a.1 < b.1) != flipped {
            std::mem::swap(&mut a, &mut b);
        }
        text.push_str(&serde_json::json!({ "id": format!("s{i}"), "chosen": a.0, "rejected": b.0, "flipped": flipped }).to_string());
        text.push('\n');
    }
    place.write("segments.jsonl", &text);
    let answer = place.succeed(&["audit", "segments.jsonl", "--threads", "2"]);
    assert!(answer.out.contains("5 steps of policy `a dice`"), "{}", answer.out);
    let summary = summary(&place, "segments-audit/summary.json");
    assert_eq!(summary["kind"], "segments");
    let auroc = summary["detection"]["auroc"].as_f64().unwrap();
    assert!(auroc > 0.9, "{summary}");
    place.succeed(&["audit", "segments.jsonl", "-o", "one", "--threads", "1"]);
    assert_eq!(place.read("one/audit.csv"), place.read("segments-audit/audit.csv"));
}

#[test]
fn mistakes_are_explained() {
    let place = Place::new();
    write_texts(&place, "pairs.jsonl", 3, |_| {});
    let good = String::from_utf8(place.read("pairs.jsonl")).unwrap();
    place.write("one.jsonl", good.lines().next().unwrap());
    place.write("empty.jsonl", "");
    place.write("notes.txt", "these are not preferences\n");
    place.write("bad.jsonl", "{\"chosen\": \"a\"}\n{\"rejected\": \"b\"}\n");
    place.write("mixed.jsonl", &format!("{good}{{\"chosen\": \"a\"}}\n"));
    std::fs::create_dir(place.path("taken")).unwrap();
    place.write("taken/file", "");
    for (name, code, arguments) in [
        ("missing", 2, &["missing.jsonl"][..]),
        ("empty", 2, &["empty.jsonl"]),
        ("not_preferences", 2, &["notes.txt"]),
        ("one_pair", 2, &["one.jsonl"]),
        ("bad_row", 1, &["mixed.jsonl"]),
        ("all_bad", 2, &["bad.jsonl", "--skip-bad-rows"]),
        ("unknown_loss", 2, &["pairs.jsonl", "--loss", "r3n"]),
        ("lambda_elsewhere", 2, &["pairs.jsonl", "--loss", "hinge", "--lambda", "0.5"]),
        ("lambda_range", 2, &["pairs.jsonl", "--lambda", "-1"]),
        ("lambda_twice", 2, &["pairs.jsonl", "--loss", "{ r3m = {} }", "--lambda", "0.5"]),
        ("loss_table", 2, &["pairs.jsonl", "--loss", "{ label_smoothing = { epsilo = 0.2 } }"]),
        ("taken", 2, &["pairs.jsonl", "-o", "taken"]),
        ("folds", 2, &["pairs.jsonl", "--folds", "0"]),
    ] {
        let arguments: Vec<&str> = ["audit"].iter().chain(arguments).copied().collect();
        insta::assert_snapshot!(format!("{name}"), place.fail(code, &arguments));
    }
    let answer = place.succeed(&["audit", "mixed.jsonl", "--skip-bad-rows", "--force"]);
    assert!(answer.err.contains("1 of 4 rows cannot be used"), "{}", answer.err);
    assert_eq!(summary(&place, "mixed-audit/summary.json")["read"]["bad"], 1);
}
