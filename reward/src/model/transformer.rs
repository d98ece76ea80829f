//! A transformer with a scalar head as the reward of a completion: the score at its last token.
//!
//! Sequences are never padded, so the last token is the real one whatever stands beside it in a batch, and an
//! end-of-sequence token that also serves as padding is not mistaken for it. The head is `score.weight` `[1, hidden]`, without
//! bias, as in `AutoModelForSequenceClassification` with one label.
//!
//! Besides the loss of the margin, `center_rewards_coefficient` · mean over pairs of (r(chosen) + r(rejected))² keeps rewards
//! near 0, which a difference of two does not fix (Eisenstein et al. 2023, arXiv 2312.09244; TRL's option of that name).

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use steadfast_agents::llm::model::ScorePositions;
use steadfast_agents::llm::{AdamW, AdamWConfig, Decoder, Device, TokenSequence};
use steadfast_agents::{AgentError, StateDict};
use steadfast_envs::SeedTree;

use super::{BatchLoss, RewardModel};
use crate::encoded::EncodedPair;
use crate::error::{Result, require};
use crate::margin::LossValue;

/// Name of the head's parameter.
const HEAD: &str = "score.weight";
/// Prefix of the parameters in a state.
const MODEL: &str = "model/";
/// Prefix of the optimiser's arrays in a state.
const OPTIMIZER: &str = "optimizer/";

/// Settings of a transformer reward model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TransformerRewardConfig {
    /// Pairs per forward pass, at least 1. A batch that does not fit into one pass takes a second forward pass over it,
    /// since a loss may need the margins of the whole batch.
    pub micro_batch_size: usize,
    /// Weight of the mean squared sum of both rewards, at least 0; 0.01 is common.
    pub center_rewards_coefficient: f64,
    /// The optimiser.
    pub optimizer: AdamWConfig,
}

impl Default for TransformerRewardConfig {
    fn default() -> Self {
        Self { micro_batch_size: 32, center_rewards_coefficient: 0.0, optimizer: AdamWConfig::default() }
    }
}

impl TransformerRewardConfig {
    /// Checks the ranges given with the fields.
    ///
    /// # Errors
    /// [`RewardError::Config`] for the first field out of its range.
    pub fn validate(&self) -> Result<()> {
        require(self.micro_batch_size >= 1, "micro_batch_size", "at least 1", self.micro_batch_size)?;
        let center = self.center_rewards_coefficient;
        let is_weight = center >= 0.0 && (center as f32).is_finite();
        require(is_weight, "center_rewards_coefficient", "a finite number of at least 0", center)
    }
}

/// Parameters by name, shape and value.
type Parameters = Vec<(String, Vec<usize>, Vec<f32>)>;

/// A transformer that rewards completions.
pub struct TransformerReward {
    config: TransformerRewardConfig,
    decoder: Decoder,
    optimizer: AdamW,
    /// The parameters before any training, for [`RewardModel::reset`].
    start: Arc<Parameters>,
}

impl TransformerReward {
    /// A reward model on the body of `base`. A language model gets a fresh head, drawn from `seeds`; a model that has a
    /// scalar head keeps it.
    ///
    /// # Errors
    /// [`RewardError::Config`] for settings out of their range; those of the model.
    pub fn new(base: &Decoder, config: &TransformerRewardConfig, seeds: SeedTree) -> Result<Self> {
        config.validate()?;
        let mut decoder = base.with_scalar_head(seeds)?;
        if base.has_scalar_head() {
            for (name, _, values) in base.parameters()?.iter().filter(|(name, ..)| name == HEAD) {
                decoder.set_parameter(name, values)?;
            }
        }
        Self::of_decoder(decoder, config)
    }

    /// A trained reward model from a folder.
    ///
    /// # Errors
    /// Those of [`Decoder::load`]; [`AgentError::Model`] if the folder holds a language model without a trained head.
    pub fn load(folder: &Path, device: &Device, config: &TransformerRewardConfig) -> Result<Self> {
        config.validate()?;
        let decoder = Decoder::load(folder, device)?;
        if !decoder.has_scalar_head() {
            let reason = format!("no `{HEAD}`: this is a language model, not a reward model; train one from it first");
            return Err(AgentError::Model { place: folder.display().to_string(), reason }.into());
        }
        Self::of_decoder(decoder, config)
    }

    fn of_decoder(decoder: Decoder, config: &TransformerRewardConfig) -> Result<Self> {
        let optimizer = AdamW::new(&config.optimizer, &decoder)?;
        let start = Arc::new(decoder.parameters()?);
        Ok(Self { config: config.clone(), decoder, optimizer, start })
    }

    /// Writes the folder that [`TransformerReward::load`] and `AutoModelForSequenceClassification` read.
    ///
    /// # Errors
    /// Those of [`Decoder::save`].
    pub fn save(&self, folder: &Path) -> Result<()> {
        Ok(self.decoder.save(folder)?)
    }

    /// The transformer.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// The transformer, without its optimiser.
    pub fn into_decoder(self) -> Decoder {
        self.decoder
    }

    /// Rewards of whole sequences.
    ///
    /// # Errors
    /// Those of the model.
    pub fn rewards(&self, sequences: &[&TokenSequence]) -> Result<Vec<f32>, AgentError> {
        rewards(&self.decoder, sequences, 2 * self.config.micro_batch_size)
    }

    fn two(pair: &EncodedPair) -> [&TokenSequence; 2] {
        [&pair.chosen, &pair.rejected]
    }

    /// Forward and backward of one pass over `pairs`, whose losses `slopes_of` gives from rewards `[chosen, rejected, ...]`:
    /// `[pair][chosen or rejected]`.
    fn accumulate(&mut self, pairs: &[&EncodedPair], slopes_of: &mut dyn FnMut(&[f32]) -> Vec<[f32; 2]>) -> Result<(), AgentError> {
        let group: Vec<&TokenSequence> = pairs.iter().flat_map(|pair| Self::two(pair)).collect();
        self.decoder.accumulate_scores(&[group], ScorePositions::Last, &mut |_, scores, slopes| {
            let rewards: Vec<f32> = scores.iter().map(|s| s[0]).collect();
            for (slope, by_reward) in slopes.iter_mut().zip(slopes_of(&rewards).concat()) {
                slope[0] = by_reward;
            }
            Ok(())
        })
    }
}

/// Scores at the last token of sequences, `batch` of them at a time.
pub(crate) fn rewards(decoder: &Decoder, sequences: &[&TokenSequence], batch: usize) -> Result<Vec<f32>, AgentError> {
    let mut out = Vec::with_capacity(sequences.len());
    for chunk in sequences.chunks(batch) {
        out.extend(decoder.scores(chunk, ScorePositions::Last)?.iter().map(|scores| scores[0]));
    }
    Ok(out)
}

/// Margins of rewards `[chosen, rejected, chosen, ...]`.
fn margins_of(rewards: &[f32]) -> Vec<f32> {
    rewards.as_chunks::<2>().0.iter().map(|[chosen, rejected]| chosen - rejected).collect()
}

/// Derivatives by both rewards of a pair: of its loss, a share of a mean over `n`, and of the squared sum with weight `center`.
pub(crate) fn slopes_of_pair(rewards: [f32; 2], slope: f32, center: f64, n: f64) -> [f32; 2] {
    let [chosen, rejected] = rewards.map(f64::from);
    let by_sum = 2.0 * center * (chosen + rejected);
    [((f64::from(slope) + by_sum) / n) as f32, ((by_sum - f64::from(slope)) / n) as f32]
}

impl RewardModel<EncodedPair> for TransformerReward {
    fn check(&self, pair: &EncodedPair) -> Result<(), String> {
        pair.check_fits(self.decoder.config())
    }

    fn margins(&mut self, pairs: &[&EncodedPair], out: &mut [f32]) -> Result<()> {
        let sequences: Vec<&TokenSequence> = pairs.iter().flat_map(|pair| Self::two(pair)).collect();
        out.copy_from_slice(&margins_of(&self.rewards(&sequences)?));
        Ok(())
    }

    fn step(&mut self, pairs: &[&EncodedPair], loss: &mut BatchLoss<'_>, learning_rate: f32) -> Result<()> {
        let n = pairs.len();
        let center = self.config.center_rewards_coefficient;
        let mut values = vec![LossValue::default(); n];
        let slopes = |rewards: &[f32], values: &[LossValue]| -> Vec<[f32; 2]> {
            let both = rewards.as_chunks::<2>().0;
            both.iter().zip(values).map(|(&both, value)| slopes_of_pair(both, value.slope, center, n as f64)).collect()
        };
        if n <= self.config.micro_batch_size {
            self.accumulate(pairs, &mut |rewards| {
                loss(&margins_of(rewards), &mut values);
                slopes(rewards, &values)
            })?;
        } else {
            let mut margins = vec![0.0; n];
            self.margins(pairs, &mut margins)?;
            loss(&margins, &mut values);
            let micro = self.config.micro_batch_size;
            for (pairs, values) in pairs.chunks(micro).zip(values.chunks(micro)) {
                self.accumulate(pairs, &mut |rewards| slopes(rewards, values))?;
            }
        }
        self.optimizer.step(&mut self.decoder, f64::from(learning_rate))?;
        Ok(())
    }

    fn reset(&mut self, seed: u64) {
        const SAME: &str = "the parameters are those of this very decoder";
        for (name, _, values) in self.start.iter() {
            self.decoder.set_parameter(name, values).expect(SAME);
        }
        let fresh = self.decoder.with_scalar_head(SeedTree::new(seed)).and_then(|fresh| fresh.parameters()).expect(SAME);
        for (name, _, values) in fresh.iter().filter(|(name, ..)| name == HEAD) {
            self.decoder.set_parameter(name, values).expect(SAME);
        }
        self.optimizer = AdamW::new(&self.config.optimizer, &self.decoder).expect("the settings were accepted before");
    }

    fn state(&self) -> StateDict {
        let mut state = StateDict::default();
        // The trait has no error here; copying parameters to memory fails only with the device itself.
        for (name, shape, values) in self.decoder.parameters().expect("the device gives back its own parameters") {
            state.put_f32(format!("{MODEL}{name}"), &shape, &values);
        }
        self.optimizer.save_state(OPTIMIZER, &mut state).expect("the device gives back its own moments");
        state
    }

    fn load_state(&mut self, state: &StateDict) -> Result<()> {
        for (name, shape, _) in self.start.iter() {
            let values = state.f32(&format!("{MODEL}{name}"), shape.iter().product())?;
            self.decoder.set_parameter(name, values)?;
        }
        self.optimizer.load_state(OPTIMIZER, state)?;
        Ok(())
    }
}

impl std::fmt::Debug for TransformerReward {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TransformerReward").field("config", &self.config).field("model", self.decoder.config()).finish_non_exhaustive()
    }
}
