//! The examples that a language model learns from.

use std::path::Path;
use std::sync::Arc;

use serde_json::json;
use steadfast_agents::llm::{Decoder, Device, GenerationConfig, Generator, TokenSequence};
use steadfast_envs::SeedTree;
use steadfast_envs::text::{EOS, TextTask};
use steadfast_reward::dataset::{Row, write_jsonl_row};
use steadfast_reward::{
    EncodedAnswer, EncodedPreference, Gold, RewardError, SampleReport, SampledLabels, Text, sample_preferences, text_row,
};
use tracing::{info, warn};

use super::model::LanguageModel;
use crate::config::language::{DataConfig, LanguageConfig, ObjectiveConfig, TaskDataConfig};
use crate::failure::{Failure, Result};
use crate::run::directory::RunDirectory;
use crate::run::log::write_whole;

/// Pairs that were drawn for training, as a preference file.
pub const PAIRS: &str = "preferences.jsonl";
/// Pairs that are only measured on.
pub const HELD_OUT: &str = "preferences_held_out.jsonl";

/// Training and held-out examples.
#[derive(Debug, Clone, PartialEq)]
pub enum Examples {
    /// Completions to be imitated.
    Completions {
        /// To learn from.
        train: Vec<TokenSequence>,
        /// To measure on.
        held_out: Vec<TokenSequence>,
    },
    /// Pairs.
    Pairs {
        /// To learn from.
        train: Vec<EncodedPreference>,
        /// To measure on.
        held_out: Vec<EncodedPreference>,
    },
    /// Completions found good or bad.
    Answers {
        /// To learn from.
        train: Vec<EncodedAnswer>,
        /// To measure on.
        held_out: Vec<EncodedAnswer>,
    },
}

impl Examples {
    /// Numbers of training and of held-out examples.
    pub fn counts(&self) -> (usize, usize) {
        match self {
            Self::Completions { train, held_out } => (train.len(), held_out.len()),
            Self::Pairs { train, held_out } => (train.len(), held_out.len()),
            Self::Answers { train, held_out } => (train.len(), held_out.len()),
        }
    }

    /// All training sequences.
    pub fn sequences(&self) -> Vec<&TokenSequence> {
        match self {
            Self::Completions { train, .. } => train.iter().collect(),
            Self::Pairs { train, .. } => train.iter().flat_map(|p| [&p.pair.chosen, &p.pair.rejected]).collect(),
            Self::Answers { train, .. } => train.iter().map(|a| &a.sequence).collect(),
        }
    }

    /// Prompts of held-out examples; of training examples if none is held out.
    pub fn prompts(&self) -> Vec<Vec<u32>> {
        let of = |s: &TokenSequence| s.prompt().to_vec();
        match self {
            Self::Completions { train, held_out } => pick(train, held_out).iter().map(of).collect(),
            Self::Pairs { train, held_out } => pick(train, held_out).iter().map(|p| of(&p.pair.chosen)).collect(),
            Self::Answers { train, held_out } => pick(train, held_out).iter().map(|a| of(&a.sequence)).collect(),
        }
    }

    /// Check sum of everything that is learned from: a run that is continued must meet the same examples.
    pub fn check_sum(&self) -> u32 {
        let mut bytes = Vec::new();
        let mut put = |s: &TokenSequence, extra: [u32; 2]| {
            bytes.extend(
                [&[s.tokens.len() as u32, s.prompt_len as u32][..], &extra, &s.tokens].concat().iter().flat_map(|x| x.to_le_bytes()),
            );
        };
        match self {
            Self::Completions { train, .. } => train.iter().for_each(|s| put(s, [0; 2])),
            Self::Pairs { train, .. } => {
                for p in train {
                    let extra = [u32::from(p.equal), p.margin.map_or(0, f32::to_bits)];
                    put(&p.pair.chosen, extra);
                    put(&p.pair.rejected, p.pair.reference.map_or([0; 2], |r| r.map(f32::to_bits)));
                }
            }
            Self::Answers { train, .. } => {
                train.iter().for_each(|a| put(&a.sequence, [u32::from(a.desirable), a.reference.map_or(0, f32::to_bits)]));
            }
        }
        crc32c::crc32c(&bytes)
    }
}

fn pick<'a, T>(train: &'a [T], held_out: &'a [T]) -> &'a [T] {
    if held_out.is_empty() { train } else { held_out }
}

/// Examples with what there is to say of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Gathered {
    /// The examples.
    pub examples: Examples,
    /// Counts for `summary.json`.
    pub report: serde_json::Value,
}

/// The task of a configuration, if it has one.
///
/// # Errors
/// [`Failure::Run`] for settings out of their range, which validated configurations exclude.
pub fn task(config: &DataConfig) -> Result<Option<Arc<dyn TextTask>>> {
    match config {
        DataConfig::Task(data) => data.env.build().map(Some).map_err(|e| Failure::caused("cannot build the task", e)),
        DataConfig::File(_) => Ok(None),
    }
}

/// Draws or reads the examples of a run, and writes drawn pairs into it, if there is one.
///
/// # Errors
/// [`Failure::Run`] naming the row or the file of what cannot be used.
pub fn gather(
    run: Option<&RunDirectory>,
    config: &LanguageConfig,
    model: &LanguageModel,
    task: Option<&dyn TextTask>,
    device: &Device,
) -> Result<Gathered> {
    let seeds = SeedTree::new(config.seed).child("data");
    match (&config.data, task) {
        (DataConfig::Task(data), Some(task)) => match &config.objective {
            ObjectiveConfig::Sft(_) => Ok(corpus(data, task, seeds)),
            ObjectiveConfig::Kto(_) => {
                let mut gathered = pairs(run, data, model, task, device, seeds)?;
                if let Examples::Pairs { train, held_out } = gathered.examples {
                    gathered.examples = Examples::Answers { train: answers(train), held_out: answers(held_out) };
                }
                Ok(gathered)
            }
            ObjectiveConfig::Preference(_) | ObjectiveConfig::RewardModel(_) => pairs(run, data, model, task, device, seeds),
        },
        (DataConfig::File(data), _) => super::file::gather(data, &config.objective, model, seeds),
        (DataConfig::Task(_), None) => Err(Failure::run("the task was not built")),
    }
}

/// Completions of the task's own process.
fn corpus(data: &TaskDataConfig, task: &dyn TextTask, seeds: SeedTree) -> Gathered {
    let draw = |set: &str, n: usize| -> Vec<TokenSequence> {
        let seeds = seeds.child(set);
        let one = |i: u64| {
            let mut rng = seeds.index(i).rng();
            let prompt = task.prompt(&mut rng);
            let completion = task.reference_completion(&mut rng, &prompt);
            TokenSequence::new(&prompt, &completion)
        };
        (0..n as u64).map(one).collect()
    };
    let examples = Examples::Completions { train: draw("train", data.examples), held_out: draw("held_out", data.held_out) };
    // What a perfect model would reach on the held-out completions, per token.
    let Examples::Completions { held_out, .. } = &examples else { unreachable!("completions were drawn") };
    let tokens: usize = held_out.iter().map(|s| s.completion().len()).sum();
    let log_prob: f64 = held_out.iter().map(|s| task.reference_log_prob(s.prompt(), s.completion())).sum();
    let mut report = json!({ "train": data.examples, "held_out": data.held_out });
    if tokens > 0 {
        report["best_held_out_loss"] = json!(-log_prob / tokens as f64);
    }
    Gathered { examples, report }
}

/// Pairs that a policy draws and the task's reward labels.
fn pairs(
    run: Option<&RunDirectory>,
    data: &TaskDataConfig,
    model: &LanguageModel,
    task: &dyn TextTask,
    device: &Device,
    seeds: SeedTree,
) -> Result<Gathered> {
    let other: Option<Decoder> = match &data.sampler {
        Some(path) => {
            let sampler = LanguageModel::load(path, device)?;
            sampler.check_task(task).map_err(|reason| {
                let help = "give the model that the task's words were learned by";
                Failure::run_with_help(format!("the sampler in {} does not fit the task: {reason}", path.display()), help)
            })?;
            Some(sampler.decoder)
        }
        None => None,
    };
    let cannot = |e: RewardError| Failure::caused("cannot draw pairs", e);
    let mut generator = Generator::new(other.as_ref().unwrap_or(&model.decoder)).map_err(|e| cannot(e.into()))?;
    let generation =
        GenerationConfig { max_new_tokens: task.max_new_tokens(), temperature: data.temperature, ..GenerationConfig::default() };
    let value = |prompt: &[u32], completion: &[u32]| task.gold(prompt, completion);
    let terms = |prompt: &[u32], completion: &[u32]| task.gold_terms(prompt, completion);
    let temptation = |completion: &[u32]| task.temptation(completion);
    let labels = SampledLabels { annotator: data.annotator, noise: data.noise };
    let mut draw = |set: &str, n: usize| -> Result<(Vec<EncodedPreference>, SampleReport)> {
        let seeds = seeds.child(set);
        let prompts: Vec<Vec<u32>> = (0..n as u64).map(|i| task.prompt(&mut seeds.child("prompt").index(i).rng())).collect();
        let gold = Gold { value: &value, terms: Some(&terms), temptation: Some(&temptation) };
        sample_preferences(&mut generator, &prompts, &generation, &[EOS], gold, &labels, seeds).map_err(cannot)
    };
    let (train, of_train) = draw("train", data.examples)?;
    let (held_out, of_held_out) = draw("held_out", data.held_out)?;
    let wrong = |pairs: &[EncodedPreference]| pairs.iter().filter(|p| p.truth.flipped == Some(true)).count();
    info!(
        train = train.len(),
        wrong_labels = wrong(&train),
        held_out = held_out.len(),
        left_out_as_equal = of_train.same + of_held_out.same,
        "drew pairs"
    );
    if of_train.labels.missing_flips > 0 {
        let missing_flips = of_train.labels.missing_flips;
        warn!(missing_flips, "too few pairs in which the better one tempts less: fewer labels are wrong than `malicious` asks for");
    }
    if train.is_empty() {
        let help = "the sampler always gives equal completions: raise data.task.temperature, or use another model";
        return Err(Failure::run_with_help("no pair was left to learn from", help));
    }
    for (name, pairs) in [(PAIRS, &train), (HELD_OUT, &held_out)] {
        run.map_or(Ok(()), |run| write_pairs(&run.file(name), pairs, model))?;
    }
    let report = json!({
        "train": train.len(), "held_out": held_out.len(), "wrong_labels": wrong(&train), "wrong_labels_held_out": wrong(&held_out),
        "missing_flips": of_train.labels.missing_flips, "missing_flips_held_out": of_held_out.labels.missing_flips,
        "left_out_as_equal": of_train.same, "left_out_as_equal_held_out": of_held_out.same,
    });
    Ok(Gathered { examples: Examples::Pairs { train, held_out }, report })
}

/// Writes pairs as lines of a preference file.
fn write_pairs(path: &Path, pairs: &[EncodedPreference], model: &LanguageModel) -> Result<()> {
    let decode = |tokens: &[u32]| model.tokenizer.decode(tokens, false).map_err(RewardError::from);
    let mut bytes = Vec::new();
    for pair in pairs {
        let row = text_row(pair, &decode).and_then(|row| write_jsonl_row(&mut bytes, &apart(row)));
        row.map_err(|e| Failure::caused(format!("cannot write {}", path.display()), e))?;
    }
    write_whole(path, &bytes)
}

/// The row with a space between prompt and completions: the words of a task are told apart by spaces alone.
fn apart(mut row: Row) -> Row {
    if let Row::Texts(preference) = &mut row {
        for text in [&mut preference.pair.chosen, &mut preference.pair.rejected] {
            if let Text::Plain(text) = text {
                text.insert(0, ' ');
            }
        }
    }
    row
}

/// Both completions of each pair as answers of their own; those found equally good say nothing.
fn answers(pairs: Vec<EncodedPreference>) -> Vec<EncodedAnswer> {
    let both = |p: EncodedPreference| {
        let [chosen, rejected] = p.pair.reference.map_or([None; 2], |r| r.map(Some));
        [
            EncodedAnswer { id: format!("{}-chosen", p.id), sequence: p.pair.chosen, desirable: true, reference: chosen },
            EncodedAnswer { id: format!("{}-rejected", p.id), sequence: p.pair.rejected, desirable: false, reference: rejected },
        ]
    };
    pairs.into_iter().filter(|p| !p.equal).flat_map(both).collect()
}
