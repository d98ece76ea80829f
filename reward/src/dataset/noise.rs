//! Models of wrong labels.

use serde::{Deserialize, Serialize};

/// Labels flip with a fixed probability.
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

/// Which annotator labels the pairs. Written in a configuration as `[reward.noise.NAME]`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoiseConfig {
    /// Each label flips with a fixed probability.
    Uniform(UniformNoiseConfig),
}
