//! Linear maps, several side by side: `y = [x W₁ᵀ + b₁ | x W₂ᵀ + b₂ | …]`, so that queries, keys and values, or gate and up,
//! are one node of the tape.

use candle_core::{Result, Tensor};

use super::pieces::{Shared, in_pieces};
use super::product::{Matrix, parallel_product};
use super::tape::{Operation, Weight};

/// One of the maps.
#[derive(Clone)]
pub(crate) struct LinearPart {
    /// `[output, input]`, or `[input, output]` if `is_transposed` (GPT-2).
    pub weight: Weight,
    pub bias: Option<Weight>,
    pub output: usize,
    pub is_transposed: bool,
}

impl LinearPart {
    /// The weight as `[input, output]`.
    fn matrix(&self, input: usize) -> Matrix<'_> {
        match self.is_transposed {
            true => Matrix::rows(&self.weight.value, self.output),
            false => Matrix::rows(&self.weight.value, input).transposed(),
        }
    }
}

/// The maps of one input; it gives `[token, sum of outputs]`.
pub(crate) struct Linear {
    pub parts: Vec<LinearPart>,
    /// Numbers per token of the input.
    pub input: usize,
}

impl Linear {
    fn output(&self) -> usize {
        self.parts.iter().map(|part| part.output).sum()
    }
}

impl Operation for Linear {
    fn output_width(&self, _: usize) -> usize {
        self.output()
    }

    fn forward(&self, x: &[f32], y: &mut [f32]) {
        let (input, output) = (self.input, self.output());
        let tokens = x.len() / input;
        let mut first = 0;
        for part in &self.parts {
            let y = &mut y[first..];
            parallel_product(y, output, [tokens, part.output, input], Matrix::rows(x, input), part.matrix(input), false);
            if let Some(bias) = &part.bias {
                for row in y.chunks_mut(output) {
                    row.iter_mut().zip(bias.value.iter()).for_each(|(y, b)| *y += b);
                }
            }
            first += part.output;
        }
    }

    fn backward(&self, x: &[f32], _: &[f32], grad: &[f32], x_grad: &mut [f32], adds: bool) {
        let (input, output) = (self.input, self.output());
        let tokens = x.len() / input;
        let mut first = 0;
        for part in &self.parts {
            let y_grad = Matrix::rows(&grad[first..], output);
            let weight = part.matrix(input).transposed();
            parallel_product(x_grad, input, [tokens, input, part.output], y_grad, weight, adds || first > 0);
            if let Some(mut sums) = part.weight.sums() {
                let x = Matrix::rows(x, input);
                match part.is_transposed {
                    true => parallel_product(&mut sums, part.output, [input, part.output, tokens], x.transposed(), y_grad, true),
                    false => parallel_product(&mut sums, input, [part.output, input, tokens], y_grad.transposed(), x, true),
                }
            }
            if let Some(mut sums) = part.bias.as_ref().and_then(Weight::sums) {
                let shared = Shared::new(&mut sums);
                in_pieces(part.output, |columns| {
                    // SAFETY: pieces are disjoint ranges of columns.
                    let sums = unsafe { shared.slice(columns.clone()) };
                    for row in grad.chunks(output) {
                        let row = &row[first + columns.start..first + columns.end];
                        sums.iter_mut().zip(row).for_each(|(sum, g)| *sum += g);
                    }
                });
            }
            first += part.output;
        }
    }
}

/// The same in candle's operations, for one part; `weight` as in [`LinearPart`].
pub(crate) fn linear_plain(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, is_transposed: bool) -> Result<Tensor> {
    let y = if is_transposed { x.matmul(weight)? } else { x.matmul(&weight.t()?)? };
    match bias {
        Some(bias) => y.broadcast_add(bias),
        None => Ok(y),
    }
}
