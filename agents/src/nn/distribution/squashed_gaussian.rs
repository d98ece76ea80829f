//! A Gaussian squashed into a box: `action = tanh(u) · scale + shift` with `u` from a diagonal Gaussian.
//!
//! `mean` is `[rows, d]`; `log_std` is `[rows, d]`, or `[d]` shared by all rows. The log-probability of the action is that
//! of `u` less `Σ ln scale + ln(1 - tanh² u)`, and `ln(1 - tanh² u) = 2 (ln 2 - u - softplus(-2 u))` stays finite where
//! `tanh u` rounds to one. Source of the correction: Haarnoja et al. 2018 (arXiv 1801.01290), appendix C.
//!
//! The entropy has no closed form: `-log_prob` of a drawn action is its unbiased one-sample estimate.

use std::f32::consts::{LN_2, TAU};

use steadfast_envs::Rng;

use super::super::kernel::aligned::Aligned;
use super::super::kernel::isa;
use super::super::kernel::lane::{Lane, Vectorised, dispatch};
use super::super::kernel::math::{self, exp_in_place};
use crate::AgentError;

/// Largest `|tanh u|` that [`inverse`] takes an action for; beyond, `u` would be infinite.
const INVERSE_LIMIT: f32 = 1.0 - 1e-6;

/// The box of actions as factor and offset of the squashed value.
#[derive(Debug, Clone, PartialEq)]
pub struct ActionBox {
    scale: Vec<f32>,
    shift: Vec<f32>,
}

impl ActionBox {
    /// The box from `low` to `high`, each `[d]`.
    ///
    /// # Errors
    /// [`AgentError::Shape`] if the lengths differ, [`AgentError::Config`] unless all bounds are finite with `low < high`.
    pub fn new(low: &[f32], high: &[f32]) -> Result<Self, AgentError> {
        if low.len() != high.len() {
            return Err(AgentError::Shape { op: "ActionBox::new high".into(), expected: vec![low.len()], got: vec![high.len()] });
        }
        if let Some((l, h)) = low.iter().zip(high).find(|(l, h)| !(l.is_finite() && h.is_finite() && l < h)) {
            return Err(AgentError::Config {
                field: "action bounds".into(),
                expected: "finite with low < high for a squashed Gaussian".into(),
                got: format!("{l}..{h}"),
            });
        }
        Ok(Self {
            scale: low.iter().zip(high).map(|(l, h)| 0.5 * (h - l)).collect(),
            shift: low.iter().zip(high).map(|(l, h)| 0.5 * (h + l)).collect(),
        })
    }

    /// Number of action dimensions.
    pub fn len(&self) -> usize {
        self.scale.len()
    }

    /// Whether there are no dimensions.
    pub fn is_empty(&self) -> bool {
        self.scale.is_empty()
    }

    /// Actions `[rows, d]` of the box from numbers between -1 and 1, in place.
    pub fn stretch(&self, actions: &mut [f32]) {
        for row in actions.chunks_exact_mut(self.len()) {
            row.iter_mut().zip(self.scale.iter().zip(&self.shift)).for_each(|(a, (scale, shift))| *a = shift + scale * *a);
        }
    }

    /// The inverse of [`ActionBox::stretch`]; actions outside the box are brought to its edge.
    pub fn shrink(&self, actions: &mut [f32]) {
        for row in actions.chunks_exact_mut(self.len()) {
            row.iter_mut()
                .zip(self.scale.iter().zip(&self.shift))
                .for_each(|(a, (scale, shift))| *a = ((*a - shift) / scale).clamp(-1.0, 1.0));
        }
    }

    /// `Σ ln scale`.
    fn log_volume(&self) -> f32 {
        self.scale.iter().fold(0.0, |sum, s| sum + s.ln())
    }
}

/// What [`evaluate`] leaves for the backward passes; grows when needed, then stays.
#[derive(Debug, Default, Clone)]
pub struct SquashedWork {
    rows: usize,
    d: usize,
    is_shared: bool,
    /// `[rows, d]`: the Gaussian's `(u - mean) / std`.
    z: Vec<f32>,
    /// `exp(log_std)` in the shape of `log_std`.
    std: Aligned,
    /// `[rows, d]`: tanh u.
    tanh: Aligned,
    /// `[rows, d]`: ln(1 - tanh² u).
    log_slope: Aligned,
}

/// Elementwise passes over whole arrays; the last incomplete block goes through a buffer.
struct Squash<'a> {
    pre: &'a [f32],
    tanh: &'a mut [f32],
    log_slope: &'a mut [f32],
}

const BLOCK: usize = 16;

#[inline(always)]
fn squash<L: Lane>(u: L) -> (L, L) {
    let magnitude = u.max(L::splat(0.0).sub(u));
    let e = math::exp(magnitude.mul(L::splat(-2.0)));
    // 2 (ln 2 - |u| - ln(1 + e^{-2|u|})), even in u.
    let log_slope = L::splat(LN_2).sub(magnitude).sub(math::ln(L::splat(1.0).add(e))).mul(L::splat(2.0));
    (math::tanh(u), log_slope)
}

impl Vectorised for Squash<'_> {
    type Out = ();

    #[inline(always)]
    fn run<L: Lane>(self) {
        for ((u, t), s) in self.pre.chunks(BLOCK).zip(self.tanh.chunks_mut(BLOCK)).zip(self.log_slope.chunks_mut(BLOCK)) {
            let mut block = [0.0_f32; BLOCK];
            let (mut tanh, mut log_slope) = (block, block);
            block[..u.len()].copy_from_slice(u);
            for at in (0..BLOCK).step_by(L::WIDTH) {
                let (t, s) = squash(L::read(&block[at..]));
                t.write(&mut tanh[at..]);
                s.write(&mut log_slope[at..]);
            }
            t.copy_from_slice(&tanh[..u.len()]);
            s.copy_from_slice(&log_slope[..u.len()]);
        }
    }
}

/// Log-probabilities `[rows]` of the actions whose values before squashing are `pre` `[rows, d]`.
///
/// # Panics
/// If a slice does not have its shape.
pub fn evaluate(
    mean: &[f32],
    log_std: &[f32],
    bounds: &ActionBox,
    rows: usize,
    pre: &[f32],
    log_prob: &mut [f32],
    work: &mut SquashedWork,
) {
    let d = bounds.len();
    assert!(mean.len() == rows * d && pre.len() == rows * d, "mean and actions of squashed_gaussian::evaluate");
    assert!(log_std.len() == d || log_std.len() == rows * d, "log_std of squashed_gaussian::evaluate");
    assert!(log_prob.len() == rows, "rows of squashed_gaussian::evaluate");
    let is_shared = log_std.len() == d;
    (work.rows, work.d, work.is_shared) = (rows, d, is_shared);
    work.z.resize(rows * d, 0.0);
    work.std.grow(log_std.len());
    work.tanh.grow(rows * d);
    work.log_slope.grow(rows * d);
    let std = &mut work.std[..log_std.len()];
    std.copy_from_slice(log_std);
    exp_in_place(std);
    dispatch(isa(), Squash { pre, tanh: &mut work.tanh[..rows * d], log_slope: &mut work.log_slope[..rows * d] });
    let constant = bounds.log_volume() + 0.5 * TAU.ln() * d as f32;
    for r in 0..rows {
        let mut sum = 0.0;
        for j in 0..d {
            let at = r * d + j;
            let by_row = if is_shared { j } else { at };
            let z = (pre[at] - mean[at]) / work.std[by_row];
            work.z[at] = z;
            sum += 0.5 * z * z + log_std[by_row] + work.log_slope[at];
        }
        log_prob[r] = -sum - constant;
    }
}

/// Adds to `d_mean` `[rows, d]` and `d_log_std` (shaped as `log_std`) the derivatives of `Σ d_log_prob · log_prob` of the
/// last [`evaluate`], the action held fixed: the score-function gradient of policy-gradient methods.
///
/// # Panics
/// If a slice does not have its shape.
pub fn backward(work: &SquashedWork, d_log_prob: &[f32], d_mean: &mut [f32], d_log_std: &mut [f32]) {
    let (rows, d) = check(work, d_log_prob, d_mean, d_log_std);
    for r in 0..rows {
        for j in 0..d {
            let at = r * d + j;
            let by_row = if work.is_shared { j } else { at };
            let z = work.z[at];
            d_mean[at] += d_log_prob[r] * z / work.std[by_row];
            d_log_std[by_row] += d_log_prob[r] * (z * z - 1.0);
        }
    }
}

/// Adds to `d_mean` and `d_log_std` the derivatives of `Σ d_log_prob · log_prob + d_action · action` of the last
/// [`evaluate`], the noise `(u - mean) / std` held fixed: the reparameterised gradient of SAC. `d_action` is `[rows, d]`.
///
/// # Panics
/// If a slice does not have its shape.
pub fn backward_reparameterized(
    work: &SquashedWork,
    bounds: &ActionBox,
    d_log_prob: &[f32],
    d_action: &[f32],
    d_mean: &mut [f32],
    d_log_std: &mut [f32],
) {
    let (rows, d) = check(work, d_log_prob, d_mean, d_log_std);
    assert!(d_action.len() == rows * d && bounds.len() == d, "d_action of squashed_gaussian");
    for r in 0..rows {
        for j in 0..d {
            let at = r * d + j;
            let by_row = if work.is_shared { j } else { at };
            let tanh = work.tanh[at];
            // With fixed noise only the volume correction moves with u: -∂/∂u ln(1 - tanh² u) = 2 tanh u.
            let d_pre = d_log_prob[r] * 2.0 * tanh + d_action[at] * bounds.scale[j] * (1.0 - tanh * tanh);
            d_mean[at] += d_pre;
            d_log_std[by_row] += d_pre * work.std[by_row] * work.z[at] - d_log_prob[r];
        }
    }
}

fn check(work: &SquashedWork, d_log_prob: &[f32], d_mean: &[f32], d_log_std: &[f32]) -> (usize, usize) {
    let (rows, d) = (work.rows, work.d);
    assert!(d_log_prob.len() == rows && d_mean.len() == rows * d, "gradients of squashed_gaussian");
    assert!(d_log_std.len() == if work.is_shared { d } else { rows * d }, "d_log_std of squashed_gaussian");
    (rows, d)
}

/// Draws one action (`rows` = 1): its value before squashing into `pre`, the action into `action`, both `[d]`. Returns the
/// log-probability with the bits of [`evaluate`].
///
/// # Panics
/// If a slice does not have its shape.
pub fn sample(
    mean: &[f32],
    log_std: &[f32],
    bounds: &ActionBox,
    rng: &mut Rng,
    pre: &mut [f32],
    action: &mut [f32],
    work: &mut SquashedWork,
) -> f32 {
    assert!(pre.len() == bounds.len() && log_std.len() == bounds.len(), "shapes of squashed_gaussian::sample");
    pre.copy_from_slice(log_std);
    exp_in_place(pre);
    for (u, m) in pre.iter_mut().zip(mean) {
        *u = m + *u * rng.normal_f32();
    }
    finish_row(mean, log_std, bounds, pre, action, work)
}

/// The squashed mean: `pre`, `action` and log-probability as in [`sample`].
///
/// # Panics
/// If a slice does not have its shape.
pub fn greedy(mean: &[f32], log_std: &[f32], bounds: &ActionBox, pre: &mut [f32], action: &mut [f32], work: &mut SquashedWork) -> f32 {
    pre.copy_from_slice(mean);
    finish_row(mean, log_std, bounds, pre, action, work)
}

fn finish_row(mean: &[f32], log_std: &[f32], bounds: &ActionBox, pre: &[f32], action: &mut [f32], work: &mut SquashedWork) -> f32 {
    let mut log_prob = [0.0];
    evaluate(mean, log_std, bounds, 1, pre, &mut log_prob, work);
    to_box(work, bounds, action);
    log_prob[0]
}

/// The actions `[rows, d]` of the last [`evaluate`].
///
/// # Panics
/// If `action` does not have its shape.
pub fn to_box(work: &SquashedWork, bounds: &ActionBox, action: &mut [f32]) {
    let d = work.d;
    assert!(action.len() == work.rows * d && bounds.len() == d, "shapes of squashed_gaussian::to_box");
    for (at, a) in action.iter_mut().enumerate() {
        *a = work.tanh[at] * bounds.scale[at % d] + bounds.shift[at % d];
    }
}

/// The values before squashing of `action` `[rows, d]`. Actions on the border of the box, where they would be infinite, are
/// moved inwards by one millionth of its half width.
///
/// # Panics
/// If a slice does not have its shape.
pub fn inverse(bounds: &ActionBox, action: &[f32], pre: &mut [f32]) {
    let d = bounds.len();
    assert!(action.len() == pre.len() && action.len().is_multiple_of(d.max(1)), "shapes of squashed_gaussian::inverse");
    for (at, (u, a)) in pre.iter_mut().zip(action).enumerate() {
        let t = ((a - bounds.shift[at % d]) / bounds.scale[at % d]).clamp(-INVERSE_LIMIT, INVERSE_LIMIT);
        *u = t.atanh();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(n: usize, rng: &mut Rng) -> Vec<f32> {
        (0..n).map(|_| 0.7 * rng.normal_f32()).collect()
    }

    fn wide(row: &[f32]) -> Vec<f64> {
        row.iter().map(|v| f64::from(*v)).collect()
    }

    fn differences(x: &[f64], f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
        (0..x.len())
            .map(|j| {
                let (mut up, mut down) = (x.to_vec(), x.to_vec());
                up[j] += 1e-5;
                down[j] -= 1e-5;
                (f(&up) - f(&down)) / 2e-5
            })
            .collect()
    }

    fn close(a: &[f32], b: &[f64]) -> bool {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-5 * b.abs().max(1.0))
    }

    /// Log-density of the action by the change of variables, in `f64`.
    fn density(mean: f64, log_std: f64, scale: f64, u: f64) -> f64 {
        let z = (u - mean) / log_std.exp();
        -0.5 * z * z - log_std - 0.5 * std::f64::consts::TAU.ln() - (scale * (1.0 - u.tanh().powi(2))).ln()
    }

    #[test]
    fn values_and_both_gradients_match_f64() {
        let mut rng = Rng::from_seed(1);
        let bounds = ActionBox::new(&[-1.0, 0.0, -3.0], &[1.0, 5.0, -1.0]).unwrap();
        let (rows, d) = (11, 3);
        for is_shared in [true, false] {
            let n_std = if is_shared { d } else { rows * d };
            let (mean, log_std) = (noise(rows * d, &mut rng), noise(n_std, &mut rng));
            let (pre, d_lp, d_action) = (noise(rows * d, &mut rng), noise(rows, &mut rng), noise(rows * d, &mut rng));
            let std_at = |at: usize| if is_shared { at % d } else { at };
            let mut work = SquashedWork::default();
            let mut log_prob = vec![0.0; rows];
            evaluate(&mean, &log_std, &bounds, rows, &pre, &mut log_prob, &mut work);
            let (m, l, u) = (wide(&mean), wide(&log_std), wide(&pre));
            let at = |m: &[f64], l: &[f64], u: &[f64], r: usize| -> f64 {
                (r * d..r * d + d).map(|i| density(m[i], l[std_at(i)], f64::from(bounds.scale[i % d]), u[i])).sum()
            };
            assert!(close(&log_prob, &(0..rows).map(|r| at(&m, &l, &u, r)).collect::<Vec<_>>()));
            let score = |m: &[f64], l: &[f64]| (0..rows).map(|r| f64::from(d_lp[r]) * at(m, l, &u, r)).sum::<f64>();
            let (mut d_mean, mut d_log_std) = (vec![0.0; rows * d], vec![0.0; n_std]);
            backward(&work, &d_lp, &mut d_mean, &mut d_log_std);
            assert!(close(&d_mean, &differences(&m, |m| score(m, &l))));
            assert!(close(&d_log_std, &differences(&l, |l| score(&m, l))));
            let epsilon: Vec<f64> = (0..rows * d).map(|i| (u[i] - m[i]) / l[std_at(i)].exp()).collect();
            let path = |m: &[f64], l: &[f64]| -> f64 {
                let u: Vec<f64> = (0..rows * d).map(|i| m[i] + l[std_at(i)].exp() * epsilon[i]).collect();
                let of_action: f64 = (0..rows * d).map(|i| f64::from(d_action[i]) * (u[i].tanh() * f64::from(bounds.scale[i % d]))).sum();
                of_action + (0..rows).map(|r| f64::from(d_lp[r]) * at(m, l, &u, r)).sum::<f64>()
            };
            let (mut d_mean, mut d_log_std) = (vec![0.0; rows * d], vec![0.0; n_std]);
            backward_reparameterized(&work, &bounds, &d_lp, &d_action, &mut d_mean, &mut d_log_std);
            assert!(close(&d_mean, &differences(&m, |m| path(m, &l))));
            assert!(close(&d_log_std, &differences(&l, |l| path(&m, l))));
        }
    }

    #[test]
    fn far_tails_stay_finite() {
        let bounds = ActionBox::new(&[-1.0], &[1.0]).unwrap();
        let mut work = SquashedWork::default();
        for u in [-40.0_f32, -15.0, 15.0, 40.0] {
            let mut log_prob = [0.0];
            evaluate(&[u], &[0.0], &bounds, 1, &[u], &mut log_prob, &mut work);
            // ln(1 - tanh² u) → 2 ln 2 - 2 |u|.
            let expected = -0.5 * f64::from(TAU).ln() - 2.0 * (std::f64::consts::LN_2 - f64::from(u.abs()));
            assert!((f64::from(log_prob[0]) - expected).abs() < 1e-4, "{} {expected}", log_prob[0]);
        }
    }

    #[test]
    fn samples_lie_in_the_box_and_invert() {
        let mut rng = Rng::from_seed(2);
        let bounds = ActionBox::new(&[-2.0, 1.0], &[2.0, 3.0]).unwrap();
        let mut work = SquashedWork::default();
        let (mut pre, mut action, mut again, mut mean_log) = ([0.0; 2], [0.0; 2], [0.0; 2], 0.0);
        let n = 20_000;
        for _ in 0..n {
            let l = sample(&[0.2, -0.3], &[-1.0, -0.5], &bounds, &mut rng, &mut pre, &mut action, &mut work);
            assert!(action[0].abs() <= 2.0 && (1.0..=3.0).contains(&action[1]));
            inverse(&bounds, &action, &mut again);
            assert!(pre.iter().zip(&again).all(|(a, b)| (a - b).abs() < 1e-3 * a.abs().max(1.0).exp()));
            mean_log += f64::from(l) / f64::from(n);
        }
        // One-sample entropies average to the entropy, here by numerical integration over u.
        let entropy: f64 = [(0.2, -1.0, 2.0), (-0.3, -0.5, 1.0)]
            .iter()
            .map(|&(m, l, s)| {
                let step = 1e-3;
                (-8000..8000)
                    .map(|i| f64::from(i) * step)
                    .map(|u| {
                        let gauss = (-0.5 * ((u - m) / f64::exp(l)).powi(2)).exp() / (f64::exp(l) * std::f64::consts::TAU.sqrt());
                        -gauss * density(m, l, s, u) * step
                    })
                    .sum::<f64>()
            })
            .sum();
        assert!((mean_log + entropy).abs() < 0.03, "{mean_log} {entropy}");
        greedy(&[0.0, 0.0], &[0.0, 0.0], &bounds, &mut pre, &mut action, &mut work);
        assert_eq!(action, [0.0, 2.0]);
        inverse(&bounds, &[2.0, 1.0], &mut again);
        assert!(again.iter().all(|u| u.is_finite()));
    }

    #[test]
    fn bad_boxes_are_refused() {
        assert!(matches!(ActionBox::new(&[0.0], &[f32::INFINITY]), Err(AgentError::Config { .. })));
        assert!(matches!(ActionBox::new(&[1.0], &[1.0]), Err(AgentError::Config { .. })));
        assert!(matches!(ActionBox::new(&[1.0], &[]), Err(AgentError::Shape { .. })));
    }
}
