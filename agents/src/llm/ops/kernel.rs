//! Loops over rows in vectors, which the fused operations are made of.

use crate::nn::kernel::lane::{Lane, Vectorised, dispatch, isa};
use crate::nn::kernel::math::exp;

/// Accumulators side by side, so that sums run in vectors; they are added as a tree.
const WIDE: usize = 16;

fn tree(mut sums: [f32; WIDE]) -> f32 {
    let mut half = WIDE / 2;
    while half > 0 {
        for i in 0..half {
            sums[i] += sums[i + half];
        }
        half /= 2;
    }
    sums[0]
}

#[inline(always)]
fn sum_of(n: usize, term: impl Fn(usize) -> f32) -> f32 {
    let mut sums = [0.0; WIDE];
    let whole = n / WIDE * WIDE;
    let mut i = 0;
    while i < whole {
        for (j, sum) in sums.iter_mut().enumerate() {
            *sum += term(i + j);
        }
        i += WIDE;
    }
    for (j, sum) in sums.iter_mut().enumerate().take(n - whole) {
        *sum += term(whole + j);
    }
    tree(sums)
}

struct Dot<'a>(&'a [f32], &'a [f32]);

impl Vectorised for Dot<'_> {
    type Out = f32;
    #[inline(always)]
    fn run<L: Lane>(self) -> f32 {
        let (a, b) = (self.0, &self.1[..self.0.len()]);
        sum_of(
            a.len(),
            #[inline(always)]
            |i| a[i] * b[i],
        )
    }
}

/// Sum of products.
pub(in crate::llm) fn dot(a: &[f32], b: &[f32]) -> f32 {
    dispatch(isa(), Dot(a, b))
}

struct Rotate<'a> {
    left: &'a mut [f32],
    right: &'a mut [f32],
    cos: &'a [f32],
    sin: &'a [f32],
    /// 1, or -1 for the transposed map.
    sign: f32,
}

impl Vectorised for Rotate<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lane>(self) {
        let n = self.left.len();
        let (left, right, cos, sin) = (&mut self.left[..n], &mut self.right[..n], &self.cos[..n], &self.sin[..n]);
        for i in 0..n {
            let (a, b, c, s) = (left[i], right[i], cos[i], self.sign * sin[i]);
            left[i] = a * c - b * s;
            right[i] = b * c + a * s;
        }
    }
}

/// Turns the points `(left, right)` by angles, or back by them.
pub(super) fn rotate(left: &mut [f32], right: &mut [f32], cos: &[f32], sin: &[f32], back: bool) {
    dispatch(isa(), Rotate { left, right, cos, sin, sign: if back { -1.0 } else { 1.0 } });
}

// Closures do not have the instructions of the function that they stand in. Those below are small and marked
// `#[inline(always)]`: one that is compiled by itself would call a function for every single instruction.

/// Applies `f` to whole vectors of a slice; the rest goes through a padded vector.
#[inline(always)]
fn map_lanes<L: Lane>(values: &mut [f32], f: impl Fn(L) -> L) {
    let mut chunks = values.chunks_exact_mut(L::WIDTH);
    for chunk in &mut chunks {
        f(L::read(chunk)).write(chunk);
    }
    let rest = chunks.into_remainder();
    if !rest.is_empty() {
        let mut lanes = [0.0_f32; 16];
        lanes[..rest.len()].copy_from_slice(rest);
        f(L::read(&lanes)).write(&mut lanes);
        rest.copy_from_slice(&lanes[..rest.len()]);
    }
}

#[inline(always)]
fn largest_of(x: &[f32]) -> f32 {
    let mut largest = [f32::NEG_INFINITY; WIDE];
    let mut chunks = x.chunks_exact(WIDE);
    for chunk in &mut chunks {
        for (a, &b) in largest.iter_mut().zip(chunk) {
            *a = if b > *a { b } else { *a };
        }
    }
    for (a, &b) in largest.iter_mut().zip(chunks.remainder()) {
        *a = if b > *a { b } else { *a };
    }
    largest.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

struct Largest<'a>(&'a [f32]);

impl Vectorised for Largest<'_> {
    type Out = f32;
    #[inline(always)]
    fn run<L: Lane>(self) -> f32 {
        largest_of(self.0)
    }
}

/// The largest number that is none; minus infinity if there is none.
pub(in crate::llm) fn largest(x: &[f32]) -> f32 {
    dispatch(isa(), Largest(x))
}

struct Softmax<'a>(&'a mut [f32]);

impl Vectorised for Softmax<'_> {
    type Out = (f32, f32);
    #[inline(always)]
    fn run<L: Lane>(self) -> (f32, f32) {
        let x = self.0;
        let largest = largest_of(x);
        map_lanes::<L>(
            x,
            #[inline(always)]
            |v| exp(v.sub(L::splat(largest))),
        );
        let sum = sum_of(
            x.len(),
            #[inline(always)]
            |i| x[i],
        );
        let inverse = 1.0 / sum;
        for v in x.iter_mut() {
            *v *= inverse;
        }
        (largest, sum)
    }
}

/// Replaces logits by probabilities; gives the largest logit and the sum of `e^(logit - largest)`.
pub(in crate::llm) fn softmax(x: &mut [f32]) -> (f32, f32) {
    dispatch(isa(), Softmax(x))
}

struct HeadSoftmax<'a>(&'a mut [f32]);

impl Vectorised for HeadSoftmax<'_> {
    type Out = SoftmaxSums;
    #[inline(always)]
    fn run<L: Lane>(self) -> SoftmaxSums {
        let x = self.0;
        let largest = largest_of(x);
        let (mut sum, mut along, mut total) = (L::splat(0.0), L::splat(0.0), L::splat(0.0));
        let whole = x.len() / L::WIDTH * L::WIDTH;
        for chunk in x[..whole].chunks_exact_mut(L::WIDTH) {
            let d = L::read(chunk).sub(L::splat(largest));
            let e = exp(d);
            sum = sum.add(e);
            total = total.add(d);
            along = e.mul_add(d, along);
            e.write(chunk);
        }
        let mut lanes = [[0.0_f32; 16]; 3];
        sum.write(&mut lanes[0]);
        along.write(&mut lanes[1]);
        total.write(&mut lanes[2]);
        let [mut sum, mut along, mut total] = lanes.map(tree);
        for x in &mut x[whole..] {
            let d = *x - largest;
            *x = d.exp();
            sum += *x;
            along += *x * d;
            total += d;
        }
        let inverse = 1.0 / sum;
        x.iter_mut().for_each(|v| *v *= inverse);
        SoftmaxSums { largest, sum, along, total }
    }
}

/// Sums over a row of logits, with `d = logit - largest`.
pub(super) struct SoftmaxSums {
    pub largest: f32,
    /// Of `e^d`.
    pub sum: f32,
    /// Of `e^d d`; the entropy is `ln sum - along / sum`.
    pub along: f32,
    /// Of `d`.
    pub total: f32,
}

/// As [`softmax`], with the sums that statistics of a row need.
pub(super) fn softmax_with_sums(x: &mut [f32]) -> SoftmaxSums {
    dispatch(isa(), HeadSoftmax(x))
}

struct AttentionSlopes<'a> {
    probabilities: &'a [f32],
    slopes: &'a mut [f32],
    mean: f32,
}

impl Vectorised for AttentionSlopes<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lane>(self) {
        for (s, &p) in self.slopes.iter_mut().zip(self.probabilities) {
            *s = p * (*s - self.mean);
        }
    }
}

/// `slopes = probabilities * (slopes - mean)`: through a softmax backwards.
pub(super) fn softmax_backward(probabilities: &[f32], slopes: &mut [f32], mean: f32) {
    dispatch(isa(), AttentionSlopes { probabilities, slopes, mean });
}

#[inline(always)]
fn sigmoid<L: Lane>(x: L) -> L {
    let one = L::splat(1.0);
    one.div(one.add(exp(L::splat(0.0).sub(x))))
}

struct SiluGate<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    out: &'a mut [f32],
}

impl Vectorised for SiluGate<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lane>(self) {
        self.out.copy_from_slice(self.gate);
        map_lanes::<L>(
            self.out,
            #[inline(always)]
            |x| x.mul(sigmoid(x)),
        );
        for (o, &u) in self.out.iter_mut().zip(self.up) {
            *o *= u;
        }
    }
}

/// `out = gate σ(gate) * up`.
pub(super) fn silu_gate(gate: &[f32], up: &[f32], out: &mut [f32]) {
    dispatch(isa(), SiluGate { gate, up, out });
}

struct SiluGateBackward<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    grad: &'a [f32],
    gate_grad: &'a mut [f32],
    up_grad: &'a mut [f32],
}

impl Vectorised for SiluGateBackward<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lane>(self) {
        let n = self.gate.len();
        let (gate, up, grad) = (self.gate, &self.up[..n], &self.grad[..n]);
        let (gate_grad, up_grad) = (&mut self.gate_grad[..n], &mut self.up_grad[..n]);
        up_grad.copy_from_slice(gate);
        map_lanes::<L>(
            up_grad,
            #[inline(always)]
            |x| sigmoid(x),
        );
        for i in 0..n {
            let s = up_grad[i];
            let active = gate[i] * s;
            up_grad[i] = grad[i] * active;
            gate_grad[i] = grad[i] * up[i] * (s + active * (1.0 - s));
        }
    }
}

/// Derivatives of [`silu_gate`].
pub(super) fn silu_gate_backward(gate: &[f32], up: &[f32], grad: &[f32], gate_grad: &mut [f32], up_grad: &mut [f32]) {
    dispatch(isa(), SiluGateBackward { gate, up, grad, gate_grad, up_grad });
}

/// Mean (0 for a root mean square) and inverse deviation of a row.
struct Moments<'a> {
    x: &'a [f32],
    centred: bool,
    eps: f32,
}

impl Vectorised for Moments<'_> {
    type Out = (f32, f32);
    #[inline(always)]
    fn run<L: Lane>(self) -> (f32, f32) {
        let x = self.x;
        let n = x.len() as f32;
        let mean = if self.centred {
            sum_of(
                x.len(),
                #[inline(always)]
                |i| x[i],
            ) / n
        } else {
            0.0
        };
        let variance = sum_of(
            x.len(),
            #[inline(always)]
            |i| (x[i] - mean) * (x[i] - mean),
        ) / n;
        (mean, 1.0 / (variance + self.eps).sqrt())
    }
}

/// Mean (0 unless `centred`) and inverse root of the mean square around it plus `eps`.
pub(in crate::llm) fn moments(x: &[f32], centred: bool, eps: f32) -> (f32, f32) {
    dispatch(isa(), Moments { x, centred, eps })
}

struct Normalise<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    centred: bool,
    eps: f32,
    out: &'a mut [f32],
}

impl Vectorised for Normalise<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lane>(self) {
        let Self { x, weight, bias, centred, eps, out } = self;
        let (mean, inverse) = Moments { x, centred, eps }.run::<L>();
        let n = out.len();
        let (x, weight) = (&x[..n], &weight[..n]);
        for i in 0..n {
            out[i] = (x[i] - mean) * inverse * weight[i];
        }
        if let Some(bias) = bias {
            out.iter_mut().zip(bias).for_each(|(out, b)| *out += b);
        }
    }
}

/// A row with mean 0 (if `centred`) and mean square 1, times the weight, plus the bias.
pub(in crate::llm) fn normalise(x: &[f32], weight: &[f32], bias: Option<&[f32]>, centred: bool, eps: f32, out: &mut [f32]) {
    dispatch(isa(), Normalise { x, weight, bias, centred, eps, out });
}

struct NormBackward<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    grad: &'a [f32],
    centred: bool,
    mean: f32,
    inverse: f32,
    out: &'a mut [f32],
    adds: bool,
    weight_grad: &'a mut [f32],
}

impl Vectorised for NormBackward<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lane>(self) {
        let n = self.x.len();
        let (x, weight, grad) = (self.x, &self.weight[..n], &self.grad[..n]);
        let (out, weight_grad) = (&mut self.out[..n], &mut self.weight_grad[..n]);
        let (mean, inverse) = (self.mean, self.inverse);
        let along = sum_of(
            n,
            #[inline(always)]
            |i| grad[i] * weight[i] * (x[i] - mean),
        ) * inverse
            / n as f32;
        let level = if self.centred {
            sum_of(
                n,
                #[inline(always)]
                |i| grad[i] * weight[i],
            ) / n as f32
        } else {
            0.0
        };
        if !self.adds {
            out.fill(0.0);
        }
        for i in 0..n {
            let normal = (x[i] - mean) * inverse;
            weight_grad[i] += grad[i] * normal;
            out[i] += inverse * (grad[i] * weight[i] - level - normal * along);
        }
    }
}

/// Derivative of a norm by its input, into `out` or, if `adds`, to what is there; adds that by the weight to `weight_grad`.
pub(super) fn norm_backward(
    x: &[f32],
    weight: &[f32],
    grad: &[f32],
    centred: bool,
    (mean, inverse): (f32, f32),
    out: &mut [f32],
    adds: bool,
    weight_grad: &mut [f32],
) {
    dispatch(isa(), NormBackward { x, weight, grad, centred, mean, inverse, out, adds, weight_grad });
}

/// One step of AdamW on a stretch of a parameter.
pub(in crate::llm) struct AdamWStep<'a> {
    pub value: &'a mut [f32],
    pub gradient: &'a mut [f32],
    pub first: &'a mut [f32],
    pub second: &'a mut [f32],
    /// Factor of the gradient (clipping).
    pub scale: f32,
    pub beta1: f32,
    pub beta2: f32,
    /// Learning rate over the bias correction of the first moment.
    pub rate: f32,
    /// 1 over the root of the bias correction of the second moment.
    pub second_scale: f32,
    pub epsilon: f32,
    /// `1 - learning rate * weight decay`.
    pub keep: f32,
}

impl Vectorised for AdamWStep<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lane>(self) {
        let n = self.value.len();
        let (gradient, first, second) = (&mut self.gradient[..n], &mut self.first[..n], &mut self.second[..n]);
        for i in 0..n {
            let g = gradient[i] * self.scale;
            gradient[i] = 0.0;
            first[i] = self.beta1 * first[i] + (1.0 - self.beta1) * g;
            second[i] = self.beta2 * second[i] + (1.0 - self.beta2) * g * g;
            self.value[i] = self.value[i] * self.keep - self.rate * first[i] / (second[i].sqrt() * self.second_scale + self.epsilon);
        }
    }
}

impl AdamWStep<'_> {
    /// Does it, and sets the gradient to 0.
    pub fn run_now(self) {
        dispatch(isa(), self);
    }
}

/// Sum of squares in `f64`, in a fixed order.
pub(in crate::llm) fn sum_of_squares(x: &[f32]) -> f64 {
    x.chunks(4096).map(|chunk| f64::from(dot(chunk, chunk))).sum()
}
