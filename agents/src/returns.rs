//! Returns and advantages from rewards and value estimates.

use serde::{Deserialize, Serialize};

use crate::nn::RewardScale;

/// How rewards are scaled before they are learned from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RewardScaling {
    /// Not at all.
    None,
    /// Divided by the running deviation of the discounted return.
    ReturnStd,
    /// Brought to running mean 0 and deviation 1, of all agents together. That shifts every step by the same amount, which changes what is
    /// best where episodes can end early. EPyMARL's `standardise_rewards`, but for its statistics, which are of minibatches and, without
    /// common rewards, of each agent.
    Standardize,
}

impl RewardScaling {
    /// The scale of the rewards of so many parallel episodes. One that is not used is kept too, so that all checkpoints have the same
    /// arrays.
    pub fn scale(self, slots: usize, discount: f64) -> RewardScale {
        match self {
            Self::None | Self::ReturnStd => RewardScale::of_returns(slots, discount as f32),
            Self::Standardize => RewardScale::of_rewards(slots),
        }
    }
}

/// Scaled rewards are clamped to this size.
pub(crate) const REWARD_CLIP: f32 = 10.0;

/// Rewards and ends of a rollout with the value estimates around them.
#[derive(Debug, Clone, Copy)]
pub struct Trajectories<'a> {
    /// Steps.
    pub n_steps: usize,
    /// Environments.
    pub n_slots: usize,
    /// Agents whose values these are.
    pub n_agents: usize,
    /// `[time, slot, agent]`.
    pub rewards: &'a [f32],
    /// `[time + 1, slot, agent]`. Where an episode ended at `t`, row `t + 1` belongs to the next episode.
    pub values: &'a [f32],
    /// `[time, slot]`.
    pub terminated: &'a [bool],
    /// `[time, slot]`.
    pub truncated: &'a [bool],
    /// `(time, slot)` of each end, by time.
    pub ends: &'a [(usize, usize)],
    /// `[end, agent]`: value of the last observation of each ended episode; used where it was truncated.
    pub final_values: &'a [f32],
}

/// Generalised advantage estimates, `[time, slot, agent]`, and the returns that values are fitted to.
///
/// `A_t = δ_t + discount · lambda · A_{t+1}` with `δ_t = r_t + discount · V_{t+1} − V_t`. A terminated step has no
/// future. A truncated step bootstraps from the value of its own last observation, not from the episode that follows;
/// no advantage flows over either end. The return is `A_t + V_t`.
///
/// Source: Schulman et al. 2016 (arXiv 1506.02438). With `lambda = 1` the advantage is the discounted return minus the
/// value.
///
/// # Panics
/// If the arrays disagree in length.
pub fn generalized_advantages(input: &Trajectories<'_>, discount: f64, lambda: f64, advantages: &mut [f32], returns: &mut [f32]) {
    let (steps, slots, agents) = (input.n_steps, input.n_slots, input.n_agents);
    let row = slots * agents;
    assert_eq!(input.rewards.len(), steps * row, "rewards are [time, slot, agent]");
    assert_eq!(input.values.len(), (steps + 1) * row, "values are [time + 1, slot, agent]");
    assert_eq!(input.final_values.len(), input.ends.len() * agents, "one final value per end and agent");
    let (discount, decay) = (discount as f32, (discount * lambda) as f32);
    let mut end = input.ends.len();
    for time in (0..steps).rev() {
        // `ends` is sorted by time and slot, and so is this walk, backwards.
        for slot in (0..slots).rev() {
            let flag = time * slots + slot;
            let ended = input.terminated[flag] || input.truncated[flag];
            if ended {
                end -= 1;
                assert_eq!(input.ends[end], (time, slot), "ends list every end in order");
            }
            for agent in 0..agents {
                let i = time * row + slot * agents + agent;
                let (next_value, next_advantage) = if input.terminated[flag] {
                    (0.0, 0.0)
                } else if ended {
                    (input.final_values[end * agents + agent], 0.0)
                } else {
                    (input.values[i + row], if time + 1 < steps { advantages[i + row] } else { 0.0 })
                };
                let delta = input.rewards[i] + discount * next_value - input.values[i];
                advantages[i] = delta + decay * next_advantage;
                returns[i] = advantages[i] + input.values[i];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One slot and agent, three steps, with the given ends.
    fn three_steps(terminated: [bool; 3], truncated: [bool; 3], final_values: &[f32], discount: f64, lambda: f64) -> ([f32; 3], [f32; 3]) {
        let ends: Vec<(usize, usize)> = (0..3).filter(|&t| terminated[t] || truncated[t]).map(|t| (t, 0)).collect();
        let (mut advantages, mut returns) = ([0.0; 3], [0.0; 3]);
        let input = Trajectories {
            n_steps: 3,
            n_slots: 1,
            n_agents: 1,
            rewards: &[1.0, 2.0, 4.0],
            values: &[0.5, 1.5, 2.5, 3.5],
            terminated: &terminated,
            truncated: &truncated,
            ends: &ends,
            final_values,
        };
        generalized_advantages(&input, discount, lambda, &mut advantages, &mut returns);
        (advantages, returns)
    }

    #[test]
    fn running_episode_bootstraps_from_the_last_value() {
        // δ = [1 + .5·1.5 − .5, 2 + .5·2.5 − 1.5, 4 + .5·3.5 − 2.5] = [1.25, 1.75, 3.25]; decay .25.
        let (advantages, returns) = three_steps([false; 3], [false; 3], &[], 0.5, 0.5);
        assert_eq!(advantages, [1.25 + 0.25 * (1.75 + 0.25 * 3.25), 1.75 + 0.25 * 3.25, 3.25]);
        assert_eq!(returns[2], 5.75);
    }

    #[test]
    fn terminated_step_has_no_future() {
        let (advantages, _) = three_steps([false, true, false], [false; 3], &[99.0], 0.5, 0.5);
        assert_eq!(advantages, [1.25 + 0.25 * 0.5, 0.5, 3.25]);
    }

    #[test]
    fn truncated_step_bootstraps_from_its_own_last_observation() {
        let (advantages, _) = three_steps([false; 3], [false, true, false], &[10.0], 0.5, 0.5);
        // δ_1 = 2 + .5·10 − 1.5: neither the value nor the advantage of the next episode enters.
        assert_eq!(advantages, [1.25 + 0.25 * 5.5, 5.5, 3.25]);
    }

    #[test]
    fn lambda_one_is_the_discounted_return_minus_the_value() {
        let (advantages, returns) = three_steps([false, false, true], [false; 3], &[0.0], 0.9, 1.0);
        let expected = 1.0 + 0.9 * (2.0 + 0.9 * 4.0);
        assert!((returns[0] - expected).abs() < 1e-5);
        assert!((advantages[0] - (expected - 0.5)).abs() < 1e-5);
    }
}
