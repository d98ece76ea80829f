//! Policy networks whose layers are held below a spectral norm, and the bound on the Lipschitz constant that follows.
//!
//! A network with activations of slope at most 1 has a Lipschitz constant of at most the product of its layers' largest
//! singular values. After each step of the optimiser a layer whose largest singular value, estimated by one step of
//! power iteration from the last estimate, exceeds the limit is scaled back to it.
//!
//! Source: Miyato et al. 2018, "Spectral Normalization for Generative Adversarial Networks" (arXiv 1802.05957), who scale every
//! layer to 1 in the forward pass; here layers below the limit are left alone and the weights themselves are scaled.

use serde::{Deserialize, Serialize};
use steadfast_envs::Rng;

use super::lipschitz::Scale;
use super::{Observed, Penalty, PenaltyGradients, Regularizer};
use crate::nn::Mlp;
use crate::{AgentError, StateDict};

/// Settings of the constraint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SpectralNormConfig {
    /// Largest singular value that a layer may have, above 0.
    pub limit: f64,
}

impl Default for SpectralNormConfig {
    fn default() -> Self {
        Self { limit: 2.0 }
    }
}

impl SpectralNormConfig {
    /// Checks the ranges given with the fields.
    ///
    /// # Errors
    /// [`AgentError::Config`] if the limit is not above 0.
    pub fn validate(&self) -> Result<(), AgentError> {
        if self.limit.is_finite() && self.limit > 0.0 {
            return Ok(());
        }
        Err(AgentError::Config { field: "limit".to_string(), expected: "a finite number above 0".to_string(), got: self.limit.to_string() })
    }
}

/// The constraint on one network.
pub struct SpectralNorm {
    limit: f32,
    rng: Rng,
    /// Estimate of the leading direction among the outputs of each layer.
    directions: Vec<Vec<f32>>,
    next: Vec<f32>,
}

impl SpectralNorm {
    /// A constraint that has not seen its network.
    pub fn new(config: &SpectralNormConfig, rng: Rng) -> Self {
        Self { limit: config.limit as f32, rng, directions: Vec::new(), next: Vec::new() }
    }
}

/// Scales a vector to length 1 and returns its length before.
fn normalize(v: &mut [f32]) -> f32 {
    let length = v.iter().map(|x| x * x).sum::<f32>().sqrt();
    if length > 0.0 {
        v.iter_mut().for_each(|x| *x /= length);
    }
    length
}

impl Regularizer for SpectralNorm {
    fn weight(&self, _progress: f64) -> f64 {
        0.0
    }

    fn scale(&self) -> Scale {
        Scale::Absolute
    }

    fn penalty(&mut self, _: &Mlp, _: &Observed<'_>, _: f64, _: &mut PenaltyGradients<'_>) -> Result<Penalty, AgentError> {
        Ok(Penalty::default())
    }

    fn constrain(&mut self, net: &mut Mlp) {
        for layer in 0..net.n_layers() {
            let (inputs, outputs) = net.layer_shape(layer);
            if self.directions.len() == layer {
                let mut fresh: Vec<f32> = (0..outputs).map(|_| self.rng.normal_f32()).collect();
                normalize(&mut fresh);
                self.directions.push(fresh);
            }
            let direction = &mut self.directions[layer];
            // One pass of power iteration: `Wᵀ u / ‖u‖` with `u = W d`.
            self.next.clear();
            self.next.resize(outputs, 0.0);
            let mut square = 0.0;
            for input in 0..inputs {
                let row = net.layer_row(layer, input);
                let x: f32 = row.iter().zip(&*direction).map(|(w, d)| w * d).sum();
                square += x * x;
                self.next.iter_mut().zip(row).for_each(|(n, w)| *n += x * w);
            }
            if square == 0.0 {
                continue;
            }
            let value = normalize(&mut self.next) / square.sqrt();
            direction.copy_from_slice(&self.next);
            if value > self.limit {
                net.scale_layer(layer, self.limit / value);
            }
        }
    }

    fn probe_every(&self) -> usize {
        0
    }

    fn lipschitz_lower_bound(&mut self, _: &Mlp, _: &Observed<'_>) -> f64 {
        0.0
    }

    fn save(&self, prefix: &str, state: &mut StateDict) {
        let mut words = steadfast_envs::SnapshotWriter::default();
        self.rng.snapshot(&mut words);
        state.put_u64(format!("{prefix}rng"), &words.into_words());
        state.put_u64(format!("{prefix}layers"), &[self.directions.len() as u64]);
        for (layer, direction) in self.directions.iter().enumerate() {
            state.put_u64(format!("{prefix}direction.{layer}.length"), &[direction.len() as u64]);
            state.put_f32(format!("{prefix}direction.{layer}"), &[direction.len()], direction);
        }
    }

    fn load(&mut self, prefix: &str, state: &StateDict) -> Result<(), AgentError> {
        let mut words = steadfast_envs::SnapshotReader::new("regulariser", state.u64(&format!("{prefix}rng"))?);
        self.rng = Rng::restore(&mut words)?;
        words.finish()?;
        let layers = state.counter(&format!("{prefix}layers"))?;
        self.directions = (0..layers)
            .map(|layer| {
                let length = state.counter(&format!("{prefix}direction.{layer}.length"))?;
                Ok(state.f32(&format!("{prefix}direction.{layer}"), length as usize)?.to_vec())
            })
            .collect::<Result<_, AgentError>>()?;
        Ok(())
    }
}

/// Products of single numbers that a layer's bound may cost.
const MOST_PRODUCTS: usize = 100_000_000;
/// Largest Gram matrix that is computed, in rows.
const WIDEST_GRAM: usize = 512;

/// An upper bound of the Lipschitz constant of networks with activations of slope at most 1, and the room to compute it in.
#[derive(Debug, Clone, Default)]
pub struct UpperBound {
    gram: Vec<f64>,
    square: Vec<f64>,
}

impl UpperBound {
    /// The bound of `net`, in the units `unit` of its first features; the others are held fixed. It is the product of upper
    /// bounds of the layers' largest singular values.
    pub fn of(&mut self, net: &Mlp, unit: &[f32]) -> f64 {
        let mut bound = 1.0;
        for layer in 0..net.n_layers() {
            let (inputs, outputs) = net.layer_shape(layer);
            let scale = |input: usize| if layer == 0 { unit.get(input).copied().map_or(0.0, f64::from) } else { 1.0 };
            let entry = |input: usize, output: usize| scale(input) * f64::from(net.layer_row(layer, input)[output]);
            bound *= self.largest_singular_value(inputs, outputs, entry);
        }
        bound
    }

    /// An upper bound of the largest singular value of a matrix: with `G` the smaller Gram matrix, `σ ≤ ‖G^(2^m)‖^(1/2^(m+1))`
    /// in the Frobenius norm. It is at most a thousandth too large up to 128 rows or columns; powers of wider matrices
    /// would cost more than training, so that their bound is looser, from 513 on the Frobenius norm of the matrix itself.
    pub(super) fn largest_singular_value(&mut self, rows: usize, columns: usize, entry: impl Fn(usize, usize) -> f64) -> f64 {
        let n = rows.min(columns);
        if n == 0 {
            return 0.0;
        }
        if n > WIDEST_GRAM {
            return (0..rows).flat_map(|r| (0..columns).map(move |c| (r, c))).map(|(r, c)| entry(r, c).powi(2)).sum::<f64>().sqrt();
        }
        let squarings = (MOST_PRODUCTS / (n * n * n)).min(11) as u32;
        let Self { gram, square } = self;
        for room in [&mut *gram, &mut *square] {
            room.clear();
            room.resize(n * n, 0.0);
        }
        for i in 0..n {
            for j in 0..n {
                gram[i * n + j] = if rows <= columns {
                    (0..columns).map(|c| entry(i, c) * entry(j, c)).sum()
                } else {
                    (0..rows).map(|r| entry(r, i) * entry(r, j)).sum()
                };
            }
        }
        // The logarithm of the norm of the powers so far, which are scaled to norm 1.
        let mut log = 0.0;
        for m in 0..=squarings {
            let norm = gram.iter().map(|g| g * g).sum::<f64>().sqrt();
            if norm == 0.0 {
                return 0.0;
            }
            log = 2.0 * log + norm.ln();
            gram.iter_mut().for_each(|g| *g /= norm);
            if m < squarings {
                square.fill(0.0);
                for i in 0..n {
                    for k in 0..n {
                        let factor = gram[i * n + k];
                        for j in 0..n {
                            square[i * n + j] += factor * gram[k * n + j];
                        }
                    }
                }
                std::mem::swap(gram, square);
            }
        }
        (log / f64::from(1 << (squarings + 1))).exp()
    }
}

#[cfg(test)]
mod tests {
    use steadfast_envs::SeedTree;

    use super::*;
    use crate::nn::Activation;

    fn net(gain: f32) -> Mlp {
        Mlp::new(6, &[32, 16], 4, Activation::Tanh, gain, gain, &mut SeedTree::new(3).rng()).unwrap()
    }

    #[test]
    fn singular_values_of_known_matrices() {
        let largest_singular_value =
            |rows, columns, a: &[f64]| UpperBound::default().largest_singular_value(rows, columns, |r, c| a[r * columns + c]);
        // Orthogonal columns of lengths 5 and 2.
        let a = [3.0, 0.0, 4.0, 0.0, 0.0, 2.0];
        assert!((largest_singular_value(3, 2, &a) - 5.0).abs() < 5e-3);
        let transposed = [3.0, 4.0, 0.0, 0.0, 0.0, 2.0];
        assert!((largest_singular_value(2, 3, &transposed) - 5.0).abs() < 5e-3);
        assert_eq!(largest_singular_value(1, 2, &[0.0, 0.0]), 0.0);
        // However wide, it stays an upper bound.
        for n in [256, 513] {
            let diagonal: Vec<f64> = (0..n * n).map(|i| if i % (n + 1) == 0 { 3.0 } else { 0.0 }).collect();
            let bound = largest_singular_value(n, n, &diagonal);
            assert!((3.0..3.0 * (n as f64).sqrt() * 1.001).contains(&bound), "{n}: {bound}");
        }
        assert!((largest_singular_value(1, 1, &[-1e-20]) / 1e-20 - 1.0).abs() < 1e-9);
    }

    #[test]
    fn orthogonal_layers_have_the_product_of_their_gains() {
        // Rows or columns are orthonormal times the gain.
        let bound = UpperBound::default().of(&net(1.5), &[1.0; 6]);
        assert!((bound / 1.5_f64.powi(3) - 1.0).abs() < 3e-3, "{bound}");
        // Units stretch the first layer, and features without one do not count.
        let bound = UpperBound::default().of(&net(1.5), &[2.0, 2.0, 2.0, 2.0, 2.0, 2.0]);
        assert!((bound / (2.0 * 1.5_f64.powi(3)) - 1.0).abs() < 3e-3, "{bound}");
        assert_eq!(UpperBound::default().of(&net(1.5), &[]), 0.0);
    }

    #[test]
    fn constrained_layers_come_below_the_limit_and_others_stay() {
        let config = SpectralNormConfig { limit: 2.0 };
        let mut constraint = SpectralNorm::new(&config, Rng::from_seed(1));
        let mut low = net(1.5);
        let before = low.parameters().to_vec();
        (0..30).for_each(|_| constraint.constrain(&mut low));
        assert_eq!(low.parameters(), before);
        let mut high = net(3.0);
        let mut constraint = SpectralNorm::new(&config, Rng::from_seed(1));
        (0..30).for_each(|_| constraint.constrain(&mut high));
        let bound = UpperBound::default().of(&high, &[1.0; 6]);
        assert!((bound / 8.0 - 1.0).abs() < 5e-3, "{bound}");
    }

    #[test]
    fn a_restored_constraint_goes_on_as_the_first() {
        let config = SpectralNormConfig { limit: 0.7 };
        let mut first = SpectralNorm::new(&config, Rng::from_seed(1));
        let mut a = net(1.0);
        first.constrain(&mut a);
        let mut b = a.clone();
        let mut state = StateDict::default();
        first.save("x.", &mut state);
        let mut second = SpectralNorm::new(&config, Rng::from_seed(9));
        second.load("x.", &state).unwrap();
        first.constrain(&mut a);
        second.constrain(&mut b);
        assert_eq!(a.parameters(), b.parameters());
    }

    #[test]
    fn a_limit_of_zero_is_refused() {
        assert!(SpectralNormConfig { limit: 0.0 }.validate().unwrap_err().to_string().contains("limit"));
    }
}
