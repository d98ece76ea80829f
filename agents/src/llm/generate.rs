//! Generation.
use crate::AgentError;
use crate::llm::model::Decoder;
use serde::{Deserialize, Serialize};
use steadfast_envs::Rng;

/// How completions are drawn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GenerationConfig {
    /// Most tokens of a completion, at least 1.
    pub max_new_tokens: usize,
    /// Divides the logits, above 0. Log-probabilities are recorded at the same temperature.
    pub temperature: f64,
    /// Only the `top_k` most likely tokens can be drawn; 0 means all.
    pub top_k: usize,
    /// Only the smallest set of most likely tokens whose probabilities add up to `top_p` can be drawn, above 0 to 1.
    pub top_p: f64,
    /// Divides (if positive) or multiplies (if negative) the logits of tokens that were seen, above 0; 1 changes nothing.
    pub repetition_penalty: f64,
    /// True takes the most likely token instead of drawing.
    pub greedy: bool,
}

impl Default for GenerationConfig {
    fn default() -> Self {
        Self { max_new_tokens: 64, temperature: 1.0, top_k: 0, top_p: 1.0, repetition_penalty: 1.0, greedy: false }
    }
}

/// Why a completion ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// An end-of-sequence token was drawn; it is the last token of the completion.
    EndOfSequence,
    /// A stop sequence was completed; its tokens are the last of the completion.
    StopSequence,
    /// `max_new_tokens` or the context was used up.
    Length,
}

/// What was generated for one prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Completion {
    /// Tokens, the end-of-sequence token included where one was drawn.
    pub tokens: Vec<u32>,
    /// Log-probability of each token under the full softmax at the sampling temperature (not renormalised over top-k / top-p).
    pub log_probs: Vec<f32>,
    /// Why it ended.
    pub finish: Finish,
}

/// Generates from weights that were packed once.
pub struct Generator {}

impl Generator {
    /// Packs the weights of a decoder.
    pub fn new(decoder: &Decoder) -> Result<Self, AgentError> {
        let _ = decoder;
        unimplemented!("helper `infer`")
    }
    /// Packs the weights again after they changed.
    pub fn refresh(&mut self, decoder: &Decoder) -> Result<(), AgentError> {
        let _ = decoder;
        unimplemented!("helper `infer`")
    }
    /// One completion per prompt; row `i` draws from `rngs[i]` alone. Equal prompts side by side share their prefill.
    pub fn generate(
        &mut self,
        prompts: &[&[u32]],
        config: &GenerationConfig,
        end_of_sequence: &[u32],
        stop_sequences: &[Vec<u32>],
        rngs: &mut [Rng],
    ) -> Result<Vec<Completion>, AgentError> {
        let _ = (prompts, config, end_of_sequence, stop_sequences, rngs);
        unimplemented!("helper `infer`")
    }
}
