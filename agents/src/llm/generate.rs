//! Generation.
use crate::AgentError;
use crate::llm::model::Decoder;
use crate::llm::sampling::draw;
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

/// Generates from a copy of a model's weights.
///
/// Every token is a forward pass over the whole text: right, and fast enough for short texts of small models.
pub struct Generator {
    decoder: Decoder,
}

impl Generator {
    /// Copies the weights of a decoder.
    ///
    /// # Errors
    /// Those of the device; [`AgentError::Model`] for a model without a language-model head.
    pub fn new(decoder: &Decoder) -> Result<Self, AgentError> {
        if decoder.has_scalar_head() {
            return Err(refused("model", "a reward model writes nothing; give a language model".to_string()));
        }
        Ok(Self { decoder: decoder.duplicate()? })
    }

    /// Copies the weights again after they changed.
    ///
    /// # Errors
    /// As [`Generator::new`].
    pub fn refresh(&mut self, decoder: &Decoder) -> Result<(), AgentError> {
        *self = Self::new(decoder)?;
        Ok(())
    }

    /// One completion per prompt; row `i` draws from `rngs[i]` alone.
    ///
    /// # Errors
    /// [`AgentError::Model`] naming the row: an empty prompt, one that leaves no position, a token outside the vocabulary;
    /// [`AgentError::NonFinite`] for logits that are not finite.
    pub fn generate(
        &mut self,
        prompts: &[&[u32]],
        config: &GenerationConfig,
        end_of_sequence: &[u32],
        stop_sequences: &[Vec<u32>],
        rngs: &mut [Rng],
    ) -> Result<Vec<Completion>, AgentError> {
        if prompts.len() != rngs.len() {
            return Err(AgentError::Shape { op: "generators per prompt".into(), expected: vec![prompts.len()], got: vec![rngs.len()] });
        }
        prompts.iter().enumerate().try_for_each(|(row, prompt)| self.check(row, prompt))?;
        let decoder = &self.decoder;
        prompts
            .iter()
            .zip(rngs)
            .enumerate()
            .map(|(row, (prompt, rng))| complete(decoder, row, prompt, config, end_of_sequence, stop_sequences, rng))
            .collect()
    }

    fn check(&self, row: usize, prompt: &[u32]) -> Result<(), AgentError> {
        let (n, shape) = (prompt.len(), self.decoder.config());
        let fail = |reason: String| Err(refused(&format!("prompt {}", row + 1), reason));
        if n == 0 {
            return fail("it is empty; generation starts from at least one token".to_string());
        }
        if n >= shape.max_positions {
            return fail(format!("{n} tokens, but the model has {} positions, and one must be left to write", shape.max_positions));
        }
        match prompt.iter().find(|&&t| t as usize >= shape.vocab_size) {
            Some(token) => fail(format!("token {token}, but the model's vocabulary ends at {}", shape.vocab_size)),
            None => Ok(()),
        }
    }
}

fn refused(place: &str, reason: String) -> AgentError {
    AgentError::Model { place: place.to_string(), reason }
}

fn complete(
    decoder: &Decoder,
    row: usize,
    prompt: &[u32],
    config: &GenerationConfig,
    end_of_sequence: &[u32],
    stop_sequences: &[Vec<u32>],
    rng: &mut Rng,
) -> Result<Completion, AgentError> {
    let mut tokens = prompt.to_vec();
    let mut completion = Completion { tokens: Vec::new(), log_probs: Vec::new(), finish: Finish::Length };
    let most = config.max_new_tokens.min(decoder.config().max_positions - prompt.len());
    while completion.tokens.len() < most {
        let logits = decoder.logits(&tokens)?;
        let last = logits.narrow(0, tokens.len() - 1, 1).and_then(|l| l.flatten_all()?.to_vec1::<f32>());
        let last = last.map_err(|e| AgentError::Tensor(e.to_string()))?;
        if let Some(&value) = last.iter().find(|x| !x.is_finite()) {
            return Err(AgentError::NonFinite { tensor: format!("logits of prompt {}", row + 1), value, update: 0, position: row });
        }
        let (token, log_prob) = draw(&last, &tokens, config, rng);
        tokens.push(token);
        completion.tokens.push(token);
        completion.log_probs.push(log_prob);
        if end_of_sequence.contains(&token) {
            completion.finish = Finish::EndOfSequence;
            break;
        }
        if stop_sequences.iter().any(|stop| !stop.is_empty() && completion.tokens.ends_with(stop)) {
            completion.finish = Finish::StopSequence;
            break;
        }
    }
    Ok(completion)
}
