//! Labels drawn from Bradley and Terry's model.

use serde::{Deserialize, Serialize};
use steadfast_envs::Rng;

use crate::error::{Result, require};

/// The first one is preferred with probability σ((R₁ − R₂) / temperature).
///
/// At temperature 1 this is the model that cross-entropy assumes. How many labels come out wrong depends on the scale of
/// the true values: [`super::LabelReport::rate`] says it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StochasticNoiseConfig {
    /// Temperature τ in the unit of the true values, above 0; 1, 2 and 3 in the paper.
    pub temperature: f64,
}

impl Default for StochasticNoiseConfig {
    fn default() -> Self {
        Self { temperature: 1.0 }
    }
}

impl StochasticNoiseConfig {
    pub(super) fn validate(&self) -> Result<()> {
        let temperature = self.temperature;
        require(temperature > 0.0 && temperature.is_finite(), "temperature", "a finite number above 0", temperature)
    }

    pub(super) fn prefers_first(&self, gap: f64, rng: &mut Rng) -> bool {
        rng.unit() < sigmoid(gap / self.temperature)
    }
}

/// `1 / (1 + e^(−x))`; 0 and 1 at the infinities.
pub(super) fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}
