//! The choice of a world.

use serde::{Deserialize, Serialize};

use crate::testing::{BanditConfig, ChainConfig, IdentityConfig};
use crate::{Environment, Result};

/// Which environment to build, and with what settings. Written in a configuration as `[env.NAME]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EnvConfig {
    /// Repeat the observed symbol. Learners are tested on it.
    Identity(IdentityConfig),
    /// One choice without context.
    Bandit(BanditConfig),
    /// A corridor whose reward is at the far end.
    Chain(ChainConfig),
}

impl EnvConfig {
    /// Names and one-line descriptions of all environments.
    pub const LIST: &'static [(&'static str, &'static str)] = &[
        ("identity", "repeat the observed symbol (test world)"),
        ("bandit", "one choice without context (test world)"),
        ("chain", "a corridor with its reward at the far end (test world)"),
    ];

    /// Name in configurations.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Identity(_) => "identity",
            Self::Bandit(_) => "bandit",
            Self::Chain(_) => "chain",
        }
    }

    /// Builds the environment.
    ///
    /// # Errors
    /// [`crate::EnvError::Config`] if a setting is out of its range.
    pub fn build(&self) -> Result<Box<dyn Environment>> {
        Ok(match self {
            Self::Identity(c) => Box::new(c.build()?),
            Self::Bandit(c) => Box::new(c.build()?),
            Self::Chain(c) => Box::new(c.build()?),
        })
    }
}
