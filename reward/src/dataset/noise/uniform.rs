//! Labels flip at random, whatever they are about.

use serde::{Deserialize, Serialize};
use steadfast_envs::Rng;

use crate::error::{Result, require};

/// Each label is flipped with a fixed probability, independently of all others.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UniformNoiseConfig {
    /// Probability that a label is flipped, 0 to 1.
    pub rate: f64,
}

impl Default for UniformNoiseConfig {
    fn default() -> Self {
        Self { rate: 0.1 }
    }
}

impl UniformNoiseConfig {
    pub(super) fn validate(&self) -> Result<()> {
        require((0.0..=1.0).contains(&self.rate), "rate", "between 0 and 1", self.rate)
    }

    pub(super) fn flips(&self, rng: &mut Rng) -> bool {
        rng.unit() < self.rate
    }
}
