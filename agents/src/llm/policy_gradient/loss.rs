//! Losses of policies and critics with their slopes, in plain numbers.

use serde::{Deserialize, Serialize};

/// Limits of a probability ratio: `1 − low` and `1 + high`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct ClipRange {
    pub(super) low: f64,
    pub(super) high: f64,
}

/// A loss, its derivative by the logarithm of the ratio, and whether the limit was active.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Surrogate {
    pub(super) loss: f64,
    pub(super) slope: f64,
    pub(super) is_clipped: bool,
}

impl ClipRange {
    /// `−min(ρ A, clip(ρ, 1 − low, 1 + high) A)` for `ρ = exp(log_ratio)`.
    pub(super) fn surrogate(self, log_ratio: f64, advantage: f64) -> Surrogate {
        let ratio = log_ratio.exp();
        let clipped = ratio.clamp(1.0 - self.low, 1.0 + self.high);
        if clipped * advantage < ratio * advantage {
            Surrogate { loss: -clipped * advantage, slope: 0.0, is_clipped: true }
        } else {
            Surrogate { loss: -ratio * advantage, slope: -ratio * advantage, is_clipped: false }
        }
    }
}

/// `½ max((V − R)², (clip(V, V_old ± range) − R)²)` with its derivative by `V`, and whether the limit was active.
pub(super) fn value_loss(value: f64, old: f64, target: f64, range: Option<f64>) -> Surrogate {
    let error = value - target;
    if let Some(range) = range {
        let clipped = value.clamp(old - range, old + range) - target;
        if clipped * clipped > error * error {
            return Surrogate { loss: 0.5 * clipped * clipped, slope: 0.0, is_clipped: true };
        }
    }
    Surrogate { loss: 0.5 * error * error, slope: error, is_clipped: false }
}

/// How the losses of tokens become the loss of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossType {
    /// Mean over completions of the mean over their tokens: long completions count as much as short ones.
    Grpo,
    /// Mean over the tokens of the minibatch.
    Bnpo,
    /// Sum over tokens divided by completions × the most tokens that a completion can have.
    DrGrpo,
    /// Sum over tokens divided by the tokens of the whole rollout, times the number of minibatches: a minibatch of long
    /// completions counts more than one of short ones.
    Dapo,
}

/// Where the probability ratio is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RatioLevel {
    /// Each token has its own.
    Token,
    /// One per completion: the exponential of the mean log-ratio of its tokens (Zheng et al. 2025, "Group Sequence Policy
    /// Optimization", arXiv 2507.18071).
    Sequence,
}

/// Counts by which the losses of a minibatch are divided.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Counts {
    /// Completions in the minibatch.
    pub(super) completions: f64,
    /// Their tokens.
    pub(super) tokens: f64,
    /// Tokens of the whole rollout, divided by the number of minibatches.
    pub(super) rollout_tokens: f64,
    /// Most tokens of a completion.
    pub(super) max_tokens: f64,
}

impl LossType {
    /// Weight of each token of a completion of `length` tokens.
    pub(super) fn token_weight(self, length: usize, counts: &Counts) -> f64 {
        match self {
            Self::Grpo => 1.0 / (counts.completions * length as f64),
            Self::Bnpo => 1.0 / counts.tokens,
            Self::DrGrpo => 1.0 / (counts.completions * counts.max_tokens),
            Self::Dapo => 1.0 / counts.rollout_tokens,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANGE: ClipRange = ClipRange { low: 0.2, high: 0.3 };

    #[test]
    fn surrogate_is_clipped_where_it_would_gain_only() {
        let at = |ratio: f64, advantage| RANGE.surrogate(ratio.ln(), advantage);
        let close = |x: f64, y: f64| assert!((x - y).abs() < 1e-12, "{x} {y}");
        close(at(1.0, 2.0).loss, -2.0);
        close(at(1.0, 2.0).slope, -2.0);
        // Above 1 + high with a good action: no gain left.
        close(at(1.5, 2.0).loss, -2.6);
        assert_eq!((at(1.5, 2.0).slope, at(1.5, 2.0).is_clipped), (0.0, true));
        // The same ratio with a bad action is still pulled back.
        close(at(1.5, -2.0).loss, 3.0);
        close(at(1.5, -2.0).slope, 3.0);
        close(at(0.5, -2.0).loss, 1.6);
        assert!(at(0.5, -2.0).is_clipped && !at(0.5, 2.0).is_clipped && !at(0.5, 0.0).is_clipped);
    }

    #[test]
    fn slopes_are_those_of_the_losses() {
        for log_ratio in [-0.7, -0.1, 0.0, 0.2, 0.6] {
            for advantage in [-1.5, 0.0, 0.8] {
                let loss = |x| RANGE.surrogate(x, advantage).loss;
                let numeric = (loss(log_ratio + 1e-6) - loss(log_ratio - 1e-6)) / 2e-6;
                assert!((RANGE.surrogate(log_ratio, advantage).slope - numeric).abs() < 1e-8);
            }
        }
        for value in [-1.0, 0.1, 0.45, 0.9, 2.0] {
            for range in [None, Some(0.2)] {
                let loss = |v| value_loss(v, 0.5, 0.7, range).loss;
                let numeric = (loss(value + 1e-6) - loss(value - 1e-6)) / 2e-6;
                assert!((value_loss(value, 0.5, 0.7, range).slope - numeric).abs() < 1e-6, "{value} {range:?}");
            }
        }
    }

    #[test]
    fn weights_of_tokens_are_those_of_the_loss_types() {
        // Completions of 2 and 6 tokens in the first of two minibatches; the second has 12 tokens.
        let counts = Counts { completions: 2.0, tokens: 8.0, rollout_tokens: 10.0, max_tokens: 16.0 };
        assert_eq!(LossType::Grpo.token_weight(2, &counts), 0.25);
        assert_eq!(LossType::Grpo.token_weight(6, &counts), 1.0 / 12.0);
        assert_eq!(LossType::Bnpo.token_weight(6, &counts), 0.125);
        assert_eq!(LossType::DrGrpo.token_weight(6, &counts), 1.0 / 32.0);
        assert_eq!(LossType::Dapo.token_weight(6, &counts), 0.1);
    }
}
