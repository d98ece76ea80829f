//! Preferences between completions that a policy draws, labelled by a known reward.
//!
//! Two completions are drawn for each prompt. A pair of equal ones says nothing: it is drawn again a few times, then left out
//! and counted. The annotator is a model of [`crate::dataset::noise`]; on top of it, labels can be corrupted by another one,
//! such as `irrational` flips on labels that Bradley and Terry's model (`stochastic`, its temperature the τ of gold / τ) drew.

use serde::Serialize;
use steadfast_agents::llm::{GenerationConfig, Generator, TokenSequence};
use steadfast_envs::{Rng, SeedTree};

use crate::dataset::noise::{Compared, NoiseConfig, TrueRewards, UnlabelledPair};
use crate::dataset::{LabelReport, Row};
use crate::encoded::{EncodedPair, EncodedPreference};
use crate::error::{Result, RewardError};
use crate::preference::{Preference, Text, TextPair};

/// Prompts whose completions are drawn together.
const BATCH: usize = 32;
/// Times that two completions of a prompt are drawn until they differ.
const ATTEMPTS: u64 = 8;

/// What each token of a completion adds to its value: prompt and completion to one number per token.
pub type GoldTerms<'a> = dyn Fn(&[u32], &[u32]) -> Vec<f64> + 'a;

/// How much of what a careless or malicious annotator goes by is in a completion.
pub type Temptation<'a> = dyn Fn(&[u32]) -> f64 + 'a;

/// The known reward of completions.
#[derive(Clone, Copy)]
pub struct Gold<'a> {
    /// Value of a completion of a prompt.
    pub value: &'a dyn Fn(&[u32], &[u32]) -> f64,
    /// What each token of it adds, up to a constant of the task, for annotators to whom late tokens count more; without it,
    /// such annotators cannot be used.
    pub terms: Option<&'a GoldTerms<'a>>,
    /// How much of what a careless or malicious annotator goes by is in a completion
    /// ([`steadfast_envs::text::TextTask::temptation`]); without it, a malicious one cannot be used.
    pub temptation: Option<&'a Temptation<'a>>,
}

/// A pair with what tempts in it.
#[derive(Debug, Clone)]
struct TemptingPair {
    pair: EncodedPair,
    temptations: Option<(f64, f64)>,
}

impl Compared for TemptingPair {
    fn exchange(&mut self) {
        self.pair.exchange();
        self.temptations = self.temptations.map(|(one, other)| (other, one));
    }

    fn lengths(&self) -> (usize, usize) {
        self.pair.lengths()
    }

    fn temptations(&self) -> Option<(f64, f64)> {
        self.temptations
    }
}

/// Who labels sampled pairs, and what happens to the labels.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct SampledLabels {
    /// Gives the first label.
    pub annotator: NoiseConfig,
    /// Corrupts it; with a truthful annotator it labels by itself.
    pub noise: NoiseConfig,
}

/// What came of sampling.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct SampleReport {
    /// Prompts that were asked.
    pub prompts: usize,
    /// Prompts left out because their completions were always the same.
    pub same: usize,
    /// What came of labelling.
    pub labels: LabelReport,
}

/// Draws two completions for each prompt and labels them. The draws of a prompt depend on its position and on `seeds`, not on
/// the other prompts.
///
/// # Errors
/// Those of the generator and of the noise model; [`RewardError::Data`] if a gold value is not finite, or if a noise model
/// needs gold terms or temptations and there are none.
pub fn sample_preferences(
    generator: &mut Generator,
    prompts: &[Vec<u32>],
    generation: &GenerationConfig,
    end_of_sequence: &[u32],
    gold: Gold<'_>,
    labels: &SampledLabels,
    seeds: SeedTree,
) -> Result<(Vec<EncodedPreference>, SampleReport)> {
    let needs_terms = [labels.annotator, labels.noise].iter().any(|n| matches!(n, NoiseConfig::Myopic(_) | NoiseConfig::Teacher(_)));
    if needs_terms && gold.terms.is_none() {
        return Err(RewardError::Data("annotators to whom recent steps count more need the gold reward of single tokens".to_string()));
    }
    let draws = seeds.child("completion");
    let mut pairs: Vec<Option<[Vec<u32>; 2]>> = vec![None; prompts.len()];
    let mut pending: Vec<usize> = (0..prompts.len()).collect();
    for attempt in 0..ATTEMPTS {
        for chunk in pending.chunks(BATCH) {
            // Both rows of a prompt side by side: they share its prefill.
            let rows: Vec<&[u32]> = chunk.iter().flat_map(|&i| [prompts[i].as_slice(); 2]).collect();
            let rng = |i: usize, which: u64| draws.index(i as u64).index(2 * attempt + which).rng();
            let mut rngs: Vec<Rng> = chunk.iter().flat_map(|&i| [rng(i, 0), rng(i, 1)]).collect();
            let completions = generator.generate(&rows, generation, end_of_sequence, &[], &mut rngs)?;
            let mut completions = completions.into_iter().map(|completion| completion.tokens);
            for &i in chunk {
                if let (Some(first), Some(second)) = (completions.next(), completions.next())
                    && first != second
                {
                    pairs[i] = Some([first, second]);
                }
            }
        }
        pending.retain(|&i| pairs[i].is_none());
        if pending.is_empty() || generation.greedy {
            break;
        }
    }
    let unlabelled = prompts.iter().zip(pairs).enumerate().filter_map(|(i, (prompt, pair))| {
        let [first, second] = pair?;
        let rewards = |completion: &[u32]| match gold.terms {
            // A completion without words has no terms; its sum is 0 like that of any other constant.
            Some(terms) if needs_terms => {
                TrueRewards::of_steps(Some(terms(prompt, completion)).filter(|t| !t.is_empty()).unwrap_or(vec![0.0]))
            }
            _ => TrueRewards::of_value((gold.value)(prompt, completion)),
        };
        let (first_rewards, second_rewards) = (rewards(&first), rewards(&second));
        let (chosen, rejected) = (TokenSequence::new(prompt, &first), TokenSequence::new(prompt, &second));
        let temptations = gold.temptation.map(|of| (of(&first), of(&second)));
        let pair = TemptingPair { pair: EncodedPair { chosen, rejected, reference: None }, temptations };
        Some(UnlabelledPair { id: format!("sample-{i}"), pair, first: first_rewards, second: second_rewards, annotator: None })
    });
    let unlabelled: Vec<UnlabelledPair<TemptingPair>> = unlabelled.collect();
    let (labelled, report) = label(unlabelled, labels, seeds)?;
    let without_temptations = |p: Preference<TemptingPair>| EncodedPreference {
        id: p.id,
        pair: p.pair.pair,
        equal: p.equal,
        margin: p.margin,
        annotator: p.annotator,
        truth: p.truth,
        reference_log_probs: p.reference_log_probs,
    };
    let mut preferences: Vec<EncodedPreference> = labelled.into_iter().map(without_temptations).collect();
    for preference in &mut preferences {
        // Terms leave out a constant of the task.
        let value = |s: &TokenSequence| (gold.value)(s.prompt(), s.completion());
        preference.truth.gold_chosen = Some(value(&preference.pair.chosen));
        preference.truth.gold_rejected = Some(value(&preference.pair.rejected));
    }
    Ok((preferences, SampleReport { prompts: prompts.len(), same: pending.len(), labels: report }))
}

fn label(
    pairs: Vec<UnlabelledPair<TemptingPair>>,
    labels: &SampledLabels,
    seeds: SeedTree,
) -> Result<(Vec<Preference<TemptingPair>>, LabelReport)> {
    if let NoiseConfig::None(_) = labels.annotator {
        return labels.noise.label(pairs, None, seeds.child("noise"));
    }
    let (mut preferences, first) = labels.annotator.label(pairs, None, seeds.child("annotator"))?;
    if let NoiseConfig::None(_) = labels.noise {
        return Ok((preferences, first));
    }
    let second = labels.noise.corrupt(&mut preferences, seeds.child("noise"))?;
    let missing_flips = first.missing_flips + second.missing_flips;
    let report = LabelReport { pairs: first.pairs, dropped: first.dropped, ties_in_truth: first.ties_in_truth, missing_flips, ..second };
    Ok((preferences, report))
}

/// A pair of token sequences as a row of a preference file. `decode` turns tokens into text; it should keep special tokens, or
/// a completion that consists of its end alone is blank.
///
/// # Errors
/// Those of `decode`.
pub fn text_row(preference: &EncodedPreference, decode: &dyn Fn(&[u32]) -> Result<String>) -> Result<Row> {
    let pair = &preference.pair;
    let texts = TextPair {
        prompt: Text::Plain(decode(pair.chosen.prompt())?),
        chosen: Text::Plain(decode(pair.chosen.completion())?),
        rejected: Text::Plain(decode(pair.rejected.completion())?),
    };
    Ok(Row::Texts(Preference {
        id: preference.id.clone(),
        pair: texts,
        equal: preference.equal,
        margin: preference.margin,
        annotator: preference.annotator.clone(),
        truth: preference.truth,
        reference_log_probs: pair.reference.map(|both| both.map(f64::from)),
    }))
}
