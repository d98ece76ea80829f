//! QMIX's mixing network: a team's value as a monotonic function of its agents' values, whose weights depend on the state.
//!
//! ```text
//! hidden = elu( Σₙ qₙ · |W₁(s)|ₙ + b₁(s) )        value = Σₑ hiddenₑ · |w₂(s)|ₑ + v(s)
//! ```
//!
//! `W₁`, `b₁`, `w₂` and `v` are networks of the state. Since the weights on the values are absolute, the team's value never
//! falls when an agent's rises, so that each agent's best action is the team's.
//!
//! Source: Rashid et al. 2018, "QMIX: Monotonic Value Function Factorisation for Deep Multi-Agent Reinforcement Learning"
//! (arXiv 1803.11485), with two-layer hypernetworks as in its authors' implementation.

use steadfast_envs::Rng;

use super::{Activation, Mlp, Trace, Workspace, exp_in_place};
use crate::AgentError;

/// The four networks of the state, named as in the reference implementation.
const PARTS: [&str; 4] = ["hyper_w_1", "hyper_b_1", "hyper_w_final", "v"];

/// The mixing network of a team.
#[derive(Debug, Clone)]
pub struct Mixer {
    /// In the order of [`PARTS`].
    nets: [Mlp; 4],
    n_agents: usize,
    width: usize,
}

/// What the networks of the state say for some rows, and what gradients need.
#[derive(Debug, Default)]
pub struct Mixing {
    rows: usize,
    outputs: [Vec<f32>; 4],
    traces: [Trace; 4],
    d_outputs: [Vec<f32>; 4],
}

/// Team values of some rows, and what their gradients need.
#[derive(Debug, Default)]
pub struct Combined {
    /// `[n]`.
    pub values: Vec<f32>,
    /// `[n, width]`: inputs of the hidden units.
    sums: Vec<f32>,
    /// `[n, width]`: exponentials of the sums, 1 above 0.
    exponentials: Vec<f32>,
}

impl Mixer {
    /// For a team of `n_agents`, states of `state` numbers, `width` hidden units and hypernetworks with one hidden layer of
    /// `hypernetwork` units.
    ///
    /// # Errors
    /// [`AgentError::Config`] if a width is 0.
    pub fn new(n_agents: usize, state: usize, width: usize, hypernetwork: usize, rng: &mut Rng) -> Result<Self, AgentError> {
        // Small weights: at first a unit of an agent's value is about one of the team's. With the usual gains it is ten, and the
        // team's value then depends on what the mixing does, not on what the agents learn.
        let mut net = |hidden: &[usize], output: usize| Mlp::new(state, hidden, output, Activation::Relu, 1.0, 0.4, rng);
        let nets = [net(&[hypernetwork], n_agents * width)?, net(&[], width)?, net(&[hypernetwork], width)?, net(&[width], 1)?];
        Ok(Self { nets, n_agents, width })
    }

    /// The networks, with their names.
    pub fn nets(&self) -> impl Iterator<Item = (&'static str, &Mlp)> {
        PARTS.into_iter().zip(&self.nets)
    }

    /// The same, to be trained.
    pub fn nets_mut(&mut self) -> impl Iterator<Item = (&'static str, &mut Mlp)> {
        PARTS.into_iter().zip(&mut self.nets)
    }

    /// Computes the weights for states `[rows, state]`, without what gradients need.
    pub fn weigh(&self, states: &[f32], rows: usize, mixing: &mut Mixing, work: &mut Workspace) {
        mixing.rows = rows;
        for (net, out) in self.nets.iter().zip(&mut mixing.outputs) {
            out.resize(rows * net.output(), 0.0);
            net.forward(states, rows, out, work);
        }
    }

    /// Computes the weights for states `[rows, state]`, to be followed by [`Mixer::backward`].
    pub fn weigh_train(&self, states: &[f32], rows: usize, mixing: &mut Mixing) {
        mixing.rows = rows;
        for (i, net) in self.nets.iter().enumerate() {
            net.forward_train(states, rows, &mut mixing.traces[i]);
            mixing.outputs[i].clear();
            mixing.outputs[i].extend_from_slice(mixing.traces[i].output());
            mixing.d_outputs[i].clear();
            mixing.d_outputs[i].resize(rows * net.output(), 0.0);
        }
    }

    /// The team's values for agents' values `q` `[n, agent]`, each with the weights of row `places[i]`.
    ///
    /// # Panics
    /// If there are not as many places as rows of `q`.
    pub fn combine(&self, mixing: &Mixing, places: &[u32], q: &[f32], out: &mut Combined) {
        assert_eq!(q.len(), places.len() * self.n_agents, "values of Mixer::combine");
        let [w1, b1, w2, v] = &mixing.outputs;
        let width = self.width;
        out.sums.clear();
        for (q, &place) in q.chunks_exact(self.n_agents).zip(places) {
            let place = place as usize;
            let begin = out.sums.len();
            out.sums.extend_from_slice(&b1[place * width..(place + 1) * width]);
            let sums = &mut out.sums[begin..];
            let w1 = &w1[place * self.n_agents * width..(place + 1) * self.n_agents * width];
            for (q, w1) in q.iter().zip(w1.chunks_exact(width)) {
                sums.iter_mut().zip(w1).for_each(|(sum, w)| *sum += q * w.abs());
            }
        }
        out.exponentials.clear();
        out.exponentials.extend(out.sums.iter().map(|sum| sum.min(0.0)));
        exp_in_place(&mut out.exponentials);
        out.values.clear();
        for (i, &place) in places.iter().enumerate() {
            let at = i * width..(i + 1) * width;
            let w2 = &w2[place as usize * width..(place as usize + 1) * width];
            let mut value = v[place as usize];
            for ((sum, exponential), w) in out.sums[at.clone()].iter().zip(&out.exponentials[at]).zip(w2) {
                value += hidden(*sum, *exponential) * w.abs();
            }
            out.values.push(value);
        }
    }

    /// Adds the gradient of `Σ d_values · values` of the last [`Mixer::combine`] with these arguments to `d_q` `[n, agent]` and, for
    /// the networks, to what [`Mixer::backward`] carries back.
    pub fn add_gradient(&self, mixing: &mut Mixing, places: &[u32], q: &[f32], combined: &Combined, d_values: &[f32], d_q: &mut [f32]) {
        let (width, agents) = (self.width, self.n_agents);
        let [w1, _, w2, _] = &mixing.outputs;
        let [d_w1, d_b1, d_w2, d_v] = &mut mixing.d_outputs;
        let mut d_sums = vec![0.0; width];
        for (i, (&place, &d_value)) in places.iter().zip(d_values).enumerate() {
            let place = place as usize;
            d_v[place] += d_value;
            let (of_row, of_place) = (i * width..(i + 1) * width, place * width..(place + 1) * width);
            let (sums, exponentials) = (&combined.sums[of_row.clone()], &combined.exponentials[of_row]);
            let (weights, d_weights, d_bias) = (&w2[of_place.clone()], &mut d_w2[of_place.clone()], &mut d_b1[of_place]);
            for e in 0..width {
                d_weights[e] += d_value * hidden(sums[e], exponentials[e]) * sign(weights[e]);
                // Below 0 the slope of the unit is the exponential, above it is the exponential of 0.
                d_sums[e] = d_value * weights[e].abs() * exponentials[e];
                d_bias[e] += d_sums[e];
            }
            for n in 0..agents {
                let at = (place * agents + n) * width..(place * agents + n + 1) * width;
                let (weights, d_weights, q) = (&w1[at.clone()], &mut d_w1[at], q[i * agents + n]);
                let mut slopes = [0.0; 8];
                for (e, ((d_sum, weight), d_weight)) in d_sums.iter().zip(weights).zip(d_weights).enumerate() {
                    slopes[e % 8] += d_sum * weight.abs();
                    *d_weight += d_sum * q * sign(*weight);
                }
                d_q[i * agents + n] += slopes.iter().sum::<f32>();
            }
        }
    }

    /// Derivatives of the team's values with respect to agents' values `q` `[row, agent]`, each with the weights of its row.
    pub fn slopes(&self, mixing: &Mixing, q: &[f32]) -> Vec<f32> {
        let places: Vec<u32> = (0..mixing.rows as u32).collect();
        let (mut combined, mut out) = (Combined::default(), vec![0.0; q.len()]);
        self.combine(mixing, &places, q, &mut combined);
        let [w1, _, w2, _] = &mixing.outputs;
        for (i, out) in out.iter_mut().enumerate() {
            let row = i / self.n_agents;
            let (first, second) = (&w1[i * self.width..(i + 1) * self.width], &w2[row * self.width..(row + 1) * self.width]);
            let slopes = &combined.exponentials[row * self.width..(row + 1) * self.width];
            *out = first.iter().zip(second).zip(slopes).map(|((a, b), slope)| a.abs() * b.abs() * slope).sum();
        }
        out
    }

    /// Adds the gradients of the networks' parameters, in the order of [`Mixer::nets`], for what [`Mixer::add_gradient`] collected
    /// since [`Mixer::weigh_train`].
    pub fn backward(&self, mixing: &mut Mixing, gradients: &mut [Vec<f32>; 4]) {
        for (i, net) in self.nets.iter().enumerate() {
            net.backward(&mut mixing.traces[i], &mixing.d_outputs[i], Some(&mut gradients[i]), None);
        }
    }
}

/// The exponential linear unit, from the exponential of the sum or of 0, whichever is less.
fn hidden(sum: f32, exponential: f32) -> f32 {
    if sum > 0.0 { sum } else { exponential - 1.0 }
}

/// The slope of the absolute value; 0 at 0.
fn sign(x: f32) -> f32 {
    // Without a branch, so that loops over it can be vectorised.
    f32::from(i8::from(x > 0.0) - i8::from(x < 0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGENTS: usize = 3;
    const STATE: usize = 4;

    fn mixer(rng: &mut Rng) -> Mixer {
        Mixer::new(AGENTS, STATE, 5, 6, rng).unwrap()
    }

    fn normals(n: usize, rng: &mut Rng) -> Vec<f32> {
        (0..n).map(|_| rng.normal_f32()).collect()
    }

    #[test]
    fn value_never_falls_when_an_agents_rises() {
        let mut rng = Rng::from_seed(1);
        let (mixer, mut mixing) = (mixer(&mut rng), Mixing::default());
        let states = normals(20 * STATE, &mut rng);
        mixer.weigh(&states, 20, &mut mixing, &mut Workspace::default());
        let mut rose = 0;
        let value = |row: u32, q: &[f32]| {
            let mut combined = Combined::default();
            mixer.combine(&mixing, &[row], q, &mut combined);
            combined.values[0]
        };
        for row in 0..20 {
            let q = normals(AGENTS, &mut rng);
            for agent in 0..AGENTS {
                let mut higher = q.clone();
                higher[agent] += 0.5;
                let change = value(row, &higher) - value(row, &q);
                assert!(change >= 0.0);
                rose += usize::from(change > 1e-3);
            }
        }
        assert!(rose > 40, "{rose} of 60");
    }

    #[test]
    fn gradients_match_central_differences() {
        let mut rng = Rng::from_seed(2);
        let (mut mixer, rows) = (mixer(&mut rng), 7);
        let (states, q) = (normals(rows * STATE, &mut rng), normals(rows * AGENTS, &mut rng));
        // Some states are used twice, as by actions that are compared.
        let places = [0, 1, 2, 2, 4, 5, 0];
        let weights = normals(rows, &mut rng);
        let loss = |mixer: &Mixer, q: &[f32]| {
            let mut mixing = Mixing::default();
            mixer.weigh(&states, rows, &mut mixing, &mut Workspace::default());
            let mut combined = Combined::default();
            mixer.combine(&mixing, &places, q, &mut combined);
            weights.iter().zip(&combined.values).map(|(w, v)| f64::from(w * v)).sum::<f64>()
        };
        let mut mixing = Mixing::default();
        mixer.weigh_train(&states, rows, &mut mixing);
        let (mut d_q, mut combined) = (vec![0.0; q.len()], Combined::default());
        mixer.combine(&mixing, &places, &q, &mut combined);
        mixer.add_gradient(&mut mixing, &places, &q, &combined, &weights, &mut d_q);
        let mut gradients: [Vec<f32>; 4] = std::array::from_fn(|i| vec![0.0; mixer.nets[i].n_parameters()]);
        mixer.backward(&mut mixing, &mut gradients);
        let h = 1e-2;
        for i in 0..q.len() {
            let at = |d: f32| {
                let mut moved = q.clone();
                moved[i] += d;
                loss(&mixer, &moved)
            };
            let numeric = (at(h) - at(-h)) / f64::from(2.0 * h);
            assert!((numeric - f64::from(d_q[i])).abs() < 2e-2 * numeric.abs().max(0.5), "q {i}: {numeric} {}", d_q[i]);
        }
        let (mut compared, mut close) = (0, 0);
        for part in 0..4 {
            for i in (0..mixer.nets[part].n_parameters()).filter(|i| gradients[part][*i] != 0.0) {
                let old = mixer.nets[part].parameters()[i];
                let mut at = |d: f32| {
                    mixer.nets[part].parameters_mut()[i] = old + d;
                    loss(&mixer, &q)
                };
                let numeric = (at(h) - at(-h)) / f64::from(2.0 * h);
                mixer.nets[part].parameters_mut()[i] = old;
                compared += 1;
                close += usize::from((numeric - f64::from(gradients[part][i])).abs() < 3e-2 * numeric.abs().max(0.5));
            }
        }
        // A few differences step over a kink of an absolute value or a rectifier.
        assert!(compared > 150 && close as f64 > 0.95 * compared as f64, "{close} of {compared}");
    }
}
