//! Metrics against scikit-learn and SciPy (`python tests/golden/generate/reward_metrics.py`) and against brute force.

use proptest::prelude::*;
use serde::Deserialize;
use steadfast_reward::metrics::{accuracy, auroc, average_precision, detect, pearson, precision_recall_curve, spearman};

#[derive(Deserialize)]
struct Fixture {
    header: Header,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Header {
    tolerance: f64,
}

#[derive(Deserialize)]
struct Case {
    scores: Vec<f32>,
    positive: Vec<bool>,
    y: Vec<f64>,
    auroc: f64,
    average_precision: f64,
    curve: Curve,
    pearson: f64,
    spearman: f64,
}

#[derive(Deserialize)]
struct Curve {
    threshold: Vec<f32>,
    precision: Vec<f64>,
    recall: Vec<f64>,
}

#[test]
fn metrics_match_scikit_learn_and_scipy() {
    let path = format!("{}/../tests/golden/reward_metrics.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let fixture: Fixture = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{path}: {e}"));
    assert_eq!(fixture.cases.len(), 12);
    for (i, case) in fixture.cases.iter().enumerate() {
        let close = |what: &str, got: f64, expected: f64| {
            assert!((got - expected).abs() <= fixture.header.tolerance, "case {i}, {what}: got {got}, expected {expected}");
        };
        close("auroc", auroc(&case.scores, &case.positive).unwrap(), case.auroc);
        close("average precision", average_precision(&case.scores, &case.positive).unwrap(), case.average_precision);
        let x: Vec<f64> = case.scores.iter().map(|&s| f64::from(s)).collect();
        close("pearson", pearson(&x, &case.y).unwrap(), case.pearson);
        close("spearman", spearman(&x, &case.y).unwrap(), case.spearman);
        let curve = precision_recall_curve(&case.scores, &case.positive);
        // Scikit-learn stops at the first threshold that finds everything; ours goes on to the lowest score.
        assert!(curve.len() >= case.curve.threshold.len(), "case {i}");
        for (j, &(threshold, precision, recall)) in curve.iter().enumerate() {
            if j < case.curve.threshold.len() {
                assert_eq!(threshold, case.curve.threshold[j], "case {i}, threshold {j}");
                close("precision", precision, case.curve.precision[j]);
                close("recall", recall, case.curve.recall[j]);
            } else {
                assert_eq!(recall, 1.0);
            }
        }
    }
}

/// Scores with many ties, and classes.
fn labelled() -> impl Strategy<Value = Vec<(f32, bool)>> {
    prop::collection::vec(((-4_i8..5).prop_map(|k| f32::from(k) * 0.5), any::<bool>()), 2..40)
}

fn split(data: &[(f32, bool)]) -> (Vec<f32>, Vec<bool>) {
    data.iter().copied().unzip()
}

proptest! {
    #[test]
    fn auroc_is_the_share_of_pairs_in_order(data in labelled()) {
        let (scores, positive) = split(&data);
        let (mut wins, mut pairs) = (0.0, 0.0);
        for a in data.iter().filter(|d| d.1) {
            for b in data.iter().filter(|d| !d.1) {
                pairs += 1.0;
                wins += if a.0 > b.0 { 1.0 } else if a.0 == b.0 { 0.5 } else { 0.0 };
            }
        }
        match auroc(&scores, &positive) {
            None => prop_assert_eq!(pairs, 0.0),
            Some(area) => prop_assert!((area - wins / pairs).abs() < 1e-14),
        }
    }

    #[test]
    fn curve_restates_the_definition_of_precision_and_recall(data in labelled()) {
        let (scores, positive) = split(&data);
        let total = positive.iter().filter(|&&p| p).count();
        for (threshold, precision, recall) in precision_recall_curve(&scores, &positive) {
            let taken = data.iter().filter(|d| d.0 >= threshold).count();
            let hits = data.iter().filter(|d| d.0 >= threshold && d.1).count();
            prop_assert_eq!(precision, hits as f64 / taken as f64);
            prop_assert_eq!(recall, hits as f64 / total as f64);
        }
    }

    #[test]
    fn ranking_metrics_ignore_order_and_monotone_maps(data in labelled(), turn in 0_usize..40) {
        let (scores, positive) = split(&data);
        let mut turned = data.clone();
        turned.rotate_left(turn % data.len());
        let (other_scores, other_positive): (Vec<f32>, Vec<bool>) = turned.iter().map(|&(s, p)| (s.powi(3) + 2.0 * s, p)).unzip();
        prop_assert_eq!(auroc(&scores, &positive), auroc(&other_scores, &other_positive));
        prop_assert_eq!(average_precision(&scores, &positive), average_precision(&other_scores, &other_positive));
        // The classes exchanged, the area is what is left of 1.
        let swapped: Vec<bool> = positive.iter().map(|p| !p).collect();
        if let (Some(a), Some(b)) = (auroc(&scores, &positive), auroc(&scores, &swapped)) {
            prop_assert!((a + b - 1.0).abs() < 1e-14);
        }
    }

    #[test]
    fn detection_agrees_with_its_parts(data in labelled(), c in -2.0_f32..2.0) {
        let (margins, flipped) = split(&data);
        let deltas: Vec<f32> = margins.iter().map(|d| (c - d).max(0.0)).collect();
        if let Some(detection) = detect(&margins, &deltas, &flipped) {
            // A margin below a threshold counts as found; a reversed sign turns order into disorder.
            prop_assert!((detection.auroc - (1.0 - auroc(&margins, &flipped).unwrap())).abs() < 1e-14);
            let found = data.iter().filter(|d| d.0 < c && d.1).count();
            let marked = data.iter().filter(|d| d.0 < c).count();
            prop_assert_eq!(detection.recall, found as f64 / flipped.iter().filter(|&&f| f).count() as f64);
            prop_assert_eq!(detection.precision, (marked > 0).then(|| found as f64 / marked as f64));
        }
    }

    #[test]
    fn correlations_know_sign_and_scale(x in prop::collection::vec(-3.0_f64..3.0, 3..30), scale in 0.1_f64..10.0) {
        let y: Vec<f64> = x.iter().map(|v| -scale * v + 1.0).collect();
        prop_assert!((pearson(&x, &y).unwrap() + 1.0).abs() < 1e-12);
        let cubed: Vec<f64> = x.iter().map(|v| v.powi(3)).collect();
        prop_assert!((spearman(&x, &cubed).unwrap() - 1.0).abs() < 1e-12);
    }

    #[test]
    fn accuracy_of_reversed_margins_is_the_rest(margins in prop::collection::vec(-2_i8..3, 1..30)) {
        let margins: Vec<f32> = margins.into_iter().map(f32::from).collect();
        let reversed: Vec<f32> = margins.iter().map(|d| -d).collect();
        prop_assert!((accuracy(&margins).unwrap() + accuracy(&reversed).unwrap() - 1.0).abs() < 1e-14);
    }
}
