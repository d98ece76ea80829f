//! The kinds of experiments, and what they have in common.

use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::Table;

use super::ExperimentConfig;
#[cfg(feature = "llm")]
use super::LanguageConfig;
use super::schema::{self, TypeDoc};
use super::validate::{self, Misfit};

/// A kind of experiment: what stands at the top of its file, and what it must fulfil.
pub trait Root: Serialize + DeserializeOwned + Clone + Default {
    /// Name of the type, under which its documentation is found.
    const NAME: &'static str;

    /// The description of the type.
    fn schema() -> &'static TypeDoc {
        schema::of(Self::NAME)
    }

    /// Checks ranges and that the parts fit each other.
    ///
    /// # Errors
    /// The first value that does not fit.
    fn validate(&self) -> Result<(), Misfit>;

    /// Checks the files that a valid configuration names, for a run that has still to read them.
    ///
    /// # Errors
    /// The first file that cannot be used.
    fn files(&self) -> Result<(), Misfit>;

    /// The kind as a choice.
    fn into_experiment(self) -> Experiment;
}

impl Root for ExperimentConfig {
    const NAME: &'static str = "ExperimentConfig";

    fn validate(&self) -> Result<(), Misfit> {
        validate::validate(self)
    }

    fn files(&self) -> Result<(), Misfit> {
        validate::files(self)
    }

    fn into_experiment(self) -> Experiment {
        Experiment::Online(Box::new(self))
    }
}

/// Settings of an experiment of any kind.
#[derive(Debug, Clone, PartialEq)]
pub enum Experiment {
    /// The policy collects what it learns from.
    Online(Box<ExperimentConfig>),
    /// A language model learns from given examples.
    #[cfg(feature = "llm")]
    Offline(Box<LanguageConfig>),
}

impl From<ExperimentConfig> for Experiment {
    fn from(config: ExperimentConfig) -> Self {
        Self::Online(Box::new(config))
    }
}

impl Experiment {
    /// Name of the experiment.
    pub fn name(&self) -> &str {
        match self {
            Self::Online(c) => &c.name,
            #[cfg(feature = "llm")]
            Self::Offline(c) => &c.name,
        }
    }

    /// Seed of the run.
    pub fn seed(&self) -> u64 {
        match self {
            Self::Online(c) => c.seed,
            #[cfg(feature = "llm")]
            Self::Offline(c) => c.seed,
        }
    }

    /// Worker threads as configured.
    pub fn threads(&self) -> usize {
        match self {
            Self::Online(c) => c.threads,
            #[cfg(feature = "llm")]
            Self::Offline(c) => c.threads,
        }
    }

    /// Where numbers are computed.
    pub fn device(&self) -> &str {
        match self {
            Self::Online(c) => &c.device,
            #[cfg(feature = "llm")]
            Self::Offline(c) => &c.device,
        }
    }

    /// The world, or what stands in its place: runs of different subjects share no picture.
    pub fn subject(&self) -> &str {
        match self {
            Self::Online(c) => c.env.name(),
            #[cfg(feature = "llm")]
            Self::Offline(c) => c.data.name(),
        }
    }

    /// What the steps of the run count.
    pub fn step_unit(&self) -> &'static str {
        match self {
            Self::Online(_) => "environment steps, all slots together",
            #[cfg(feature = "llm")]
            Self::Offline(_) => "optimiser steps",
        }
    }

    /// As a TOML table.
    pub fn to_table(&self) -> Table {
        let table = match self {
            Self::Online(c) => Table::try_from(c),
            #[cfg(feature = "llm")]
            Self::Offline(c) => Table::try_from(c),
        };
        table.expect("a configuration consists of tables, lists, numbers and strings within TOML's ranges")
    }

    /// The settings, if the policy collects what it learns from.
    pub fn online(self) -> Option<ExperimentConfig> {
        match self {
            Self::Online(c) => Some(*c),
            #[cfg(feature = "llm")]
            Self::Offline(_) => None,
        }
    }
}
