//! Noise on what agents are paid, for training.

use serde::{Deserialize, Serialize};

use super::observation::NoiseLaw;
use super::schedule::{Schedule, Strength};
use super::signal::Signal;
use super::{at_least_zero, select_agents};
use crate::{EnvSpec, Result, Rng, SnapshotReader, SnapshotWriter};

/// Independent noise on each agent's reward, at every step. In an evaluation it would only blur the result: it is meant for
/// `[[perturb]]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RewardNoiseConfig {
    /// Law of the noise: `gaussian`, `uniform` or `sign`.
    pub law: NoiseLaw,
    /// Magnitude in units of the reward, at least 0.
    pub magnitude: f64,
    /// Names or groups of the agents that are paid wrongly; all if empty.
    pub agents: Vec<String>,
    /// Course over an episode: `constant`, or a table `burst`, `onset` or `drift`.
    pub schedule: Schedule,
    /// Whether each episode draws its magnitude between 0 and this one.
    pub randomize: bool,
}

impl Default for RewardNoiseConfig {
    fn default() -> Self {
        Self { law: NoiseLaw::Gaussian, magnitude: 0.1, agents: Vec::new(), schedule: Schedule::Constant, randomize: false }
    }
}

impl RewardNoiseConfig {
    pub(super) fn validate(&self, spec: &EnvSpec) -> Result<()> {
        const NAME: &str = "reward_noise";
        at_least_zero(NAME, "magnitude", self.magnitude)?;
        self.schedule.validate(NAME)?;
        select_agents(NAME, &self.agents, spec).map(drop)
    }
}

/// Noise prepared for one environment.
pub(super) struct RewardNoise {
    law: NoiseLaw,
    strength: Strength,
    agents: Vec<usize>,
    rng: Rng,
}

impl RewardNoise {
    pub fn new(config: &RewardNoiseConfig, spec: &EnvSpec) -> Result<Self> {
        config.validate(spec)?;
        Ok(Self {
            law: config.law,
            strength: Strength::new(config.magnitude, config.randomize, config.schedule),
            agents: select_agents("reward_noise", &config.agents, spec)?,
            rng: Rng::from_seed(0),
        })
    }
}

impl Signal for RewardNoise {
    fn reset(&mut self, rng: Rng) {
        self.rng = rng;
        self.strength.reset(&mut self.rng);
    }

    fn pay(&mut self, step: usize, rewards: &mut [f32]) {
        let magnitude = self.strength.at(step) as f32;
        for &agent in &self.agents {
            rewards[agent] += magnitude * self.law.draw(&mut self.rng);
        }
    }

    fn snapshot(&self, out: &mut SnapshotWriter) {
        self.rng.snapshot(out);
        self.strength.snapshot(out);
    }

    fn restore(&mut self, input: &mut SnapshotReader<'_>) -> Result<()> {
        self.rng = Rng::restore(input)?;
        self.strength.restore(input)
    }
}
