//! Noise on observations, and on the messages among them.

use serde::{Deserialize, Serialize};

use super::schedule::{Schedule, Strength};
use super::signal::Signal;
use super::{at_least_zero, features, out_of_range, select_agents};
use crate::{EnvSpec, Environment, Result, Rng, SnapshotReader, SnapshotWriter};

/// The law of a noise with magnitude m.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoiseLaw {
    /// Normal with standard deviation m.
    Gaussian,
    /// Uniform between -m and m.
    Uniform,
    /// -m or m with equal probability.
    Sign,
}

impl NoiseLaw {
    /// A draw of magnitude 1.
    pub(super) fn draw(self, rng: &mut Rng) -> f32 {
        match self {
            Self::Gaussian => rng.normal_f32(),
            Self::Uniform => 2.0 * rng.unit_f32() - 1.0,
            Self::Sign => {
                if rng.next_u64() >> 63 == 0 {
                    -1.0
                } else {
                    1.0
                }
            }
        }
    }
}

/// Independent noise on each observed feature, at every step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ObservationNoiseConfig {
    /// Law of the noise: `gaussian`, `uniform` or `sign`.
    pub law: NoiseLaw,
    /// Magnitude in units of the feature times its `scale`, at least 0.
    pub magnitude: f64,
    /// Factor per feature; all 1 if empty, and 0 beyond the end of the list.
    pub scale: Vec<f32>,
    /// Names or groups of the agents that see noise; all if empty.
    pub agents: Vec<String>,
    /// Course over an episode: `constant`, or a table `burst`, `onset` or `drift`.
    pub schedule: Schedule,
    /// Whether each episode draws its magnitude between 0 and this one: domain randomisation in training.
    pub randomize: bool,
}

impl Default for ObservationNoiseConfig {
    fn default() -> Self {
        Self {
            law: NoiseLaw::Gaussian,
            magnitude: 0.1,
            scale: Vec::new(),
            agents: Vec::new(),
            schedule: Schedule::Constant,
            randomize: false,
        }
    }
}

impl ObservationNoiseConfig {
    pub(super) fn validate(&self, spec: &EnvSpec) -> Result<()> {
        const NAME: &str = "observation_noise";
        at_least_zero(NAME, "magnitude", self.magnitude)?;
        self.schedule.validate(NAME)?;
        features(NAME, &self.agents, &self.scale, spec).map(drop)
    }
}

/// Noise on the numbers of messages that agents hear.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CommunicationNoiseConfig {
    /// Law of the noise: `gaussian`, `uniform` or `sign`.
    pub law: NoiseLaw,
    /// Magnitude in units of the message, at least 0. A symbol is a one among zeros.
    pub magnitude: f64,
    /// Names or groups of the agents that hear noise; all if empty.
    pub agents: Vec<String>,
    /// Course over an episode: `constant`, or a table `burst`, `onset` or `drift`.
    pub schedule: Schedule,
    /// Whether each episode draws its magnitude between 0 and this one.
    pub randomize: bool,
}

impl Default for CommunicationNoiseConfig {
    fn default() -> Self {
        Self { law: NoiseLaw::Gaussian, magnitude: 0.1, agents: Vec::new(), schedule: Schedule::Constant, randomize: false }
    }
}

impl CommunicationNoiseConfig {
    pub(super) fn validate(&self, spec: &EnvSpec) -> Result<()> {
        const NAME: &str = "communication_noise";
        at_least_zero(NAME, "magnitude", self.magnitude)?;
        self.schedule.validate(NAME)?;
        select_agents(NAME, &self.agents, spec).map(drop)
    }
}

/// Noise prepared for one environment.
pub(super) struct ObservationNoise {
    law: NoiseLaw,
    strength: Strength,
    /// Place in the observation array and scale of every noisy feature.
    features: Vec<(usize, f32)>,
    rng: Rng,
}

impl ObservationNoise {
    pub fn new(config: &ObservationNoiseConfig, spec: &EnvSpec) -> Result<Self> {
        config.validate(spec)?;
        Ok(Self {
            law: config.law,
            strength: Strength::new(config.magnitude, config.randomize, config.schedule),
            features: features("observation_noise", &config.agents, &config.scale, spec)?,
            rng: Rng::from_seed(0),
        })
    }

    /// Noise on messages alone.
    pub fn on_messages(config: &CommunicationNoiseConfig, env: &dyn Environment) -> Result<Self> {
        let (spec, width) = (env.spec(), env.spec().observation_width());
        config.validate(spec)?;
        let mut heard = Vec::new();
        for agent in select_agents("communication_noise", &config.agents, spec)? {
            heard.extend(env.message_features(agent).map(|feature| (agent * width + feature, 1.0)));
        }
        if heard.is_empty() {
            let who = if config.agents.is_empty() { "nobody".to_string() } else { format!("none of {}", config.agents.join(", ")) };
            return out_of_range("communication_noise", "agents", "agents that hear messages", format!("{who} in `{}`", spec.name));
        }
        let strength = Strength::new(config.magnitude, config.randomize, config.schedule);
        Ok(Self { law: config.law, strength, features: heard, rng: Rng::from_seed(0) })
    }
}

impl Signal for ObservationNoise {
    fn reset(&mut self, rng: Rng) {
        self.rng = rng;
        self.strength.reset(&mut self.rng);
    }

    fn observe(&mut self, step: usize, observations: &mut [f32]) {
        let magnitude = self.strength.at(step) as f32;
        if magnitude == 0.0 {
            return;
        }
        for &(position, scale) in &self.features {
            observations[position] += magnitude * scale * self.law.draw(&mut self.rng);
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
