//! What completions that a policy drew say about it: their length, and how far the policy is from a reference.

use super::model::Decoder;
use super::policy_gradient::KlEstimator;
use super::sequence::TokenSequence;
use crate::AgentError;
use crate::learner::Metrics;

/// A completion with what was recorded while it was drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct DrawnText {
    /// Prompt and completion.
    pub sequence: TokenSequence,
    /// Log-probability of each token of the completion at the sampling temperature.
    pub log_probs: Vec<f32>,
    /// Whether the policy ended it.
    pub has_ended: bool,
}

/// Names of the numbers of [`drawn_metrics`]; the last two need a reference.
pub const DRAWN_METRICS: [&str; 5] = ["completion_length", "ended", "entropy_sampled", "kl", "kl_k3"];

/// Means over completions, of which there must be one at least.
///
/// `completion_length` (tokens), `ended` (share that ended by itself), `entropy_sampled` (−ln p per token), and with a
/// reference `kl` and `kl_k3`: the divergence of the policy from it in nats per completion, as sums over tokens of
/// [`KlEstimator::K1`] and [`KlEstimator::K3`], the latter never negative. `temperature` is the one that the completions were
/// drawn at; the reference reads `micro_batch` of them together. Of completions that were not drawn but are the most likely
/// ones, `kl` and `kl_k3` are log-ratios and no estimates of the divergence.
///
/// # Errors
/// What the reference reports.
pub fn drawn_metrics(
    drawn: &[DrawnText],
    reference: Option<&Decoder>,
    temperature: f32,
    micro_batch: usize,
) -> Result<Metrics, AgentError> {
    let n = drawn.len() as f64;
    let tokens: f64 = drawn.iter().map(|d| d.log_probs.len() as f64).sum();
    let log_prob: f64 = drawn.iter().flat_map(|d| &d.log_probs).map(|&x| f64::from(x)).sum();
    let ended = drawn.iter().filter(|d| d.has_ended).count() as f64;
    let [length_name, ended_name, entropy_name, kl_name, kl_k3_name] = DRAWN_METRICS;
    let mut metrics = Metrics { values: vec![(length_name, tokens / n), (ended_name, ended / n), (entropy_name, -log_prob / tokens)] };
    let Some(reference) = reference else { return Ok(metrics) };
    let (mut kl, mut kl_k3) = (0.0, 0.0);
    for part in drawn.chunks(micro_batch.max(1)) {
        let sequences: Vec<&TokenSequence> = part.iter().map(|d| &d.sequence).collect();
        for (statistics, drawn) in reference.log_probs(&sequences, temperature)?.iter().zip(part) {
            for (&reference, &own) in statistics.log_probs.iter().zip(&drawn.log_probs) {
                let difference = f64::from(own) - f64::from(reference);
                kl += KlEstimator::K1.value(difference);
                kl_k3 += KlEstimator::K3.value(difference);
            }
        }
    }
    metrics.push(kl_name, kl / n);
    metrics.push(kl_k3_name, kl_k3 / n);
    Ok(metrics)
}
