//! Numbers that say how good a reward model is: order, agreement with a gold reward, and how well it finds wrong labels.
//!
//! All are O(n log n) and depend on scores only through what their definition names, so that ties cannot be broken by the
//! order of the data. Nothing is returned where a number is not defined (one class only, a constant series, a NaN).

use crate::fit::Detection;

/// Share of margins above 0; a margin of exactly 0 counts half, NaN counts as wrong. Nothing for no margins.
pub fn accuracy(margins: &[f32]) -> Option<f64> {
    let right: f64 = margins.iter().map(|&d| if d > 0.0 { 1.0 } else { f64::from(u8::from(d == 0.0)) * 0.5 }).sum();
    (!margins.is_empty()).then(|| right / margins.len() as f64)
}

/// Area under the receiver operating characteristic: the chance that a positive has a higher score than a negative, ties
/// counted half (Mann and Whitney's U, divided by the number of such pairs).
///
/// Nothing if only one class is there or a score is NaN.
///
/// # Panics
/// If the lengths differ.
pub fn auroc(scores: &[f32], positive: &[bool]) -> Option<f64> {
    let groups = descending_groups(scores, positive)?;
    let (n_positive, n_negative) = groups.iter().fold((0, 0), |n, g| (n.0 + g.positive, n.1 + g.negative));
    if n_positive == 0 || n_negative == 0 {
        return None;
    }
    // Twice the wins, in integers: exact for any number of pairs that fits into memory.
    let (mut positives_above, mut twice) = (0_u128, 0_u128);
    for group in &groups {
        twice += group.negative as u128 * (2 * positives_above + group.positive as u128);
        positives_above += group.positive as u128;
    }
    Some(twice as f64 / (2.0 * n_positive as f64 * n_negative as f64))
}

/// Average precision: `Σ (recallₖ − recallₖ₋₁) · precisionₖ` over the distinct scores in descending order.
///
/// Equal scores share one threshold, and nothing is interpolated. Nothing if only one class is there or a score is NaN.
///
/// # Panics
/// If the lengths differ.
pub fn average_precision(scores: &[f32], positive: &[bool]) -> Option<f64> {
    if positive.iter().all(|&p| p) {
        return None;
    }
    let curve = precision_recall_curve(scores, positive);
    let mut before = 0.0;
    let area = curve.iter().map(|&(_, precision, recall)| (recall - std::mem::replace(&mut before, recall)) * precision).sum();
    (!curve.is_empty()).then_some(area)
}

/// `(threshold, precision, recall)` of "positive where score ≥ threshold", for each distinct score in descending order.
///
/// Empty if nothing is positive or a score is NaN.
///
/// # Panics
/// If the lengths differ.
pub fn precision_recall_curve(scores: &[f32], positive: &[bool]) -> Vec<(f32, f64, f64)> {
    let groups = descending_groups(scores, positive).unwrap_or_default();
    let n_positive: usize = groups.iter().map(|g| g.positive).sum();
    if n_positive == 0 {
        return Vec::new();
    }
    let (mut hits, mut taken) = (0, 0);
    groups
        .iter()
        .map(|group| {
            hits += group.positive;
            taken += group.positive + group.negative;
            (group.score, hits as f64 / taken as f64, hits as f64 / n_positive as f64)
        })
        .collect()
}

/// Pearson's correlation. Nothing for fewer than two points, a constant series, or a number that is not finite.
///
/// # Panics
/// If the lengths differ.
pub fn pearson(x: &[f64], y: &[f64]) -> Option<f64> {
    assert_eq!(x.len(), y.len(), "lengths in pearson");
    let is_constant = |v: &[f64]| v.iter().all(|&a| a == v[0]);
    if x.len() < 2 || is_constant(x) || is_constant(y) {
        return None;
    }
    let centred = |v: &[f64]| -> Vec<f64> {
        let mean = v.iter().sum::<f64>() / v.len() as f64;
        let largest = v.iter().map(|a| (a - mean).abs()).fold(0.0, f64::max);
        // Scaled by the largest deviation, so that squares neither overflow nor vanish.
        v.iter().map(|a| (a - mean) / largest).collect()
    };
    let (x, y) = (centred(x), centred(y));
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let r = dot(&x, &y) / (dot(&x, &x) * dot(&y, &y)).sqrt();
    r.is_finite().then(|| r.clamp(-1.0, 1.0))
}

/// Spearman's correlation: Pearson's of the ranks, equal values sharing the average of theirs.
///
/// Nothing for fewer than two points, a constant series or a NaN.
///
/// # Panics
/// If the lengths differ.
pub fn spearman(x: &[f64], y: &[f64]) -> Option<f64> {
    assert_eq!(x.len(), y.len(), "lengths in spearman");
    pearson(&average_ranks(x)?, &average_ranks(y)?)
}

/// How well low margins, and the set δ > 0, point to wrong labels. Nothing if all labels are alike or a margin is NaN.
///
/// # Panics
/// If the lengths differ.
pub fn detect(margins: &[f32], deltas: &[f32], flipped: &[bool]) -> Option<Detection> {
    assert!(margins.len() == deltas.len() && margins.len() == flipped.len(), "lengths in detect");
    let scores: Vec<f32> = margins.iter().map(|d| -d).collect();
    let wrong = flipped.iter().filter(|&&f| f).count();
    let marked = deltas.iter().filter(|&&delta| delta > 0.0).count();
    let hits = deltas.iter().zip(flipped).filter(|&(&delta, &f)| f && delta > 0.0).count();
    Some(Detection {
        rate: wrong as f64 / flipped.len() as f64,
        auroc: auroc(&scores, flipped)?,
        average_precision: average_precision(&scores, flipped)?,
        precision: (marked > 0).then(|| hits as f64 / marked as f64),
        recall: hits as f64 / wrong as f64,
    })
}

/// Everything that shares one score.
struct Group {
    score: f32,
    positive: usize,
    negative: usize,
}

/// The distinct scores from the highest, with their counts; nothing if one is NaN.
fn descending_groups(scores: &[f32], positive: &[bool]) -> Option<Vec<Group>> {
    assert_eq!(scores.len(), positive.len(), "lengths of scores and classes");
    if scores.iter().any(|s| s.is_nan()) {
        return None;
    }
    // Adding 0 turns −0 into +0, which compare equal but have different bits.
    let mut sorted: Vec<(f32, bool)> = scores.iter().map(|&s| s + 0.0).zip(positive.iter().copied()).collect();
    sorted.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
    let groups = sorted.chunk_by(|a, b| a.0 == b.0).map(|chunk| {
        let n = chunk.iter().filter(|c| c.1).count();
        Group { score: chunk[0].0, positive: n, negative: chunk.len() - n }
    });
    Some(groups.collect())
}

/// Ranks from 1, equal values sharing the average of theirs; nothing if one is NaN.
fn average_ranks(values: &[f64]) -> Option<Vec<f64>> {
    if values.iter().any(|v| v.is_nan()) {
        return None;
    }
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_unstable_by(|&a, &b| (values[a] + 0.0).total_cmp(&(values[b] + 0.0)));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    for chunk in order.chunk_by(|&a, &b| values[a] == values[b]) {
        // Ranks start + 1 ..= start + len have this mean.
        let rank = start as f64 + (chunk.len() as f64 + 1.0) / 2.0;
        chunk.iter().for_each(|&i| ranks[i] = rank);
        start += chunk.len();
    }
    Some(ranks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_class_alone_has_no_area() {
        assert_eq!(auroc(&[1.0, 2.0], &[true, true]), None);
        assert_eq!(auroc(&[1.0, 2.0], &[false, false]), None);
        assert_eq!(average_precision(&[1.0, 2.0], &[true, true]), None);
        assert_eq!(average_precision(&[1.0, 2.0], &[false, false]), None);
        assert_eq!(detect(&[1.0, 2.0], &[0.0, 0.0], &[false, false]), None);
        assert_eq!(auroc(&[], &[]), None);
    }

    #[test]
    fn nan_gives_nothing_and_infinities_are_ordered() {
        assert_eq!(auroc(&[f32::NAN, 1.0], &[true, false]), None);
        assert_eq!(average_precision(&[f32::NAN, 1.0], &[true, false]), None);
        assert_eq!(spearman(&[f64::NAN, 1.0], &[1.0, 2.0]), None);
        assert_eq!(auroc(&[f32::INFINITY, f32::NEG_INFINITY, 0.0], &[true, false, false]), Some(1.0));
        assert_eq!(spearman(&[f64::NEG_INFINITY, 0.0, f64::INFINITY], &[3.0, 2.0, 1.0]), Some(-1.0));
        assert_eq!(pearson(&[f64::INFINITY, 0.0], &[1.0, 2.0]), None);
    }

    #[test]
    fn both_zeros_are_one_score() {
        assert_eq!(auroc(&[0.0, -0.0], &[true, false]), Some(0.5));
        assert_eq!(precision_recall_curve(&[-0.0, 0.0], &[true, false]), vec![(0.0, 0.5, 1.0)]);
        assert_eq!(average_ranks(&[-0.0, 0.0, -1.0]), Some(vec![2.5, 2.5, 1.0]));
    }

    #[test]
    fn accuracy_counts_ties_half() {
        assert_eq!(accuracy(&[1.0, 0.0, -1.0, 2.0]), Some(0.625));
        assert_eq!(accuracy(&[f32::NAN, 1.0]), Some(0.5));
        assert_eq!(accuracy(&[]), None);
    }

    #[test]
    fn constant_series_has_no_correlation() {
        assert_eq!(pearson(&[0.1, 0.1, 0.1], &[1.0, 2.0, 3.0]), None);
        assert_eq!(spearman(&[1.0, 2.0], &[4.0, 4.0]), None);
        assert_eq!(pearson(&[1.0], &[1.0]), None);
        assert!((pearson(&[1e200, 2e200, 4e200], &[-1e-200, -2e-200, -4e-200]).unwrap() + 1.0).abs() < 1e-14);
    }

    #[test]
    fn detection_of_a_small_example() {
        let detection = detect(&[-2.0, -1.0, 0.5, 3.0], &[1.5, 0.5, 0.0, 0.0], &[true, false, true, false]).unwrap();
        assert_eq!(detection.rate, 0.5);
        assert_eq!(detection.auroc, 0.75);
        assert!((detection.average_precision - (0.5 + 0.5 * 2.0 / 3.0)).abs() < 1e-15);
        assert_eq!(detection.precision, Some(0.5));
        assert_eq!(detection.recall, 0.5);
        let none = detect(&[-2.0, 1.0], &[0.0, 0.0], &[true, false]).unwrap();
        assert_eq!((none.precision, none.recall), (None, 0.0));
    }
}
