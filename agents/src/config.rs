//! The choice of a learner.

use serde::{Deserialize, Serialize};

use crate::algorithms::ppo::PpoConfig;

/// Which algorithm trains the agents. Written in a configuration as `[agent.NAME]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AgentConfig {
    /// Proximal policy optimisation, for one agent or several (IPPO, MAPPO).
    Ppo(PpoConfig),
}

impl AgentConfig {
    /// Names and one-line descriptions of all algorithms.
    pub const LIST: &'static [(&'static str, &'static str)] =
        &[("ppo", "proximal policy optimisation; `critic = \"local\"` is IPPO, `critic = \"central\"` is MAPPO")];

    /// Name in configurations.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Ppo(_) => "ppo",
        }
    }

    /// Checks ranges that the types cannot express.
    ///
    /// # Errors
    /// [`crate::AgentError::Config`] with the field, the allowed values and the value found.
    pub fn validate(&self) -> Result<(), crate::AgentError> {
        match self {
            Self::Ppo(config) => config.validate(),
        }
    }
}
