//! Generation: batched, cached, row by row reproducible.
//!
//! A row's completion depends on its prompt, its settings and its own generator alone: not on the rows beside it, nor on the
//! number of threads. Rows that finish leave the batch. Equal prompts side by side are read once.

use serde::{Deserialize, Serialize};
use steadfast_envs::Rng;

use super::cache::RowBias;
use super::infer::{Cache, Engine, NewTokens};
use super::model::{Decoder, KeyBias};
use super::sampling::Sampler;
use crate::AgentError;

/// Prompt tokens that are read at once.
const TOKENS_AT_ONCE: usize = 2048;

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

impl GenerationConfig {
    /// Checks the ranges given with the fields.
    ///
    /// # Errors
    /// [`AgentError::Config`] for the first field out of its range.
    pub fn validate(&self) -> Result<(), AgentError> {
        let check = |holds: bool, field: &str, expected: &str, got: &dyn std::fmt::Display| {
            let wrong = || AgentError::Config { field: field.to_string(), expected: expected.to_string(), got: got.to_string() };
            if holds { Ok(()) } else { Err(wrong()) }
        };
        let is_factor = |x: f64| x > 0.0 && x.is_finite();
        check(self.max_new_tokens >= 1, "max_new_tokens", "at least 1", &self.max_new_tokens)?;
        check(is_factor(self.temperature), "temperature", "a finite number above 0", &self.temperature)?;
        check(self.top_p > 0.0 && self.top_p <= 1.0, "top_p", "above 0 and at most 1", &self.top_p)?;
        check(is_factor(self.repetition_penalty), "repetition_penalty", "a finite number above 0", &self.repetition_penalty)
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
    /// Log-probability of each token under the full softmax at the sampling temperature, not renormalised over top-k or top-p.
    pub log_probs: Vec<f32>,
    /// Why it ended.
    pub finish: Finish,
}

/// Generates from weights that were packed once, or copied for that on the device where they are.
pub struct Generator {
    engine: Engine,
    is_plain: bool,
}

/// A row that is not finished.
struct Live {
    /// Index of the prompt.
    index: usize,
    /// Prompt and completion so far.
    tokens: Vec<u32>,
}

impl Generator {
    /// Packs the weights of a decoder.
    ///
    /// # Errors
    /// [`AgentError::State`] if it has a scalar head; [`AgentError::Tensor`] if the device fails.
    pub fn new(decoder: &Decoder) -> Result<Self, AgentError> {
        Ok(Self { engine: Engine::new(decoder, false)?, is_plain: false })
    }

    /// With candle's operations, as on devices, to compare with.
    ///
    /// # Errors
    /// As [`Generator::new`].
    pub fn with_plain_operations(decoder: &Decoder) -> Result<Self, AgentError> {
        Ok(Self { engine: Engine::new(decoder, true)?, is_plain: true })
    }

    /// Packs the weights again after they changed.
    ///
    /// # Errors
    /// As [`Generator::new`].
    pub fn refresh(&mut self, decoder: &Decoder) -> Result<(), AgentError> {
        self.engine = Engine::new(decoder, self.is_plain)?;
        Ok(())
    }

    /// One completion per prompt; row `i` draws from `rngs[i]` alone.
    ///
    /// # Errors
    /// [`AgentError::Model`] naming the row: an empty prompt, one as long as the context, a token outside of the vocabulary,
    /// logits that are not finite. [`AgentError::Config`] for a setting out of its range; [`AgentError::Tensor`] if a device fails.
    pub fn generate(
        &mut self,
        prompts: &[&[u32]],
        config: &GenerationConfig,
        end_of_sequence: &[u32],
        stop_sequences: &[Vec<u32>],
        rngs: &mut [Rng],
    ) -> Result<Vec<Completion>, AgentError> {
        self.generate_with(prompts, config, end_of_sequence, stop_sequences, rngs, None, &mut |_, _| {})
    }

    /// As [`Generator::generate`], with a bias on chosen keys of each prompt, and `on_token(row, token)` called for every
    /// token as it is drawn.
    ///
    /// # Errors
    /// As [`Generator::generate`]; [`AgentError::Shape`] if there is not one bias per prompt, with one number for each layer
    /// and query head.
    pub fn generate_with(
        &mut self,
        prompts: &[&[u32]],
        config: &GenerationConfig,
        end_of_sequence: &[u32],
        stop_sequences: &[Vec<u32>],
        rngs: &mut [Rng],
        biases: Option<&[KeyBias]>,
        on_token: &mut dyn FnMut(usize, u32),
    ) -> Result<Vec<Completion>, AgentError> {
        config.validate()?;
        self.check(prompts, rngs.len(), biases)?;
        let context = self.engine.context();
        let model = self.engine.config().clone();
        let mut cache = self.engine.cache(prompts.len());
        let mut done: Vec<Completion> =
            prompts.iter().map(|_| Completion { tokens: Vec::new(), log_probs: Vec::new(), finish: Finish::Length }).collect();
        let mut live: Vec<Live> = prompts.iter().enumerate().map(|(index, p)| Live { index, tokens: p.to_vec() }).collect();
        let row_bias = |index: usize| biases.map(|biases| RowBias(&biases[index]));
        let mut logits = self.read(prompts, &mut cache, &row_bias)?;
        let mut sampler = Sampler::default();
        while !live.is_empty() {
            let mut stays = Vec::with_capacity(live.len());
            for (row, (live, logits)) in live.iter_mut().zip(logits.chunks_exact(model.vocab_size)).enumerate() {
                let (token, log_prob) = sampler
                    .choose(logits, config, &live.tokens, &mut rngs[live.index])
                    .map_err(|reason| unfit(live.index, &format!("{reason}; the weights may be damaged or training has diverged")))?;
                let completion = &mut done[live.index];
                completion.tokens.push(token);
                completion.log_probs.push(log_prob);
                live.tokens.push(token);
                on_token(live.index, token);
                if end_of_sequence.contains(&token) {
                    completion.finish = Finish::EndOfSequence;
                } else if stop_sequences.iter().any(|stop| !stop.is_empty() && completion.tokens.ends_with(stop)) {
                    completion.finish = Finish::StopSequence;
                } else if completion.tokens.len() < config.max_new_tokens && live.tokens.len() < context {
                    stays.push(row);
                }
            }
            if stays.len() < live.len() {
                cache.select_rows(&stays)?;
                let mut row = 0;
                live.retain(|_| {
                    row += 1;
                    stays.binary_search(&(row - 1)).is_ok()
                });
            }
            if live.is_empty() {
                break;
            }
            let new: Vec<NewTokens<'_>> =
                live.iter().enumerate().map(|(row, live)| NewTokens { row, tokens: &live.tokens[live.tokens.len() - 1..] }).collect();
            let biases: Option<Vec<RowBias<'_>>> = live.iter().map(|live| row_bias(live.index)).collect();
            self.engine.advance(&new, &mut cache, biases.as_deref(), &mut logits)?;
        }
        Ok(done)
    }

    /// Reads the prompts, each run of equal ones once, and gives the logits after each.
    fn read<'a>(
        &mut self,
        prompts: &[&[u32]],
        cache: &mut Cache,
        bias: &dyn Fn(usize) -> Option<RowBias<'a>>,
    ) -> Result<Vec<f32>, AgentError> {
        // First prompt of each run of equal prompts. Prompts that are steered differently are different.
        let mut firsts: Vec<usize> = Vec::new();
        let mut source = Vec::with_capacity(prompts.len());
        for i in 0..prompts.len() {
            let is_equal = |j: usize| prompts[i] == prompts[j] && bias(i).map(|b| b.0) == bias(j).map(|b| b.0);
            match firsts.last() {
                Some(&j) if is_equal(j) => source.push(j),
                _ => {
                    firsts.push(i);
                    source.push(i);
                }
            }
        }
        let vocab = self.engine.config().vocab_size;
        let (mut logits, mut found) = (vec![0.0; prompts.len() * vocab], Vec::new());
        let mut start = 0;
        while start < firsts.len() {
            let mut end = start + 1;
            let mut tokens = prompts[firsts[start]].len();
            while end < firsts.len() && tokens + prompts[firsts[end]].len() <= TOKENS_AT_ONCE {
                tokens += prompts[firsts[end]].len();
                end += 1;
            }
            let new: Vec<NewTokens<'_>> = firsts[start..end].iter().map(|&row| NewTokens { row, tokens: prompts[row] }).collect();
            let biases: Option<Vec<RowBias<'_>>> = firsts[start..end].iter().map(|&row| bias(row)).collect();
            self.engine.advance(&new, cache, biases.as_deref(), &mut found)?;
            for (&row, found) in firsts[start..end].iter().zip(found.chunks_exact(vocab)) {
                logits[row * vocab..(row + 1) * vocab].copy_from_slice(found);
            }
            start = end;
        }
        for (row, &from) in source.iter().enumerate().filter(|(row, from)| row != *from) {
            logits.copy_within(from * vocab..(from + 1) * vocab, row * vocab);
        }
        cache.select_rows(&source)?;
        Ok(logits)
    }

    fn check(&self, prompts: &[&[u32]], rngs: usize, biases: Option<&[KeyBias]>) -> Result<(), AgentError> {
        let shape = |op: &str, expected: Vec<usize>, got: Vec<usize>| Err(AgentError::Shape { op: op.to_string(), expected, got });
        let config = self.engine.config();
        if rngs != prompts.len() {
            return shape("generators of prompts", vec![prompts.len()], vec![rngs]);
        }
        let context = self.engine.context();
        for (row, prompt) in prompts.iter().enumerate() {
            if prompt.is_empty() {
                return Err(unfit(row, "the prompt has no tokens; begin it with the begin-of-sequence token"));
            }
            if prompt.len() >= context {
                let reason = format!("the prompt has {} tokens, but the model has {context} positions; shorten it", prompt.len());
                return Err(unfit(row, &reason));
            }
            if let Some(token) = prompt.iter().find(|&&t| t as usize >= config.vocab_size) {
                let reason = format!("token {token}, but the model's vocabulary ends at {}; use its own tokenizer", config.vocab_size);
                return Err(unfit(row, &reason));
            }
        }
        let Some(biases) = biases else { return Ok(()) };
        if biases.len() != prompts.len() {
            return shape("biases of prompts", vec![prompts.len()], vec![biases.len()]);
        }
        for bias in biases {
            if bias.per_head.len() != config.n_layers || bias.per_head.iter().any(|heads| heads.len() != config.n_heads) {
                let got = vec![bias.per_head.len(), bias.per_head.first().map_or(0, Vec::len)];
                return shape("bias per layer and query head", vec![config.n_layers, config.n_heads], got);
            }
        }
        Ok(())
    }
}

fn unfit(row: usize, reason: &str) -> AgentError {
    AgentError::Model { place: format!("prompt {row}"), reason: reason.to_string() }
}
