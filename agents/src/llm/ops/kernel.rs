//! Products and row-wise loops over plain slices, which the fused operations are made of.
//!
//! Work is cut into pieces, each computed by one thread. Where a border could change a bit, borders depend on sizes alone. So
//! results have the same bits for any number of threads.

use std::ops::Range;

use rayon::prelude::*;

use crate::nn::kernel::lane::{Lane, Vectorised, dispatch, isa};
use crate::nn::kernel::math::exp;

/// Rows of a piece of work.
pub(super) const PIECE: usize = 256;

/// A matrix in a slice: element `(i, j)` stands at `i * row + j * column`.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    pub data: &'a [f32],
    pub row: usize,
    pub column: usize,
}

impl<'a> Matrix<'a> {
    /// Row-major with `width` numbers per row.
    pub fn rows(data: &'a [f32], width: usize) -> Self {
        Self { data, row: width, column: 1 }
    }

    /// The transposed matrix.
    pub fn transposed(self) -> Self {
        Self { row: self.column, column: self.row, ..self }
    }

    fn holds(&self, rows: usize, columns: usize) -> bool {
        rows == 0 || columns == 0 || (rows - 1) * self.row + (columns - 1) * self.column < self.data.len()
    }
}

/// A pointer that threads may share because they write to different places behind it.
#[derive(Clone, Copy)]
pub(in crate::llm) struct Shared(*mut f32);

// SAFETY: users of `Shared` write to disjoint places; each such use says which.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    pub fn new(data: &mut [f32]) -> Self {
        Self(data.as_mut_ptr())
    }

    /// # Safety
    /// `range` lies in the slice that `self` was made of, which is still borrowed, and no other thread touches it.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn slice<'a>(&self, range: Range<usize>) -> &'a mut [f32] {
        // SAFETY: by contract.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(range.start), range.len()) }
    }
}

/// Runs `work` for every piece of [`PIECE`] of `0..n`, on the threads of the current pool if there are several.
pub(super) fn in_pieces(n: usize, work: impl Fn(Range<usize>) + Sync) {
    in_pieces_of(PIECE, n, work);
}

/// The same for pieces of `size`.
pub(in crate::llm) fn in_pieces_of(size: usize, n: usize, work: impl Fn(Range<usize>) + Sync) {
    let pieces = n.div_ceil(size);
    let piece = |i: usize| work(i * size..((i + 1) * size).min(n));
    if pieces > 1 && rayon::current_num_threads() > 1 {
        (0..pieces).into_par_iter().with_max_len(1).for_each(piece);
    } else {
        (0..pieces).for_each(piece);
    }
}

/// Runs `work` for `0..n`, each on one thread.
pub(in crate::llm) fn each(n: usize, work: impl Fn(usize) + Sync) {
    if n > 1 && rayon::current_num_threads() > 1 {
        (0..n).into_par_iter().with_max_len(1).for_each(&work);
    } else {
        (0..n).for_each(&work);
    }
}

/// `out[m, n] (+)= scale * left[m, k] right[k, n]`, row-major with `out_row` numbers from row to row; on one thread.
pub(super) fn product(out: &mut [f32], out_row: usize, [m, n, k]: [usize; 3], left: Matrix<'_>, right: Matrix<'_>, adds: bool, scale: f32) {
    if m == 0 || n == 0 {
        return;
    }
    assert!((m - 1) * out_row + n <= out.len(), "the product must fit its place");
    assert!(left.holds(m, k) && right.holds(k, n), "the factors must have the sizes of the product");
    // SAFETY: all elements that are read or written lie in their slices, as asserted.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            out_row as isize,
            adds,
            left.data.as_ptr(),
            left.column as isize,
            left.row as isize,
            right.data.as_ptr(),
            right.column as isize,
            right.row as isize,
            1.0_f32,
            scale,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// As [`product`], with the rows of the result shared among threads. Each thread packs the right factor for itself, so there
/// are no more pieces than threads. A row has the same bits in any piece of at least 64 rows: how its sum is cut depends on
/// `k` alone.
pub(super) fn parallel_product(out: &mut [f32], out_row: usize, [m, n, k]: [usize; 3], left: Matrix<'_>, right: Matrix<'_>, adds: bool) {
    let length = out.len();
    let shared = Shared::new(out);
    let pieces = (m / 128).clamp(1, rayon::current_num_threads());
    let size = m / pieces / 64 * 64;
    each(pieces, |i| {
        let rows = i * size..if i + 1 == pieces { m } else { (i + 1) * size };
        let end = if rows.end == m { length } else { rows.end * out_row };
        // SAFETY: pieces are disjoint ranges of rows.
        let out = unsafe { shared.slice(rows.start * out_row..end) };
        let left = Matrix { data: &left.data[(rows.start * left.row).min(left.data.len())..], ..left };
        product(out, out_row, [rows.len(), n, k], left, right, adds, 1.0);
    });
}

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

#[cfg(test)]
mod tests {
    use steadfast_envs::Rng;

    use super::*;

    #[test]
    fn products_have_the_same_bits_on_any_number_of_threads() {
        let mut rng = Rng::from_seed(3);
        let mut noise = |n: usize| -> Vec<f32> { (0..n).map(|_| rng.normal_f32()).collect() };
        // Rows that leave a remainder of one, and sums of more than one block.
        for [m, n, k] in [[257, 33, 48], [641, 7, 1100], [130, 96, 5], [1000, 64, 600]] {
            let (left, right) = (noise(m * k), noise(n * k));
            let run = |threads: usize, is_transposed: bool| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let left = if is_transposed { Matrix { data: &left, row: 1, column: m } } else { Matrix::rows(&left, k) };
                let mut out = vec![0.5; m * n];
                pool.install(|| parallel_product(&mut out, n, [m, n, k], left, Matrix::rows(&right, k).transposed(), true));
                out
            };
            for is_transposed in [false, true] {
                let one = run(1, is_transposed);
                assert!([2, 3, 5, 8].iter().all(|&threads| run(threads, is_transposed) == one), "{m} {n} {k}");
            }
        }
    }
}
