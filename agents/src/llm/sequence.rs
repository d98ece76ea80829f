//! Token sequences and what a model says of them.

use super::model::DecoderConfig;

/// A prompt and its completion as token ids. Log-probabilities, losses and gradients are of the completion alone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct TokenSequence {
    /// Prompt and completion, one behind the other.
    pub tokens: Vec<u32>,
    /// Tokens of the prompt, at least 1 and below `tokens.len()`.
    pub prompt_len: usize,
}

impl TokenSequence {
    /// Joins a prompt and a completion.
    pub fn new(prompt: &[u32], completion: &[u32]) -> Self {
        Self { tokens: [prompt, completion].concat(), prompt_len: prompt.len() }
    }

    /// Tokens of the prompt.
    pub fn prompt(&self) -> &[u32] {
        &self.tokens[..self.prompt_len]
    }

    /// Tokens of the completion, its end-of-sequence token included if it has one.
    pub fn completion(&self) -> &[u32] {
        &self.tokens[self.prompt_len..]
    }

    /// Checks that there is a prompt and a completion.
    ///
    /// # Errors
    /// The reason, in words that fit behind the name of an example.
    pub fn check(&self) -> Result<(), String> {
        let (n, prompt) = (self.tokens.len(), self.prompt_len);
        if prompt == 0 {
            return Err("a sequence needs at least one token before its completion, such as a begin-of-sequence token".to_string());
        }
        if prompt >= n {
            return Err(format!("the completion is empty ({n} tokens, of which {prompt} are the prompt)"));
        }
        Ok(())
    }

    /// The same, and that a model of this shape can read it.
    ///
    /// # Errors
    /// As [`TokenSequence::check`].
    pub fn check_fits(&self, config: &DecoderConfig) -> Result<(), String> {
        self.check()?;
        let (n, most) = (self.tokens.len(), config.max_positions);
        if n > most {
            return Err(format!("{n} tokens, but the model has {most} positions; shorten it or limit its tokens when encoding"));
        }
        match self.tokens.iter().position(|&t| t as usize >= config.vocab_size) {
            Some(at) => {
                let (token, size) = (self.tokens[at], config.vocab_size);
                Err(format!("token {token} at position {at}, but the model's vocabulary ends at {size}; use the model's own tokenizer"))
            }
            None => Ok(()),
        }
    }
}

/// What a model says of the tokens of one completion; every array has one entry per completion token.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TokenStatistics {
    /// Log-probability of each token given what stands before it, at the temperature asked for.
    pub log_probs: Vec<f32>,
    /// Entropy of the distribution that each token was drawn from, in nats.
    pub entropies: Vec<f32>,
    /// Whether each token was the most likely one.
    pub is_most_likely: Vec<bool>,
    /// Mean over the vocabulary of the raw logits (before temperature) that each token was chosen by.
    pub mean_logits: Vec<f32>,
}

impl TokenStatistics {
    /// Log-probability of the whole completion.
    pub fn log_prob(&self) -> f32 {
        self.log_probs.iter().map(|&x| f64::from(x)).sum::<f64>() as f32
    }
}
