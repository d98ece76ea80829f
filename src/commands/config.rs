//! `steadfast config`.

use super::{print, split_arguments};
use crate::cli::ConfigCommand;
use crate::config::{load, render};
use crate::failure::Result;

/// Prints defaults, checks a configuration, or prints it resolved.
pub fn run(command: &ConfigCommand) -> Result<()> {
    match command {
        ConfigCommand::Defaults => print(&render::defaults()),
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
