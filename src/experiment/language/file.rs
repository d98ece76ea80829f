//! The rows of a file as examples.

use std::sync::Arc;

use serde_json::json;
use steadfast_agents::llm::{EncodeConfig, EncodeReport, Encoder, TokenSequence};
use steadfast_envs::SeedTree;
use steadfast_envs::text::{EncodedPrompts, PromptsConfig};
use steadfast_reward::dataset::{PreferenceFile, ReadOptions, Row, RowKind};
use steadfast_reward::{EncodedAnswer, EncodedPair, EncodedPreference, Preference, RewardError};
use tracing::{info, warn};

use super::data::{Examples, Gathered};
use super::model::LanguageModel;
use crate::config::language::{FileDataConfig, ObjectiveConfig};
use crate::failure::{Failure, Result};

/// A row as tokens.
enum Encoded {
    Completion(TokenSequence),
    Pair(Box<EncodedPreference>),
    Answer(EncodedAnswer),
}

/// Reads the rows and encodes them. What is left out or cut is counted, reported and part of the summary.
///
/// # Errors
/// [`Failure::Run`] naming file and row of what cannot be used.
pub fn gather(data: &FileDataConfig, objective: &ObjectiveConfig, model: &LanguageModel, seeds: SeedTree) -> Result<Gathered> {
    let path = &data.path;
    let shown = path.display().to_string();
    let failed = |e: RewardError| Failure::caused(format!("cannot use {shown}"), e);
    let kind = match objective {
        ObjectiveConfig::Sft(_) => RowKind::Completions,
        ObjectiveConfig::Kto(_) => RowKind::JudgedCompletions,
        ObjectiveConfig::Preference(_) | ObjectiveConfig::RewardModel(_) => RowKind::Pairs,
    };
    let options = ReadOptions { skip_bad_rows: data.skip_bad_rows, ..ReadOptions::default() };
    let file = PreferenceFile::open_as(path, kind, &options).map_err(failed)?;
    let mut rows: Vec<(u64, Row)> = Vec::new();
    let read = file.scan(|line, row| {
        rows.push((line, row));
        Ok(())
    });
    let read = read.map_err(failed)?;
    read.warnings().iter().for_each(|warning| warn!("{shown}: {warning}"));

    let most = model.decoder.config().max_positions;
    let max_tokens = if data.max_tokens == 0 { most } else { data.max_tokens };
    if max_tokens > most {
        let message = format!("`data.file.max_tokens` is {max_tokens}, but the model has {most} positions");
        return Err(Failure::run_with_help(message, format!("write at most data.file.max_tokens={most}")));
    }
    let config = EncodeConfig { max_tokens, ..EncodeConfig::default() };
    let encoder = Encoder::new(&model.tokenizer, &config).map_err(|e| failed(e.into()))?;
    let encoded = Encoder::rows(rows.len(), |at, report| encode(&encoder, &shown, &rows[at], objective, report));
    let (encoded, report) = encoded.map_err(|e| failed(e.into()))?;
    report.warnings().iter().for_each(|warning| warn!("{shown}: {warning}"));
    info!("{shown}: {report}");

    let mut found: Vec<Encoded> = encoded.into_iter().flatten().collect();
    if found.is_empty() {
        return Err(Failure::run_with_help(format!("{shown} has no row that can be used"), "see the counts above"));
    }
    let n_held_out = (data.held_out * found.len() as f64).round() as usize;
    if n_held_out >= found.len() {
        let message = format!("{shown} has {} usable rows, of which {n_held_out} would be held out: nothing is left", found.len());
        return Err(Failure::run_with_help(message, "lower data.file.held_out"));
    }
    // Which rows are held out is drawn; both parts stay in the order of the file.
    let mut order: Vec<usize> = (0..found.len()).collect();
    seeds.child("held_out").rng().shuffle(&mut order);
    let mut is_held_out = vec![false; found.len()];
    order[..n_held_out].iter().for_each(|&i| is_held_out[i] = true);
    let mut flags = is_held_out.into_iter();
    let (held_out, train): (Vec<Encoded>, Vec<Encoded>) = found.drain(..).partition(|_| flags.next().unwrap_or(false));
    let report = json!({
        "train": train.len(), "held_out": held_out.len(), "rows": read.rows, "bad_rows": read.bad,
        "duplicate_rows": read.duplicates, "contradicting_rows": read.contradictions,
        "prompts_too_long": report.prompts_too_long, "identical_after_truncation": report.identical,
        "truncated": report.truncated, "truncated_tokens": report.truncated_tokens,
        "boundary_mismatches": report.boundary_mismatches, "template_mismatches": report.template_mismatches,
        "without_end": report.without_end, "longest": report.longest,
    });
    Ok(Gathered { examples: examples(objective, train, held_out), report })
}

/// The prompts of a file. Those that are too long are left out, counted and reported.
///
/// # Errors
/// [`Failure::Run`] naming file and row of what cannot be used.
pub fn prompts(config: &PromptsConfig, model: &LanguageModel) -> Result<EncodedPrompts> {
    let shown = config.file.display().to_string();
    let failed = |e: RewardError| Failure::caused(format!("cannot use {shown}"), e);
    let file = PreferenceFile::open_as(&config.file, RowKind::Prompts, &ReadOptions::default()).map_err(failed)?;
    let encoder = Encoder::new(&model.tokenizer, &EncodeConfig::default()).map_err(|e| failed(e.into()))?;
    let (mut prompts, mut too_long) = (Vec::new(), 0_usize);
    let read = file.scan(|line, row| {
        if let Row::Prompt(row) = row {
            let tokens = encoder.prompt(row.prompt.as_input(), &format!("{shown}:{line}"))?;
            if tokens.len() > config.max_prompt_tokens {
                too_long += 1;
            } else {
                prompts.push(tokens);
            }
        }
        Ok(())
    });
    read.map_err(failed)?.warnings().iter().for_each(|warning| warn!("{shown}: {warning}"));
    info!("{shown}: {} prompts, {too_long} left out as longer than {} tokens", prompts.len(), config.max_prompt_tokens);
    if prompts.is_empty() {
        return Err(Failure::run_with_help(format!("{shown} has no prompt that can be used"), "raise env.prompts.max_prompt_tokens"));
    }
    let end_of_sequence = model.end_of_sequence.clone();
    Ok(EncodedPrompts { prompts: Arc::new(prompts), vocab_size: model.decoder.config().vocab_size, end_of_sequence })
}

fn encode(
    encoder: &Encoder<'_>,
    file: &str,
    (line, row): &(u64, Row),
    objective: &ObjectiveConfig,
    report: &mut EncodeReport,
) -> Result<Option<Encoded>, steadfast_agents::AgentError> {
    let place = format!("{file}:{line}");
    match row {
        Row::Texts(row) => {
            let pair = &row.pair;
            let both = encoder.pair(pair.prompt.as_input(), pair.chosen.as_input(), pair.rejected.as_input(), &place, report)?;
            Ok(both.map(|[chosen, rejected]| {
                let reference = row.reference_log_probs.map(|both| both.map(|x| x as f32));
                Encoded::Pair(Box::new(Preference {
                    id: row.id.clone(),
                    pair: EncodedPair { chosen, rejected, reference },
                    equal: row.equal,
                    margin: row.margin,
                    annotator: row.annotator.clone(),
                    truth: row.truth,
                    reference_log_probs: row.reference_log_probs,
                }))
            }))
        }
        Row::Completion(row) => {
            let sequence = encoder.completion(row.prompt.as_input(), row.completion.as_input(), &place, report)?;
            Ok(sequence.map(|sequence| match (objective, row.label) {
                (ObjectiveConfig::Kto(_), Some(desirable)) => {
                    Encoded::Answer(EncodedAnswer { id: row.id.clone(), sequence, desirable, reference: None })
                }
                _ => Encoded::Completion(sequence),
            }))
        }
        Row::Segments(_) | Row::Prompt(_) => Err(steadfast_agents::AgentError::Model {
            place,
            reason: format!("a {} teaches a language model nothing; give texts", row.kind()),
        }),
    }
}

fn examples(objective: &ObjectiveConfig, train: Vec<Encoded>, held_out: Vec<Encoded>) -> Examples {
    fn all<T>(rows: Vec<Encoded>, get: impl Fn(Encoded) -> Option<T>) -> Vec<T> {
        rows.into_iter().filter_map(get).collect()
    }
    let completion = |row| if let Encoded::Completion(sequence) = row { Some(sequence) } else { None };
    let pair = |row| if let Encoded::Pair(pair) = row { Some(*pair) } else { None };
    let answer = |row| if let Encoded::Answer(answer) = row { Some(answer) } else { None };
    match objective {
        ObjectiveConfig::Sft(_) => Examples::Completions { train: all(train, completion), held_out: all(held_out, completion) },
        ObjectiveConfig::Kto(_) => Examples::Answers { train: all(train, answer), held_out: all(held_out, answer) },
        ObjectiveConfig::Preference(_) | ObjectiveConfig::RewardModel(_) => {
            Examples::Pairs { train: all(train, pair), held_out: all(held_out, pair) }
        }
    }
}
