//! A world made for learning rewards: what is seen is noise, what is paid is a fixed random network of it.
//!
//! Observations are independent standard normal vectors, whatever the agent does. The reward of a step is
//!
//! ```text
//! r(x) = k · (Σⱼ vⱼ tanh(wⱼ · x + bⱼ) − m)        32 units; w, b, v standard normal, drawn from `seed`
//! ```
//!
//! with `m` the mean of the sum and `k` such that the return of an episode has the standard deviation `scale`, both
//! measured on a fixed sample. Steps are independent, so a learned reward is judged by its function alone: every policy
//! sees the same distribution.

use serde::{Deserialize, Serialize};

use crate::environment::invalid_index;
use crate::range::{require, require_all};
use crate::testing::{MAX_HORIZON, single_agent};
use crate::{Actions, EnvSpec, Environment, Result, Rng, SeedTree, SnapshotReader, SnapshotWriter, Space, StepOut};

const NAME: &str = "random_reward";
/// Units of the reward's network.
const UNITS: usize = 32;
/// Choices of the agent, none of which matters.
const CHOICES: usize = 2;
/// Observations from which the reward is scaled.
const SAMPLE: usize = 4096;

/// Settings of [`RandomReward`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RandomRewardConfig {
    /// Numbers in an observation, 1 to 1000.
    pub observation_width: usize,
    /// Steps of an episode, at least 1.
    pub horizon: usize,
    /// Standard deviation of an episode's return, above 0.
    pub scale: f64,
    /// Seed of the reward's network: another one is another task.
    pub seed: u64,
}

impl Default for RandomRewardConfig {
    fn default() -> Self {
        Self { observation_width: 6, horizon: 10, scale: 2.0, seed: 0 }
    }
}

impl RandomRewardConfig {
    /// Builds the world.
    ///
    /// # Errors
    /// [`crate::EnvError::Config`] if a field is out of its range.
    pub fn build(&self) -> Result<RandomReward> {
        require(NAME, "observation_width", self.observation_width, 1, 1000)?;
        require(NAME, "horizon", self.horizon, 1, MAX_HORIZON)?;
        require_all(NAME, &[("scale", self.scale, self.scale > 0.0, "a number above 0")])?;
        Ok(RandomReward {
            spec: single_agent(NAME, self.observation_width, Space::Discrete { n: CHOICES }, self.horizon),
            reward: TanhReward::new(self),
            observation: vec![0.0; self.observation_width],
            time: 0,
            rng: Rng::from_seed(0),
        })
    }
}

/// The reward's network.
#[derive(Debug, Clone)]
struct TanhReward {
    /// `[unit, observation_width + 1]`, the bias last.
    input: Vec<f64>,
    /// `[unit]`.
    output: Vec<f64>,
    factor: f64,
    mean: f64,
}

impl TanhReward {
    fn new(config: &RandomRewardConfig) -> Self {
        let (width, seeds) = (config.observation_width, SeedTree::new(config.seed).child(NAME));
        let mut rng = seeds.child("network").rng();
        let input = (0..UNITS * (width + 1)).map(|_| rng.normal()).collect();
        let output = (0..UNITS).map(|_| rng.normal()).collect();
        let mut reward = Self { input, output, factor: 1.0, mean: 0.0 };
        let mut rng = seeds.child("scale").rng();
        let mut x = vec![0.0; width];
        let sample: Vec<f64> = (0..SAMPLE)
            .map(|_| {
                x.fill_with(|| rng.normal_f32());
                reward.of(&x)
            })
            .collect();
        reward.mean = sample.iter().sum::<f64>() / SAMPLE as f64;
        let variance = sample.iter().map(|r| (r - reward.mean) * (r - reward.mean)).sum::<f64>() / SAMPLE as f64;
        // The steps of an episode are independent: their variances add up.
        reward.factor = config.scale / (variance * config.horizon as f64).sqrt();
        reward
    }

    fn of(&self, x: &[f32]) -> f64 {
        let units = self.input.chunks_exact(x.len() + 1).zip(&self.output);
        let sum: f64 = units.map(|(w, v)| v * (w[x.len()] + w.iter().zip(x).map(|(w, x)| w * f64::from(*x)).sum::<f64>()).tanh()).sum();
        self.factor * (sum - self.mean)
    }
}

/// Noise, rewarded by a fixed random network; see the module's documentation.
#[derive(Debug, Clone)]
pub struct RandomReward {
    spec: EnvSpec,
    reward: TanhReward,
    observation: Vec<f32>,
    time: usize,
    rng: Rng,
}

impl RandomReward {
    /// The reward of a step that is taken at `observation` `[observation_width]`.
    ///
    /// # Panics
    /// If the observation has another width.
    pub fn reward(&self, observation: &[f32]) -> f64 {
        assert_eq!(observation.len(), self.observation.len(), "width of an observation");
        self.reward.of(observation)
    }

    fn draw(&mut self, out: &mut [f32]) {
        let rng = &mut self.rng;
        self.observation.fill_with(|| rng.normal_f32());
        out.copy_from_slice(&self.observation);
    }
}

impl Environment for RandomReward {
    fn spec(&self) -> &EnvSpec {
        &self.spec
    }

    fn reset(&mut self, seed: u64, observations: &mut [f32]) {
        self.rng = SeedTree::new(seed).rng();
        self.time = 0;
        self.draw(observations);
    }

    fn step(&mut self, actions: Actions<'_>, out: &mut StepOut<'_>) -> Result<()> {
        let action = actions.discrete(NAME)?[0];
        if action as usize >= CHOICES {
            return Err(invalid_index(NAME, 0, CHOICES, action));
        }
        out.rewards[0] = self.reward.of(&self.observation) as f32;
        self.time += 1;
        self.draw(out.observations);
        out.terminated = false;
        out.truncated = self.time >= self.spec.horizon;
        Ok(())
    }

    fn snapshot(&self, out: &mut SnapshotWriter) {
        self.rng.snapshot(out);
        out.f32s(&self.observation);
        out.u64(self.time as u64);
    }

    fn restore(&mut self, input: &mut SnapshotReader<'_>) -> Result<()> {
        self.rng = Rng::restore(input)?;
        input.f32s(&mut self.observation)?;
        self.time = input.u64()? as usize;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn returns_have_the_scale_and_depend_on_the_seed() {
        for seed in 0..3 {
            let config = RandomRewardConfig { scale: 3.0, horizon: 5, seed, ..Default::default() };
            let mut world = config.build().unwrap();
            let mut x = [0.0; 6];
            let returns: Vec<f64> = (0..4000)
                .map(|episode| {
                    world.reset(episode, &mut x);
                    let mut sum = 0.0;
                    for time in 0..5 {
                        let expected = world.reward(&x);
                        let mut reward = [0.0];
                        let mut out = StepOut { observations: &mut x, rewards: &mut reward, terminated: true, truncated: false };
                        world.step(Actions::Discrete(&[time % 2]), &mut out).unwrap();
                        assert_eq!((out.terminated, out.truncated), (false, time == 4));
                        assert_eq!(reward[0], expected as f32);
                        sum += expected;
                    }
                    sum
                })
                .collect();
            let mean = returns.iter().sum::<f64>() / 4000.0;
            let std = (returns.iter().map(|r| (r - mean).powi(2)).sum::<f64>() / 4000.0).sqrt();
            // Standard errors: 3 / √4000 = 0.047 and 0.034.
            assert!(mean.abs() < 0.2 && (std - 3.0).abs() < 0.15, "{mean} {std}");
        }
        let reward = |seed| RandomRewardConfig { seed, ..Default::default() }.build().unwrap().reward(&[0.5; 6]);
        assert_eq!(reward(1), reward(1));
        assert_ne!(reward(1), reward(2));
    }

    #[test]
    fn values_out_of_range_are_refused() {
        let default = RandomRewardConfig::default;
        assert!(RandomRewardConfig { observation_width: 0, ..default() }.build().is_err());
        assert!(RandomRewardConfig { horizon: 0, ..default() }.build().is_err());
        assert!(RandomRewardConfig { scale: 0.0, ..default() }.build().is_err());
        assert!(RandomRewardConfig { scale: f64::NAN, ..default() }.build().is_err());
    }
}
