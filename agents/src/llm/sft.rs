//! Supervised training on completions, and pretraining: the mean negative log-likelihood per completion token.
//!
//! ```text
//! loss = - sum over sequences and completion tokens of log p(token | what stands before it) / number of these tokens
//! ```
//!
//! The number is that of the whole effective batch, whatever the micro-batches: long completions count more than short ones.
//! Pretraining is the same over sequences whose prompt is the begin-of-sequence token alone.
//!
//! Metrics: `train/loss`, `train/token_accuracy` (share of tokens that were the most likely one), `train/entropy` (mean of the
//! distributions that tokens are drawn from, in nats), `train/perplexity` (exponential of the loss), `train/tokens` (all
//! tokens of the batch, prompts included); the first four also as `eval/...` over the held-out sequences.

use super::model::Decoder;
use super::sequence::{TokenSequence, TokenStatistics};
use super::trainer::{MetricSums, Objective};
use crate::{AgentError, Metrics};

/// Sequences that are evaluated together.
const EVALUATION_BATCH: usize = 16;

/// Negative log-likelihood of completions.
pub struct SftObjective {
    train: Vec<TokenSequence>,
    validation: Vec<TokenSequence>,
}

impl SftObjective {
    /// Learns from `train`, measures on `validation`, which may be empty.
    ///
    /// # Errors
    /// [`AgentError::Model`] naming the first example without a prompt token or without a completion token.
    pub fn new(train: Vec<TokenSequence>, validation: Vec<TokenSequence>) -> Result<Self, AgentError> {
        for (set, sequences) in [(TRAIN, &train), (VALIDATION, &validation)] {
            for (i, sequence) in sequences.iter().enumerate() {
                sequence.check().map_err(|reason| refused(set, i, reason))?;
            }
        }
        Ok(Self { train, validation })
    }
}

const TRAIN: &str = "training example";
const VALIDATION: &str = "held-out example";

fn refused(set: &str, i: usize, reason: String) -> AgentError {
    AgentError::Model { place: format!("{set} {}", i + 1), reason }
}

/// Where the sums of one group of metrics go.
struct Names {
    loss: &'static str,
    accuracy: &'static str,
    entropy: &'static str,
    perplexity: &'static str,
}

const TRAIN_NAMES: Names =
    Names { loss: "train/loss", accuracy: "train/token_accuracy", entropy: "train/entropy", perplexity: "train/perplexity" };
const EVAL_NAMES: Names =
    Names { loss: "eval/loss", accuracy: "eval/token_accuracy", entropy: "eval/entropy", perplexity: "eval/perplexity" };

impl Names {
    /// Adds one completion; returns its negative log-likelihood.
    fn add(&self, statistics: &TokenStatistics, sums: &mut MetricSums) -> f64 {
        let n = statistics.log_probs.len() as f64;
        let loss = -statistics.log_probs.iter().map(|&x| f64::from(x)).sum::<f64>();
        sums.add(self.loss, loss, n);
        sums.add(self.accuracy, statistics.is_most_likely.iter().filter(|&&is| is).count() as f64, n);
        sums.add(self.entropy, statistics.entropies.iter().map(|&x| f64::from(x)).sum(), n);
        sums.add_logarithms(self.perplexity, loss, n);
        loss
    }
}

impl Objective for SftObjective {
    fn n_examples(&self) -> usize {
        self.train.len()
    }

    fn weight(&self, example: usize) -> f64 {
        self.train[example].completion().len() as f64
    }

    fn prepare(&mut self, decoder: &Decoder) -> Result<(), AgentError> {
        for (set, sequences) in [(TRAIN, &self.train), (VALIDATION, &self.validation)] {
            for (i, sequence) in sequences.iter().enumerate() {
                sequence.check_fits(decoder.config()).map_err(|reason| refused(set, i, reason))?;
            }
        }
        Ok(())
    }

    fn accumulate(
        &mut self,
        decoder: &mut Decoder,
        examples: &[usize],
        batch_weight: f64,
        sums: &mut MetricSums,
    ) -> Result<(), AgentError> {
        // A group of its own for each sequence, so that the logits of one are there at a time.
        let groups: Vec<Vec<&TokenSequence>> = examples.iter().map(|&i| vec![&self.train[i]]).collect();
        sums.add_total("train/tokens", groups.iter().map(|g| g[0].tokens.len() as f64).sum());
        let slope = (-1.0 / batch_weight) as f32;
        decoder.accumulate_log_probs(&groups, 1.0, &mut |group, statistics, slopes| {
            let loss = TRAIN_NAMES.add(&statistics[0], sums);
            if !loss.is_finite() {
                let example = examples[group];
                let tensor = format!("loss of training example {}", example + 1);
                return Err(AgentError::NonFinite { tensor, value: loss as f32, update: 0, position: example });
            }
            slopes[0].fill(slope);
            Ok(())
        })
    }

    fn evaluate(&mut self, decoder: &Decoder) -> Result<Metrics, AgentError> {
        let mut sums = MetricSums::default();
        for chunk in self.validation.chunks(EVALUATION_BATCH) {
            for statistics in decoder.log_probs(&chunk.iter().collect::<Vec<_>>(), 1.0)? {
                EVAL_NAMES.add(&statistics, &mut sums);
            }
        }
        Ok(sums.means())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_without_prompt_or_completion_are_named() {
        let good = TokenSequence::new(&[1], &[2, 3]);
        let error = |train, validation| SftObjective::new(train, validation).err().map(|e| e.to_string());
        assert_eq!(error(vec![good.clone()], vec![]), None);
        let empty = TokenSequence::new(&[1], &[]);
        assert!(error(vec![good.clone(), empty], vec![]).is_some_and(|e| e.starts_with("training example 2: ")));
        let bare = TokenSequence::new(&[], &[1]);
        assert!(error(vec![good], vec![bare]).is_some_and(|e| e.starts_with("held-out example 1: ")));
    }

    #[test]
    fn means_are_per_token_and_perplexity_is_of_the_mean() {
        let mut sums = MetricSums::default();
        let of = |log_probs: Vec<f32>| TokenStatistics {
            entropies: vec![0.5; log_probs.len()],
            is_most_likely: log_probs.iter().map(|&x| x > -1.0).collect(),
            mean_logits: vec![0.0; log_probs.len()],
            log_probs,
        };
        TRAIN_NAMES.add(&of(vec![-2.0]), &mut sums);
        TRAIN_NAMES.add(&of(vec![-0.5, -0.5, -3.0]), &mut sums);
        let metrics = sums.means();
        assert_eq!(metrics.get("train/loss"), Some(1.5));
        assert_eq!(metrics.get("train/token_accuracy"), Some(0.5));
        assert_eq!(metrics.get("train/entropy"), Some(0.5));
        assert_eq!(metrics.get("train/perplexity"), Some(1.5_f64.exp()));
    }
}
