//! The model in a checkpoint.

use steadfast_agents::AgentError;
use steadfast_envs::SeedTree;

use super::model::LanguageModel;
use super::{data, device};
use crate::config::Experiment;
use crate::config::language::ObjectiveConfig;
use crate::failure::{Failure, Result};
use crate::run::checkpoint::Checkpoint;

/// Prefix of the parameters in the state of a trainer.
const OFFLINE: &str = "model/";
/// The same of a learner in a world.
const ONLINE: &str = "policy/";

/// The model as it was when the checkpoint was taken. Shape and tokenizer come from the model that the run started from.
///
/// # Errors
/// [`Failure::Usage`] for runs without a language model; [`Failure::Run`] if the starting model is gone or does not fit.
pub fn model(config: &Experiment, checkpoint: &Checkpoint) -> Result<LanguageModel> {
    let none = || Failure::usage("the run has no language model", "give a run with a [model] table");
    let (start, task, is_reward, prefix) = match config {
        Experiment::Offline(c) => (&c.model, data::task(&c.data)?, matches!(c.objective, ObjectiveConfig::RewardModel(_)), OFFLINE),
        Experiment::Online(c) => {
            let task = c.env.text_task().map_err(|e| Failure::caused("cannot build the task", e))?;
            (c.model.as_ref().ok_or_else(none)?, task, false, ONLINE)
        }
    };
    let seeds = SeedTree::new(config.seed());
    let mut model = LanguageModel::open(start, task.as_deref(), seeds, &device::open("cpu")?)?;
    let unfit = |e: AgentError| Failure::caused("the checkpoint does not fit the model that the run started from", e);
    if is_reward && !model.decoder.has_scalar_head() {
        model.decoder = model.decoder.with_scalar_head(seeds.child("head")).map_err(unfit)?;
    }
    for (name, shape, _) in model.decoder.parameters().map_err(unfit)? {
        let values = checkpoint.learner.f32(&format!("{prefix}{name}"), shape.iter().product()).map_err(unfit)?;
        model.decoder.set_parameter(&name, values).map_err(unfit)?;
    }
    Ok(model)
}
