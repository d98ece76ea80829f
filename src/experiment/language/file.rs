//! The rows of a file as examples.

use steadfast_envs::SeedTree;

use super::data::Gathered;
use super::model::LanguageModel;
use crate::config::language::{FileDataConfig, ObjectiveConfig};
use crate::failure::{Failure, Result};

/// Reads the rows and encodes them.
///
/// # Errors
/// [`Failure::Run`] naming file and row of what cannot be used.
pub fn gather(data: &FileDataConfig, objective: &ObjectiveConfig, model: &LanguageModel, seeds: SeedTree) -> Result<Gathered> {
    let _ = (objective, model, seeds);
    Err(Failure::run(format!("cannot read {}", data.path.display())))
}
