//! Adam over one flat array, and gradient clipping.
//!
//! Source: Kingma and Ba 2014 (arXiv 1412.6980), in the order of operations of PyTorch:
//! `m = β₁ m + (1 - β₁) g`, `v = β₂ v + (1 - β₂) g²`, `p -= lr / (1 - β₁ᵗ) · m / (√v / √(1 - β₂ᵗ) + ε)`.
//! A weight decay is the decoupled one of Loshchilov and Hutter 2017 (arXiv 1711.05101): `p *= 1 - lr · decay` before the step.

use serde::{Deserialize, Serialize};

use super::kernel::isa;
use super::kernel::lane::{Lane, Vectorised, dispatch};
use crate::AgentError;

/// Configuration of [`Adam`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdamConfig {
    /// Decay of the mean of gradients, in `[0, 1)`.
    pub beta1: f32,
    /// Decay of the mean of squared gradients, in `[0, 1)`.
    pub beta2: f32,
    /// Added to the root of the mean square; above 0.
    pub epsilon: f32,
    /// Decoupled weight decay; at least 0.
    pub weight_decay: f32,
}

impl Default for AdamConfig {
    fn default() -> Self {
        // 1e-5 instead of the paper's 1e-8, as policy-gradient implementations use.
        Self { beta1: 0.9, beta2: 0.999, epsilon: 1e-5, weight_decay: 0.0 }
    }
}

/// Adam (AdamW with a weight decay) over one flat array of parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct Adam {
    config: AdamConfig,
    n_steps: u64,
    mean: Vec<f32>,
    square: Vec<f32>,
}

/// What an optimiser has accumulated.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamState<'a> {
    /// Number of steps made.
    pub n_steps: u64,
    /// Running mean of gradients.
    pub mean: &'a [f32],
    /// Running mean of squared gradients.
    pub square: &'a [f32],
}

impl Adam {
    /// For `n` parameters.
    pub fn new(n: usize, config: AdamConfig) -> Self {
        Self { config, n_steps: 0, mean: vec![0.0; n], square: vec![0.0; n] }
    }

    /// One step of length `learning_rate` along `scale * gradient`; `scale` comes from [`clip_scale`], or is 1.
    ///
    /// # Panics
    /// If the lengths differ from that given to [`Adam::new`].
    pub fn step(&mut self, parameters: &mut [f32], gradient: &[f32], learning_rate: f32, scale: f32) {
        assert!(parameters.len() == self.mean.len() && gradient.len() == self.mean.len(), "lengths in Adam::step");
        self.n_steps += 1;
        let AdamConfig { beta1, beta2, epsilon, weight_decay, .. } = self.config;
        let step = Step {
            parameters,
            gradient,
            mean: &mut self.mean,
            square: &mut self.square,
            beta1,
            beta2,
            epsilon,
            scale,
            decay: 1.0 - learning_rate * weight_decay,
            rate: (f64::from(learning_rate) / (1.0 - power(f64::from(beta1), self.n_steps))) as f32,
            root_scale: (1.0 / (1.0 - power(f64::from(beta2), self.n_steps)).sqrt()) as f32,
        };
        dispatch(isa(), step);
    }

    /// What has been accumulated, for checkpoints.
    pub fn state(&self) -> AdamState<'_> {
        AdamState { n_steps: self.n_steps, mean: &self.mean, square: &self.square }
    }

    /// Continues from a saved state.
    ///
    /// # Errors
    /// [`AgentError::State`] if it belongs to another number of parameters.
    pub fn load_state(&mut self, state: AdamState<'_>) -> Result<(), AgentError> {
        for (name, values) in [("mean", state.mean), ("square", state.square)] {
            if values.len() != self.mean.len() {
                return Err(AgentError::State {
                    tensor: format!("adam.{name}"),
                    reason: format!("expected shape [{}], found [{}]", self.mean.len(), values.len()),
                });
            }
        }
        self.n_steps = state.n_steps;
        self.mean.copy_from_slice(state.mean);
        self.square.copy_from_slice(state.square);
        Ok(())
    }
}

/// `base` to the power of `exponent` by repeated squaring: the same on every platform.
fn power(mut base: f64, mut exponent: u64) -> f64 {
    let mut result = 1.0;
    while exponent > 0 {
        if exponent & 1 == 1 {
            result *= base;
        }
        base *= base;
        exponent >>= 1;
    }
    result
}

struct Step<'a> {
    parameters: &'a mut [f32],
    gradient: &'a [f32],
    mean: &'a mut [f32],
    square: &'a mut [f32],
    beta1: f32,
    beta2: f32,
    epsilon: f32,
    scale: f32,
    decay: f32,
    rate: f32,
    root_scale: f32,
}

/// Elements handled together; a multiple of every vector width.
const BLOCK: usize = 16;

impl Step<'_> {
    #[inline(always)]
    fn block<L: Lane>(&self, p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
        for at in (0..BLOCK).step_by(L::WIDTH) {
            let g = L::read(&g[at..]).mul(L::splat(self.scale));
            let mean = L::read(&m[at..]).mul_add(L::splat(self.beta1), g.mul(L::splat(1.0 - self.beta1)));
            let square = L::read(&v[at..]).mul_add(L::splat(self.beta2), g.mul(g).mul(L::splat(1.0 - self.beta2)));
            let root = square.sqrt().mul_add(L::splat(self.root_scale), L::splat(self.epsilon));
            let step = mean.div(root);
            let value = step.neg_mul_add(L::splat(self.rate), L::read(&p[at..]).mul(L::splat(self.decay)));
            mean.write(&mut m[at..]);
            square.write(&mut v[at..]);
            value.write(&mut p[at..]);
        }
    }
}

impl Vectorised for Step<'_> {
    type Out = ();

    #[inline(always)]
    fn run<L: Lane>(mut self) {
        let parameters = std::mem::take(&mut self.parameters);
        let mean = std::mem::take(&mut self.mean);
        let square = std::mem::take(&mut self.square);
        let whole = parameters.len() / BLOCK * BLOCK;
        let (p, p_rest) = parameters.split_at_mut(whole);
        let (g, g_rest) = self.gradient.split_at(whole);
        let (m, m_rest) = mean.split_at_mut(whole);
        let (v, v_rest) = square.split_at_mut(whole);
        let blocks = p.chunks_exact_mut(BLOCK).zip(g.chunks_exact(BLOCK));
        for ((p, g), (m, v)) in blocks.zip(m.chunks_exact_mut(BLOCK).zip(v.chunks_exact_mut(BLOCK))) {
            self.block::<L>(p, g, m, v);
        }
        let n = p_rest.len();
        if n > 0 {
            let [mut p, mut g, mut m, mut v] = [[0.0_f32; BLOCK]; 4];
            p[..n].copy_from_slice(p_rest);
            g[..n].copy_from_slice(g_rest);
            m[..n].copy_from_slice(m_rest);
            v[..n].copy_from_slice(v_rest);
            self.block::<L>(&mut p, &g, &mut m, &mut v);
            p_rest.copy_from_slice(&p[..n]);
            m_rest.copy_from_slice(&m[..n]);
            v_rest.copy_from_slice(&v[..n]);
        }
    }
}

/// Sum of squares in `f64`: eight interleaved partial sums, added pairwise at the end.
pub fn squared_norm(gradient: &[f32]) -> f64 {
    dispatch(isa(), SquaredNorm(gradient))
}

struct SquaredNorm<'a>(&'a [f32]);

impl Vectorised for SquaredNorm<'_> {
    type Out = f64;

    #[inline(always)]
    fn run<L: Lane>(self) -> f64 {
        // Plain Rust; the compiler vectorises it with the caller's instructions and keeps the order.
        let mut sums = [0.0_f64; 16];
        let chunks = self.0.chunks_exact(16);
        for (sum, value) in sums.iter_mut().zip(chunks.remainder()) {
            *sum = f64::from(*value) * f64::from(*value);
        }
        for chunk in chunks {
            for i in 0..16 {
                sums[i] += f64::from(chunk[i]) * f64::from(chunk[i]);
            }
        }
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                sums[i] += sums[i + half];
            }
        }
        sums[0]
    }
}

/// Factor that brings a gradient of norm `total_norm` down to `max_norm`; 1 if it is shorter already.
///
/// A norm that is not finite gives a factor that is not finite either or zero: check the norm first.
pub fn clip_scale(total_norm: f64, max_norm: f32) -> f32 {
    // 1e-6 as PyTorch's clip_grad_norm_ adds it: keeps the quotient finite.
    (f64::from(max_norm) / (total_norm + 1e-6)).min(1.0) as f32
}

#[cfg(test)]
mod tests {
    use super::super::kernel::{Isa, set_isa};
    use super::*;
    use steadfast_envs::Rng;

    const RATE: f32 = 1e-2;

    /// The formula of the module's documentation in `f64`.
    fn reference(p: &mut [f64], gradients: &[Vec<f32>], config: &AdamConfig, scale: f64) {
        let (lr, b1, b2) = (f64::from(RATE), f64::from(config.beta1), f64::from(config.beta2));
        let mut m = vec![0.0; p.len()];
        let mut v = vec![0.0; p.len()];
        for (t, gradient) in gradients.iter().enumerate() {
            let t = t as i32 + 1;
            for i in 0..p.len() {
                let g = scale * f64::from(gradient[i]);
                m[i] = b1 * m[i] + (1.0 - b1) * g;
                v[i] = b2 * v[i] + (1.0 - b2) * g * g;
                p[i] *= 1.0 - lr * f64::from(config.weight_decay);
                p[i] -= lr * (m[i] / (1.0 - b1.powi(t))) / ((v[i] / (1.0 - b2.powi(t))).sqrt() + f64::from(config.epsilon));
            }
        }
    }

    #[test]
    fn follows_the_formula_for_any_length_and_instructions() {
        let config = AdamConfig { weight_decay: 0.1, ..AdamConfig::default() };
        for n in [1, 16, 37] {
            let mut rng = Rng::from_seed(n as u64);
            let start: Vec<f32> = (0..n).map(|_| rng.normal_f32()).collect();
            let gradients: Vec<Vec<f32>> = (0..30).map(|_| (0..n).map(|_| rng.normal_f32()).collect()).collect();
            let mut expected: Vec<f64> = start.iter().map(|&x| f64::from(x)).collect();
            reference(&mut expected, &gradients, &config, 0.5);
            let mut bits: Option<Vec<u32>> = None;
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
                assert!(set_isa(Some(isa)));
                let mut p = start.clone();
                let mut adam = Adam::new(n, config);
                for g in &gradients {
                    adam.step(&mut p, g, RATE, 0.5);
                }
                assert!(p.iter().zip(&expected).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-5));
                let new: Vec<u32> = p.iter().map(|x| x.to_bits()).collect();
                assert_eq!(*bits.get_or_insert_with(|| new.clone()), new);
            }
            set_isa(None);
        }
    }

    #[test]
    fn saved_state_continues() {
        let config = AdamConfig::default();
        let mut a = Adam::new(3, config);
        let mut p = [1.0, 2.0, 3.0];
        a.step(&mut p, &[0.1, -0.2, 0.3], 0.1, 1.0);
        let mut b = Adam::new(3, config);
        b.load_state(a.state()).unwrap();
        assert_eq!(a, b);
        assert!(matches!(Adam::new(2, config).load_state(a.state()), Err(AgentError::State { .. })));
    }

    #[test]
    fn clipping_bounds_the_norm() {
        let mut rng = Rng::from_seed(1);
        for n in [1, 15, 16, 17, 1000] {
            let g: Vec<f32> = (0..n).map(|_| rng.normal_f32()).collect();
            let exact: f64 = g.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
            let norm = squared_norm(&g);
            assert!((norm - exact).abs() <= 1e-12 * exact);
            let scale = clip_scale(norm.sqrt(), 0.5);
            assert!(f64::from(scale) * norm.sqrt() <= 0.5 + 1e-6);
        }
        assert_eq!(clip_scale(0.3, 0.5), 1.0);
    }
}
