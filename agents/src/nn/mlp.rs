//! The multi-layer perceptron of control agents: outputs, weight gradients and cheap input gradients.
//!
//! # Parameters
//! One flat array. Layer by layer: the weights as `[input][output]`, then the biases `[output]`, each row padded with zeros
//! to a multiple of 16. The padding stays zero: no gradient ever reaches it.
//!
//! # Determinism
//! An output is `bias + x[0] w[0] + x[1] w[1] + ...` in this order, each step one fused multiply-add; a weight gradient is
//! the sum over rows in their order, continued from the gradient handed in. So a row's output does not depend on the rows
//! around it, and splitting a batch into consecutive parts does not change a gradient.

use std::sync::{Mutex, OnceLock};

use steadfast_envs::Rng;

use super::activation::Activation;
use super::init::orthogonal;
use super::kernel::aligned::Aligned;
use super::kernel::tile::{COLUMN_GROUP, Finish, Product, Start, whole_groups};
use super::kernel::{Isa, isa};
use crate::AgentError;

/// Rows that go through all layers together, so that they stay in the cache; a multiple of the tile heights.
const ROW_BLOCK: usize = 96;
/// Up to this many outputs the last layer's weight gradient is computed transposed, so that the vectors run over its inputs.
pub(super) const FEW_OUTPUTS: usize = COLUMN_GROUP;
/// Parameter rows are padded to a multiple of this.
const PADDING: usize = 16;

/// Place of a layer in the flat parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layer {
    pub input: usize,
    pub output: usize,
    /// Where the weights begin.
    pub offset: usize,
    /// Where the packed transpose begins.
    pub transpose: usize,
}

impl Layer {
    /// Length of a row of parameters.
    pub fn stride(&self) -> usize {
        self.output.next_multiple_of(PADDING)
    }

    /// Where the biases begin.
    pub fn bias(&self) -> usize {
        self.offset + self.input * self.stride()
    }

    /// Where weights and biases end.
    pub fn end(&self) -> usize {
        self.bias() + self.stride()
    }

    /// Length of a row of the transpose.
    pub fn transpose_stride(&self) -> usize {
        self.input.next_multiple_of(PADDING)
    }
}

/// The transposed weights, rebuilt when they are first needed after a change of the parameters.
#[derive(Debug, Default)]
struct Transposes {
    packed: OnceLock<Aligned>,
    /// The memory of the last ones, so that a rebuild allocates nothing.
    spare: Mutex<Option<Aligned>>,
}

impl Transposes {
    fn invalidate(&mut self) {
        if let Some(packed) = self.packed.take() {
            *self.spare.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(packed);
        }
    }

    fn get(&self, layers: &[Layer], parameters: &[f32]) -> &[f32] {
        self.packed.get_or_init(|| {
            let len = layers.last().map_or(0, |l| l.transpose + l.output * l.transpose_stride());
            let spare = self.spare.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
            let mut packed = spare.unwrap_or_else(|| Aligned::zeros(len));
            for layer in layers {
                let (stride, transpose_stride) = (layer.stride(), layer.transpose_stride());
                let to = &mut packed[layer.transpose..layer.transpose + layer.output * transpose_stride];
                let from = &parameters[layer.offset..layer.bias()];
                for (o, row) in to.chunks_exact_mut(transpose_stride).enumerate() {
                    for (i, value) in row[..layer.input].iter_mut().enumerate() {
                        *value = from[i * stride + o];
                    }
                }
            }
            packed
        })
    }
}

/// Multi-layer perceptron with a linear output layer; see the module's documentation for layout and determinism.
///
/// ```
/// use steadfast_agents::nn::{Activation, Mlp, Workspace};
/// let mut rng = steadfast_envs::SeedTree::new(0).child("network").rng();
/// let net = Mlp::new(3, &[16, 16], 2, Activation::Tanh, 2.0_f32.sqrt(), 1.0, &mut rng)?;
/// let mut out = [0.0; 4];
/// net.forward(&[0.1, 0.2, 0.3, -0.1, -0.2, -0.3], 2, &mut out, &mut Workspace::default());
/// # Ok::<(), steadfast_agents::AgentError>(())
/// ```
#[derive(Debug)]
pub struct Mlp {
    pub(super) layers: Vec<Layer>,
    activation: Activation,
    pub(super) parameters: Aligned,
    transposes: Transposes,
}

impl Clone for Mlp {
    fn clone(&self) -> Self {
        Self {
            layers: self.layers.clone(),
            activation: self.activation,
            parameters: self.parameters.clone(),
            transposes: Transposes::default(),
        }
    }
}

impl Mlp {
    /// A network with orthogonal weights (gain `hidden_gain`, in the last layer `output_gain`) and zero biases.
    ///
    /// # Errors
    /// [`AgentError::Config`] if a width is zero or a gain is not finite.
    pub fn new(
        input: usize,
        hidden: &[usize],
        output: usize,
        activation: Activation,
        hidden_gain: f32,
        output_gain: f32,
        rng: &mut Rng,
    ) -> Result<Self, AgentError> {
        let widths: Vec<usize> = std::iter::once(input).chain(hidden.iter().copied()).chain([output]).collect();
        if widths.contains(&0) {
            return Err(AgentError::Config {
                field: "network widths".into(),
                expected: "all at least 1".into(),
                got: format!("{widths:?}"),
            });
        }
        for (field, gain) in [("hidden_gain", hidden_gain), ("output_gain", output_gain)] {
            if !gain.is_finite() {
                return Err(AgentError::Config { field: field.into(), expected: "finite".into(), got: gain.to_string() });
            }
        }
        let mut layers: Vec<Layer> = Vec::with_capacity(widths.len() - 1);
        let (mut offset, mut transpose) = (0, 0);
        for pair in widths.windows(2) {
            let layer = Layer { input: pair[0], output: pair[1], offset, transpose };
            offset = layer.end();
            transpose += layer.output * layer.transpose_stride();
            layers.push(layer);
        }
        let mut parameters = Aligned::zeros(offset);
        for (index, layer) in layers.iter().enumerate() {
            let gain = if index + 1 == layers.len() { output_gain } else { hidden_gain };
            let weights = orthogonal(layer.output, layer.input, gain, rng);
            for (o, row) in weights.chunks_exact(layer.input).enumerate() {
                for (i, value) in row.iter().enumerate() {
                    parameters[layer.offset + i * layer.stride() + o] = *value;
                }
            }
        }
        Ok(Self { layers, activation, parameters, transposes: Transposes::default() })
    }

    /// Features of an input row.
    pub fn input(&self) -> usize {
        self.layers.first().map_or(0, |l| l.input)
    }

    /// Values of an output row.
    pub fn output(&self) -> usize {
        self.layers.last().map_or(0, |l| l.output)
    }

    /// Activation of the hidden layers.
    pub fn activation(&self) -> Activation {
        self.activation
    }

    /// Length of the flat parameters, padding included.
    pub fn n_parameters(&self) -> usize {
        self.parameters.len()
    }

    /// Number of weights and biases, without the padding.
    pub fn n_weights(&self) -> usize {
        self.layers.iter().map(|l| (l.input + 1) * l.output).sum()
    }

    /// Flat parameters.
    pub fn parameters(&self) -> &[f32] {
        &self.parameters
    }

    /// Flat parameters to change. The padding must be left zero.
    pub fn parameters_mut(&mut self) -> &mut [f32] {
        self.transposes.invalidate();
        &mut self.parameters
    }

    /// Number of layers, the output layer included.
    pub fn n_layers(&self) -> usize {
        self.layers.len()
    }

    /// Inputs and outputs of layer `layer`.
    pub fn layer_shape(&self, layer: usize) -> (usize, usize) {
        (self.layers[layer].input, self.layers[layer].output)
    }

    /// Weights `[output]` of input `input` of layer `layer`.
    pub fn layer_row(&self, layer: usize, input: usize) -> &[f32] {
        let layer = &self.layers[layer];
        let start = layer.offset + input * layer.stride();
        &self.parameters[start..start + layer.output]
    }

    /// Biases `[output]` of layer `layer`.
    pub fn layer_bias(&self, layer: usize) -> &[f32] {
        let layer = &self.layers[layer];
        &self.parameters[layer.bias()..layer.bias() + layer.output]
    }

    /// The transposed weights, layer by layer.
    pub(super) fn transposes(&self) -> &[f32] {
        self.transposes.get(&self.layers, &self.parameters)
    }

    /// Multiplies the weights of layer `layer`, but not its biases.
    pub fn scale_layer(&mut self, layer: usize, factor: f32) {
        let range = self.layers[layer].offset..self.layers[layer].bias();
        self.parameters_mut()[range].iter_mut().for_each(|w| *w *= factor);
    }

    /// Outputs `[rows, output]` of `x` `[rows, input]`.
    ///
    /// # Panics
    /// If a slice does not have exactly its shape.
    pub fn forward(&self, x: &[f32], rows: usize, out: &mut [f32], work: &mut Workspace) {
        let (input, output) = (self.input(), self.output());
        assert_eq!(x.len(), rows * input, "input of Mlp::forward");
        assert_eq!(out.len(), rows * output, "output of Mlp::forward");
        let isa = isa();
        let stride = self.layers.iter().map(Layer::stride).max().unwrap_or(0);
        let block = rows.min(ROW_BLOCK);
        work.buffer.grow(2 * block * stride);
        let (mut from, mut to) = work.buffer[..2 * block * stride].split_at_mut(block * stride);
        let last = self.layers.len() - 1;
        let is_direct = output == whole_groups(output);
        for (x, out) in x.chunks(block.max(1) * input).zip(out.chunks_mut(block.max(1) * output)) {
            let rows = x.len() / input;
            for (index, layer) in self.layers.iter().enumerate() {
                let (a, a_row) = if index == 0 { (x, input) } else { (&*from, stride) };
                if index == last && is_direct {
                    self.layer_forward(layer, Finish::Store, rows, a, a_row, out, output, isa);
                } else {
                    let finish = if index == last { Finish::Store } else { self.activation.finish() };
                    self.layer_forward(layer, finish, rows, a, a_row, to, stride, isa);
                    std::mem::swap(&mut from, &mut to);
                }
            }
            if !is_direct {
                unpad(from, stride, out, output);
            }
        }
    }

    /// Outputs of `x` `[rows, input]`, kept in `trace` together with what [`Mlp::backward`] needs.
    ///
    /// # Panics
    /// If `x` does not have exactly its shape.
    pub fn forward_train(&self, x: &[f32], rows: usize, trace: &mut Trace) {
        let (input, output) = (self.input(), self.output());
        assert_eq!(x.len(), rows * input, "input of Mlp::forward_train");
        let isa = isa();
        trace.prepare(&self.layers, rows);
        let last = self.layers.len() - 1;
        let Trace { activations, places, scratch, output: out, scratch_stride, .. } = trace;
        let is_direct = output == whole_groups(output);
        let mut first = 0;
        while first < rows {
            let n = (rows - first).min(ROW_BLOCK);
            let place = places[0];
            let to = &mut activations[place.of(first)..];
            pad(&x[first * input..(first + n) * input], input, to, place.stride);
            end_with_one(to, place.stride, input, n);
            for (index, layer) in self.layers.iter().enumerate() {
                let place = places[index];
                if index == last {
                    let a = &activations[place.of(first)..];
                    let out = &mut out[first * output..(first + n) * output];
                    if is_direct {
                        self.layer_forward(layer, Finish::Store, n, a, place.stride, out, output, isa);
                    } else {
                        self.layer_forward(layer, Finish::Store, n, a, place.stride, scratch, *scratch_stride, isa);
                        unpad(scratch, *scratch_stride, out, output);
                    }
                } else {
                    let next = places[index + 1];
                    let (before, after) = activations.split_at_mut(next.offset);
                    let to = &mut after[first * next.stride..];
                    self.layer_forward(layer, self.activation.finish(), n, &before[place.of(first)..], place.stride, to, next.stride, isa);
                    if layer.output < whole_groups(layer.output) {
                        end_with_one(to, next.stride, layer.output, n);
                    }
                }
            }
            first += n;
        }
    }

    /// Gradients of a loss from its derivative `d_out` `[rows, output]` at the outputs of the last
    /// [`Mlp::forward_train`] on this trace.
    ///
    /// Weight gradients, laid out as the parameters, are added to `gradient`; `d_input` `[rows, input]` is overwritten.
    /// Leaving `gradient` out saves its cost (an adversary needs only `d_input`). May be called repeatedly on one trace.
    ///
    /// # Panics
    /// If a slice does not have exactly its shape, or `trace` is of a network of other widths.
    pub fn backward(&self, trace: &mut Trace, d_out: &[f32], mut gradient: Option<&mut [f32]>, mut d_input: Option<&mut [f32]>) {
        let (input, output, rows) = (self.input(), self.output(), trace.rows);
        assert!(trace.layers == self.layers, "Mlp::backward on the trace of another network");
        assert_eq!(d_out.len(), rows * output, "d_out of Mlp::backward");
        assert!(gradient.as_ref().is_none_or(|g| g.len() == self.n_parameters()), "gradient of Mlp::backward");
        assert!(d_input.as_ref().is_none_or(|d| d.len() == rows * input), "d_input of Mlp::backward");
        let isa = isa();
        let transposes = self.transposes();
        let Trace { activations, places, scratch, scratch_stride, transposed, .. } = trace;
        let stride = *scratch_stride;
        let last = self.layers.len() - 1;
        let top = self.layers[last];
        let top_stride = places[last].stride;
        let is_transposed = output <= FEW_OUTPUTS && gradient.is_some();
        if let Some(gradient) = gradient.as_deref_mut().filter(|_| is_transposed) {
            for (i, row) in gradient[top.offset..top.end()].chunks_exact(top.stride()).enumerate() {
                for o in 0..output {
                    transposed[o * top_stride + i] = row[o];
                }
            }
        }
        let (mut d_above, mut d_below) = scratch.split_at_mut(ROW_BLOCK.min(rows) * stride);
        let mut first = 0;
        while first < rows {
            let n = (rows - first).min(ROW_BLOCK);
            pad(&d_out[first * output..(first + n) * output], output, d_above, stride);
            for (index, layer) in self.layers.iter().enumerate().rev() {
                let place = places[index];
                let h = &activations[place.of(first)..];
                if index == last && is_transposed {
                    Product {
                        rows: output,
                        depth: n,
                        columns: layer.input + 1,
                        a: d_above,
                        a_row: 1,
                        a_depth: stride,
                        b: h,
                        b_depth: place.stride,
                        c: transposed,
                        c_row: top_stride,
                        start: Start::Accumulate,
                        finish: Finish::Store,
                    }
                    .compute(isa);
                } else if let Some(gradient) = gradient.as_deref_mut() {
                    // One row more than inputs: the activations end with a one, whose weight is the bias.
                    Product {
                        rows: layer.input + 1,
                        depth: n,
                        columns: layer.output,
                        a: h,
                        a_row: 1,
                        a_depth: place.stride,
                        b: d_above,
                        b_depth: stride,
                        c: &mut gradient[layer.offset..layer.end()],
                        c_row: layer.stride(),
                        start: Start::Accumulate,
                        finish: Finish::Store,
                    }
                    .compute(isa);
                }
                if index == 0 && d_input.is_none() {
                    break;
                }
                let finish = if index == 0 { Finish::Store } else { self.activation.derivative(h, place.stride) };
                Product {
                    rows: n,
                    depth: layer.output,
                    columns: layer.input,
                    a: d_above,
                    a_row: stride,
                    a_depth: 1,
                    b: &transposes[layer.transpose..layer.transpose + layer.output * layer.transpose_stride()],
                    b_depth: layer.transpose_stride(),
                    c: d_below,
                    c_row: stride,
                    start: Start::Zero,
                    finish,
                }
                .compute(isa);
                std::mem::swap(&mut d_above, &mut d_below);
            }
            if let Some(d_input) = d_input.as_deref_mut() {
                unpad(d_above, stride, &mut d_input[first * input..(first + n) * input], input);
            }
            first += n;
        }
        if let Some(gradient) = gradient.filter(|_| is_transposed) {
            for (i, row) in gradient[top.offset..top.end()].chunks_exact_mut(top.stride()).enumerate() {
                for o in 0..output {
                    row[o] = transposed[o * top_stride + i];
                }
            }
        }
    }

    #[inline]
    fn layer_forward(
        &self,
        layer: &Layer,
        finish: Finish<'_>,
        rows: usize,
        a: &[f32],
        a_row: usize,
        c: &mut [f32],
        c_row: usize,
        isa: Isa,
    ) {
        Product {
            rows,
            depth: layer.input,
            columns: layer.output,
            a,
            a_row,
            a_depth: 1,
            b: &self.parameters[layer.offset..layer.bias()],
            b_depth: layer.stride(),
            c,
            c_row,
            start: Start::Bias(&self.parameters[layer.bias()..layer.end()]),
            finish,
        }
        .compute(isa);
    }
}

/// Copies rows of `width` into rows of `stride`, with zeros up to the next whole group of columns.
pub(super) fn pad(from: &[f32], width: usize, to: &mut [f32], stride: usize) {
    let whole = width / COLUMN_GROUP * COLUMN_GROUP;
    let rest = width - whole;
    for (r, to) in to.chunks_mut(stride).take(from.len() / width).enumerate() {
        let row = &from[r * width..];
        copy_groups(row, to, whole);
        if rest > 0 {
            let to = to[whole..].first_chunk_mut::<COLUMN_GROUP>().expect("rows are padded to whole groups");
            // A whole group that reads into the next row is several times faster than a copy of run-time length.
            match row[whole..].first_chunk::<COLUMN_GROUP>() {
                Some(from) => *to = std::array::from_fn(|i| if i < rest { from[i] } else { 0.0 }),
                None => *to = std::array::from_fn(|i| if i < rest { row[whole + i] } else { 0.0 }),
            }
        }
    }
}

/// Copies `n` values, a multiple of the group.
#[inline(always)]
fn copy_groups(from: &[f32], to: &mut [f32], n: usize) {
    if n > 4 * COLUMN_GROUP {
        to[..n].copy_from_slice(&from[..n]);
        return;
    }
    let from = from[..n].as_chunks::<COLUMN_GROUP>().0;
    for (to, from) in to[..n].as_chunks_mut::<COLUMN_GROUP>().0.iter_mut().zip(from) {
        *to = *from;
    }
}

/// Puts a one behind `width` values of each row.
fn end_with_one(rows: &mut [f32], stride: usize, width: usize, n: usize) {
    for row in rows.chunks_mut(stride).take(n) {
        row[width] = 1.0;
    }
}

/// Copies rows of `stride` into rows of `width`.
pub(super) fn unpad(from: &[f32], stride: usize, to: &mut [f32], width: usize) {
    let whole = width / COLUMN_GROUP * COLUMN_GROUP;
    let rest = width - whole;
    let n = to.len() / width;
    for (r, from) in from.chunks(stride).take(n).enumerate() {
        let to = &mut to[r * width..];
        copy_groups(from, to, whole);
        if rest > 0 {
            let (to, from) = (&mut to[whole..], &from[whole..whole + COLUMN_GROUP]);
            // As in `pad`: what the group writes beyond its row is overwritten by the next row.
            match to.first_chunk_mut::<COLUMN_GROUP>() {
                Some(to) => to.copy_from_slice(from),
                None => to[..rest].copy_from_slice(&from[..rest]),
            }
        }
    }
}

/// Memory of [`Mlp::forward`]; grows when needed, then stays. May serve several networks.
#[derive(Debug, Default, Clone)]
pub struct Workspace {
    buffer: Aligned,
}

/// Where the inputs of a layer lie in a trace.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub offset: usize,
    pub stride: usize,
}

impl Place {
    /// Beginning of a row.
    pub fn of(self, row: usize) -> usize {
        self.offset + row * self.stride
    }
}

/// Activations kept by [`Mlp::forward_train`] for [`Mlp::backward`].
///
/// Grows when needed, then stays; use one trace per network to keep it from being laid out again.
#[derive(Debug, Default, Clone)]
pub struct Trace {
    /// The network's layers; the layout belongs to them.
    pub(super) layers: Vec<Layer>,
    rows: usize,
    capacity: usize,
    /// Inputs of each layer, each row followed by a one.
    pub(super) activations: Aligned,
    pub(super) places: Vec<Place>,
    output: Vec<f32>,
    scratch: Aligned,
    pub(super) scratch_stride: usize,
    /// The last layer's gradient `[output][input + 1]`, if it has few outputs.
    transposed: Aligned,
}

impl Trace {
    /// Outputs `[rows, output]` of the last [`Mlp::forward_train`].
    pub fn output(&self) -> &[f32] {
        let width = self.layers.last().map_or(0, |l| l.output);
        &self.output[..self.rows * width]
    }

    /// Rows of the last [`Mlp::forward_train`].
    pub fn rows(&self) -> usize {
        self.rows
    }

    fn prepare(&mut self, layers: &[Layer], rows: usize) {
        if self.layers != layers || rows > self.capacity {
            self.layout(layers, rows);
        }
        self.rows = rows;
    }

    fn layout(&mut self, layers: &[Layer], rows: usize) {
        self.layers.clear();
        self.layers.extend_from_slice(layers);
        self.capacity = rows;
        self.places.clear();
        let mut offset = 0;
        for layer in layers {
            let stride = (layer.input + 1).next_multiple_of(PADDING);
            self.places.push(Place { offset, stride });
            offset += rows * stride;
        }
        self.activations.grow(offset);
        for (layer, place) in layers.iter().zip(&self.places) {
            end_with_one(&mut self.activations[place.offset..], place.stride, layer.input, rows);
        }
        let output = layers.last().map_or(0, |l| l.output);
        self.output.resize(rows * output, 0.0);
        self.scratch_stride = layers.iter().map(|l| l.stride().max(l.transpose_stride())).max().unwrap_or(0);
        self.transposed.grow(FEW_OUTPUTS * self.places.last().map_or(0, |p| p.stride));
        self.scratch.grow(2 * rows.min(ROW_BLOCK) * self.scratch_stride);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{Just, ProptestConfig, Strategy, prop, prop_assert, prop_assert_eq, prop_oneof, proptest};

    fn noise(n: usize, rng: &mut Rng) -> Vec<f32> {
        (0..n).map(|_| rng.normal_f32()).collect()
    }

    /// Outputs by plain loops in `f64`.
    fn reference(net: &Mlp, x: &[f64]) -> Vec<f64> {
        let mut h = x.to_vec();
        for (index, layer) in net.layers.iter().enumerate() {
            let mut next: Vec<f64> = (0..layer.output)
                .map(|o| {
                    let bias = f64::from(net.parameters[layer.bias() + o]);
                    bias + (0..layer.input).map(|i| h[i] * f64::from(net.parameters[layer.offset + i * layer.stride() + o])).sum::<f64>()
                })
                .collect();
            if index + 1 < net.layers.len() {
                for v in &mut next {
                    *v = match net.activation {
                        Activation::Tanh => v.tanh(),
                        Activation::Relu => v.max(0.0),
                        Activation::LeakyRelu => v.max(0.01 * *v),
                        Activation::Identity => *v,
                    };
                }
            }
            h = next;
        }
        h
    }

    fn random_net(input: usize, hidden: &[usize], output: usize, activation: Activation, rng: &mut Rng) -> Mlp {
        let mut net = Mlp::new(input, hidden, output, activation, 1.4, 1.0, rng).unwrap();
        let layers = net.layers.clone();
        let parameters = net.parameters_mut();
        for layer in layers {
            for o in 0..layer.output {
                parameters[layer.bias() + o] = 0.3 * rng.normal_f32();
            }
        }
        net
    }

    /// Whether all elements of a flat array outside of weights and biases are zero.
    fn padding_is_zero(net: &Mlp, flat: &[f32]) -> bool {
        net.layers.iter().all(|layer| {
            flat[layer.offset..layer.end()].chunks_exact(layer.stride()).all(|row| row[layer.output..].iter().all(|v| *v == 0.0))
        })
    }

    fn any_activation() -> impl Strategy<Value = Activation> {
        prop_oneof![Just(Activation::Tanh), Just(Activation::Relu), Just(Activation::LeakyRelu), Just(Activation::Identity)]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_shape_matches_the_reference_and_batches_split_freely(
            input in 1_usize..40, hidden in prop::collection::vec(1_usize..70, 0..4), output in 1_usize..40,
            rows in 1_usize..230, split in 0_usize..230, activation in any_activation(), seed: u64,
        ) {
            let mut rng = Rng::from_seed(seed);
            let net = random_net(input, &hidden, output, activation, &mut rng);
            let x = noise(rows * input, &mut rng);
            let d_out = noise(rows * output, &mut rng);
            let (mut work, mut trace) = (Workspace::default(), Trace::default());
            let mut out = vec![0.0; rows * output];
            net.forward(&x, rows, &mut out, &mut work);
            net.forward_train(&x, rows, &mut trace);
            prop_assert_eq!(trace.output(), &out[..]);
            let mut gradient = vec![0.0; net.n_parameters()];
            let mut d_input = vec![0.0; rows * input];
            net.backward(&mut trace, &d_out, Some(&mut gradient), Some(&mut d_input));
            prop_assert!(padding_is_zero(&net, &gradient));
            for r in [0, rows - 1] {
                let row: Vec<f64> = x[r * input..(r + 1) * input].iter().map(|v| f64::from(*v)).collect();
                for (o, expected) in reference(&net, &row).iter().enumerate() {
                    prop_assert!((f64::from(out[r * output + o]) - expected).abs() < 1e-4 * expected.abs().max(1.0));
                }
                let mut one = vec![0.0; output];
                net.forward(&x[r * input..(r + 1) * input], 1, &mut one, &mut work);
                prop_assert_eq!(&one[..], &out[r * output..(r + 1) * output]);
            }
            // Two consecutive parts give the same bits as the whole.
            let split = split % (rows + 1);
            let mut parts = vec![0.0; net.n_parameters()];
            let mut d_parts = vec![0.0; rows * input];
            for range in [0..split, split..rows] {
                let n = range.len();
                net.forward_train(&x[range.start * input..range.end * input], n, &mut trace);
                net.backward(&mut trace, &d_out[range.start * output..range.end * output], Some(&mut parts), None);
                net.backward(&mut trace, &d_out[range.start * output..range.end * output], None, Some(&mut d_parts[range.start * input..range.end * input]));
            }
            prop_assert_eq!(parts, gradient);
            prop_assert_eq!(d_parts, d_input);
        }
    }

    #[test]
    fn gradients_match_central_differences() {
        let mut rng = Rng::from_seed(11);
        let rows = 5;
        let mut net = random_net(4, &[7, 19], 3, Activation::Tanh, &mut rng);
        let x = noise(rows * 4, &mut rng);
        let d_out = noise(rows * 3, &mut rng);
        let loss = |net: &Mlp, x: &[f32]| -> f64 {
            x.chunks_exact(4)
                .zip(d_out.chunks_exact(3))
                .map(|(x, d)| {
                    let x: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
                    reference(net, &x).iter().zip(d).map(|(y, d)| y * f64::from(*d)).sum::<f64>()
                })
                .sum()
        };
        let mut trace = Trace::default();
        net.forward_train(&x, rows, &mut trace);
        let mut gradient = vec![0.0; net.n_parameters()];
        let mut d_input = vec![0.0; x.len()];
        net.backward(&mut trace, &d_out, Some(&mut gradient), Some(&mut d_input));
        // The parameters are f32: the step is what really changed. The reference is f64, so the quotient is exact to h².
        let step = 1e-3_f32;
        for layer in net.layers.clone() {
            for i in 0..=layer.input {
                for o in 0..layer.output {
                    let at = layer.offset + i * layer.stride() + o;
                    let value = net.parameters[at];
                    let (up, down) = (value + step, value - step);
                    net.parameters_mut()[at] = up;
                    let high = loss(&net, &x);
                    net.parameters_mut()[at] = down;
                    let low = loss(&net, &x);
                    net.parameters_mut()[at] = value;
                    let expected = (high - low) / (f64::from(up) - f64::from(down));
                    assert!((f64::from(gradient[at]) - expected).abs() < 2e-5, "{at}: {} {expected}", gradient[at]);
                }
            }
        }
        for at in 0..x.len() {
            let (mut up, mut down) = (x.clone(), x.clone());
            up[at] += step;
            down[at] -= step;
            let expected = (loss(&net, &up) - loss(&net, &down)) / (f64::from(up[at]) - f64::from(down[at]));
            assert!((f64::from(d_input[at]) - expected).abs() < 2e-5, "{at}: {} {expected}", d_input[at]);
        }
    }

    #[test]
    fn clone_is_independent_and_widths_are_checked() {
        let mut rng = Rng::from_seed(2);
        let mut net = random_net(3, &[8], 2, Activation::Relu, &mut rng);
        let copy = net.clone();
        net.parameters_mut()[0] += 1.0;
        assert_ne!(copy.parameters()[0], net.parameters()[0]);
        assert_eq!(copy.n_weights(), 3 * 8 + 8 + 8 * 2 + 2);
        assert!(matches!(Mlp::new(3, &[0], 2, Activation::Tanh, 1.0, 1.0, &mut rng), Err(AgentError::Config { .. })));
        assert!(matches!(Mlp::new(3, &[], 2, Activation::Tanh, f32::NAN, 1.0, &mut rng), Err(AgentError::Config { .. })));
    }

    #[test]
    fn tensors_round_trip_and_errors_name_the_tensor() {
        let mut rng = Rng::from_seed(3);
        let net = random_net(3, &[9], 2, Activation::Tanh, &mut rng);
        let tensors = net.tensors();
        assert_eq!(tensors[0].shape, [9, 3]);
        assert_eq!(tensors[3].name, "layers.1.bias");
        let mut other = random_net(3, &[9], 2, Activation::Tanh, &mut rng);
        let lookup = |name: &str| tensors.iter().find(|t| t.name == name).map(|t| (t.shape.clone(), t.data.clone()));
        other.load_tensors(&lookup).unwrap();
        assert_eq!(other.parameters(), net.parameters());
        // Loading must also renew the transposes used by the input gradient.
        let x = noise(3, &mut rng);
        let mut d = [vec![0.0; 3], vec![0.0; 3]];
        for (net, d) in [&net, &other].into_iter().zip(&mut d) {
            let mut trace = Trace::default();
            net.forward_train(&x, 1, &mut trace);
            net.backward(&mut trace, &[1.0, 2.0], None, Some(d));
        }
        assert_eq!(d[0], d[1]);
        let mut wide = random_net(3, &[10], 2, Activation::Tanh, &mut rng);
        let error = wide.load_tensors(&lookup).unwrap_err().to_string();
        assert!(error.contains("layers.0.weight") && error.contains("[10, 3]") && error.contains("[9, 3]"), "{error}");
        let missing = |name: &str| if name == "layers.1.bias" { None } else { lookup(name) };
        let error = other.load_tensors(&missing).unwrap_err().to_string();
        assert!(error.contains("layers.1.bias") && error.contains("missing"), "{error}");
    }
}
