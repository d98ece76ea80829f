//! Activations of the feed-forward part: gated, `act(gate) * up` (Shazeer 2020, arXiv 2002.05202), or alone.

use candle_core::{Result, Tensor};

use super::kernel::{silu_gate, silu_gate_backward};
use super::pieces::{Shared, in_pieces};
use super::tape::Operation;
use crate::llm::model::Activation;

/// `x`: `[token, 2 width]` with the gate first if `is_gated`, else `[token, width]`; gives `[token, width]`.
pub(crate) struct Activate {
    pub activation: Activation,
    pub is_gated: bool,
    pub width: usize,
}

/// sqrt(2 / π).
const SQRT_2_OVER_PI: f32 = 0.797_884_6;

/// Value and derivative of an activation.
fn value_and_slope(activation: Activation, x: f32) -> (f32, f32) {
    match activation {
        Activation::Silu => {
            let s = 1.0 / (1.0 + (-x).exp());
            (x * s, s + x * s * (1.0 - s))
        }
        Activation::Gelu => {
            let phi = 0.5 * (1.0 + candle_core::cpu::erf::erf_f64(f64::from(x) * std::f64::consts::FRAC_1_SQRT_2)) as f32;
            let density = (-0.5 * x * x).exp() * 0.398_942_3;
            (x * phi, phi + x * density)
        }
        Activation::GeluTanh => {
            let t = (SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x)).tanh();
            let inner = SQRT_2_OVER_PI * (1.0 + 3.0 * 0.044_715 * x * x);
            (0.5 * x * (1.0 + t), 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * inner)
        }
        Activation::Relu => (x.max(0.0), f32::from(u8::from(x > 0.0))),
    }
}

/// `x`: `[token, 2 width]` with the gate first if `is_gated`, else `[token, width]`; `y`: `[token, width]`.
pub(crate) fn activate_rows(x: &[f32], activation: Activation, is_gated: bool, width: usize, y: &mut [f32]) {
    let columns = if is_gated { 2 * width } else { width };
    let tokens = y.len() / width;
    let shared = Shared::new(y);
    in_pieces(tokens, |rows| {
        for t in rows {
            // SAFETY: rows are disjoint.
            let y = unsafe { shared.slice(t * width..(t + 1) * width) };
            let (gate, up) = x[t * columns..(t + 1) * columns].split_at(width);
            match (is_gated, activation) {
                (true, Activation::Silu) => silu_gate(gate, up, y),
                (true, activation) => {
                    y.iter_mut().zip(gate.iter().zip(up)).for_each(|(y, (&g, &u))| *y = value_and_slope(activation, g).0 * u);
                }
                (false, activation) => y.iter_mut().zip(gate).for_each(|(y, &x)| *y = value_and_slope(activation, x).0),
            }
        }
    });
}

impl Operation for Activate {
    fn output_width(&self, _: usize) -> usize {
        self.width
    }

    fn forward(&self, x: &[f32], y: &mut [f32]) {
        activate_rows(x, self.activation, self.is_gated, self.width, y);
    }

    fn backward(&self, x: &[f32], _: &[f32], grad: &[f32], x_grad: &mut [f32], adds: bool) {
        assert!(!adds, "nothing else reads what is activated");
        let (width, tokens) = (self.width, grad.len() / self.width);
        let columns = x.len() / tokens.max(1);
        let shared = Shared::new(x_grad);
        in_pieces(tokens, |rows| {
            for t in rows {
                // SAFETY: rows are disjoint.
                let x_grad = unsafe { shared.slice(t * columns..(t + 1) * columns) };
                let grad = &grad[t * width..(t + 1) * width];
                let (gate, up) = x[t * columns..(t + 1) * columns].split_at(width);
                let (gate_grad, up_grad) = x_grad.split_at_mut(width);
                match (self.is_gated, self.activation) {
                    (true, Activation::Silu) => silu_gate_backward(gate, up, grad, gate_grad, up_grad),
                    (true, activation) => {
                        for i in 0..width {
                            let (value, slope) = value_and_slope(activation, gate[i]);
                            gate_grad[i] = grad[i] * up[i] * slope;
                            up_grad[i] = grad[i] * value;
                        }
                    }
                    (false, activation) => {
                        for i in 0..width {
                            gate_grad[i] = grad[i] * value_and_slope(activation, gate[i]).1;
                        }
                    }
                }
            }
        });
    }
}

/// The same in candle's operations; `up` if it is gated.
pub(crate) fn activate_plain(gate: &Tensor, up: Option<&Tensor>, activation: Activation) -> Result<Tensor> {
    let y = match activation {
        Activation::Silu => gate.silu()?,
        Activation::Gelu => gate.gelu_erf()?,
        Activation::GeluTanh => gate.gelu()?,
        Activation::Relu => gate.relu()?,
    };
    match up {
        Some(up) => y * up,
        None => Ok(y),
    }
}
