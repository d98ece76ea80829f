//! Audits find planted wrong labels, and nothing else decides what they find.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use steadfast_envs::{Rng, SeedTree};
use steadfast_reward::audit::{Audit, AuditConfig, AuditedPair, audit_segments, audit_texts};
use steadfast_reward::dataset::{PreferenceFile, PreferenceWriter, ReadOptions, Row};
use steadfast_reward::margin::{CrossEntropyConfig, DropConfig};
use steadfast_reward::metrics::{auroc, average_precision};
use steadfast_reward::model::{HashedTextConfig, HashedTextReward, MlpRewardConfig};
use steadfast_reward::testing::Lexicon;
use steadfast_reward::{
    LossConfig, R3mConfig, Result, RewardError, RobustLogistic, Segment, SegmentPair, SegmentPreference, Text, TextPair, TextPreference,
    Truth,
};

fn write(path: &Path, rows: impl IntoIterator<Item = Row>) -> PreferenceFile {
    let mut writer = PreferenceWriter::create(path).unwrap();
    rows.into_iter().for_each(|row| writer.write(&row).unwrap());
    writer.finish().unwrap();
    PreferenceFile::open(path, &ReadOptions::default()).unwrap()
}

/// The file, and the directory that goes away with it.
fn texts(lexicon: &Lexicon) -> (PreferenceFile, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let file = write(&directory.path().join("pairs.jsonl"), lexicon.preferences().map(Row::Texts));
    (file, directory)
}

fn audit(config: &AuditConfig, file: &PreferenceFile) -> Result<Audit> {
    let model = HashedTextConfig { bits: 16, ..Default::default() };
    audit_texts(config, file, &model.features().unwrap(), &mut |_| HashedTextReward::new(&model), &mut |_, _| {})
}

/// Few valued words that occur often: what a linear reward can learn from a thousand pairs.
fn easy() -> Lexicon {
    Lexicon { pairs: 1500, words: 40, vocabulary: 300, ..Default::default() }
}

#[test]
fn wrong_labels_of_texts_come_first() {
    let (file, _directory) = texts(&easy());
    let audit = audit(&AuditConfig::texts(), &file).unwrap();
    let found = audit.detection.unwrap();
    assert!((0.15..0.35).contains(&found.rate), "{found:?}");
    assert!(found.auroc > 0.8, "{found:?}");
    assert!(found.average_precision > 2.0 * found.rate, "{found:?}");
    assert!(audit.chance() < 1e-6, "{}", audit.chance());
    // The figures are those of the metrics, on what the audit says of each pair.
    let flipped: Vec<bool> = audit.pairs.iter().map(|p| p.flipped.unwrap()).collect();
    let suspicion: Vec<f32> = audit.pairs.iter().map(|p| -p.margin).collect();
    assert_eq!(found.auroc, auroc(&suspicion, &flipped).unwrap());
    assert_eq!(found.average_precision, average_precision(&suspicion, &flipped).unwrap());
    // The order is that of the margins, δ and suspicion follow from them.
    let ranking = audit.ranking();
    assert!(ranking.windows(2).all(|w| audit.pairs[w[0]].margin <= audit.pairs[w[1]].margin));
    let loss = RobustLogistic::new(&R3mConfig::default()).unwrap();
    for pair in &audit.pairs {
        assert_eq!(pair.outlier, loss.outlier(pair.margin));
        assert!((pair.suspicion() - 1.0 / (1.0 + pair.margin.exp())).abs() < 1e-6);
    }
}

/// A model that has learned labels by heart finds them right: steps are ten times as large as usual here.
#[test]
fn pairs_are_judged_better_out_of_fold() {
    let (file, _directory) = texts(&Lexicon { pairs: 800, words: 60, vocabulary: 2000, ..easy() });
    let config = AuditConfig { epochs: 5, learning_rate: 3.0, ..AuditConfig::texts() };
    let out_of_fold = audit(&config, &file).unwrap();
    let in_sample = audit(&AuditConfig { folds: 1, ..config }, &file).unwrap();
    let accuracy = |audit: &Audit| audit.passes[audit.selected_pass - 1].accuracy;
    assert!(accuracy(&in_sample) > accuracy(&out_of_fold) + 0.1);
    let (a, b) = (out_of_fold.detection.unwrap(), in_sample.detection.unwrap());
    assert!(a.auroc > b.auroc + 0.02, "out of fold {a:?}, in sample {b:?}");
    assert!(a.average_precision > b.average_precision + 0.02, "out of fold {a:?}, in sample {b:?}");
}

/// The margin of a pair must not depend on its own label: the fold's model has not seen it.
#[test]
fn a_pair_turned_around_gets_the_negative_margin() {
    let lexicon = Lexicon { pairs: 300, ..easy() };
    let directory = tempfile::tempdir().unwrap();
    let plain: Vec<TextPreference> = lexicon.preferences().collect();
    let mut turned = plain.clone();
    let pair = &mut turned[7].pair;
    std::mem::swap(&mut pair.chosen, &mut pair.rejected);
    // One pass: which pass is selected depends on all labels.
    let config = AuditConfig { epochs: 1, ..AuditConfig::texts() };
    let margin = |name: &str, rows: Vec<TextPreference>| {
        let file = write(&directory.path().join(name), rows.into_iter().map(Row::Texts));
        audit(&config, &file).unwrap().pairs[7].margin
    };
    let (a, b) = (margin("plain.jsonl", plain), margin("turned.jsonl", turned));
    assert!(a != 0.0 && (a + b).abs() < 1e-5, "{a} and {b}");
}

#[test]
fn nothing_depends_on_threads_or_format() {
    let lexicon = Lexicon { pairs: 700, ..easy() };
    let (file, directory) = texts(&lexicon);
    let config = AuditConfig { folds: 3, epochs: 2, ..AuditConfig::texts() };
    let with_threads = |n: usize, file: &PreferenceFile| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
        pool.install(|| audit(&config, file).unwrap())
    };
    let one = with_threads(1, &file);
    assert_eq!(one, with_threads(2, &file));
    assert_eq!(one, with_threads(7, &file));
    let parquet = write(&directory.path().join("pairs.parquet"), lexicon.preferences().map(Row::Texts));
    assert_eq!(one.pairs, with_threads(2, &parquet).pairs);
}

#[test]
fn random_labels_are_no_better_than_chance() {
    // Texts say nothing about the labels: no word has a value.
    let (file, _directory) = texts(&Lexicon { valued: 0.0, pairs: 600, ..easy() });
    let audit = audit(&AuditConfig::texts(), &file).unwrap();
    assert!(audit.chance() > 0.01, "{} at {:?}", audit.chance(), audit.passes);
}

#[test]
fn folds_are_even_and_seeded() {
    let config = AuditConfig { folds: 5, ..AuditConfig::texts() };
    let mut counts = [0; 5];
    (0..1003).for_each(|row| counts[config.fold(row)] += 1);
    assert!(counts.iter().all(|&n| (200..=201).contains(&n)), "{counts:?}");
    let other = AuditConfig { seed: 1, ..config.clone() };
    assert!((0..100).any(|row| config.fold(row) != other.fold(row)));
    assert!((0..100).all(|row| AuditConfig { folds: 1, ..AuditConfig::texts() }.fold(row) == 0));
}

#[test]
fn ties_are_not_ranked_and_wanted_margins_count() {
    let directory = tempfile::tempdir().unwrap();
    let mut rows: Vec<TextPreference> = Lexicon { pairs: 200, ..easy() }.preferences().collect();
    rows[3].equal = true;
    rows[4].margin = Some(2.5);
    let mut without = rows.clone();
    without[4].margin = None;
    let config = AuditConfig { epochs: 1, ..AuditConfig::texts() };
    let run = |name: &str, rows: &[TextPreference]| {
        audit(&config, &write(&directory.path().join(name), rows.iter().cloned().map(Row::Texts))).unwrap()
    };
    let (with, without) = (run("with.jsonl", &rows), run("without.jsonl", &without));
    assert_eq!((with.ranking().len(), with.report.ties), (199, 1));
    assert!(!with.ranking().contains(&3) && with.pairs[3].outlier == 0.0);
    // The pair's own judge has not seen it, so only the subtraction differs.
    assert!((without.pairs[4].margin - with.pairs[4].margin - 2.5).abs() < 1e-5);
}

#[test]
fn losses_differ_and_filtering_leaves_pairs_out() {
    let (file, _directory) = texts(&Lexicon { pairs: 300, ..easy() });
    let run = |loss: LossConfig| audit(&AuditConfig { loss, epochs: 2, ..AuditConfig::texts() }, &file).unwrap();
    let plain = run(LossConfig::CrossEntropy(CrossEntropyConfig::default()));
    assert!(plain.pairs.iter().all(|p| p.outlier == 0.0));
    assert_eq!(plain.pairs, run(LossConfig::Filtered(DropConfig { fraction: 0.0 })).pairs);
    assert_ne!(plain.pairs, run(LossConfig::Filtered(DropConfig { fraction: 0.2 })).pairs);
    assert_ne!(plain.pairs, run(LossConfig::R3m(R3mConfig { lambda: 0.3 })).pairs);
}

#[test]
fn impossible_settings_and_files_are_refused() {
    let (file, directory) = texts(&Lexicon { pairs: 3, ..easy() });
    let error = |config: AuditConfig| audit(&config, &file).unwrap_err().to_string();
    let defaults = AuditConfig::texts;
    assert_eq!(error(AuditConfig { folds: 0, ..defaults() }), "`folds` must be between 1 and 100, got 0");
    assert_eq!(error(AuditConfig { epochs: 0, ..defaults() }), "`epochs` must be between 1 and 100000, got 0");
    let (single, _directory) = texts(&Lexicon { pairs: 1, ..easy() });
    let text = audit(&defaults(), &single).unwrap_err().to_string();
    assert_eq!(text, "`pairs` must be at least 2 with a label, got 1");
    // More folds than pairs leave one out at a time.
    assert!(audit(&AuditConfig { folds: 7, ..defaults() }, &file).unwrap().pairs.iter().all(|p| p.margin != 0.0));
    // A file that changes while it is read.
    let path = directory.path().join("pairs.jsonl");
    let more = std::fs::read_to_string(&path).unwrap().replace("pair-", "other-");
    let model = HashedTextConfig { bits: 8, ..Default::default() };
    let mut is_appended = false;
    let result = audit_texts(&defaults(), &file, &model.features().unwrap(), &mut |_| HashedTextReward::new(&model), &mut |pass, _| {
        if pass == 2 && !std::mem::replace(&mut is_appended, true) {
            std::fs::write(&path, &more).unwrap();
        }
    });
    assert!(matches!(&result, Err(RewardError::Data(reason)) if reason.contains("changed")), "{result:?}");
}

/// A random policy's segments under a linear reward, labelled without error, then flipped.
fn segments(n: usize, flips: f64, discrete: bool) -> Vec<SegmentPreference> {
    let seeds = SeedTree::new(5);
    let segment = |rng: &mut Rng| {
        let (mut segment, mut value) = (Segment { steps: 10, ..Default::default() }, 0.0);
        for _ in 0..10 {
            let observation = [rng.normal_f32(), rng.normal_f32()];
            let action = if discrete { rng.below(3) as f32 } else { rng.normal_f32() };
            value += f64::from(observation[0] - 0.5 * observation[1] + action);
            segment.observations.extend(observation);
            segment.actions.push(action);
        }
        (segment, value)
    };
    let pair = |i: usize| {
        let mut rng = seeds.index(i as u64).rng();
        let (mut a, mut b) = (segment(&mut rng), segment(&mut rng));
        let is_flipped = rng.unit() < flips;
        if (a.1 < b.1) != is_flipped {
            std::mem::swap(&mut a, &mut b);
        }
        let truth = Truth { flipped: Some(is_flipped), gold_chosen: Some(a.1), gold_rejected: Some(b.1) };
        SegmentPreference { id: format!("{i}"), pair: SegmentPair { chosen: a.0, rejected: b.0 }, truth, ..Default::default() }
    };
    (0..n).map(pair).collect()
}

#[test]
fn wrong_labels_of_segments_come_first() {
    let directory = tempfile::tempdir().unwrap();
    for discrete in [false, true] {
        let rows = segments(500, 0.15, discrete).into_iter().map(Row::Segments);
        let file = write(&directory.path().join(format!("{discrete}.jsonl")), rows);
        let run = |config: &AuditConfig, threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| audit_segments(config, &MlpRewardConfig::default(), &file, &|_| {}).unwrap())
        };
        let config = AuditConfig { epochs: 6, ..AuditConfig::segments() };
        let audit = run(&config, 1);
        assert_eq!(audit, run(&config, 2));
        let found = audit.detection.unwrap();
        assert!(found.auroc > 0.9 && found.average_precision > 0.6, "discrete {discrete}: {found:?}");
        let in_sample = run(&AuditConfig { folds: 1, epochs: 60, ..config.clone() }, 2).detection.unwrap();
        assert!(found.auroc > in_sample.auroc, "out of fold {found:?}, in sample {in_sample:?}");
        let filtered = run(&AuditConfig { loss: LossConfig::Filtered(DropConfig { fraction: 0.15 }), ..config }, 2).detection.unwrap();
        assert!(filtered.auroc > 0.9, "{filtered:?}");
    }
}

#[test]
fn kinds_are_not_confused() {
    let directory = tempfile::tempdir().unwrap();
    let file = write(&directory.path().join("a.jsonl"), segments(4, 0.0, false).into_iter().map(Row::Segments));
    assert!(audit(&AuditConfig::texts(), &file).is_err());
    let (file, _directory) = texts(&Lexicon { pairs: 4, ..easy() });
    assert!(audit_segments(&AuditConfig::segments(), &MlpRewardConfig::default(), &file, &|_| {}).is_err());
}

/// Against the exact binomial sums: 21700 and 616666 of 2^20.
#[test]
fn chance_is_binomial() {
    let audit = |right: usize, n: usize| {
        let pair = |i: usize| {
            let preference = TextPreference { pair: TextPair { prompt: Text::default(), ..Default::default() }, ..Default::default() };
            AuditedPair { margin: if i < right { 1.0 } else { -1.0 }, ..AuditedPair::new(&preference, i as u64 + 1) }
        };
        let loss = LossConfig::default().build().unwrap();
        let pairs: Vec<AuditedPair> = (0..n).map(pair).collect();
        let margins: Vec<f32> = pairs.iter().map(|p| p.margin).collect();
        let passes = vec![steadfast_reward::audit::PassReport::new(1, &margins, &loss)];
        Audit::new(pairs, Default::default(), passes, 1, &loss).chance()
    };
    assert!((audit(15, 20) - 0.020_694_732_666_015_625).abs() < 1e-12);
    assert!((audit(10, 20) - 0.588_098_526_000_976_6).abs() < 1e-12);
    // The normal law with a correction for continuity gives 3.3e-5.
    assert!((2.5e-5..4e-5).contains(&audit(5200, 10_000)));
}
