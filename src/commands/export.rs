//! `steadfast export`.

use steadfast_reward::RewardScale;
use tracing::info;

use super::{eval, print};
use crate::cli::{ExportArgs, ExportFormat};
use crate::experiment::build;
use crate::experiment::language::model::{LanguageModel, save_folder};
use crate::experiment::language::{device, stored};
use crate::failure::{Failure, Result};
use crate::run::directory::RunDirectory;
use crate::run::model::MODEL;

/// Writes the model of a run into a folder.
pub fn run(arguments: &ExportArgs) -> Result<()> {
    let run = RunDirectory::open(&arguments.run)?;
    let output = &arguments.output;
    if output.exists() && std::fs::read_dir(output).map_or(true, |mut entries| entries.next().is_some()) {
        return Err(Failure::usage(format!("{} exists and is not an empty directory", output.display()), "choose another --output"));
    }
    let config = run.config()?;
    let (model, scale, what) = build::thread_pool(config.threads())?.install(|| {
        let finished = run.file(MODEL);
        if arguments.checkpoint.is_none() && finished.join("config.json").is_file() {
            let scale = RewardScale::load(&finished).map_err(|e| Failure::caused("cannot read the scale of the rewards", e))?;
            return Ok((LanguageModel::load(&finished, &device::open("cpu")?)?, scale, "the finished model".to_string()));
        }
        let found = eval::find(&run, arguments.checkpoint)?;
        let step = found.progress.step;
        Ok((stored::model(&config, &found)?, None, format!("the model of step {step}")))
    })?;
    match arguments.format {
        ExportFormat::Safetensors => save_folder(output, &model.decoder, &model.tokenizer, scale)?,
    }
    info!("wrote {what}");
    print(&format!("{}\n", output.display()))
}
