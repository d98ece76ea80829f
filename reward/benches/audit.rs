//! How fast an audit of texts is, how much memory it takes, and what it finds.
//!
//! `cargo bench -p steadfast-reward --bench audit [-- --pairs N] [--words N] [--folds N] [--json]` writes made-up pairs of
//! texts to a temporary file (100000 pairs of 300 words each unless told otherwise: some 430 MB), audits it with the default
//! settings, and reports the time from opening the file to the ranking, the process's own peak of memory during that, and
//! the detection of wrong labels. A plain harness instead of criterion: a run takes a minute, not a microsecond.

#![allow(clippy::print_stdout, reason = "a benchmark answers on standard output")]

use std::time::Instant;

use steadfast_reward::audit::{AuditConfig, audit_texts};
use steadfast_reward::dataset::{PreferenceFile, PreferenceWriter, ReadOptions, Row};
use steadfast_reward::model::{HashedTextConfig, HashedTextReward};
use steadfast_reward::testing::Lexicon;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |name: &str, default: usize| {
        let at = arguments.iter().position(|a| a == name);
        at.and_then(|at| arguments.get(at + 1)).map_or(default, |text| text.parse().expect("a number follows"))
    };
    let json = arguments.iter().any(|a| a == "--json");
    let report = |case: &str, value: f64, unit: &str| {
        if json {
            println!("{{\"peer\": \"steadfast\", \"case\": \"{case}\", \"value\": {value:.4}, \"unit\": \"{unit}\"}}");
        } else {
            println!("{case:<34} {value:>12.4} {unit}");
        }
    };
    let lexicon = Lexicon { pairs: number("--pairs", 100_000), words: number("--words", 300), vocabulary: 20_000, ..Default::default() };
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("pairs.jsonl");
    let mut writer = PreferenceWriter::create(&path).expect("a new file");
    lexicon.preferences().for_each(|preference| writer.write(&Row::Texts(preference)).expect("room on the disk"));
    writer.finish().expect("room on the disk");
    report("file", std::fs::metadata(&path).expect("it was just written").len() as f64 / 1e6, "MB");

    let config = AuditConfig { folds: number("--folds", AuditConfig::texts().folds), ..AuditConfig::texts() };
    let model = HashedTextConfig::default();
    let before = peak_mb();
    let start = Instant::now();
    let file = PreferenceFile::open(&path, &ReadOptions::default()).expect("a preference file");
    let features = model.features().expect("valid settings");
    let mut passes = 0;
    let audit = audit_texts(&config, &file, &features, &mut |_| HashedTextReward::new(&model), &mut |pass, _| passes = pass);
    let audit = audit.expect("a valid audit");
    let first = audit.ranking()[0];
    report("audit", start.elapsed().as_secs_f64(), "s");
    report("passes over the file", passes as f64, "");
    report("peak memory", peak_mb(), "MB");
    report("of which before the audit", before, "MB");
    report("lowest margin", f64::from(audit.pairs[first].margin), "");
    let accuracy = audit.passes[audit.selected_pass - 1].accuracy;
    report("out-of-fold accuracy", accuracy, "");
    if let Some(found) = audit.detection {
        report("wrong labels", found.rate, "");
        report("auroc", found.auroc, "");
        report("average precision", found.average_precision, "");
    }
}

/// Peak of the resident memory; 0 where the system does not say.
fn peak_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok()).map_or(0.0, |kib| kib / 1024.0)
}
