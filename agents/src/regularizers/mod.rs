//! Penalties that make a network's output change little when its input does.

pub mod lipschitz;

use serde::{Deserialize, Serialize};

use crate::AgentError;
use lipschitz::{GaussianConfig, LipschitzConfig};

/// Which penalty is added to the policy's loss. Written in a configuration as `[regularizer.NAME]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RegularizerConfig {
    /// ERNIE: the change of the policy under the worst small perturbation of its observation.
    Lipschitz(LipschitzConfig),
    /// The same penalty at a random perturbation of the same size: ERNIE's baseline.
    Gaussian(GaussianConfig),
}

impl RegularizerConfig {
    /// Names and one-line descriptions of all regularisers.
    pub const LIST: &'static [(&'static str, &'static str)] = &[
        ("lipschitz", "ERNIE: change of the policy under the worst small perturbation of its observation"),
        ("gaussian", "the same penalty at a random perturbation of the same size (ERNIE's baseline)"),
    ];

    /// Name in configurations.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Lipschitz(_) => "lipschitz",
            Self::Gaussian(_) => "gaussian",
        }
    }

    /// Checks the ranges given with the fields.
    ///
    /// # Errors
    /// [`AgentError::Config`] for the first field out of its range.
    pub fn validate(&self) -> Result<(), AgentError> {
        match self {
            Self::Lipschitz(config) => config.validate(),
            Self::Gaussian(config) => config.validate(),
        }
    }
}
