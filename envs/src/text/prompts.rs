//! Prompts from a file; the reward comes from a reward model.

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::task::{single_completion, text_spec};
use crate::{Actions, EnvError, EnvSpec, Environment, Result, Rng, SnapshotReader, SnapshotWriter, StepOut, write_tokens};

const NAME: &str = "prompts";

/// Settings of [`PromptsEnv`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PromptsConfig {
    /// File of prompts, JSON lines or Parquet, with a field `prompt` that is a string or a conversation.
    pub file: PathBuf,
    /// Most tokens of a prompt, at least 1. Longer ones are left out, and counted.
    pub max_prompt_tokens: usize,
    /// Most tokens of a completion, at least 1.
    pub max_new_tokens: usize,
}

impl Default for PromptsConfig {
    fn default() -> Self {
        Self { file: PathBuf::new(), max_prompt_tokens: 512, max_new_tokens: 128 }
    }
}

/// The prompts of a [`PromptsConfig`] as tokens, and what a tokenizer knows beside them.
#[derive(Debug, Clone)]
pub struct EncodedPrompts {
    /// The prompts, in the order of the file.
    pub prompts: Arc<Vec<Vec<u32>>>,
    /// Number of different tokens that the model can write; at least those of the tokenizer.
    pub vocab_size: usize,
    /// Tokens that end a completion.
    pub end_of_sequence: Vec<u32>,
}

impl PromptsConfig {
    /// Builds the environment from encoded prompts.
    ///
    /// # Errors
    /// As [`PromptsEnv::new`].
    pub fn build(&self, encoded: EncodedPrompts) -> Result<PromptsEnv> {
        PromptsEnv::new(encoded, self.max_prompt_tokens, self.max_new_tokens)
    }
}

/// Draws prompts from a list, uniformly and with repeats. Its own reward is 0; a [`crate::RewardFn`] replaces it.
///
/// Episode metrics: `completion_length` (tokens, the end-of-sequence token included), `ended_with_eos` (0 or 1).
#[derive(Debug, Clone)]
pub struct PromptsEnv {
    encoded: EncodedPrompts,
    spec: EnvSpec,
    current: usize,
    metrics: [f64; 2],
}

impl PromptsEnv {
    /// Takes prompts of 1 to `max_prompt_tokens` tokens.
    ///
    /// # Errors
    /// [`EnvError::Tokens`] naming the row of a prompt that is empty, too long or outside the vocabulary;
    /// [`EnvError::Config`] if a limit is 0 or there is no prompt.
    pub fn new(encoded: EncodedPrompts, max_prompt_tokens: usize, max_new_tokens: usize) -> Result<Self> {
        let metrics = ["completion_length", "ended_with_eos"];
        let spec = text_spec(NAME, encoded.vocab_size, max_prompt_tokens, max_new_tokens, &metrics)?;
        if encoded.prompts.is_empty() {
            let expected = "a file with at least one prompt that is not too long".to_string();
            return Err(EnvError::Config { env: NAME.to_string(), field: "file", expected, got: "none".to_string() });
        }
        for (row, prompt) in encoded.prompts.iter().enumerate() {
            let fail = |reason: String| Err(EnvError::Tokens { env: NAME.to_string(), reason: format!("prompt {}: {reason}", row + 1) });
            if prompt.is_empty() || prompt.len() > max_prompt_tokens {
                return fail(format!("it must have 1 to {max_prompt_tokens} tokens, got {}", prompt.len()));
            }
            if let Some(token) = prompt.iter().find(|&&t| t as usize >= encoded.vocab_size) {
                return fail(format!("token {token} is outside the vocabulary of {}", encoded.vocab_size));
            }
        }
        Ok(Self { encoded, spec, current: 0, metrics: [0.0; 2] })
    }

    /// Number of the prompt of the running episode, from 0.
    pub fn current(&self) -> usize {
        self.current
    }

    fn observe(&self, out: &mut [f32]) {
        write_tokens(NAME, &self.encoded.prompts[self.current], out).expect("lengths were checked when the world was built");
    }
}

impl Environment for PromptsEnv {
    fn spec(&self) -> &EnvSpec {
        &self.spec
    }

    fn reset(&mut self, seed: u64, observations: &mut [f32]) {
        self.current = Rng::from_seed(seed).below(self.encoded.prompts.len());
        self.metrics = [0.0; 2];
        self.observe(observations);
    }

    fn step(&mut self, actions: Actions<'_>, out: &mut StepOut<'_>) -> Result<()> {
        let completion = single_completion(&self.spec, actions)?;
        let end = completion.iter().position(|t| self.encoded.end_of_sequence.contains(t));
        self.metrics = [end.map_or(completion.len(), |at| at + 1) as f64, f64::from(u8::from(end.is_some()))];
        out.rewards[0] = 0.0;
        out.terminated = true;
        out.truncated = false;
        self.observe(out.observations);
        Ok(())
    }

    fn episode_metrics(&self, out: &mut [f64]) {
        out.copy_from_slice(&self.metrics);
    }

    fn snapshot(&self, out: &mut SnapshotWriter) {
        out.u64(self.current as u64);
        out.f64s(&self.metrics);
    }

    fn restore(&mut self, input: &mut SnapshotReader<'_>) -> Result<()> {
        let (current, n) = (input.u64()?, self.encoded.prompts.len());
        if current >= n as u64 {
            return Err(EnvError::Snapshot { place: NAME.to_string(), reason: format!("prompt {current} must be below {n}") });
        }
        self.current = current as usize;
        input.f64s(&mut self.metrics)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::check_environment;
    use crate::{TokenRows, read_tokens};

    fn encoded(prompts: &[&[u32]]) -> EncodedPrompts {
        let prompts = Arc::new(prompts.iter().map(|p| p.to_vec()).collect());
        EncodedPrompts { prompts, vocab_size: 10, end_of_sequence: vec![2, 9] }
    }

    #[test]
    fn keeps_the_contract_and_shows_its_prompts() {
        let prompts: [&[u32]; 3] = [&[1, 2, 3], &[4], &[9, 9, 9, 9]];
        let build = || PromptsEnv::new(encoded(&prompts), 4, 3);
        check_environment(&|| Ok(Box::new(build()?))).unwrap();
        let (mut env, mut row, mut tokens) = (build().unwrap(), [0.0; 5], Vec::new());
        let mut seen = [0; 3];
        for seed in 0..300 {
            env.reset(seed, &mut row);
            read_tokens(&row, &mut tokens).unwrap();
            assert_eq!(tokens, prompts[env.current()]);
            seen[env.current()] += 1;
        }
        assert!(seen.iter().all(|&n| (70..130).contains(&n)), "{seen:?}");
        let rows = TokenRows { tokens: &[5, 9, 5], lengths: &[3], width: 3 };
        let mut out = StepOut { observations: &mut row, rewards: &mut [7.0], terminated: false, truncated: false };
        env.step(Actions::Tokens(rows), &mut out).unwrap();
        assert_eq!((out.rewards[0], out.terminated), (0.0, true));
        let mut metrics = [0.0; 2];
        env.episode_metrics(&mut metrics);
        assert_eq!(metrics, [2.0, 1.0]);
    }

    #[test]
    fn bad_prompts_are_named_with_their_row() {
        let message = |prompts: &[&[u32]]| PromptsEnv::new(encoded(prompts), 4, 3).unwrap_err().to_string();
        assert!(message(&[&[1], &[]]).contains("prompt 2"));
        assert!(message(&[&[1, 1, 1, 1, 1]]).contains("1 to 4"));
        assert!(message(&[&[1, 10]]).contains("token 10"));
        assert!(message(&[]).contains("file"));
        assert!(PromptsEnv::new(encoded(&[&[1]]), 4, 0).is_err());
    }
}
