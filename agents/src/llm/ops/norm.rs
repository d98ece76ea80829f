//! RMS norm (Zhang and Sennrich 2019, arXiv 1910.07467) and layer norm (Ba et al. 2016, arXiv 1607.06450) of stretches of
//! each row; what lies between the stretches passes. The residual stream is one stretch, the heads of queries and keys
//! (Qwen3) are several.

use std::ops::Range;

use candle_core::{D, DType, Result, Tensor};

use super::kernel::{moments, norm_backward, normalise};
use super::pieces::{PIECE, Shared, in_pieces};
use super::tape::{Operation, Weight};

/// A norm.
pub(crate) struct Norm {
    /// Rows.
    pub tokens: usize,
    /// Values per stretch.
    pub width: usize,
    /// Numbers of the row's first columns, with the index of their weight, one per stretch, ascending.
    pub stretches: Vec<(usize, usize)>,
    pub weights: Vec<Weight>,
    /// Shift of each weight, of layer norms only.
    pub biases: Vec<Weight>,
    pub eps: f32,
    /// True subtracts the mean (layer norm).
    pub is_centred: bool,
}

impl Norm {
    /// Columns of a row of `features` that lie in no stretch.
    fn gaps(&self, features: usize) -> Vec<Range<usize>> {
        let starts = self.stretches.iter().map(|&(first, _)| first).chain([features]);
        let ends = [0].into_iter().chain(self.stretches.iter().map(|&(first, _)| first + self.width));
        ends.zip(starts).map(|(end, start)| end..start).filter(|gap| !gap.is_empty()).collect()
    }
}

impl Operation for Norm {
    fn output_width(&self, input_width: usize) -> usize {
        input_width
    }

    fn forward(&self, x: &[f32], y: &mut [f32]) {
        let features = x.len() / self.tokens;
        let gaps = self.gaps(features);
        let shared = Shared::new(y);
        in_pieces(self.tokens, |rows| {
            for t in rows {
                // SAFETY: pieces are disjoint ranges of rows.
                let y = unsafe { shared.slice(t * features..(t + 1) * features) };
                let x = &x[t * features..(t + 1) * features];
                for &(first, w) in &self.stretches {
                    let place = first..first + self.width;
                    let bias = self.biases.get(w).map(|bias| bias.value.as_slice());
                    normalise(&x[place.clone()], &self.weights[w].value, bias, self.is_centred, self.eps, &mut y[place]);
                }
                gaps.iter().for_each(|gap| y[gap.clone()].copy_from_slice(&x[gap.clone()]));
            }
        });
    }

    fn backward(&self, x: &[f32], _: &[f32], grad: &[f32], x_grad: &mut [f32], adds: bool) {
        let features = x.len() / self.tokens;
        let (gaps, width, n) = (self.gaps(features), self.width, self.weights.len());
        // Sums of each piece of rows, then those of the pieces in their order: weights, then biases.
        let of_piece = (n + self.biases.len()) * width;
        let mut sums = vec![0.0_f32; self.tokens.div_ceil(PIECE) * of_piece];
        let (shared, shared_sums) = (Shared::new(x_grad), Shared::new(&mut sums));
        in_pieces(self.tokens, |rows| {
            let piece = rows.start / PIECE;
            // SAFETY: pieces have sums of their own.
            let sums = unsafe { shared_sums.slice(piece * of_piece..(piece + 1) * of_piece) };
            let (weight_sums, bias_sums) = sums.split_at_mut(n * width);
            for t in rows {
                // SAFETY: pieces are disjoint ranges of rows.
                let x_grad = unsafe { shared.slice(t * features..(t + 1) * features) };
                let (x, grad) = (&x[t * features..(t + 1) * features], &grad[t * features..(t + 1) * features]);
                for &(first, w) in &self.stretches {
                    let place = first..first + width;
                    let (x, grad) = (&x[place.clone()], &grad[place.clone()]);
                    let found = moments(x, self.is_centred, self.eps);
                    let sums = &mut weight_sums[w * width..(w + 1) * width];
                    norm_backward(x, &self.weights[w].value, grad, self.is_centred, found, &mut x_grad[place], adds, sums);
                    if w < self.biases.len() {
                        bias_sums[w * width..(w + 1) * width].iter_mut().zip(grad).for_each(|(s, g)| *s += g);
                    }
                }
                for gap in &gaps {
                    let out = x_grad[gap.clone()].iter_mut().zip(&grad[gap.clone()]);
                    out.for_each(|(out, g)| *out = if adds { *out + g } else { *g });
                }
            }
        });
        for sums in sums.chunks_exact(of_piece) {
            for (weight, sums) in self.weights.iter().chain(&self.biases).zip(sums.chunks_exact(width)) {
                if let Some(mut total) = weight.sums() {
                    total.iter_mut().zip(sums).for_each(|(t, s)| *t += s);
                }
            }
        }
    }
}

/// The same over the whole last axis in candle's operations; moments are taken in `f32`.
pub(crate) fn norm_plain(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, eps: f64, is_centred: bool) -> Result<Tensor> {
    let kind = x.dtype();
    let x = x.to_dtype(DType::F32)?;
    let x = if is_centred { x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)? } else { x };
    let deviation = (x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    let y = x.broadcast_div(&deviation)?.to_dtype(kind)?.broadcast_mul(weight)?;
    match bias {
        Some(bias) => y.broadcast_add(bias),
        None => Ok(y),
    }
}
