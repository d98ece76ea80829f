//! RMS norm (Zhang and Sennrich 2019, arXiv 1910.07467) and layer norm (Ba et al. 2016, arXiv 1607.06450) of stretches of
//! each row; what lies between the stretches passes. The residual stream is one stretch, the heads of queries and keys
//! (Qwen3) are several.

use candle_core::{CpuStorage, CustomOp1, D, DType, Layout, Result, Shape, Tensor};

use super::kernel::{Shared, in_pieces, moments, norm_backward, normalise};
use super::tape::{Weight, read, slice};

/// A norm.
pub(crate) struct Norm {
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

/// Applies a norm to `x`, `[token, feature]`.
pub(crate) fn norm(x: &Tensor, norm: Norm) -> Result<Tensor> {
    x.apply_op1(norm)
}

impl CustomOp1 for Norm {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = slice(storage, layout)?;
        let (tokens, features) = layout.shape().dims2()?;
        let mut y = x.to_vec();
        let shared = Shared::new(&mut y);
        in_pieces(tokens, |rows| {
            for t in rows {
                for &(first, w) in &self.stretches {
                    let place = t * features + first..t * features + first + self.width;
                    // SAFETY: pieces are disjoint ranges of rows.
                    let y = unsafe { shared.slice(place.clone()) };
                    let bias = self.biases.get(w).map(|bias| bias.value.as_slice());
                    normalise(&x[place], &self.weights[w].value, bias, self.is_centred, self.eps, y);
                }
            }
        });
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (tokens, features) = x.dims2()?;
        let x_grad = read(x, |x| {
            read(grad, |grad| {
                let mut x_grad = grad.to_vec();
                // Sums over rows run in one order; they are a small part of a step.
                let mut sums = vec![vec![0.0_f32; self.width]; self.weights.len()];
                let mut bias_sums = vec![vec![0.0_f32; self.width]; self.biases.len()];
                for t in 0..tokens {
                    for &(first, w) in &self.stretches {
                        let place = t * features + first..t * features + first + self.width;
                        let (x, grad) = (&x[place.clone()], &grad[place.clone()]);
                        let found = moments(x, self.is_centred, self.eps);
                        norm_backward(x, &self.weights[w].value, grad, self.is_centred, found, &mut x_grad[place], &mut sums[w]);
                        if let Some(sum) = bias_sums.get_mut(w) {
                            sum.iter_mut().zip(grad).for_each(|(s, g)| *s += g);
                        }
                    }
                }
                for (weight, sum) in self.weights.iter().zip(&sums).chain(self.biases.iter().zip(&bias_sums)) {
                    if let Some(mut total) = weight.sums() {
                        total.iter_mut().zip(sum).for_each(|(t, s)| *t += s);
                    }
                }
                Ok(x_grad)
            })
        })?;
        Ok(Some(Tensor::from_vec(x_grad, (tokens, features), x.device())?))
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
