//! The categorical distribution over `n` actions, given by logits.
//!
//! With `l = log softmax(logits)` and `p = exp l`: log-probability `l[a]`, entropy `H = -Σ p l`, and the derivatives
//! `∂l[a]/∂logit[j] = 1[j = a] - p[j]`, `∂H/∂logit[j] = -p[j] (l[j] + H)`. A logit of minus infinity masks its action out:
//! its probability is zero and it contributes nothing to entropy and gradients.

use std::cell::RefCell;

use steadfast_envs::Rng;

use super::super::kernel::aligned::Aligned;
use super::super::kernel::lane::{Isa, Lane, Vectorised, dispatch};
use super::super::kernel::{isa, math};

/// Rows per block; a multiple of every vector width.
const BLOCK: usize = 16;

/// What [`evaluate`] leaves for [`backward`]; grows when needed, then stays.
///
/// Log-probabilities and probabilities of all actions, in blocks `[block][action][row in block]`.
#[derive(Debug, Default, Clone)]
pub struct CategoricalWork {
    rows: usize,
    n: usize,
    log_prob: Aligned,
    prob: Aligned,
    entropy: Aligned,
}

/// Log-probabilities `[rows]` of `actions` and entropies `[rows]` under `logits` `[rows, n]`.
///
/// # Panics
/// If a slice does not have its shape or an action is not below `n`.
pub fn evaluate(
    logits: &[f32],
    rows: usize,
    n: usize,
    actions: &[u32],
    log_prob: &mut [f32],
    entropy: &mut [f32],
    work: &mut CategoricalWork,
) {
    assert!(n > 0 && logits.len() == rows * n, "logits of categorical::evaluate");
    assert!(actions.len() == rows && log_prob.len() == rows && entropy.len() == rows, "rows of categorical::evaluate");
    let blocks = rows.div_ceil(BLOCK);
    work.rows = rows;
    work.n = n;
    work.log_prob.grow(blocks * n * BLOCK);
    work.prob.grow(blocks * n * BLOCK);
    work.entropy.grow(blocks * BLOCK);
    dispatch(isa(), Evaluate { logits, rows, n, actions, log_prob, entropy, work });
}

struct Evaluate<'a> {
    logits: &'a [f32],
    rows: usize,
    n: usize,
    actions: &'a [u32],
    log_prob: &'a mut [f32],
    entropy: &'a mut [f32],
    work: &'a mut CategoricalWork,
}

impl Vectorised for Evaluate<'_> {
    type Out = ();

    #[inline(always)]
    fn run<L: Lane>(self) {
        let n = self.n;
        let size = n * BLOCK;
        for first in (0..self.rows).step_by(BLOCK) {
            let count = BLOCK.min(self.rows - first);
            let log_p = &mut self.work.log_prob[first * n..first * n + size];
            let p = &mut self.work.prob[first * n..first * n + size];
            let entropy = &mut self.work.entropy[first..first + BLOCK];
            transpose(&self.logits[first * n..], count, n, log_p);
            log_softmax::<L>(n, log_p, p);
            for at in (0..BLOCK).step_by(L::WIDTH) {
                let mut sum = L::splat(0.0);
                for j in 0..n {
                    let (l, p) = (L::read(&log_p[j * BLOCK + at..]), L::read(&p[j * BLOCK + at..]));
                    sum = sum.sub(times_log(p, l));
                }
                sum.write(&mut entropy[at..]);
            }
            self.entropy[first..first + count].copy_from_slice(&entropy[..count]);
            for (r, (out, action)) in self.log_prob[first..first + count].iter_mut().zip(&self.actions[first..]).enumerate() {
                let action = *action as usize;
                assert!(action < n, "action {action} of {n}");
                *out = log_p[action * BLOCK + r];
            }
        }
    }
}

/// Adds to `d_logits` `[rows, n]` the derivative of `Σ d_log_prob · log_prob + d_entropy · entropy` over the rows of the
/// last [`evaluate`] on `work`.
///
/// # Panics
/// If a slice does not have its shape.
pub fn backward(work: &CategoricalWork, actions: &[u32], d_log_prob: &[f32], d_entropy: &[f32], d_logits: &mut [f32]) {
    assert!(actions.len() == work.rows && d_log_prob.len() == work.rows, "rows of categorical::backward");
    assert!(d_entropy.len() == work.rows && d_logits.len() == work.rows * work.n, "rows of categorical::backward");
    dispatch(isa(), Backward { work, actions, d_log_prob, d_entropy, d_logits });
}

struct Backward<'a> {
    work: &'a CategoricalWork,
    actions: &'a [u32],
    d_log_prob: &'a [f32],
    d_entropy: &'a [f32],
    d_logits: &'a mut [f32],
}

impl Vectorised for Backward<'_> {
    type Out = ();

    #[inline(always)]
    fn run<L: Lane>(self) {
        let (rows, n) = (self.work.rows, self.work.n);
        for first in (0..rows).step_by(BLOCK) {
            let count = BLOCK.min(rows - first);
            let mut d_log_prob = [0.0_f32; BLOCK];
            let mut d_entropy = [0.0_f32; BLOCK];
            d_log_prob[..count].copy_from_slice(&self.d_log_prob[first..first + count]);
            d_entropy[..count].copy_from_slice(&self.d_entropy[first..first + count]);
            let d_logits = &mut self.d_logits[first * n..(first + count) * n];
            let mut column = [0.0_f32; BLOCK];
            for j in 0..n {
                let from = (first * n) + j * BLOCK;
                for at in (0..BLOCK).step_by(L::WIDTH) {
                    let l = L::read(&self.work.log_prob[from + at..]);
                    let p = L::read(&self.work.prob[from + at..]);
                    let h = L::read(&self.work.entropy[first + at..]);
                    let weighted = times_log(p, l.add(h)).mul(L::read(&d_entropy[at..]));
                    p.neg_mul_add(L::read(&d_log_prob[at..]), L::splat(0.0).sub(weighted)).write(&mut column[at..]);
                }
                for r in 0..count {
                    d_logits[r * n + j] += column[r];
                }
            }
            for r in 0..count {
                d_logits[r * n + self.actions[first + r] as usize] += d_log_prob[r];
            }
        }
    }
}

/// Kullback–Leibler divergence `KL(p ‖ q) = Σ p (log p - log q)` of each row into `value` `[rows]`.
///
/// `d_p` and `d_q` `[rows, n]` receive, added, the derivatives of `weight · Σ value` with respect to both logits:
/// `weight · p (log p - log q - KL)` and `weight · (q - p)`.
///
/// # Panics
/// If a slice does not have its shape.
pub fn kl(
    p_logits: &[f32],
    q_logits: &[f32],
    rows: usize,
    n: usize,
    value: &mut [f32],
    weight: f32,
    d_p: Option<&mut [f32]>,
    d_q: Option<&mut [f32]>,
) {
    assert!(n > 0 && p_logits.len() == rows * n && q_logits.len() == rows * n, "logits of categorical::kl");
    assert!(value.len() == rows, "values of categorical::kl");
    assert!(d_p.as_ref().is_none_or(|d| d.len() == rows * n), "d_p of categorical::kl");
    assert!(d_q.as_ref().is_none_or(|d| d.len() == rows * n), "d_q of categorical::kl");
    thread_local! {
        static SCRATCH: RefCell<Aligned> = RefCell::default();
    }
    SCRATCH.with_borrow_mut(|scratch| {
        scratch.grow(5 * n * BLOCK);
        dispatch(isa(), Kl { p_logits, q_logits, rows, n, value, weight, d_p, d_q, scratch });
    });
}

struct Kl<'a> {
    p_logits: &'a [f32],
    q_logits: &'a [f32],
    rows: usize,
    n: usize,
    value: &'a mut [f32],
    weight: f32,
    d_p: Option<&'a mut [f32]>,
    d_q: Option<&'a mut [f32]>,
    scratch: &'a mut [f32],
}

impl Vectorised for Kl<'_> {
    type Out = ();

    #[inline(always)]
    fn run<L: Lane>(mut self) {
        let n = self.n;
        let size = n * BLOCK;
        let (log_p, rest) = self.scratch[..5 * size].split_at_mut(size);
        let (p, rest) = rest.split_at_mut(size);
        let (log_q, rest) = rest.split_at_mut(size);
        let (q, column) = rest.split_at_mut(size);
        for first in (0..self.rows).step_by(BLOCK) {
            let count = BLOCK.min(self.rows - first);
            transpose(&self.p_logits[first * n..], count, n, log_p);
            transpose(&self.q_logits[first * n..], count, n, log_q);
            log_softmax::<L>(n, log_p, p);
            log_softmax::<L>(n, log_q, q);
            let mut value = [0.0_f32; BLOCK];
            for at in (0..BLOCK).step_by(L::WIDTH) {
                let mut sum = L::splat(0.0);
                for j in (at..size).step_by(BLOCK) {
                    sum = sum.add(times_log(L::read(&p[j..]), L::read(&log_p[j..]).sub(L::read(&log_q[j..]))));
                }
                sum.write(&mut value[at..]);
            }
            self.value[first..first + count].copy_from_slice(&value[..count]);
            let weight = L::splat(self.weight);
            if let Some(d_p) = self.d_p.as_deref_mut() {
                for at in (0..BLOCK).step_by(L::WIDTH) {
                    for j in (at..size).step_by(BLOCK) {
                        let difference = L::read(&log_p[j..]).sub(L::read(&log_q[j..])).sub(L::read(&value[at..]));
                        times_log(L::read(&p[j..]), difference).mul(weight).write(&mut column[j..]);
                    }
                }
                add_transposed(column, count, n, &mut d_p[first * n..]);
            }
            if let Some(d_q) = self.d_q.as_deref_mut() {
                for j in (0..size).step_by(L::WIDTH) {
                    L::read(&q[j..]).sub(L::read(&p[j..])).mul(weight).write(&mut column[j..]);
                }
                add_transposed(column, count, n, &mut d_q[first * n..]);
            }
        }
    }
}

/// How the derivatives of `KL(p ‖ q)` of each row, as [`kl`] has them, change when the logits of `p` move along `change` `[rows, n]`.
///
/// Writes `∂/∂p` into `d_p`, its change into `d_p_change` and the change of `∂/∂q` into `d_q_change`, each `[rows, n]`.
///
/// # Panics
/// If a slice does not have its shape.
pub fn kl_tangent(
    p_logits: &[f32],
    q_logits: &[f32],
    change: &[f32],
    rows: usize,
    n: usize,
    d_p: &mut [f32],
    d_p_change: &mut [f32],
    d_q_change: &mut [f32],
) {
    assert!(n > 0 && p_logits.len() == rows * n && q_logits.len() == rows * n, "logits of categorical::kl_tangent");
    assert!([change.len(), d_p.len(), d_p_change.len(), d_q_change.len()] == [rows * n; 4], "shapes of categorical::kl_tangent");
    thread_local! {
        static SCRATCH: RefCell<Aligned> = RefCell::default();
    }
    SCRATCH.with_borrow_mut(|scratch| {
        scratch.grow(5 * n * BLOCK);
        dispatch(isa(), KlTangent { p_logits, q_logits, change, rows, n, d_p, d_p_change, d_q_change, scratch });
    });
}

struct KlTangent<'a> {
    p_logits: &'a [f32],
    q_logits: &'a [f32],
    change: &'a [f32],
    rows: usize,
    n: usize,
    d_p: &'a mut [f32],
    d_p_change: &'a mut [f32],
    d_q_change: &'a mut [f32],
    scratch: &'a mut [f32],
}

impl Vectorised for KlTangent<'_> {
    type Out = ();

    #[inline(always)]
    fn run<L: Lane>(self) {
        let n = self.n;
        let size = n * BLOCK;
        let (log_p, rest) = self.scratch[..5 * size].split_at_mut(size);
        let (p, rest) = rest.split_at_mut(size);
        let (log_q, rest) = rest.split_at_mut(size);
        let (q, change) = rest.split_at_mut(size);
        for first in (0..self.rows).step_by(BLOCK) {
            let count = BLOCK.min(self.rows - first);
            transpose(&self.p_logits[first * n..], count, n, log_p);
            transpose(&self.q_logits[first * n..], count, n, log_q);
            transpose(&self.change[first * n..], count, n, change);
            log_softmax::<L>(n, log_p, p);
            log_softmax::<L>(n, log_q, q);
            for at in (0..BLOCK).step_by(L::WIDTH) {
                // With s = ln p - ln q, K = Σ p s and u = change - Σ p change: ∂K/∂p = p (s - K), which changes by
                // p (u (1 + s - K) - Σ p u s), and ∂K/∂q = q - p, which changes by -p u.
                let (mut divergence, mut mean) = (L::splat(0.0), L::splat(0.0));
                for j in (at..size).step_by(BLOCK) {
                    let p = L::read(&p[j..]);
                    divergence = divergence.add(times_log(p, L::read(&log_p[j..]).sub(L::read(&log_q[j..]))));
                    mean = p.mul_add(L::read(&change[j..]), mean);
                }
                let mut sum = L::splat(0.0);
                for j in (at..size).step_by(BLOCK) {
                    let p = L::read(&p[j..]);
                    let moved = L::read(&change[j..]).sub(mean);
                    sum = sum.add(times_log(p, moved.mul(L::read(&log_p[j..]).sub(L::read(&log_q[j..])))));
                }
                for j in (at..size).step_by(BLOCK) {
                    let p = L::read(&p[j..]);
                    let above = L::read(&log_p[j..]).sub(L::read(&log_q[j..])).sub(divergence);
                    let moved = L::read(&change[j..]).sub(mean);
                    times_log(p, above).write(&mut log_p[j..]);
                    times_log(p, moved.mul(above.add(L::splat(1.0))).sub(sum)).write(&mut log_q[j..]);
                    p.mul(moved.mul(L::splat(-1.0))).write(&mut q[j..]);
                }
            }
            for (from, to) in [(&*log_p, &mut *self.d_p), (&*log_q, &mut *self.d_p_change), (&*q, &mut *self.d_q_change)] {
                let to = &mut to[first * n..(first + count) * n];
                to.fill(0.0);
                add_transposed(from, count, n, to);
            }
        }
    }
}

/// `p · log` where p > 0, else 0: a masked action has p = 0 and an infinite logarithm.
#[inline(always)]
fn times_log<L: Lane>(p: L, log: L) -> L {
    let zero = L::splat(0.0);
    p.select_greater(zero, p.mul(log), p.mul(zero))
}

/// `count` rows of `n` into `[n][BLOCK]`; missing rows repeat the last one.
#[inline(always)]
fn transpose(rows: &[f32], count: usize, n: usize, to: &mut [f32]) {
    for r in 0..BLOCK {
        let row = &rows[r.min(count - 1) * n..][..n];
        for (j, value) in row.iter().enumerate() {
            to[j * BLOCK + r] = *value;
        }
    }
}

/// Adds `[n][BLOCK]` to `count` rows of `n`.
#[inline(always)]
fn add_transposed(from: &[f32], count: usize, n: usize, rows: &mut [f32]) {
    for (r, row) in rows.chunks_exact_mut(n).take(count).enumerate() {
        for (j, value) in row.iter_mut().enumerate() {
            *value += from[j * BLOCK + r];
        }
    }
}

/// In place from logits to log-probabilities, and the probabilities, both `[n][BLOCK]`.
#[inline(always)]
fn log_softmax<L: Lane>(n: usize, logits: &mut [f32], p: &mut [f32]) {
    let (logits, p) = (&mut logits[..n * BLOCK], &mut p[..n * BLOCK]);
    for at in (0..BLOCK).step_by(L::WIDTH) {
        let mut max = L::read(&logits[at..]);
        for j in (at..n * BLOCK).step_by(BLOCK) {
            max = max.max(L::read(&logits[j..]));
        }
        let mut sum = L::splat(0.0);
        for j in (at..n * BLOCK).step_by(BLOCK) {
            let e = math::exp(L::read(&logits[j..]).sub(max));
            e.write(&mut p[j..]);
            sum = sum.add(e);
        }
        let log_sum = math::ln(sum);
        let inverse = L::splat(1.0).div(sum);
        for j in (at..n * BLOCK).step_by(BLOCK) {
            L::read(&logits[j..]).sub(max).sub(log_sum).write(&mut logits[j..]);
            L::read(&p[j..]).mul(inverse).write(&mut p[j..]);
        }
    }
}

/// Draws an action; returns it with its log-probability, which has the bits of [`evaluate`].
///
/// # Panics
/// If the row is empty.
pub fn sample(logits: &[f32], rng: &mut Rng) -> (u32, f32) {
    let row = Row::new(logits);
    let threshold = rng.unit_f32() * row.sum;
    let mut cumulative = 0.0;
    let mut chosen = 0;
    row.for_each_exp(isa(), |action, e| {
        // Once the threshold is passed nothing changes any more; rounding at the end falls to the last possible action.
        if cumulative <= threshold && e > 0.0 {
            chosen = action;
        }
        cumulative += e;
    });
    (chosen as u32, row.log_prob(chosen))
}

/// The most probable action (the first among equals) with its log-probability.
///
/// # Panics
/// If the row is empty.
pub fn greedy(logits: &[f32]) -> (u32, f32) {
    let row = Row::new(logits);
    let chosen = logits.iter().position(|&z| z == row.max).unwrap_or(0);
    (chosen as u32, row.log_prob(chosen))
}

/// One row with what its softmax needs, in the order of operations of [`log_softmax`].
struct Row<'a> {
    logits: &'a [f32],
    max: f32,
    sum: f32,
}

impl<'a> Row<'a> {
    fn new(logits: &'a [f32]) -> Self {
        assert!(!logits.is_empty(), "a categorical distribution needs an action");
        let max = logits.iter().fold(logits[0], |max, &z| if max > z { max } else { z });
        let mut row = Self { logits, max, sum: 0.0 };
        let mut sum = 0.0;
        row.for_each_exp(isa(), |_, e| sum += e);
        row.sum = sum;
        row
    }

    fn for_each_exp(&self, isa: Isa, mut f: impl FnMut(usize, f32)) {
        for (c, chunk) in self.logits.chunks(BLOCK).enumerate() {
            let mut values = [0.0_f32; BLOCK];
            for (value, z) in values.iter_mut().zip(chunk) {
                *value = z - self.max;
            }
            dispatch(isa, Exp(&mut values));
            for (i, value) in values[..chunk.len()].iter().enumerate() {
                f(c * BLOCK + i, *value);
            }
        }
    }

    fn log_prob(&self, action: usize) -> f32 {
        let mut log_sum = [self.sum; BLOCK];
        dispatch(isa(), Ln(&mut log_sum));
        self.logits[action] - self.max - log_sum[0]
    }
}

struct Exp<'a>(&'a mut [f32; BLOCK]);

impl Vectorised for Exp<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lane>(self) {
        for chunk in self.0.chunks_exact_mut(L::WIDTH) {
            math::exp(L::read(chunk)).write(chunk);
        }
    }
}

struct Ln<'a>(&'a mut [f32; BLOCK]);

impl Vectorised for Ln<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lane>(self) {
        let chunk = &mut self.0[..L::WIDTH];
        math::ln(L::read(chunk)).write(chunk);
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::kernel::set_isa;
    use super::*;

    fn noise(n: usize, rng: &mut Rng) -> Vec<f32> {
        (0..n).map(|_| 2.0 * rng.normal_f32()).collect()
    }

    fn log_softmax_f64(row: &[f64]) -> Vec<f64> {
        let max = row.iter().fold(f64::NEG_INFINITY, |a, b| a.max(*b));
        let sum: f64 = row.iter().map(|z| (z - max).exp()).sum();
        row.iter().map(|z| z - max - sum.ln()).collect()
    }

    fn wide(row: &[f32]) -> Vec<f64> {
        row.iter().map(|v| f64::from(*v)).collect()
    }

    /// Derivative of `f` by central differences.
    fn differences(row: &[f64], f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
        (0..row.len())
            .map(|j| {
                let (mut up, mut down) = (row.to_vec(), row.to_vec());
                up[j] += 1e-5;
                down[j] -= 1e-5;
                (f(&up) - f(&down)) / 2e-5
            })
            .collect()
    }

    fn close(a: f32, b: f64) -> bool {
        (f64::from(a) - b).abs() < 2e-6 * b.abs().max(1.0)
    }

    #[test]
    fn values_and_gradients_match_f64() {
        let mut rng = Rng::from_seed(1);
        for (rows, n) in [(1, 1), (3, 2), (16, 5), (37, 5), (50, 19)] {
            let logits = noise(rows * n, &mut rng);
            let actions: Vec<u32> = (0..rows).map(|_| rng.below(n) as u32).collect();
            let (d_log_prob, d_entropy) = (noise(rows, &mut rng), noise(rows, &mut rng));
            let (mut log_prob, mut entropy) = (vec![0.0; rows], vec![0.0; rows]);
            let mut work = CategoricalWork::default();
            evaluate(&logits, rows, n, &actions, &mut log_prob, &mut entropy, &mut work);
            let mut d_logits = vec![0.25; rows * n];
            backward(&work, &actions, &d_log_prob, &d_entropy, &mut d_logits);
            for r in 0..rows {
                let row = wide(&logits[r * n..(r + 1) * n]);
                let l = log_softmax_f64(&row);
                let h = |l: &[f64]| -l.iter().map(|l| l * l.exp()).sum::<f64>();
                assert!(close(log_prob[r], l[actions[r] as usize]));
                assert!(close(entropy[r], h(&l)));
                let loss = |row: &[f64]| {
                    let l = log_softmax_f64(row);
                    f64::from(d_log_prob[r]) * l[actions[r] as usize] + f64::from(d_entropy[r]) * h(&l)
                };
                for (j, d) in differences(&row, loss).iter().enumerate() {
                    assert!(close(d_logits[r * n + j], d + 0.25), "{} {d}", d_logits[r * n + j]);
                }
            }
        }
    }

    #[test]
    fn divergence_and_its_gradients_match_f64() {
        let mut rng = Rng::from_seed(2);
        for (rows, n) in [(1, 1), (16, 5), (37, 5), (20, 33)] {
            let (p, q) = (noise(rows * n, &mut rng), noise(rows * n, &mut rng));
            let mut value = vec![0.0; rows];
            let (mut d_p, mut d_q) = (vec![0.5; rows * n], vec![0.5; rows * n]);
            kl(&p, &q, rows, n, &mut value, 0.3, Some(&mut d_p), Some(&mut d_q));
            let exact = |p: &[f64], q: &[f64]| {
                let (p, q) = (log_softmax_f64(p), log_softmax_f64(q));
                p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>()
            };
            for r in 0..rows {
                let (p, q) = (wide(&p[r * n..(r + 1) * n]), wide(&q[r * n..(r + 1) * n]));
                assert!(close(value[r], exact(&p, &q)) && value[r] > -1e-6);
                let (by_p, by_q) = (differences(&p, |p| exact(p, &q)), differences(&q, |q| exact(&p, q)));
                for j in 0..n {
                    assert!(close(d_p[r * n + j], 0.5 + 0.3 * by_p[j]));
                    assert!(close(d_q[r * n + j], 0.5 + 0.3 * by_q[j]));
                }
            }
            kl(&p, &p, rows, n, &mut value, 1.0, None, None);
            assert!(value.iter().all(|v| *v == 0.0));
        }
    }

    #[test]
    fn row_functions_have_the_bits_of_the_batch_for_all_instructions() {
        let mut rng = Rng::from_seed(3);
        for n in [2, 5, 16, 40] {
            let rows = 21;
            let logits = noise(rows * n, &mut rng);
            let mut drawn: Vec<Vec<(u32, u32)>> = Vec::new();
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
                assert!(set_isa(Some(isa)));
                let mut rng = Rng::from_seed(9);
                let draws: Vec<(u32, f32)> = logits.chunks(n).map(|row| sample(row, &mut rng)).collect();
                let actions: Vec<u32> = draws.iter().map(|d| d.0).collect();
                let (mut log_prob, mut entropy) = (vec![0.0; rows], vec![0.0; rows]);
                evaluate(&logits, rows, n, &actions, &mut log_prob, &mut entropy, &mut CategoricalWork::default());
                for (draw, l) in draws.iter().zip(&log_prob) {
                    assert_eq!(draw.1.to_bits(), l.to_bits());
                }
                drawn.push(draws.iter().map(|d| (d.0, d.1.to_bits())).collect());
            }
            set_isa(None);
            assert!(drawn.windows(2).all(|w| w[0] == w[1]));
        }
    }

    #[test]
    fn draws_have_the_right_frequencies_and_greedy_is_the_mode() {
        let logits = [0.3_f32, -1.0, f32::NEG_INFINITY, 1.2, 0.0];
        let mut rng = Rng::from_seed(4);
        let mut counts = [0_u32; 5];
        for _ in 0..100_000 {
            counts[sample(&logits, &mut rng).0 as usize] += 1;
        }
        let l = log_softmax_f64(&wide(&logits));
        for (count, l) in counts.iter().zip(&l) {
            assert!((f64::from(*count) / 1e5 - l.exp()).abs() < 0.006);
        }
        assert_eq!(counts[2], 0);
        let (action, log_prob) = greedy(&logits);
        assert_eq!(action, 3);
        assert!(close(log_prob, l[3]));
    }

    #[test]
    fn masked_actions_contribute_nothing() {
        let (masked, plain) = ([0.5_f32, f32::NEG_INFINITY, -0.2], [0.5_f32, -0.2]);
        let values = |logits: &[f32], actions: &[u32]| {
            let (mut log_prob, mut entropy, mut work) = ([0.0], [0.0], CategoricalWork::default());
            evaluate(logits, 1, logits.len(), actions, &mut log_prob, &mut entropy, &mut work);
            let mut d = vec![0.0; logits.len()];
            backward(&work, actions, &[1.0], &[1.0], &mut d);
            (log_prob[0], entropy[0], d)
        };
        let (a, b) = (values(&masked, &[2]), values(&plain, &[1]));
        assert_eq!((a.0, a.1), (b.0, b.1));
        assert_eq!(a.2, [b.2[0], 0.0, b.2[1]]);
    }
}
