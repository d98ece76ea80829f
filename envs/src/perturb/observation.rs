//! Noise on observations.

use serde::{Deserialize, Serialize};

use super::select_agents;
use crate::{EnvError, EnvSpec, Result, Rng};

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
}

impl Default for ObservationNoiseConfig {
    fn default() -> Self {
        Self { law: NoiseLaw::Gaussian, magnitude: 0.1, scale: Vec::new(), agents: Vec::new() }
    }
}

impl ObservationNoiseConfig {
    pub(super) fn validate(&self, spec: &EnvSpec) -> Result<()> {
        let fail =
            |field, expected: String, got: String| Err(EnvError::Config { env: "observation_noise".to_string(), field, expected, got });
        if !(self.magnitude.is_finite() && self.magnitude >= 0.0) {
            return fail("magnitude", "a finite number of at least 0".to_string(), self.magnitude.to_string());
        }
        if let Some(scale) = self.scale.iter().find(|s| !(s.is_finite() && **s >= 0.0)) {
            return fail("scale", "finite numbers of at least 0".to_string(), scale.to_string());
        }
        if self.scale.len() > spec.observation_width() {
            return fail("scale", format!("at most {} numbers", spec.observation_width()), self.scale.len().to_string());
        }
        let agents = select_agents("observation_noise", &self.agents, spec)?;
        // A token id plus 0.1 is no token.
        match agents.into_iter().find(|&i| spec.agents[i].observation.is_tokens()) {
            None => Ok(()),
            Some(i) => fail(
                "agents",
                "agents that observe numbers".to_string(),
                format!("the text that `{}` reads in `{}`", spec.agents[i].name, spec.name),
            ),
        }
    }
}

/// Noise prepared for one environment.
#[derive(Debug)]
pub(super) struct ObservationNoise {
    law: NoiseLaw,
    /// Start in the observation array and standard magnitude of every noisy feature.
    features: Vec<(usize, f32)>,
}

impl ObservationNoise {
    pub(super) fn new(config: &ObservationNoiseConfig, spec: &EnvSpec) -> Result<Self> {
        config.validate(spec)?;
        let width = spec.observation_width();
        let mut features = Vec::new();
        for agent in select_agents("observation_noise", &config.agents, spec)? {
            for feature in 0..spec.agents[agent].observation.width() {
                let scale = if config.scale.is_empty() { 1.0 } else { config.scale.get(feature).copied().unwrap_or(0.0) };
                let magnitude = config.magnitude as f32 * scale;
                if magnitude > 0.0 {
                    features.push((agent * width + feature, magnitude));
                }
            }
        }
        Ok(Self { law: config.law, features })
    }

    pub(super) fn apply(&self, rng: &mut Rng, observations: &mut [f32]) {
        for &(position, magnitude) in &self.features {
            observations[position] += magnitude
                * match self.law {
                    NoiseLaw::Gaussian => rng.normal_f32(),
                    NoiseLaw::Uniform => 2.0 * rng.unit_f32() - 1.0,
                    NoiseLaw::Sign => {
                        if rng.next_u64() >> 63 == 0 {
                            -1.0
                        } else {
                            1.0
                        }
                    }
                };
        }
    }
}
