//! Statistics of a few runs per method, with stratified bootstrap intervals.
//!
//! Scores are `[stratum][run]`: a stratum is what runs are repeated in, such as a task or an axis of perturbation. An
//! interval lies between the 2.5 % and 97.5 % quantiles of a statistic over resamples in which each stratum draws as
//! many runs as it has, with replacement. The draws are the same in every call.
//!
//! Source: Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice"
//! (arXiv 2108.13264), whose package `rliable` the golden numbers come from.

use steadfast_envs::SeedTree;

/// Resamples of an interval.
const RESAMPLES: usize = 10_000;

/// The mean of all scores; nothing if there are none.
pub fn mean(scores: &[Vec<f64>]) -> Option<f64> {
    let n: usize = scores.iter().map(Vec::len).sum();
    (n > 0).then(|| scores.iter().flatten().sum::<f64>() / n as f64)
}

/// The mean of the middle half of all scores: a quarter of them, rounded down, is left out at either end.
pub fn interquartile_mean(scores: &[Vec<f64>]) -> Option<f64> {
    let mut sorted: Vec<f64> = scores.iter().flatten().copied().collect();
    sorted.sort_unstable_by(f64::total_cmp);
    let cut = sorted.len() / 4;
    let middle = &sorted[cut..sorted.len() - cut];
    (!middle.is_empty()).then(|| middle.iter().sum::<f64>() / middle.len() as f64)
}

/// Probability that a run of `x` scores higher than one of `y`, equal scores counted by half, averaged over strata.
pub fn probability_of_improvement(x: &[Vec<f64>], y: &[Vec<f64>]) -> Option<f64> {
    let of_stratum = |(a, b): (&Vec<f64>, &Vec<f64>)| {
        let wins: f64 = a.iter().flat_map(|a| b.iter().map(move |b| if a > b { 1.0 } else { 0.5 * f64::from(u8::from(a == b)) })).sum();
        wins / (a.len() * b.len()) as f64
    };
    let is_empty = |scores: &[Vec<f64>]| scores.iter().any(Vec::is_empty);
    if x.is_empty() || x.len() != y.len() || is_empty(x) || is_empty(y) {
        return None;
    }
    Some(x.iter().zip(y).map(of_stratum).sum::<f64>() / x.len() as f64)
}

/// Share of all scores above each threshold.
pub fn performance_profile(scores: &[Vec<f64>], thresholds: &[f64]) -> Vec<f64> {
    let n = scores.iter().map(Vec::len).sum::<usize>().max(1) as f64;
    thresholds.iter().map(|t| scores.iter().flatten().filter(|s| *s > t).count() as f64 / n).collect()
}

/// The 95 % interval of a statistic of one or several methods. A run may be a number, or several that belong together.
/// Nothing if a stratum has fewer than five runs, whose resamples are too alike, or if the statistic is not defined.
pub fn interval<T: Copy>(methods: &[&[Vec<T>]], statistic: impl Fn(&[Vec<Vec<T>>]) -> Option<f64>) -> Option<(f64, f64)> {
    if methods.iter().any(|m| m.is_empty() || m.iter().any(|runs| runs.len() < 5)) {
        return None;
    }
    let mut rng = SeedTree::new(0).child("bootstrap").rng();
    let mut resample: Vec<Vec<Vec<T>>> = methods.iter().map(|m| m.to_vec()).collect();
    let mut values = Vec::with_capacity(RESAMPLES);
    for _ in 0..RESAMPLES {
        for (to, from) in resample.iter_mut().zip(methods) {
            for (to, from) in to.iter_mut().zip(*from) {
                to.iter_mut().for_each(|v| *v = from[rng.below(from.len())]);
            }
        }
        values.push(statistic(&resample)?);
    }
    values.sort_unstable_by(f64::total_cmp);
    let tail = RESAMPLES / 40;
    Some((values[tail], values[RESAMPLES - 1 - tail]))
}

/// Mean of `value` over the range of `levels` by the trapezoidal rule: the area under the curve over its width. Nothing for
/// fewer than two levels.
pub fn area_under_curve(levels: &[f64], values: &[f64]) -> Option<f64> {
    let mut points: Vec<(f64, f64)> = levels.iter().copied().zip(values.iter().copied()).collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    let width = points.last()?.0 - points.first()?.0;
    let area: f64 = points.windows(2).map(|w| (w[1].0 - w[0].0) * (w[0].1 + w[1].1) / 2.0).sum();
    (width > 0.0).then_some(area / width)
}

/// The first level at which `ours` rises above `other`, both along increasing `levels`, by linear interpolation. Nothing
/// if it starts above or stays below.
pub fn crossing(levels: &[f64], ours: &[f64], other: &[f64]) -> Option<f64> {
    let gap: Vec<f64> = ours.iter().zip(other).map(|(a, b)| a - b).collect();
    if *gap.first()? > 0.0 {
        return None;
    }
    let i = (1..gap.len()).find(|&i| gap[i] > 0.0)?;
    let share = -gap[i - 1] / (gap[i] - gap[i - 1]);
    Some(levels[i - 1] + share * (levels[i] - levels[i - 1]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Golden {
        scores: Vec<Vec<f64>>,
        others: Vec<Vec<f64>>,
        mean: f64,
        interquartile_mean: f64,
        interquartile_mean_interval: [f64; 2],
        probability_of_improvement: f64,
        probability_of_improvement_interval: [f64; 2],
        thresholds: Vec<f64>,
        profile: Vec<f64>,
    }

    #[test]
    fn statistics_agree_with_rliable() {
        let golden: Vec<Golden> = serde_json::from_str(include_str!("../../tests/golden/rliable.json")).unwrap();
        assert!(golden.len() > 2);
        for g in golden {
            let close = |a: f64, b: f64, tolerance: f64| assert!((a - b).abs() < tolerance, "{a} {b}");
            close(mean(&g.scores).unwrap(), g.mean, 1e-12);
            close(interquartile_mean(&g.scores).unwrap(), g.interquartile_mean, 1e-12);
            close(probability_of_improvement(&g.scores, &g.others).unwrap(), g.probability_of_improvement, 1e-12);
            for (a, b) in performance_profile(&g.scores, &g.thresholds).iter().zip(&g.profile) {
                close(*a, *b, 1e-12);
            }
            // Both sides draw at random; the golden intervals have 50 000 draws.
            let (low, high) = interval(&[&g.scores], |m| interquartile_mean(&m[0])).unwrap();
            let width = g.interquartile_mean_interval[1] - g.interquartile_mean_interval[0];
            close(low, g.interquartile_mean_interval[0], 0.05 * width);
            close(high, g.interquartile_mean_interval[1], 0.05 * width);
            let (low, high) = interval(&[&g.scores, &g.others], |m| probability_of_improvement(&m[0], &m[1])).unwrap();
            let width = g.probability_of_improvement_interval[1] - g.probability_of_improvement_interval[0];
            close(low, g.probability_of_improvement_interval[0], 0.05 * width);
            close(high, g.probability_of_improvement_interval[1], 0.05 * width);
        }
    }

    #[test]
    fn areas_and_crossings_of_lines() {
        assert_eq!(area_under_curve(&[0.0, 1.0, 3.0], &[0.0, 1.0, 3.0]), Some(1.5));
        assert_eq!(area_under_curve(&[3.0, 0.0, 1.0], &[3.0, 0.0, 1.0]), Some(1.5));
        assert_eq!(area_under_curve(&[0.5], &[1.0]), None);
        assert_eq!(crossing(&[0.0, 1.0, 2.0], &[1.0, 1.0, 1.0], &[2.0, 1.5, 0.5]), Some(1.5));
        assert_eq!(crossing(&[0.0, 1.0], &[1.0, 1.0], &[2.0, 1.5]), None);
        assert_eq!(crossing(&[0.0, 1.0], &[3.0, 1.0], &[2.0, 1.5]), None);
    }

    #[test]
    fn what_is_not_defined_is_nothing() {
        assert_eq!(mean(&[]), None);
        assert_eq!(interquartile_mean(&[vec![]]), None);
        assert_eq!(probability_of_improvement(&[vec![1.0]], &[vec![]]), None);
        assert_eq!(interval(&[&[vec![1.0]]], |m| mean(&m[0])), None);
        assert_eq!(interval(&[&[vec![1.0; 4]]], |m| mean(&m[0])), None);
        assert_eq!(interval(&[&[vec![2.0; 5]]], |m| mean(&m[0])), Some((2.0, 2.0)));
    }
}
