//! Token sequences and what a model says of them.

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
    /// Raw logit (before temperature) of each token.
    pub logits: Vec<f32>,
}

impl TokenStatistics {
    /// Log-probability of the whole completion.
    pub fn log_prob(&self) -> f32 {
        self.log_probs.iter().map(|&x| f64::from(x)).sum::<f64>() as f32
    }
}
