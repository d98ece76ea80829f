//! `steadfast show-batch`.

use std::path::Path;

use super::{print, split_arguments};
use crate::cli::ShowBatchArgs;
use crate::config::{Experiment, load};
use crate::experiment::build;
use crate::experiment::language::show;
use crate::failure::{Failure, Result};
use crate::run::directory::RunDirectory;

/// Shows the first examples as the model sees them.
pub fn run(arguments: &ShowBatchArgs) -> Result<()> {
    let (name, changes) = split_arguments(&arguments.arguments)?;
    let is_run = Path::new(name).join("config.toml").is_file();
    if is_run && !changes.is_empty() {
        return Err(Failure::usage("a run cannot be changed", "give a recipe or a file with changes"));
    }
    let config = if is_run { RunDirectory::open(Path::new(name))?.config()? } else { load::named(name, &changes)?.config };
    let Experiment::Offline(config) = config else {
        return Err(Failure::usage(
            format!("{name} has no examples: its policy writes them itself"),
            "give a configuration with [objective.NAME]",
        ));
    };
    let text = build::thread_pool(config.threads)?.install(|| show::examples(&config, usize::from(arguments.examples)))?;
    print(&text)
}
