//! How the outputs and gradients of a network change along a direction of its inputs: exact products with second derivatives.
//!
//! With `a` the inputs of a layer, `z = a W + b` its sums, `δ` the derivative of a loss with respect to `z` and a dot for the
//! derivative along the direction,
//!
//! ```text
//! ż = ȧ W                      ȧ(next) = f′(z) ż
//! δ = f′(z) β,  β = δ(next) Wᵀ      δ̇ = f′(z) β̇ + f″(z) ż β
//! change of the weight gradient = ȧᵀ δ + aᵀ δ̇
//! ```
//!
//! That is five products of matrices per layer, where a central difference takes six, and there is no step to choose.
//!
//! Source: Pearlmutter 1994, "Fast exact multiplication by the Hessian".

use super::activation::Derivatives;
use super::kernel::aligned::Aligned;
use super::kernel::isa;
use super::kernel::lane::{Lane, Vectorised, dispatch};
use super::kernel::tile::{Finish, Product, Start, whole_groups};
use super::mlp::{FEW_OUTPUTS, Mlp, Place, Trace, pad, unpad};

/// Changes of the activations of a [`Trace`], kept by [`Mlp::forward_tangent`] for [`Mlp::backward_tangent`].
#[derive(Debug, Default, Clone)]
pub struct Tangent {
    rows: usize,
    /// Changes of the inputs of each layer, each row as the trace has it.
    activations: Aligned,
    places: Vec<Place>,
    output: Vec<f32>,
    scratch: Aligned,
    /// The change of the last layer's gradient `[output][input + 1]`, if it has few outputs.
    transposed: Aligned,
}

impl Tangent {
    /// Changes `[rows, output]` of the outputs in the last [`Mlp::forward_tangent`].
    pub fn output(&self) -> &[f32] {
        &self.output
    }

    fn layout(&mut self, trace: &Trace, output: usize) {
        self.rows = trace.rows();
        self.places.clear();
        let mut offset = 0;
        for place in &trace.places {
            self.places.push(Place { offset, stride: place.stride });
            offset += self.rows * place.stride;
        }
        self.activations.grow(offset);
        self.scratch.grow(4 * self.rows * trace.scratch_stride);
        self.output.resize(self.rows * output, 0.0);
    }
}

impl Mlp {
    /// Changes of the outputs of the last [`Mlp::forward_train`] on `trace` along `direction` `[rows, input]`, a change of the
    /// inputs, kept in `tangent`. A few hundred rows at a time stay in the cache.
    ///
    /// # Panics
    /// If `direction` does not have exactly its shape, or `trace` is of a network of other widths.
    pub fn forward_tangent(&self, trace: &Trace, direction: &[f32], tangent: &mut Tangent) {
        let (input, output, n) = (self.input(), self.output(), trace.rows());
        assert!(trace.layers == self.layers, "Mlp::forward_tangent on the trace of another network");
        assert_eq!(direction.len(), n * input, "direction of Mlp::forward_tangent");
        let isa = isa();
        tangent.layout(trace, output);
        let Tangent { activations: changes, places, output: out, scratch, .. } = tangent;
        let stride = trace.scratch_stride;
        pad(direction, input, changes, places[0].stride);
        clear_behind(changes, places[0].stride, input, n);
        for (index, layer) in self.layers.iter().enumerate() {
            let (depth, columns) = (layer.input, layer.output);
            let (b, b_depth) = (&self.parameters[layer.offset..layer.bias()], layer.stride());
            let Some(next) = places.get(index + 1) else {
                let (a, a_row, c, start, finish) =
                    (&changes[places[index].offset..], places[index].stride, &mut scratch[..], Start::Zero, Finish::Store);
                Product { rows: n, depth, columns, a, a_row, a_depth: 1, b, b_depth, c, c_row: stride, start, finish }.compute(isa);
                continue;
            };
            let (before, c) = changes.split_at_mut(next.offset);
            let (a, a_row, c_row) = (&before[places[index].offset..], places[index].stride, next.stride);
            let h = &trace.activations[trace.places[index + 1].offset..];
            let (start, finish) = (Start::Zero, self.activation().derivative(h, next.stride));
            Product { rows: n, depth, columns, a, a_row, a_depth: 1, b, b_depth, c, c_row, start, finish }.compute(isa);
            clear_behind(c, next.stride, columns, n);
        }
        unpad(scratch, stride, out, output);
    }

    /// Changes of the gradients of a loss along the direction of the last [`Mlp::forward_tangent`]. `d_out` `[rows, output]` is the
    /// loss's derivative at the outputs, `d_out_change` how it changes there.
    ///
    /// Changes of the weight gradients, laid out as the parameters, are added to `gradient`; those of the input gradients
    /// overwrite `d_input` `[rows, input]`, if it is wanted.
    ///
    /// # Panics
    /// If a slice does not have exactly its shape, or `trace` and `tangent` are of other networks or numbers of rows.
    pub fn backward_tangent(
        &self,
        trace: &Trace,
        tangent: &mut Tangent,
        d_out: &[f32],
        d_out_change: &[f32],
        gradient: &mut [f32],
        d_input: Option<&mut [f32]>,
    ) {
        let (input, output, n) = (self.input(), self.output(), tangent.rows);
        assert!(trace.layers == self.layers && n == trace.rows(), "Mlp::backward_tangent on the trace of another network");
        assert!(tangent.output.len() == n * output, "Mlp::backward_tangent without Mlp::forward_tangent");
        assert!(d_out.len() == n * output && d_out_change.len() == d_out.len(), "d_out of Mlp::backward_tangent");
        assert!(gradient.len() == self.n_parameters(), "gradient of Mlp::backward_tangent");
        assert!(d_input.as_ref().is_none_or(|d| d.len() == n * input), "d_input of Mlp::backward_tangent");
        let isa = isa();
        let transposes = self.transposes();
        let Tangent { activations: changes, places, scratch, transposed, .. } = tangent;
        let stride = trace.scratch_stride;
        let last = self.layers.len() - 1;
        let top = self.layers[last];
        let top_stride = places[last].stride;
        let is_transposed = output <= FEW_OUTPUTS;
        transposed.grow(FEW_OUTPUTS * top_stride);
        transposed.fill(0.0);
        let size = n * stride;
        let (above, below) = scratch[..4 * size].split_at_mut(2 * size);
        // The derivative and its change, of the layer above and of the layer below.
        let (mut above, mut below) = (above.split_at_mut(size), below.split_at_mut(size));
        pad(d_out, output, above.0, stride);
        pad(d_out_change, output, above.1, stride);
        for (index, layer) in self.layers.iter().enumerate().rev() {
            let h_row = places[index].stride;
            let h = &trace.activations[trace.places[index].offset..];
            let change = &changes[places[index].offset..];
            for (h, d) in [(change, &*above.0), (h, &*above.1)] {
                let (start, finish) = (Start::Accumulate, Finish::Store);
                let (inputs, derivatives) = ((h, h_row), (d, stride));
                let (rows, columns, (a, a_depth), (b, b_depth), c, c_row) = if index == last && is_transposed {
                    (output, layer.input + 1, derivatives, inputs, &mut transposed[..], top_stride)
                } else {
                    (layer.input + 1, layer.output, inputs, derivatives, &mut gradient[layer.offset..layer.end()], layer.stride())
                };
                Product { rows, depth: n, columns, a, a_row: 1, a_depth, b, b_depth, c, c_row, start, finish }.compute(isa);
            }
            if index == 0 && d_input.is_none() {
                break;
            }
            let (b, b_depth) = (&transposes[layer.transpose..], layer.transpose_stride());
            for (a, c) in [(&*above.0, &mut *below.0), (&*above.1, &mut *below.1)] {
                let (depth, columns, c_row, start, finish) = (layer.output, layer.input, stride, Start::Zero, Finish::Store);
                Product { rows: n, depth, columns, a, a_row: stride, a_depth: 1, b, b_depth, c, c_row, start, finish }.compute(isa);
            }
            if index > 0 {
                let (d, d_change) = (&mut *below.0, &mut *below.1);
                let (derivatives, wide) = (self.activation().derivatives(), whole_groups(layer.input));
                dispatch(isa, Chain { derivatives, n, wide, h, change, h_row, d, d_change, d_row: stride });
            }
            std::mem::swap(&mut above, &mut below);
        }
        if let Some(d_input) = d_input {
            unpad(above.1, stride, d_input, input);
        }
        if is_transposed {
            for (i, row) in gradient[top.offset..top.end()].chunks_exact_mut(top.stride()).enumerate() {
                for o in 0..output {
                    row[o] += transposed[o * top_stride + i];
                }
            }
        }
    }
}

/// Zeros in what is behind `width` values of each row: where activations have their one and their padding, a change has none.
fn clear_behind(rows: &mut [f32], stride: usize, width: usize, n: usize) {
    for row in rows.chunks_mut(stride).take(n) {
        row[width..stride].fill(0.0);
    }
}

/// Carries a derivative with respect to activations and its change back through the activation function.
struct Chain<'a> {
    derivatives: Derivatives,
    n: usize,
    /// Columns, a multiple of the group.
    wide: usize,
    /// Activations and their changes.
    h: &'a [f32],
    change: &'a [f32],
    h_row: usize,
    d: &'a mut [f32],
    d_change: &'a mut [f32],
    d_row: usize,
}

impl Vectorised for Chain<'_> {
    type Out = ();

    #[inline(always)]
    fn run<L: Lane>(self) {
        let whole = self.wide / L::WIDTH * L::WIDTH;
        for row in 0..self.n {
            let h = &self.h[row * self.h_row..][..self.wide];
            let change = &self.change[row * self.h_row..][..self.wide];
            let d = &mut self.d[row * self.d_row..][..self.wide];
            let d_change = &mut self.d_change[row * self.d_row..][..self.wide];
            for at in (0..whole).step_by(L::WIDTH) {
                chain::<L>(self.derivatives, &h[at..], &change[at..], &mut d[at..], &mut d_change[at..]);
            }
            for at in (whole..self.wide).step_by(L::Half::WIDTH) {
                chain::<L::Half>(self.derivatives, &h[at..], &change[at..], &mut d[at..], &mut d_change[at..]);
            }
        }
    }
}

/// One vector of [`Chain`]. With the change `ȧ = f′(z) ż` of an activation of tanh, `f″(z) ż = -2 a ȧ`.
#[inline(always)]
fn chain<L: Lane>(derivatives: Derivatives, h: &[f32], change: &[f32], d: &mut [f32], d_change: &mut [f32]) {
    let (a, beta, beta_change) = (L::read(h), L::read(d), L::read(d_change));
    match derivatives {
        Derivatives::Tanh => {
            let slope = a.neg_mul_add(a, L::splat(1.0));
            let curvature = a.mul(L::splat(2.0)).mul(L::read(change));
            beta.mul(slope).write(d);
            curvature.neg_mul_add(beta, beta_change.mul(slope)).write(d_change);
        }
        Derivatives::Slope(below) => {
            let slope = a.select_greater(L::splat(0.0), L::splat(1.0), L::splat(below));
            beta.mul(slope).write(d);
            beta_change.mul(slope).write(d_change);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{Just, ProptestConfig, Strategy, prop, prop_assert, prop_assert_eq, prop_assume, prop_oneof, proptest};
    use steadfast_envs::Rng;

    use super::*;
    use crate::nn::Activation;

    /// A network in double precision by plain loops: `[layer][input + 1][output]`, the biases last.
    struct Double {
        layers: Vec<Vec<Vec<f64>>>,
        activation: Activation,
    }

    impl Double {
        fn of(net: &Mlp) -> Self {
            let row = |values: &[f32]| values.iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
            let layers = (0..net.n_layers())
                .map(|l| (0..net.layer_shape(l).0).map(|i| row(net.layer_row(l, i))).chain([row(net.layer_bias(l))]).collect())
                .collect();
            Self { layers, activation: net.activation() }
        }

        /// Activations of all layers, the inputs first.
        fn activations(&self, x: &[f64]) -> Vec<Vec<f64>> {
            let mut inputs = vec![x.to_vec()];
            for (l, layer) in self.layers.iter().enumerate() {
                let a = inputs.last().map_or(&[][..], |a| a);
                let sums = (0..layer[0].len()).map(|o| {
                    let z = layer.iter().zip(a.iter().chain([&1.0])).map(|(row, a)| row[o] * a).sum::<f64>();
                    if l + 1 < self.layers.len() { self.activation.value(z) } else { z }
                });
                inputs.push(sums.collect());
            }
            inputs
        }

        /// Whether each hidden unit is above zero.
        fn signs(&self, x: &[f64]) -> Vec<bool> {
            let all = self.activations(x);
            all[1..all.len() - 1].concat().iter().map(|a| *a > 0.0).collect()
        }

        /// Outputs, and the gradients of `Σ d · outputs` with respect to weights (flat) and inputs.
        fn gradients(&self, x: &[f64], d: &[f64]) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
            let mut inputs = self.activations(x);
            let out = inputs.pop().unwrap_or_default();
            let (mut d, mut weights) = (d.to_vec(), Vec::new());
            for (l, layer) in self.layers.iter().enumerate().rev() {
                let a = &inputs[l];
                weights.push(a.iter().chain([&1.0]).flat_map(|a| d.iter().map(move |d| a * d)).collect::<Vec<f64>>());
                let slope = |a: f64| match self.activation {
                    _ if l == 0 => 1.0,
                    Activation::Tanh => 1.0 - a * a,
                    Activation::Relu => f64::from(a > 0.0),
                    Activation::LeakyRelu => {
                        if a > 0.0 {
                            1.0
                        } else {
                            0.01
                        }
                    }
                    Activation::Identity => 1.0,
                };
                d = a.iter().zip(layer).map(|(a, row)| slope(*a) * row.iter().zip(&d).map(|(w, d)| w * d).sum::<f64>()).collect();
            }
            weights.reverse();
            (out, weights.concat(), d)
        }
    }

    /// Weights and biases of a flat array without its padding.
    fn weights_of(net: &Mlp, flat: &[f32]) -> Vec<f32> {
        let of_layer = |l: &super::super::mlp::Layer| {
            let (output, stride) = (l.output, l.stride());
            flat[l.offset..l.end()].chunks_exact(stride).flat_map(move |row| row[..output].to_vec()).collect::<Vec<_>>()
        };
        net.layers.iter().flat_map(of_layer).collect()
    }

    fn any_activation() -> impl Strategy<Value = Activation> {
        prop_oneof![Just(Activation::Tanh), Just(Activation::Relu), Just(Activation::LeakyRelu), Just(Activation::Identity)]
    }

    fn close(found: &[f32], expected: &[f64]) -> Result<(), proptest::test_runner::TestCaseError> {
        prop_assert_eq!(found.len(), expected.len());
        let size = expected.iter().fold(1.0_f64, |size, e| size.max(e.abs()));
        for (i, (f, e)) in found.iter().zip(expected).enumerate() {
            prop_assert!((f64::from(*f) - e).abs() < 1e-4 * size, "{}: {} {}", i, f, e);
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn changes_match_central_differences_of_gradients(
            input in 1_usize..30, hidden in prop::collection::vec(1_usize..40, 0..3), output in 1_usize..20,
            rows in 1_usize..130, activation in any_activation(), seed: u64,
        ) {
            let mut rng = Rng::from_seed(seed);
            let net = Mlp::new(input, &hidden, output, activation, 1.4, 1.0, &mut rng).unwrap();
            let mut noise = |n: usize| (0..n).map(|_| rng.normal_f32()).collect::<Vec<f32>>();
            let (x, direction) = (noise(rows * input), noise(rows * input));
            let (d_out, d_out_change) = (noise(rows * output), noise(rows * output));
            let (mut trace, mut tangent) = (Trace::default(), Tangent::default());
            // The rooms are used a second time, after a network of other widths.
            let other = Mlp::new(7, &[33], 11, activation, 1.4, 1.0, &mut Rng::from_seed(1)).unwrap();
            other.forward_train(&[1.0; 14], 2, &mut trace);
            other.forward_tangent(&trace, &[1.0; 14], &mut tangent);
            other.backward_tangent(&trace, &mut tangent, &[1.0; 22], &[1.0; 22], &mut vec![0.0; other.n_parameters()], None);
            net.forward_train(&x, rows, &mut trace);
            net.forward_tangent(&trace, &direction, &mut tangent);
            let mut gradient = vec![0.0; net.n_parameters()];
            let (mut alone, mut d_input) = (gradient.clone(), vec![0.0; rows * input]);
            net.backward_tangent(&trace, &mut tangent, &d_out, &d_out_change, &mut gradient, Some(&mut d_input));
            net.backward_tangent(&trace, &mut tangent, &d_out, &d_out_change, &mut alone, None);
            prop_assert_eq!(&alone, &gradient);

            let double = Double::of(&net);
            let wide = |v: &[f32]| v.iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
            let h = 1e-6;
            // Where a unit of a network with kinks changes sides there is no derivative.
            let is_smooth = (0..rows).all(|row| {
                let at = |sign: f64| x[row * input..(row + 1) * input].iter().zip(&direction[row * input..]).map(move |(x, v)| f64::from(*x) + sign * h * f64::from(*v)).collect::<Vec<_>>();
                double.signs(&at(1.0)) == double.signs(&at(-1.0))
            });
            prop_assume!(is_smooth || activation == Activation::Tanh);
            let mut sums = (Vec::new(), vec![0.0; net.n_weights()], Vec::new());
            for row in 0..rows {
                let (i, o) = (row * input..(row + 1) * input, row * output..(row + 1) * output);
                let at = |sign: f64| {
                    let x: Vec<f64> = wide(&x[i.clone()]).iter().zip(wide(&direction[i.clone()])).map(|(x, v)| x + sign * h * v).collect();
                    let d: Vec<f64> = wide(&d_out[o.clone()]).iter().zip(wide(&d_out_change[o.clone()])).map(|(d, v)| d + sign * h * v).collect();
                    double.gradients(&x, &d)
                };
                let ((up, up_weights, up_input), (down, down_weights, down_input)) = (at(1.0), at(-1.0));
                sums.0.extend(up.iter().zip(&down).map(|(u, d)| (u - d) / (2.0 * h)));
                sums.1.iter_mut().zip(up_weights.iter().zip(&down_weights)).for_each(|(s, (u, d))| *s += (u - d) / (2.0 * h));
                sums.2.extend(up_input.iter().zip(&down_input).map(|(u, d)| (u - d) / (2.0 * h)));
            }
            close(tangent.output(), &sums.0)?;
            close(&weights_of(&net, &gradient), &sums.1)?;
            close(&d_input, &sums.2)?;
            // The padding of the gradient stays zero.
            prop_assert_eq!(gradient.iter().filter(|g| **g != 0.0).count(), weights_of(&net, &gradient).iter().filter(|g| **g != 0.0).count());
        }
    }
}
