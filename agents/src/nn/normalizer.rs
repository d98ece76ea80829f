//! Running normalisation of observations and returns.
//!
//! Means and variances are kept in `f64` and merged batch by batch with the parallel formula of Chan, Golub and LeVeque
//! (1979); a batch is summed in the order of its rows, so the result depends on the batches, not on threads.

use serde::{Deserialize, Serialize};
use steadfast_envs::RolloutBatch;

use crate::AgentError;

/// A feature of smaller variance counts as constant and is not scaled.
const MIN_VARIANCE: f64 = 1e-10;

/// Saved statistics of a [`RunningNorm`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunningNormState {
    /// Per feature.
    pub mean: Vec<f64>,
    /// Per feature, population variance.
    pub var: Vec<f64>,
    /// Rows seen.
    pub count: f64,
}

/// Running mean and variance per feature.
#[derive(Debug, Clone, PartialEq)]
pub struct RunningNorm {
    mean: Vec<f64>,
    var: Vec<f64>,
    count: f64,
    /// Mean and 1 / standard deviation as applied.
    shift: Vec<f32>,
    factor: Vec<f32>,
    std: Vec<f32>,
}

impl RunningNorm {
    /// For rows of `features`; normalises by mean 0 and variance 1 until the first update.
    pub fn new(features: usize) -> Self {
        let mut norm = Self {
            mean: vec![0.0; features],
            var: vec![1.0; features],
            count: 0.0,
            shift: vec![0.0; features],
            factor: vec![1.0; features],
            std: vec![1.0; features],
        };
        norm.refresh();
        norm
    }

    /// Number of features.
    pub fn features(&self) -> usize {
        self.mean.len()
    }

    /// Includes `rows` `[n, features]`.
    ///
    /// # Panics
    /// If the length is not a multiple of the number of features.
    pub fn update(&mut self, rows: &[f32]) {
        let features = self.mean.len();
        if rows.is_empty() {
            return;
        }
        assert!(features > 0 && rows.len().is_multiple_of(features), "rows of RunningNorm::update");
        let n = (rows.len() / features) as f64;
        for j in 0..features {
            let column = || rows[j..].iter().step_by(features).map(|v| f64::from(*v));
            let mean = column().sum::<f64>() / n;
            let var = column().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n;
            let total = self.count + n;
            let delta = mean - self.mean[j];
            let squares = self.var[j] * self.count + var * n + delta * delta * (self.count * n / total);
            self.mean[j] += delta * (n / total);
            self.var[j] = squares / total;
        }
        self.count += n;
        self.refresh();
    }

    /// Writes `(x - mean) / std`, limited to `±clip`, for `x` `[n, features]` into `out`.
    ///
    /// # Panics
    /// If the lengths differ or are no multiple of the number of features.
    pub fn normalize(&self, x: &[f32], out: &mut [f32], clip: f32) {
        let features = self.mean.len();
        assert!(x.len() == out.len() && x.len().is_multiple_of(features.max(1)), "rows of RunningNorm::normalize");
        for (x, out) in x.chunks_exact(features.max(1)).zip(out.chunks_exact_mut(features.max(1))) {
            for (j, (x, out)) in x.iter().zip(out).enumerate() {
                *out = ((x - self.shift[j]) * self.factor[j]).clamp(-clip, clip);
            }
        }
    }

    /// Standard deviation per feature, as [`RunningNorm::normalize`] divides by it.
    pub fn std(&self) -> &[f32] {
        &self.std
    }

    /// Mean per feature.
    pub fn mean(&self) -> &[f64] {
        &self.mean
    }

    /// Population variance per feature.
    pub fn var(&self) -> &[f64] {
        &self.var
    }

    /// Rows seen.
    pub fn count(&self) -> f64 {
        self.count
    }

    /// Copy of the statistics, for checkpoints.
    pub fn state(&self) -> RunningNormState {
        RunningNormState { mean: self.mean.clone(), var: self.var.clone(), count: self.count }
    }

    /// Replaces the statistics.
    ///
    /// # Errors
    /// [`AgentError::State`] if they are of another number of features, not finite or negative.
    pub fn load_state(&mut self, state: &RunningNormState) -> Result<(), AgentError> {
        let error = |tensor: &str, reason: String| Err(AgentError::State { tensor: format!("running_norm.{tensor}"), reason });
        for (name, values) in [("mean", &state.mean), ("var", &state.var)] {
            if values.len() != self.mean.len() {
                return error(name, format!("expected shape [{}], found [{}]", self.mean.len(), values.len()));
            }
            if let Some(bad) = values.iter().find(|v| !v.is_finite() || (name == "var" && **v < 0.0)) {
                return error(name, format!("{bad} is no valid value"));
            }
        }
        if !(state.count.is_finite() && state.count >= 0.0) {
            return error("count", format!("{} is no valid value", state.count));
        }
        self.mean.copy_from_slice(&state.mean);
        self.var.copy_from_slice(&state.var);
        self.count = state.count;
        self.refresh();
        Ok(())
    }

    fn refresh(&mut self) {
        for j in 0..self.mean.len() {
            // A feature that has not varied keeps its unit: divided by a tiny number, the first noise on it would be huge.
            let std = if self.var[j] < MIN_VARIANCE { 1.0 } else { self.var[j].sqrt() };
            self.shift[j] = self.mean[j] as f32;
            self.factor[j] = (1.0 / std) as f32;
            self.std[j] = std as f32;
        }
    }
}

/// Scales rewards by the running standard deviation of discounted returns, which are accumulated per slot, or by running mean and
/// deviation of the rewards themselves.
///
/// The former as `VecNormalize` of Stable-Baselines3: `R = discount · R + r` per slot, the variance of all `R` seen is updated, the
/// reward is divided by its root (never shifted), and `R` restarts at zero when an episode ends.
#[derive(Debug, Clone, PartialEq)]
pub struct RewardScale {
    discount: f32,
    returns: Vec<f32>,
    norm: RunningNorm,
    is_centred: bool,
    ended: Vec<bool>,
}

impl RewardScale {
    /// By the deviation of returns, for `slots` parallel episodes.
    pub fn of_returns(slots: usize, discount: f32) -> Self {
        Self { discount, returns: vec![0.0; slots], norm: RunningNorm::new(1), is_centred: false, ended: Vec::new() }
    }

    /// By mean and deviation of rewards, for `slots` parallel episodes.
    pub fn of_rewards(slots: usize) -> Self {
        // A return without a future is a reward.
        Self { is_centred: true, ..Self::of_returns(slots, 0.0) }
    }

    /// Includes the rewards `[time, slot, agent]` of a batch, whose agents count as slots of their own.
    ///
    /// # Panics
    /// If the scale is not for as many slots times agents.
    pub fn observe(&mut self, rewards: &[f32], batch: &RolloutBatch) {
        let mut ended = std::mem::take(&mut self.ended);
        for (time, rewards) in rewards.chunks_exact(batch.n_slots * batch.n_agents).enumerate() {
            ended.clear();
            for place in time * batch.n_slots..(time + 1) * batch.n_slots {
                let is_end = batch.terminated[place] || batch.truncated[place];
                ended.extend((0..batch.n_agents).map(|_| is_end));
            }
            self.update(rewards, &ended);
        }
        self.ended = ended;
    }

    /// Includes the rewards `[slots]` of one step; `ended[slot]` tells that the slot's episode ended with it, by
    /// termination or truncation.
    ///
    /// # Panics
    /// If a slice does not have one element per slot.
    pub fn update(&mut self, rewards: &[f32], ended: &[bool]) {
        assert!(rewards.len() == self.returns.len() && ended.len() == self.returns.len(), "slots of RewardScale::update");
        for (sum, reward) in self.returns.iter_mut().zip(rewards) {
            *sum = self.discount * *sum + reward;
        }
        self.norm.update(&self.returns);
        for (sum, ended) in self.returns.iter_mut().zip(ended) {
            if *ended {
                *sum = 0.0;
            }
        }
    }

    /// Brings `rewards` to scale and limits them to `±clip`.
    pub fn normalize(&self, rewards: &mut [f32], clip: f32) {
        let (mean, std) = (self.mean(), self.std());
        rewards.iter_mut().for_each(|r| *r = ((*r - mean) / std).clamp(-clip, clip));
    }

    /// The same for sums of rewards `[row, agent]`, of which `weights[row]` says what rewards of 1 would have added up to.
    ///
    /// # Panics
    /// If `sums` are not rows of equal width.
    pub fn normalize_sums(&self, sums: &mut [f32], weights: &[f32], clip: f32) {
        let (mean, std) = (self.mean(), self.std());
        assert!(sums.is_empty() || sums.len().is_multiple_of(weights.len()), "rows of RewardScale::normalize_sums");
        let width = sums.len().checked_div(weights.len()).unwrap_or(1).max(1);
        for (sums, weight) in sums.chunks_exact_mut(width).zip(weights) {
            sums.iter_mut().for_each(|sum| *sum = ((*sum - weight * mean) / std).clamp(-clip, clip));
        }
    }

    /// What is subtracted from each reward; 0 unless it is the mean.
    fn mean(&self) -> f32 {
        if self.is_centred { self.norm.mean()[0] as f32 } else { 0.0 }
    }

    /// The standard deviation rewards are divided by; 1 before the first update.
    pub fn std(&self) -> f32 {
        self.norm.std()[0]
    }

    /// The accumulated return per slot, and the statistics, for checkpoints.
    pub fn state(&self) -> (&[f32], RunningNormState) {
        (&self.returns, self.norm.state())
    }

    /// Continues from a saved state.
    ///
    /// # Errors
    /// [`AgentError::State`] if it is of another number of slots or invalid.
    pub fn load_state(&mut self, returns: &[f32], statistics: &RunningNormState) -> Result<(), AgentError> {
        if returns.len() != self.returns.len() {
            let reason = format!("expected shape [{}], found [{}]", self.returns.len(), returns.len());
            return Err(AgentError::State { tensor: "return_scale.returns".into(), reason });
        }
        self.norm.load_state(statistics)?;
        self.returns.copy_from_slice(returns);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{prop_assert, proptest};
    use steadfast_envs::Rng;

    proptest! {
        #[test]
        fn batches_give_the_statistics_of_all_rows(seed: u64, features in 1_usize..5, sizes in proptest::collection::vec(0_usize..20, 1..6)) {
            let mut rng = Rng::from_seed(seed);
            let mut norm = RunningNorm::new(features);
            let mut all: Vec<f32> = Vec::new();
            for n in sizes {
                let rows: Vec<f32> = (0..n * features).map(|_| 100.0 + 3.0 * rng.normal_f32()).collect();
                norm.update(&rows);
                all.extend(rows);
            }
            let n = all.len() / features;
            prop_assert!(norm.count() == n as f64);
            for j in 0..if n == 0 { 0 } else { features } {
                let column: Vec<f64> = all[j..].iter().step_by(features).map(|v| f64::from(*v)).collect();
                let mean = column.iter().sum::<f64>() / n as f64;
                let var = column.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n as f64;
                prop_assert!((norm.mean()[j] - mean).abs() < 1e-9);
                prop_assert!((norm.var()[j] - var).abs() < 1e-9 * var.max(1.0));
            }
        }
    }

    #[test]
    fn normalised_data_have_mean_zero_and_variance_one_and_are_clipped() {
        let mut rng = Rng::from_seed(1);
        let rows: Vec<f32> =
            (0..4000).map(|i| if i % 2 == 0 { 5.0 + 2.0 * rng.normal_f32() } else { -1.0 + 0.1 * rng.normal_f32() }).collect();
        let mut norm = RunningNorm::new(2);
        norm.update(&rows);
        let mut out = vec![0.0; rows.len()];
        norm.normalize(&rows, &mut out, 10.0);
        for j in 0..2 {
            let column: Vec<f64> = out[j..].iter().step_by(2).map(|v| f64::from(*v)).collect();
            let mean = column.iter().sum::<f64>() / 2000.0;
            let var = column.iter().map(|v| v * v).sum::<f64>() / 2000.0 - mean * mean;
            assert!(mean.abs() < 1e-5 && (var - 1.0).abs() < 1e-4);
        }
        norm.normalize(&rows, &mut out, 0.5);
        assert!(out.iter().all(|v| v.abs() <= 0.5));
        assert!((norm.std()[0] - 2.0).abs() < 0.1);
        let mut other = RunningNorm::new(2);
        other.load_state(&norm.state()).unwrap();
        assert_eq!(other, norm);
        assert!(RunningNorm::new(3).load_state(&norm.state()).is_err());
    }

    #[test]
    fn returns_restart_at_the_end_of_an_episode() {
        let mut scale = RewardScale::of_returns(2, 0.5);
        scale.update(&[1.0, 2.0], &[false, true]);
        scale.update(&[1.0, 2.0], &[false, false]);
        let (returns, statistics) = scale.state();
        assert_eq!(returns, [1.5, 2.0]);
        // Returns seen: 1, 2, 1.5, 2.
        assert!((statistics.var[0] - 0.171_875).abs() < 1e-12);
        let mut out = [1.0];
        scale.normalize(&mut out, 10.0);
        assert!((f64::from(out[0]) - 1.0 / 0.171_875_f64.sqrt()).abs() < 1e-5);
        let mut again = RewardScale::of_returns(2, 0.5);
        again.load_state(returns, &statistics).unwrap();
        assert_eq!(again, scale);
    }

    #[test]
    fn standardised_rewards_have_mean_zero_and_deviation_one_step_by_step() {
        let mut scale = RewardScale::of_rewards(2);
        scale.update(&[1.0, 3.0], &[false, true]);
        scale.update(&[5.0, 7.0], &[false, false]);
        // Mean 4, variance 5, whatever came before and after in an episode.
        let mut out = [1.0, 3.0, 5.0, 7.0];
        scale.normalize(&mut out, 10.0);
        let expected = [-3.0_f32, -1.0, 1.0, 3.0].map(|r| r / 5.0_f32.sqrt());
        assert!(out.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{out:?}");
        // A sum of two steps, the second of which counts half, is the sum of both standardised.
        let mut sums = [1.0 + 0.5 * 5.0, 3.0 + 0.5 * 7.0, 7.0, 1.0];
        scale.normalize_sums(&mut sums, &[1.5, 1.0], 10.0);
        let expected = [expected[0] + 0.5 * expected[2], expected[1] + 0.5 * expected[3], expected[3], expected[0]];
        assert!(sums.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{sums:?}");
        // By the deviation of returns nothing is shifted.
        let mut returns = RewardScale::of_returns(2, 0.5);
        returns.update(&[1.0, 3.0], &[false, true]);
        let (mut one, mut other) = ([2.0, -1.0], [2.0, -1.0]);
        returns.normalize(&mut one, 10.0);
        returns.normalize_sums(&mut other, &[1.5, 1.0], 10.0);
        assert_eq!(one, other);
        assert_eq!(one[0], -2.0 * one[1]);
    }

    #[test]
    fn noise_on_a_feature_that_never_varied_keeps_its_size() {
        let mut norm = RunningNorm::new(2);
        norm.update(&[0.0, 1.0, 0.0, 3.0, 0.0, 5.0]);
        let mut out = [0.0; 2];
        norm.normalize(&[0.1, 3.0], &mut out, 10.0);
        assert_eq!(out, [0.1, 0.0]);
        assert_eq!(norm.std()[0], 1.0);
    }
}
