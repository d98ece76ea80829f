//! Examples as the model sees them.

use std::fmt::Write as _;

use steadfast_agents::llm::padded_batch::show;
use steadfast_agents::llm::{PaddingSide, TokenSequence};
use steadfast_envs::SeedTree;

use super::data::{self, Examples};
use super::device;
use super::model::LanguageModel;
use crate::config::language::LanguageConfig;
use crate::failure::{Failure, Result};

/// The first `n` training examples of an experiment: text with special tokens, then each token with its place, number and
/// part. Of a task whose pairs are drawn, as many are drawn as are shown.
///
/// # Errors
/// As for training.
pub fn examples(config: &LanguageConfig, n: usize) -> Result<String> {
    let mut config = config.clone();
    if let crate::config::language::DataConfig::Task(task) = &mut config.data {
        task.examples = task.examples.min(n);
        task.held_out = 0;
    }
    let task = data::task(&config.data)?;
    let device = device::open(&config.device)?;
    let model = LanguageModel::open(&config.model, task.as_deref(), SeedTree::new(config.seed), &device)?;
    let gathered = data::gather(None, &config, &model, task.as_deref(), &device)?;
    let mut text = String::new();
    let fail = |e| Failure::caused("cannot show the examples", e);
    let mut add = |name: &str, sequences: &[TokenSequence]| -> Result<()> {
        let shown = show(&model.tokenizer, sequences, PaddingSide::Right).map_err(fail)?;
        // Writing to a string cannot fail.
        let _ = write!(text, "{name}\n{shown}\n");
        Ok(())
    };
    match gathered.examples {
        Examples::Completions { train, .. } => add("completions", &train[..n.min(train.len())])?,
        Examples::Pairs { train, .. } => {
            for pair in train.iter().take(n) {
                let label = match (pair.equal, pair.truth.flipped) {
                    (true, _) => ", found equally good",
                    (false, Some(true)) => ", known to be labelled wrongly",
                    _ => "",
                };
                add(
                    &format!("pair {}{label}: row 0 is chosen, row 1 rejected", pair.id),
                    &[pair.pair.chosen.clone(), pair.pair.rejected.clone()],
                )?;
            }
        }
        Examples::Answers { train, .. } => {
            for answer in train.iter().take(n) {
                let label = if answer.desirable { "good" } else { "bad" };
                add(&format!("answer {}, found {label}", answer.id), std::slice::from_ref(&answer.sequence))?;
            }
        }
    }
    let _ = writeln!(text, "{}", gathered.report);
    Ok(text)
}
