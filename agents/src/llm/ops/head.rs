//! The language-model head with its loss, group by group: logits of the completion tokens of one group, their statistics,
//! the slopes that a loss answers with, and from them the gradients of hidden states and head weights. Logits of one group
//! are all that exists at a time, whatever the size of the batch.
//!
//! With log-probability `l = log softmax(z / T)[y]` and slope `s = dL/dl`: `dL/dz = s (1[y] − p) / T`.

use candle_core::{D, DType, Result, Tensor};

use super::kernel::softmax_with_sums;
use super::pieces::{Shared, in_pieces};
use super::product::{Matrix, parallel_product};
use super::tape::Weight;
use crate::llm::sequence::TokenStatistics;

/// Statistics of rows: one row per completion token.
fn empty(n: usize) -> TokenStatistics {
    TokenStatistics { log_probs: vec![0.0; n], entropies: vec![0.0; n], is_most_likely: vec![false; n], mean_logits: vec![0.0; n] }
}

/// Logits turned into probabilities.
pub(crate) struct HeadRows {
    /// `[row, vocab]`: probabilities.
    probabilities: Vec<f32>,
    vocab: usize,
}

/// `hidden`: `[row, hidden]`; `weight`: `[vocab, hidden]`; `targets[row]` below `vocab`.
pub(crate) fn statistics(
    hidden: &[f32],
    weight: &[f32],
    targets: &[u32],
    temperature: f32,
    buffer: Vec<f32>,
) -> (TokenStatistics, HeadRows) {
    let rows = targets.len();
    let width = hidden.len() / rows.max(1);
    let vocab = weight.len() / width.max(1);
    let mut logits = buffer;
    logits.resize(rows * vocab, 0.0);
    parallel_product(
        &mut logits,
        vocab,
        [rows, vocab, width],
        Matrix::rows(hidden, width),
        Matrix::rows(weight, width).transposed(),
        false,
    );
    let mut found = vec![(0.0_f32, 0.0_f32, false, 0.0_f32); rows];
    let (shared, places) = (Shared::new(&mut logits), SharedRows(found.as_mut_ptr()));
    let inverse = 1.0 / temperature;
    in_pieces(rows, |piece| {
        let places = &places;
        for row in piece {
            // SAFETY: rows are disjoint.
            let (z, found) = unsafe { (shared.slice(row * vocab..(row + 1) * vocab), &mut *places.0.add(row)) };
            if inverse != 1.0 {
                z.iter_mut().for_each(|z| *z *= inverse);
            }
            let target = z[targets[row] as usize];
            let s = softmax_with_sums(z);
            let mean = (s.largest + s.total / vocab as f32) * temperature;
            *found = (target - s.largest - s.sum.ln(), s.sum.ln() - s.along / s.sum, target >= s.largest, mean);
        }
    });
    let mut statistics = empty(rows);
    for (row, (log_prob, entropy, is_most_likely, mean_logit)) in found.into_iter().enumerate() {
        statistics.log_probs[row] = log_prob;
        statistics.entropies[row] = entropy;
        statistics.is_most_likely[row] = is_most_likely;
        statistics.mean_logits[row] = mean_logit;
    }
    (statistics, HeadRows { probabilities: logits, vocab })
}

struct SharedRows(*mut (f32, f32, bool, f32));
// SAFETY: pieces of work write to disjoint rows.
unsafe impl Sync for SharedRows {}

impl HeadRows {
    /// From slopes of the loss by each log-probability: gives the gradient of the hidden states, adds that of the weight
    /// to its sums, and returns the buffer.
    pub(crate) fn backward(
        mut self,
        hidden: &[f32],
        weight: &Weight,
        targets: &[u32],
        slopes: &[f32],
        temperature: f32,
    ) -> (Vec<f32>, Vec<f32>) {
        let (rows, vocab) = (targets.len(), self.vocab);
        let width = hidden.len() / rows.max(1);
        for ((row, &target), &slope) in self.probabilities.chunks_exact_mut(vocab).zip(targets).zip(slopes) {
            let factor = slope / temperature;
            row.iter_mut().for_each(|p| *p *= -factor);
            row[target as usize] += factor;
        }
        let grad = Matrix::rows(&self.probabilities, vocab);
        let mut hidden_grad = vec![0.0; hidden.len()];
        parallel_product(&mut hidden_grad, width, [rows, width, vocab], grad, Matrix::rows(&weight.value, width), false);
        if let Some(mut sums) = weight.sums() {
            parallel_product(&mut sums, width, [vocab, width, rows], grad.transposed(), Matrix::rows(hidden, width), true);
        }
        (hidden_grad, self.probabilities)
    }

    /// The buffer, for the next group.
    pub(crate) fn into_buffer(self) -> Vec<f32> {
        self.probabilities
    }
}

/// The same in candle's operations on any device: statistics, and what the way back needs.
pub(crate) struct PlainRows {
    probabilities: Tensor,
    targets: Tensor,
}

/// `hidden`: `[row, hidden]`, `weight`: `[vocab, hidden]`.
pub(crate) fn statistics_plain(
    hidden: &Tensor,
    weight: &Tensor,
    targets: &[u32],
    temperature: f32,
) -> Result<(TokenStatistics, PlainRows)> {
    let rows = targets.len();
    let targets = Tensor::from_slice(targets, (rows, 1), hidden.device())?;
    let logits = hidden.matmul(&weight.t()?)?.to_dtype(DType::F32)?;
    let scaled = (&logits / f64::from(temperature))?;
    let largest = scaled.max_keepdim(D::Minus1)?;
    let shifted = scaled.broadcast_sub(&largest)?;
    let weights = shifted.exp()?;
    let sum = weights.sum_keepdim(D::Minus1)?;
    let probabilities = weights.broadcast_div(&sum)?;
    let log_sum = sum.log()?;
    let picked = shifted.gather(&targets, 1)?;
    // -Σ p ln p = ln Σ - Σ p (z - max)
    let entropies = (log_sum.clone() - (&probabilities * &shifted)?.sum_keepdim(D::Minus1)?)?;
    let host = |x: &Tensor| x.flatten_all()?.to_vec1::<f32>();
    let picked_host = host(&picked)?;
    let statistics = TokenStatistics {
        log_probs: host(&(&picked - &log_sum)?)?,
        entropies: host(&entropies)?,
        is_most_likely: picked_host.iter().map(|&z| z >= 0.0).collect(),
        mean_logits: host(&logits.mean_keepdim(1)?)?,
    };
    Ok((statistics, PlainRows { probabilities, targets }))
}

impl PlainRows {
    /// Gradients of the hidden states (in their type) and of the weight (`f32`).
    pub(crate) fn backward(self, hidden: &Tensor, weight: &Tensor, slopes: &[f32], temperature: f32) -> Result<(Tensor, Tensor)> {
        let rows = slopes.len();
        let slopes = Tensor::from_slice(slopes, (rows, 1), hidden.device())?.affine(1.0 / f64::from(temperature), 0.0)?;
        let grad = self.probabilities.broadcast_mul(&slopes.neg()?)?.scatter_add(&self.targets, &slopes, 1)?;
        let kind = hidden.dtype();
        let grad = grad.to_dtype(kind)?;
        let hidden_grad = grad.matmul(weight)?;
        let weight_grad = grad.t()?.contiguous()?.matmul(hidden)?.to_dtype(DType::F32)?;
        Ok((hidden_grad, weight_grad))
    }
}
