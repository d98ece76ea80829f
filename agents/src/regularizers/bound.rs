//! How far a network's outputs can move while its observation stays in a ball: a bracket around the truth.
//!
//! For an input `x`, units `s` and perturbations `u` with `‖u‖₂ ≤ radius` the local Lipschitz constant is
//!
//! ```text
//! Λ(x) = max ‖f(x + s·u) − f(x)‖₂ / radius
//! ```
//!
//! A [`Bracket`] holds it between what projected gradient ascent finds and three upper bounds:
//!
//! - **interval**: boxes are carried through the layers. The first layer's box is exact (the length of a row of weights times
//!   the radius), later ones forget that neurons move together. Source: Gowal et al. 2018, "On the Effectiveness of Interval
//!   Bound Propagation for Training Verifiably Robust Models" (arXiv 1810.12715).
//! - **linear**: each hidden neuron is replaced by a line through its interval plus an error that is known to stay in a band.
//!   The lines compose to one matrix, the bands to a vector: `f(x + s·u) − f(x) = M u + c + E ε`, `|ε| ≤ 1`, so that
//!   `‖M‖₂ radius + ‖|c| + |E| 1‖₂` is a bound. Intervals of later layers come from the same form. It is exact for linear networks
//!   and tends to the slope of the network at `x` as the radius goes to 0. Sources: Weng et al. 2018, "Towards Fast
//!   Computation of Certified Robustness for ReLU Networks" (arXiv 1804.09699), with parallel lines; Zhang et al. 2018, CROWN
//!   (arXiv 1811.00866), for other activations.
//! - **product** of spectral norms ([`super::spectral::UpperBound`]), which holds everywhere and not only around `x`.
//!
//! All is computed in double precision from the weights as they are; rounding of these sums, of relative size 1e-13, is not
//! accounted for, nor is the network's own single precision.

use steadfast_envs::{ObservationBatch, Rng};

use super::Observed;
use super::lipschitz::{LipschitzConfig, LipschitzRegularizer, Norm, Scale};
use super::spectral::UpperBound;
use crate::head::{Distance, PolicyHead};
use crate::nn::{Activation, Mlp, Workspace};
use crate::team::SharedInput;

/// Bounds of the largest change of outputs per unit of perturbation, each the largest among the samples.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Bracket {
    /// What ascent found: no more than the truth.
    pub lower: f64,
    /// By linear bounds.
    pub linear: f64,
    /// By intervals.
    pub interval: f64,
    /// By the product of spectral norms, which holds for every radius.
    pub product: f64,
}

impl Bracket {
    /// The tightest upper bound.
    pub fn upper(&self) -> f64 {
        self.linear.min(self.interval).min(self.product)
    }

    /// The bracket of two networks of which the more sensitive one counts.
    pub fn max(self, other: Self) -> Self {
        Self {
            lower: self.lower.max(other.lower),
            linear: self.linear.max(other.linear),
            interval: self.interval.max(other.interval),
            product: self.product.max(other.product),
        }
    }
}

/// Products of single numbers that the linear bounds of all samples may cost.
const MOST_PRODUCTS: usize = 2_000_000_000;
/// Ascents, of which the best counts.
const STARTS: usize = 3;

/// The bracket of `net` over balls of `radius`, above 0, around the observations, in the units of `observed.unit`. Features
/// behind those stay as they are. Of wide networks only as many samples are looked at, spread evenly, as a few seconds allow;
/// where even one takes longer the linear bound is that by intervals.
///
/// # Panics
/// If the arrays of `observed` do not fit its rows or the network.
pub fn bracket(net: &Mlp, observed: &Observed<'_>, radius: f64, rng: Rng) -> Bracket {
    let balls = Balls::new(net, observed.unit);
    let cost = balls.linear_cost();
    let rows = observed.rows.min((MOST_PRODUCTS / cost.max(1)).max(1));
    let (width, output) = (net.input(), net.output());
    let (mut inputs, mut outputs) = (Vec::with_capacity(rows * width), Vec::with_capacity(rows * output));
    for row in (0..rows).map(|i| i * observed.rows / rows) {
        inputs.extend_from_slice(&observed.inputs[row * width..(row + 1) * width]);
        outputs.extend_from_slice(&observed.outputs[row * output..(row + 1) * output]);
    }
    let chosen = Observed { rows, inputs: &inputs, outputs: &outputs, ..*observed };
    let mut bracket = Bracket { lower: balls.ascend(net, &chosen, radius, rng), ..Bracket::default() };
    for input in inputs.chunks_exact(width) {
        let interval = balls.interval(input, radius);
        let linear = if cost > MOST_PRODUCTS { interval } else { balls.linear(input, radius) };
        bracket.linear = bracket.linear.max(linear / radius);
        bracket.interval = bracket.interval.max(interval / radius);
    }
    bracket.product = UpperBound::default().of(net, observed.unit);
    bracket
}

/// The bracket of the network that agents share, over balls around their observations, in the environment's units.
pub(crate) fn bracket_of(
    net: &Mlp,
    head: &PolicyHead,
    input: &SharedInput,
    observations: &ObservationBatch<'_>,
    radius: f64,
    rng: Rng,
) -> Bracket {
    let rows = observations.n_slots * input.members();
    let (mut inputs, mut unit, mut outputs) = (Vec::new(), Vec::new(), vec![0.0; rows * net.output()]);
    input.gather(observations.observations, observations.n_agents, observations.width, &mut inputs);
    input.units(Scale::Absolute, &mut unit);
    net.forward(&inputs, rows, &mut outputs, &mut Workspace::default());
    let members = input.members();
    let observed = Observed { rows, members, inputs: &inputs, unit: &unit, limit: input.limit(), outputs: &outputs, head };
    bracket(net, &observed, radius, rng)
}

/// A layer's weights `[output][input]` and biases.
struct Dense {
    inputs: usize,
    weights: Vec<f64>,
    bias: Vec<f64>,
}

impl Dense {
    fn rows(&self) -> impl Iterator<Item = &[f64]> {
        self.weights.chunks_exact(self.inputs)
    }

    /// `W a`, with the biases if `with_bias`.
    fn apply(&self, a: &[f64], with_bias: bool) -> Vec<f64> {
        let bias = self.bias.iter().map(|b| if with_bias { *b } else { 0.0 });
        self.rows().zip(bias).map(|(row, b)| row.iter().zip(a).fold(b, |sum, (w, a)| sum + w * a)).collect()
    }

    /// `W A` for a matrix `[inputs][columns]`.
    fn product(&self, a: &[f64], columns: usize) -> Vec<f64> {
        let mut out = vec![0.0; self.bias.len() * columns];
        for (out, row) in out.chunks_exact_mut(columns.max(1)).zip(self.rows()) {
            for (w, a) in row.iter().zip(a.chunks_exact(columns.max(1))) {
                out.iter_mut().zip(a).for_each(|(o, a)| *o += w * a);
            }
        }
        out
    }
}

/// A network in double precision, and the balls of observations around its inputs.
struct Balls {
    layers: Vec<Dense>,
    activation: Activation,
    unit: Vec<f64>,
    /// Weights of the first layer per unit of each perturbed feature, `[output][features]`.
    first: Vec<f64>,
}

impl Balls {
    fn new(net: &Mlp, unit: &[f32]) -> Self {
        let dense = |layer: usize| {
            let (inputs, outputs) = net.layer_shape(layer);
            let mut weights = vec![0.0; inputs * outputs];
            for input in 0..inputs {
                for (output, w) in net.layer_row(layer, input).iter().enumerate() {
                    weights[output * inputs + input] = f64::from(*w);
                }
            }
            Dense { inputs, weights, bias: net.layer_bias(layer).iter().map(|b| f64::from(*b)).collect() }
        };
        let layers: Vec<Dense> = (0..net.n_layers()).map(dense).collect();
        let unit: Vec<f64> = unit.iter().map(|u| f64::from(*u)).collect();
        let first = layers[0].rows().flat_map(|row| row.iter().zip(&unit).map(|(w, u)| w * u)).collect();
        Self { layers, activation: net.activation(), unit, first }
    }

    fn features(&self) -> usize {
        self.unit.len()
    }

    /// Rows of [`Balls::first`].
    fn first_rows(&self) -> impl Iterator<Item = &[f64]> {
        let features = self.features();
        (0..self.layers[0].bias.len()).map(move |row| &self.first[row * features..(row + 1) * features])
    }

    /// Products of one linear bound.
    fn linear_cost(&self) -> usize {
        let (mut cost, mut columns) = (self.first.len(), self.features());
        for layer in &self.layers[1..] {
            columns += layer.inputs;
            cost = cost.saturating_add(layer.weights.len().saturating_mul(columns));
        }
        cost
    }

    /// Sums of all layers before their activations.
    fn sums(&self, x: &[f64]) -> Vec<Vec<f64>> {
        let mut sums: Vec<Vec<f64>> = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            let next = match sums.last() {
                None => layer.apply(x, true),
                Some(before) => layer.apply(&before.iter().map(|z| self.activation.value(*z)).collect::<Vec<_>>(), true),
            };
            sums.push(next);
        }
        sums
    }

    /// Bounds of the change of all layers' sums over the ball, by intervals.
    fn interval_ranges(&self, sums: &[Vec<f64>], radius: f64) -> Vec<Vec<(f64, f64)>> {
        let mut ranges: Vec<Vec<(f64, f64)>> = vec![self.first_rows().map(|row| radius * length(row)).map(|r| (-r, r)).collect()];
        for (index, layer) in self.layers.iter().enumerate().skip(1) {
            // How far each neuron of the layer before can go from its place.
            let moved = |(z, (low, high)): (&f64, &(f64, f64))| {
                let here = self.activation.value(*z);
                (self.activation.value(z + low) - here, self.activation.value(z + high) - here)
            };
            let moved: Vec<(f64, f64)> = sums[index - 1].iter().zip(&ranges[index - 1]).map(moved).collect();
            let range = |row: &[f64]| {
                row.iter().zip(&moved).fold((0.0, 0.0), |(low, high), (w, (a, b))| {
                    let (x, y) = (w * a, w * b);
                    (low + x.min(y), high + x.max(y))
                })
            };
            ranges.push(layer.rows().map(range).collect());
        }
        ranges
    }

    /// Largest change of the outputs by intervals.
    fn interval(&self, input: &[f32], radius: f64) -> f64 {
        let input: Vec<f64> = input.iter().map(|x| f64::from(*x)).collect();
        let ranges = self.interval_ranges(&self.sums(&input), radius);
        let last: Vec<f64> = ranges[ranges.len() - 1].iter().map(|(low, high)| high.max(-low)).collect();
        length(&last)
    }

    /// Largest change of the outputs by linear bounds.
    fn linear(&self, input: &[f32], radius: f64) -> f64 {
        let input: Vec<f64> = input.iter().map(|x| f64::from(*x)).collect();
        let sums = self.sums(&input);
        let intervals = self.interval_ranges(&sums, radius);
        let features = self.features();
        // The change of a layer's sums is `slopes u + offset + errors ε` with `|ε| ≤ 1`.
        let mut slopes = self.first.clone();
        let mut offset = vec![0.0; self.layers[0].bias.len()];
        let (mut errors, mut columns) = (Vec::new(), 0);
        for (index, layer) in self.layers.iter().enumerate().skip(1) {
            let neurons = layer.inputs;
            let mut bands = vec![0.0; neurons];
            for neuron in 0..neurons {
                let slope_row = &mut slopes[neuron * features..(neuron + 1) * features];
                let error_row = &mut errors[neuron * columns..(neuron + 1) * columns];
                let half = radius * length(slope_row) + error_row.iter().map(|e: &f64| e.abs()).sum::<f64>();
                let (low, high) = intervals[index - 1][neuron];
                let range = (low.max(offset[neuron] - half).min(0.0), high.min(offset[neuron] + half).max(0.0));
                let line = Line::of(self.activation, sums[index - 1][neuron], range);
                slope_row.iter_mut().chain(error_row).for_each(|v| *v *= line.slope);
                offset[neuron] = line.slope * offset[neuron] + line.offset;
                bands[neuron] = line.band;
            }
            // Each neuron's band is a new error of its own: `[neuron][columns + neurons]`.
            let mut widened = vec![0.0; neurons * (columns + neurons)];
            for neuron in 0..neurons {
                let row = &mut widened[neuron * (columns + neurons)..(neuron + 1) * (columns + neurons)];
                row[..columns].copy_from_slice(&errors[neuron * columns..(neuron + 1) * columns]);
                row[columns + neuron] = bands[neuron];
            }
            columns += neurons;
            errors = layer.product(&widened, columns);
            slopes = layer.product(&slopes, features);
            offset = layer.apply(&offset, false);
        }
        let error =
            |output: usize| offset[output].abs() + errors[output * columns..(output + 1) * columns].iter().map(|e| e.abs()).sum::<f64>();
        let errors: Vec<f64> = (0..offset.len()).map(error).collect();
        let rows: Vec<&[f64]> = (0..offset.len()).map(|output| &slopes[output * features..(output + 1) * features]).collect();
        let together = radius * UpperBound::default().largest_singular_value(rows.len(), features, |r, c| rows[r][c]) + length(&errors);
        // Output by output, which is tighter where errors are large.
        let alone: Vec<f64> = rows.iter().zip(&errors).map(|(row, error)| radius * length(row) + error).collect();
        together.min(length(&alone))
    }

    /// Largest change over the radius that ascent finds.
    fn ascend(&self, net: &Mlp, observed: &Observed<'_>, radius: f64, rng: Rng) -> f64 {
        if observed.rows == 0 || self.features() == 0 {
            return 0.0;
        }
        let config = LipschitzConfig {
            radius,
            norm: Norm::L2,
            scale: Scale::Absolute,
            steps: 20,
            step_size: Some(0.25 * radius),
            initial_std: 0.5 * radius / (self.features() as f64).sqrt(),
            distance: Some(Distance::L2),
            ..LipschitzConfig::default()
        };
        let mut ascent = LipschitzRegularizer::adversarial(&config, rng);
        let width = net.input();
        let mut largest = 0.0_f64;
        for _ in 0..STARTS {
            let (_, perturbed) = ascent.ascend_once(net, observed);
            for (clean, moved) in observed.inputs.chunks_exact(width).zip(perturbed.chunks_exact(width)) {
                largest = largest.max(self.change(clean, moved, radius));
            }
        }
        largest / radius
    }

    /// Change of the outputs from `clean` to `moved`, which is brought into the ball where rounding left it.
    fn change(&self, clean: &[f32], moved: &[f32], radius: f64) -> f64 {
        let x: Vec<f64> = clean.iter().map(|x| f64::from(*x)).collect();
        let offset = |(i, unit): (usize, &f64)| if *unit > 0.0 { (f64::from(moved[i]) - x[i]) / unit } else { 0.0 };
        let u: Vec<f64> = self.unit.iter().enumerate().map(offset).collect();
        let size = length(&u);
        let factor = if size > radius { radius / size } else { 1.0 };
        let mut there = x.clone();
        there.iter_mut().zip(self.unit.iter().zip(&u)).for_each(|(x, (unit, u))| *x += unit * factor * u);
        let (before, after) = (self.sums(&x), self.sums(&there));
        let last = self.layers.len() - 1;
        length(&after[last].iter().zip(&before[last]).map(|(a, b)| a - b).collect::<Vec<_>>())
    }
}

fn length(v: &[f64]) -> f64 {
    v.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// A line for the change of an activation, and how far the change can be from it.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Line {
    slope: f64,
    offset: f64,
    band: f64,
}

impl Line {
    /// `φ(z + δ) − φ(z)` is within `band` of `slope · δ + offset` for `δ` in `range`, which holds 0. The slope is that of
    /// the chord, from which the change is farthest at an end, at a kink or where the activation has the same slope.
    fn of(activation: Activation, z: f64, range: (f64, f64)) -> Self {
        let (low, high) = range;
        let change = |delta: f64| activation.value(z + delta) - activation.value(z);
        // A range without width may have a chord without meaning; any slope is valid for it.
        let slope = if high > low { (change(high) - change(low)) / (high - low) } else { 0.0 };
        let farthest = match activation {
            Activation::Tanh => {
                let tangent = (1.0 - slope).max(0.0).sqrt().atanh();
                [-tangent - z, tangent - z]
            }
            Activation::Relu | Activation::LeakyRelu => [-z; 2],
            Activation::Identity => [0.0; 2],
        };
        let ends = [low, high, 0.0].into_iter();
        let errors = ends.chain(farthest.into_iter().filter(|d| (low..=high).contains(d))).map(|delta| change(delta) - slope * delta);
        let (least, most) = errors.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, m), e| (l.min(e), m.max(e)));
        Self { slope, offset: 0.5 * (least + most), band: 0.5 * (most - least) }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use steadfast_envs::SeedTree;

    use super::*;

    const ACTIVATIONS: [Activation; 4] = [Activation::Tanh, Activation::Relu, Activation::LeakyRelu, Activation::Identity];

    fn net(hidden: &[usize], outputs: usize, activation: Activation, seed: u64) -> Mlp {
        let mut rng = SeedTree::new(seed).rng();
        let mut net = Mlp::new(5, hidden, outputs, activation, 1.4, 1.2, &mut rng).unwrap();
        // Training breaks the orthogonality of fresh layers, and moves the biases.
        let mut tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)> = BTreeMap::new();
        for tensor in net.tensors() {
            let data = tensor.data.iter().map(|w| w + 0.3 * rng.normal_f32()).collect();
            tensors.insert(tensor.name.to_string(), (tensor.shape.to_vec(), data));
        }
        net.load_tensors(&|name| tensors.get(name).cloned()).unwrap();
        net
    }

    fn in_ball(rng: &mut Rng, radius: f64, features: usize) -> Vec<f64> {
        let direction: Vec<f64> = (0..features).map(|_| rng.normal()).collect();
        let size = radius * rng.unit().powf(0.2) / length(&direction);
        direction.iter().map(|d| d * size).collect()
    }

    /// The bracket around one input, with units for the first four of five features.
    fn of(net: &Mlp, input: &[f32], radius: f64) -> Bracket {
        let mut outputs = vec![0.0; net.output()];
        net.forward(input, 1, &mut outputs, &mut Workspace::default());
        let head = PolicyHead::Categorical { n: net.output() };
        let unit = [1.0, 0.5, 2.0, 1.0];
        let observed = Observed { rows: 1, members: 1, inputs: input, unit: &unit, limit: None, outputs: &outputs, head: &head };
        bracket(net, &observed, radius, Rng::from_seed(4))
    }

    #[test]
    fn the_bracket_holds_what_samples_find() {
        let mut rng = Rng::from_seed(7);
        for (seed, activation) in ACTIVATIONS.into_iter().enumerate() {
            for hidden in [&[][..], &[12], &[16, 12], &[8, 8, 8]] {
                let net = net(hidden, 3, activation, seed as u64);
                let balls = Balls::new(&net, &[1.0, 0.5, 2.0, 1.0]);
                for radius in [1e-3, 0.1, 1.0, 5.0] {
                    let input: Vec<f32> = (0..5).map(|_| rng.normal_f32()).collect();
                    let x: Vec<f64> = input.iter().map(|v| f64::from(*v)).collect();
                    let found = of(&net, &input, radius);
                    let last = balls.layers.len() - 1;
                    let before = balls.sums(&x)[last].clone();
                    for _ in 0..300 {
                        let mut moved = x.clone();
                        let u = in_ball(&mut rng, radius, 4);
                        moved.iter_mut().zip(balls.unit.iter().zip(&u)).for_each(|(x, (unit, u))| *x += unit * u);
                        let after = &balls.sums(&moved)[last];
                        let change = length(&after.iter().zip(&before).map(|(a, b)| a - b).collect::<Vec<_>>()) / radius;
                        let place = format!("{activation:?} {hidden:?} {radius}: {change} {found:?}");
                        assert!(change <= found.upper() * (1.0 + 1e-9), "{place}");
                        // In small balls, which hold one maximum, ascent is not beaten by chance.
                        assert!(radius > 0.1 || change <= found.lower * 1.01, "{place}");
                    }
                    assert!(found.lower <= found.upper() * (1.0 + 1e-9), "{activation:?} {hidden:?} {radius}: {found:?}");
                }
            }
        }
    }

    #[test]
    fn linear_networks_are_bounded_exactly() {
        let net = net(&[9, 7], 4, Activation::Identity, 3);
        let input = [0.3, -0.2, 0.5, 0.1, 1.0];
        for radius in [0.01, 2.0] {
            let found = of(&net, &input, radius);
            // The bound of the singular value is at most a thousandth too large.
            assert!((found.linear / found.lower - 1.0).abs() < 2e-3, "{found:?}");
            assert!(found.interval > 1.2 * found.lower && found.product > found.linear, "{found:?}");
        }
        // One layer is its own product.
        let found = of(&self::net(&[], 4, Activation::Tanh, 3), &input, 0.5);
        assert!((found.linear / found.product - 1.0).abs() < 2e-3 && (found.linear / found.lower - 1.0).abs() < 2e-3, "{found:?}");
    }

    #[test]
    fn small_balls_are_bounded_by_the_slope_at_their_centre() {
        let mut rng = Rng::from_seed(1);
        for activation in [Activation::Tanh, Activation::Relu, Activation::LeakyRelu] {
            let net = net(&[24, 24], 3, activation, 5);
            let input: Vec<f32> = (0..5).map(|_| rng.normal_f32()).collect();
            let (small, large) = (of(&net, &input, 1e-4), of(&net, &input, 1.0));
            assert!((small.linear / small.lower - 1.0).abs() < 1e-2, "{activation:?}: {small:?}");
            assert!(small.linear < 0.7 * small.product && small.linear < small.interval, "{activation:?}: {small:?}");
            assert!(large.linear > small.linear && large.product == small.product, "{activation:?}: {large:?}");
        }
    }

    #[test]
    fn lines_stay_in_their_bands() {
        let mut rng = Rng::from_seed(2);
        for activation in ACTIVATIONS {
            for _ in 0..300 {
                let (z, low, high) = (2.0 * rng.normal(), -2.0 * rng.unit().powi(3), 2.0 * rng.unit().powi(3));
                let line = Line::of(activation, z, (low, high));
                for i in 0..=100 {
                    let delta = low + (high - low) * f64::from(i) / 100.0;
                    let change = activation.value(z + delta) - activation.value(z);
                    let error = (change - line.slope * delta - line.offset).abs();
                    assert!(error <= line.band + 1e-12, "{activation:?} {z} {low} {high} {delta}: {error} {line:?}");
                }
            }
            let point = Line::of(activation, 0.3, (0.0, 0.0));
            assert_eq!((point.offset, point.band), (0.0, 0.0));
        }
    }

    #[test]
    fn features_without_a_unit_do_not_count() {
        let net = net(&[12], 2, Activation::Tanh, 8);
        let input = [0.1; 5];
        let mut outputs = [0.0; 2];
        net.forward(&input, 1, &mut outputs, &mut Workspace::default());
        let head = PolicyHead::Categorical { n: 2 };
        for unit in [&[][..], &[0.0, 0.0]] {
            let observed = Observed { rows: 1, members: 1, inputs: &input, unit, limit: None, outputs: &outputs, head: &head };
            assert_eq!(bracket(&net, &observed, 0.1, Rng::from_seed(1)), Bracket::default());
        }
    }
}
