//! How much better a completion is than others of its prompt, or a token than its critic expected.

use serde::{Deserialize, Serialize};

use crate::returns::{Trajectories, generalized_advantages};

/// By what the differences of rewards inside a group are divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RewardScale {
    /// The deviation of the group's rewards.
    Group,
    /// The deviation of the rewards of the whole batch.
    Batch,
    /// Nothing.
    None,
}

/// Added to a deviation before dividing by it, as in TRL.
const EPSILON: f64 = 1e-4;

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Deviation with Bessel's correction; 0 for a single value.
pub(super) fn deviation(values: &[f64]) -> f64 {
    let m = mean(values);
    let squares: f64 = values.iter().map(|v| (v - m) * (v - m)).sum();
    (squares / (values.len() as f64 - 1.0).max(1.0)).sqrt()
}

/// The reward of each completion minus the mean reward of the others of its group of `group` neighbours, at least 2.
///
/// Equal to `group / (group − 1)` times the difference to the group's mean. Source: Ahmadian et al. 2024, "Back to Basics"
/// (arXiv 2402.14740).
pub fn leave_one_out(rewards: &[f64], group: usize) -> Vec<f64> {
    let factor = group as f64 / (group as f64 - 1.0);
    rewards.chunks(group).flat_map(|g| g.iter().map(move |r| factor * (r - mean(g)))).collect()
}

/// The reward of each completion minus the mean of its group, divided as `scale` says.
///
/// A group of equal rewards gets 0. Source: Shao et al. 2024, "DeepSeekMath" (arXiv 2402.03300); without division: Liu et al.
/// 2025, "Understanding R1-Zero-Like Training" (arXiv 2503.20783).
pub fn group_relative(rewards: &[f64], group: usize, scale: RewardScale) -> Vec<f64> {
    let whole = deviation(rewards) + EPSILON;
    let relative = |g: &[f64]| {
        let by = match scale {
            RewardScale::Group => deviation(g) + EPSILON,
            RewardScale::Batch => whole,
            RewardScale::None => 1.0,
        };
        let m = mean(g);
        // Equal rewards are exactly equal to their mean only up to rounding.
        let is_flat = g.iter().all(|r| *r == g[0]);
        g.iter().map(|r| if is_flat { 0.0 } else { (r - m) / by }).collect::<Vec<_>>()
    };
    rewards.chunks(group).flat_map(relative).collect()
}

/// Share of groups whose rewards are all equal: they teach nothing.
pub fn flat_share(rewards: &[f64], group: usize) -> f64 {
    let groups = rewards.chunks(group);
    let n = groups.len() as f64;
    groups.filter(|g| g.iter().all(|r| *r == g[0])).count() as f64 / n
}

/// Brings values to deviation 1, and to mean 0 if `shifts`; else their mean stays.
pub fn whiten(values: &mut [f64], shifts: bool) {
    let m = mean(values);
    let by = (deviation(values).powi(2) + 1e-8).sqrt();
    values.iter_mut().for_each(|v| *v = (*v - m) / by + if shifts { 0.0 } else { m });
}

/// Generalised advantage estimates of the tokens of one completion, and the returns that values are fitted to, `[token]` all.
///
/// Nothing follows the last token.
pub fn token_advantages(rewards: &[f32], values: &[f32], discount: f64, lambda: f64) -> (Vec<f32>, Vec<f32>) {
    let n = rewards.len();
    let (mut advantages, mut returns) = (vec![0.0; n], vec![0.0; n]);
    if n == 0 {
        return (advantages, returns);
    }
    let mut is_last = vec![false; n];
    is_last[n - 1] = true;
    let input = Trajectories {
        n_steps: n,
        n_slots: 1,
        n_agents: 1,
        rewards,
        values: &[values, &[0.0]].concat(),
        terminated: &is_last,
        truncated: &vec![false; n],
        ends: &[(n - 1, 0)],
        final_values: &[0.0],
    };
    generalized_advantages(&input, discount, lambda, &mut advantages, &mut returns);
    (advantages, returns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leave_one_out_is_the_mean_of_the_others() {
        let advantages = leave_one_out(&[1.0, 2.0, 6.0, 0.0, 0.0, 3.0], 3);
        let expected = [1.0 - 4.0, 2.0 - 3.5, 6.0 - 1.5, -1.5, -1.5, 3.0];
        for (a, e) in advantages.iter().zip(expected) {
            assert!((a - e).abs() < 1e-12, "{advantages:?}");
        }
        assert!(advantages[..3].iter().sum::<f64>().abs() < 1e-12);
        // Two completions: the difference.
        assert_eq!(leave_one_out(&[1.0, 4.0], 2), [-3.0, 3.0]);
    }

    #[test]
    fn group_relative_divides_as_it_is_told() {
        let rewards = [1.0, 3.0, 5.0, 5.0];
        // Deviations with Bessel's correction: √2 and 0; of all four 1.9149.
        let by_group = group_relative(&rewards, 2, RewardScale::Group);
        assert!((by_group[0] + 1.0 / (2.0_f64.sqrt() + 1e-4)).abs() < 1e-12);
        assert_eq!(by_group[2..], [0.0, 0.0]);
        let by_batch = group_relative(&rewards, 2, RewardScale::Batch);
        assert!((by_batch[1] - 1.0 / ((11.0_f64 / 3.0).sqrt() + 1e-4)).abs() < 1e-12);
        assert_eq!(group_relative(&rewards, 2, RewardScale::None), [-1.0, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn equal_rewards_teach_nothing() {
        for scale in [RewardScale::Group, RewardScale::Batch, RewardScale::None] {
            assert_eq!(group_relative(&[0.1; 6], 3, scale), [0.0; 6]);
        }
        assert_eq!(flat_share(&[0.1, 0.1, 0.1, 0.2], 2), 0.5);
    }

    #[test]
    fn whitened_values_have_deviation_1() {
        let mut values = [1.0, 2.0, 3.0, 6.0];
        whiten(&mut values, true);
        assert!(mean(&values).abs() < 1e-12 && (deviation(&values) - 1.0).abs() < 1e-6);
        let mut values = [1.0, 2.0, 3.0, 6.0];
        whiten(&mut values, false);
        assert!((mean(&values) - 3.0).abs() < 1e-12 && (deviation(&values) - 1.0).abs() < 1e-6);
        let mut single = [5.0];
        whiten(&mut single, true);
        assert_eq!(single, [0.0]);
    }

    #[test]
    fn token_advantages_are_the_sum_of_discounted_errors() {
        let (rewards, values) = ([0.1, -0.2, 0.0, 2.0], [0.5, 0.4, 0.9, 1.0]);
        let (discount, lambda) = (0.9, 0.8);
        let (advantages, returns) = token_advantages(&rewards, &values, discount, lambda);
        let next = [0.4, 0.9, 1.0, 0.0];
        for t in 0..4 {
            let sum: f64 = (t..4)
                .map(|s| {
                    let delta = f64::from(rewards[s]) + discount * next[s] - f64::from(values[s]);
                    (discount * lambda).powi((s - t) as i32) * delta
                })
                .sum();
            assert!((f64::from(advantages[t]) - sum).abs() < 1e-6);
            assert!((returns[t] - advantages[t] - values[t]).abs() < 1e-6);
        }
        // λ = γ = 1: what is left of the reward, minus the value.
        let (advantages, _) = token_advantages(&rewards, &values, 1.0, 1.0);
        assert!((advantages[1] - (-0.2 + 0.0 + 2.0 - 0.4)).abs() < 1e-6);
        assert!(token_advantages(&[], &[], 1.0, 1.0).0.is_empty());
    }
}
