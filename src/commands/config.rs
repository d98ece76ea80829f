//! `steadfast config`.

use super::{print, split_arguments};
use crate::cli::ConfigCommand;
#[cfg(feature = "llm")]
use crate::config::LanguageConfig;
use crate::config::{ExperimentConfig, load, render};
use crate::failure::Result;

/// Prints defaults, checks a configuration, or prints it resolved.
pub fn run(command: &ConfigCommand) -> Result<()> {
    match command {
        ConfigCommand::Defaults { language: false } => print(&render::defaults::<ExperimentConfig>()),
        #[cfg(feature = "llm")]
        ConfigCommand::Defaults { language: true } => print(&render::defaults::<LanguageConfig>()),
        #[cfg(not(feature = "llm"))]
        ConfigCommand::Defaults { language: true } => {
            Err(crate::failure::Failure::usage("this program was built without language models", "build it with `--features llm`"))
        }
        ConfigCommand::Check { arguments } => {
            let (name, overrides) = split_arguments(arguments)?;
            load::named(name, &overrides)?;
            print(&format!("{name}: ok\n"))
        }
        ConfigCommand::Show { arguments } => {
            let (name, overrides) = split_arguments(arguments)?;
            print(&render::resolved(&load::named(name, &overrides)?.config))
        }
    }
}
