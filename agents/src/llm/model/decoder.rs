//! The decoder on the tape.
use std::path::Path;

use candle_core::{Device, Tensor};
use steadfast_envs::SeedTree;

use super::{DecoderConfig, DenseWeights};
use crate::AgentError;
use crate::llm::sequence::{TokenSequence, TokenStatistics};

/// Loss of one group of sequences (a pair, or a single one): gets the group's index and the statistics of its completions,
/// writes the derivative of the loss by each log-probability into `slopes[sequence][token]` (zeroed before).
pub type LogProbLoss<'a> = dyn FnMut(usize, &[TokenStatistics], &mut [Vec<f32>]) -> Result<(), AgentError> + 'a;
/// The same for scores of the scalar head: `scores[sequence][position]`.
pub type ScoreLoss<'a> = dyn FnMut(usize, &[Vec<f32>], &mut [Vec<f32>]) -> Result<(), AgentError> + 'a;

/// Where the scalar head is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScorePositions {
    /// At the last token of each sequence: one score (reward models).
    Last,
    /// At the token before each completion token: one value per completion token (critics).
    BeforeCompletion,
}

/// A transformer decoder with its parameters and gradients. Has a language-model head, or a scalar head (`score.weight`).
pub struct Decoder {}

#[allow(unused_variables)]
impl Decoder {
    /// Fresh weights. `scalar_head` gives a `score.weight` `[1, hidden]` in place of the language-model head.
    pub fn fresh(config: &DecoderConfig, scalar_head: bool, seeds: SeedTree, device: &Device) -> Result<Self, AgentError> {
        unimplemented!("helper `model`")
    }
    /// Reads a folder as Hugging Face writes it: `config.json`, one or several safetensors files.
    pub fn load(folder: &Path, device: &Device) -> Result<Self, AgentError> {
        unimplemented!("helper `model`")
    }
    /// Writes `config.json` and `model.safetensors` so that `transformers` loads them.
    pub fn save(&self, folder: &Path) -> Result<(), AgentError> {
        unimplemented!("helper `model`")
    }
    /// The same backbone with a scalar head: fresh (`N(0, 1/(hidden+1))` from `seeds`).
    pub fn with_scalar_head(&self, seeds: SeedTree) -> Result<Self, AgentError> {
        unimplemented!("helper `model`")
    }
    /// A copy with its own parameters, such as a frozen reference.
    pub fn duplicate(&self) -> Result<Self, AgentError> {
        unimplemented!("helper `model`")
    }
    pub fn config(&self) -> &DecoderConfig {
        unimplemented!("helper `model`")
    }
    pub fn device(&self) -> &Device {
        unimplemented!("helper `model`")
    }
    pub fn has_scalar_head(&self) -> bool {
        unimplemented!("helper `model`")
    }
    /// Number of trainable numbers.
    pub fn n_parameters(&self) -> usize {
        unimplemented!("helper `model`")
    }
    /// Names, shapes and values of all parameters, in the order of their names, as f32 (for checkpoints and hashes).
    pub fn parameters(&self) -> Result<Vec<(String, Vec<usize>, Vec<f32>)>, AgentError> {
        unimplemented!("helper `model`")
    }
    /// Sets one parameter from f32 values.
    pub fn set_parameter(&mut self, name: &str, values: &[f32]) -> Result<(), AgentError> {
        unimplemented!("helper `model`")
    }
    /// Plain copies of all weights in one layout, for generation.
    pub fn dense(&self) -> Result<DenseWeights, AgentError> {
        unimplemented!("helper `model`")
    }
    /// Logits at every position, `[token, vocab]`, of one sequence: for tests and parity.
    pub fn logits(&self, tokens: &[u32]) -> Result<Tensor, AgentError> {
        unimplemented!("helper `model`")
    }
    /// Log-probabilities without gradient.
    pub fn log_probs(&self, sequences: &[&TokenSequence], temperature: f32) -> Result<Vec<TokenStatistics>, AgentError> {
        unimplemented!("helper `model`")
    }
    /// Forward and backward of one micro-batch; gradients are ADDED to those that are there. The head is processed group by
    /// group, so that logits of one group at most exist at a time.
    pub fn accumulate_log_probs(
        &mut self,
        groups: &[Vec<&TokenSequence>],
        temperature: f32,
        loss: &mut LogProbLoss<'_>,
    ) -> Result<(), AgentError> {
        unimplemented!("helper `model`")
    }
    /// Scores of the scalar head without gradient, `[sequence][position]`.
    pub fn scores(&self, sequences: &[&TokenSequence], positions: ScorePositions) -> Result<Vec<Vec<f32>>, AgentError> {
        unimplemented!("helper `model`")
    }
    /// As `accumulate_log_probs`, for scores.
    pub fn accumulate_scores(
        &mut self,
        groups: &[Vec<&TokenSequence>],
        positions: ScorePositions,
        loss: &mut ScoreLoss<'_>,
    ) -> Result<(), AgentError> {
        unimplemented!("helper `model`")
    }
}
