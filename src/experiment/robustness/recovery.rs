//! How long after a disturbance the reward per step is back.
//!
//! The same episodes are played with and without the disturbance (common random numbers). At step `t` the shortfall is the
//! mean over episodes of the undisturbed minus the disturbed reward, each the mean over agents and 0 after the end of its
//! episode, so that shortfalls sum to the loss of return. It counts as made up where it is at most a tenth of the largest
//! one of the episode, or at most three standard errors of that mean, which episodes as few as these cannot tell from 0.
//!
//! The recovery time is the number of steps from the end of a burst, or from an onset, to the first step from which on the
//! shortfall stays made up until the horizon: the settling time of control engineering. Where the last step before the
//! horizon still falls short the time is censored at the horizon.

use steadfast_envs::StepRewards;

/// A recovery time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recovery {
    /// Steps; all that there were if it is censored.
    pub steps: usize,
    /// True if the reward was not back at the horizon.
    pub is_censored: bool,
}

/// A shortfall below this share of the largest one is made up.
const SHARE: f64 = 0.1;
/// So is one of fewer standard errors than this.
const STANDARD_ERRORS: f64 = 3.0;

/// The time that the rewards of `agents` need from step `start` on. Nothing if there are no steps between `start` and
/// `horizon`, or no episodes.
pub fn recovery(nominal: &StepRewards, disturbed: &StepRewards, agents: &[usize], start: usize, horizon: usize) -> Option<Recovery> {
    let episodes = nominal.n_episodes().min(disturbed.n_episodes());
    if start >= horizon || episodes == 0 || agents.is_empty() {
        return None;
    }
    let reward = |steps: &StepRewards, episode: usize, step: usize| {
        let of = |rewards: &[f32]| agents.iter().map(|&agent| f64::from(rewards[agent])).sum::<f64>() / agents.len() as f64;
        steps.get(episode, step).map_or(0.0, of)
    };
    let shortfall = |step: usize| {
        let (mut sum, mut squares) = (0.0, 0.0);
        for episode in 0..episodes {
            let difference = reward(nominal, episode, step) - reward(disturbed, episode, step);
            sum += difference;
            squares += difference * difference;
        }
        let n = episodes as f64;
        let mean = sum / n;
        // Rounding can leave the variance of equal differences a little below 0.
        let variance = if episodes > 1 { ((squares - n * mean * mean) / (n - 1.0)).max(0.0) } else { 0.0 };
        (mean, (variance / n).sqrt())
    };
    let shortfalls: Vec<(f64, f64)> = (0..horizon).map(shortfall).collect();
    let largest = shortfalls.iter().fold(0.0_f64, |largest, (mean, _)| largest.max(*mean));
    let falls_short = |&(mean, error): &(f64, f64)| mean > (SHARE * largest).max(STANDARD_ERRORS * error);
    let steps = shortfalls[start..].iter().rposition(falls_short).map_or(0, |last| last + 1);
    Some(Recovery { steps, is_censored: steps == horizon - start })
}

#[cfg(test)]
mod tests {
    use steadfast_envs::testing::BanditConfig;
    use steadfast_envs::{
        ActMode, ActionBatch, ActionsMut, EnvConfig, ObservationBatch, Policy, Rng, RolloutEngine, RolloutOptions, SeedTree, VectorEnv,
    };

    use super::*;

    /// Pulls the second arm in the given steps, else the first.
    struct Script {
        arms: Vec<u32>,
        step: usize,
    }

    impl Policy for Script {
        fn reset(&mut self, _slot: usize) {
            self.step = 0;
        }

        fn act(&mut self, _: &ObservationBatch<'_>, _: &mut [Rng], _: ActMode, out: &mut ActionBatch<'_>) -> steadfast_envs::Result<()> {
            if let ActionsMut::Discrete(actions) = &mut out.actions {
                actions.fill(self.arms[self.step]);
            }
            out.log_probs.fill(0.0);
            self.step += 1;
            Ok(())
        }
    }

    /// Rewards of a bandit whose first arm pays 1 and whose second pays 0, with noise of this deviation.
    fn play(arms: &[u32], std: f64) -> StepRewards {
        let config = EnvConfig::Bandit(BanditConfig { rewards: vec![1.0, 0.0, 0.95], std, horizon: arms.len() });
        let worlds = VectorEnv::new(vec![config.build().unwrap()], SeedTree::new(1)).unwrap();
        let mut engine = RolloutEngine::new(worlds, SeedTree::new(2), RolloutOptions::default()).unwrap();
        engine.evaluate_steps(&mut Script { arms: arms.to_vec(), step: 0 }, 20, ActMode::Greedy).unwrap().1
    }

    #[test]
    fn settling_is_counted_from_the_end_of_the_disturbance() {
        let nominal = play(&[0; 10], 0.0);
        let time = |arms: &[u32; 10], start| {
            let found = recovery(&nominal, &play(arms, 0.0), &[0], start, 10).unwrap();
            (found.steps, found.is_censored)
        };
        // A burst in the steps 2 to 4 that costs no more, that costs three steps more, and one that comes back late.
        assert_eq!(time(&[0, 0, 1, 1, 1, 0, 0, 0, 0, 0], 5), (0, false));
        assert_eq!(time(&[0, 0, 1, 1, 1, 1, 1, 1, 0, 0], 5), (3, false));
        assert_eq!(time(&[0, 0, 1, 1, 1, 0, 0, 1, 0, 0], 5), (3, false));
        // A twentieth of the largest shortfall is made up; without a larger one beside it, it is not.
        assert_eq!(time(&[0, 0, 1, 1, 1, 2, 2, 2, 2, 2], 5), (0, false));
        assert_eq!(time(&[0, 0, 2, 2, 2, 2, 2, 0, 0, 0], 5), (2, false));
        // Never: what is seen of it are the five steps to the horizon.
        assert_eq!(time(&[0, 0, 1, 1, 1, 1, 1, 1, 1, 1], 5), (5, true));
        assert_eq!(time(&[0; 10], 5), (0, false));
        assert_eq!(recovery(&nominal, &nominal, &[0], 10, 10), None);
    }

    #[test]
    fn an_episode_that_ended_earns_nothing() {
        let nominal = play(&[0; 10], 0.0);
        // As if the disturbance had ended all episodes after five steps.
        let found = recovery(&nominal, &play(&[0; 5], 0.0), &[0], 5, 10).unwrap();
        assert_eq!(found, Recovery { steps: 5, is_censored: true });
    }

    #[test]
    fn what_the_episodes_cannot_tell_counts_as_made_up() {
        // Noise of ten times the loss, in other episodes.
        let (nominal, noisy) = (play(&[0; 10], 0.0), play(&[2; 10], 0.5));
        assert_eq!(recovery(&nominal, &noisy, &[0], 0, 10).unwrap().steps, 0);
        assert_eq!(recovery(&nominal, &play(&[2; 10], 0.0), &[0], 0, 10).unwrap().steps, 10);
    }
}
