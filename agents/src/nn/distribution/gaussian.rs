//! The diagonal Gaussian whose standard deviation does not depend on the state.
//!
//! `mean` is `[rows, d]`, `log_std` is `[d]`, shared by all rows. With `z = (a - mean) / std`:
//! log-probability `-½ Σ z² - Σ log_std - ½ d ln 2π`, entropy `Σ log_std + ½ d (1 + ln 2π)`.

use std::f32::consts::TAU;

use steadfast_envs::Rng;

use super::super::kernel::math::exp_in_place;

/// What [`evaluate`] leaves for [`backward`]; grows when needed, then stays.
#[derive(Debug, Default, Clone)]
pub struct GaussianWork {
    rows: usize,
    /// `(a - mean) / std`, `[rows, d]`.
    z: Vec<f32>,
    /// `1 / std`, `[d]`.
    inverse_std: Vec<f32>,
}

/// Exponential of one number with the bits of the vector kernels.
fn exp(x: f32) -> f32 {
    let mut value = [x];
    exp_in_place(&mut value);
    value[0]
}

/// `Σ log_std + ½ d ln 2π`.
fn log_normaliser(log_std: &[f32]) -> f32 {
    log_std.iter().fold(0.0, |sum, l| sum + l) + 0.5 * TAU.ln() * log_std.len() as f32
}

/// Log-probabilities `[rows]` of `actions` `[rows, d]` and entropies `[rows]`.
///
/// # Panics
/// If a slice does not have its shape.
pub fn evaluate(
    mean: &[f32],
    log_std: &[f32],
    rows: usize,
    actions: &[f32],
    log_prob: &mut [f32],
    entropy: &mut [f32],
    work: &mut GaussianWork,
) {
    let d = log_std.len();
    assert!(mean.len() == rows * d && actions.len() == rows * d, "mean and actions of gaussian::evaluate");
    assert!(log_prob.len() == rows && entropy.len() == rows, "rows of gaussian::evaluate");
    work.rows = rows;
    work.z.resize(rows * d, 0.0);
    work.inverse_std.resize(d, 0.0);
    for (inverse, l) in work.inverse_std.iter_mut().zip(log_std) {
        *inverse = exp(-l);
    }
    let normaliser = log_normaliser(log_std);
    entropy.fill(normaliser + 0.5 * d as f32);
    log_prob.fill(0.0);
    for j in 0..d {
        let inverse = work.inverse_std[j];
        for r in 0..rows {
            let z = (actions[r * d + j] - mean[r * d + j]) * inverse;
            work.z[r * d + j] = z;
            log_prob[r] += z * z;
        }
    }
    for l in log_prob {
        *l = -0.5 * *l - normaliser;
    }
}

/// Adds to `d_mean` `[rows, d]` and `d_log_std` `[d]` the derivatives of `Σ d_log_prob · log_prob + d_entropy · entropy`
/// over the rows of the last [`evaluate`] on `work`.
///
/// # Panics
/// If a slice does not have its shape.
pub fn backward(work: &GaussianWork, d_log_prob: &[f32], d_entropy: &[f32], d_mean: &mut [f32], d_log_std: &mut [f32]) {
    let (rows, d) = (work.rows, work.inverse_std.len());
    assert!(d_log_prob.len() == rows && d_entropy.len() == rows, "rows of gaussian::backward");
    assert!(d_mean.len() == rows * d && d_log_std.len() == d, "gradients of gaussian::backward");
    for j in 0..d {
        let inverse = work.inverse_std[j];
        let mut sum = 0.0;
        for r in 0..rows {
            let z = work.z[r * d + j];
            d_mean[r * d + j] += d_log_prob[r] * z * inverse;
            sum += d_log_prob[r] * (z * z - 1.0) + d_entropy[r];
        }
        d_log_std[j] += sum;
    }
}

/// Draws an action into `action` `[d]` and returns its log-probability, which has the bits of [`evaluate`].
///
/// # Panics
/// If a slice does not have its shape.
pub fn sample(mean: &[f32], log_std: &[f32], rng: &mut Rng, action: &mut [f32]) -> f32 {
    assert!(mean.len() == log_std.len() && action.len() == log_std.len(), "shapes of gaussian::sample");
    let mut sum = 0.0;
    for ((a, m), l) in action.iter_mut().zip(mean).zip(log_std) {
        *a = m + exp(*l) * rng.normal_f32();
        // From the rounded action, as `evaluate` will see it.
        let z = (*a - m) * exp(-l);
        sum += z * z;
    }
    -0.5 * sum - log_normaliser(log_std)
}

/// Copies the mean into `action` `[d]` and returns its log-probability.
///
/// # Panics
/// If a slice does not have its shape.
pub fn greedy(mean: &[f32], log_std: &[f32], action: &mut [f32]) -> f32 {
    assert!(mean.len() == log_std.len(), "shapes of gaussian::greedy");
    action.copy_from_slice(mean);
    -log_normaliser(log_std)
}

/// Where [`kl`] adds its gradients; `None` leaves one out.
#[derive(Debug, Default)]
pub struct KlGradients<'a> {
    /// `[rows, d]`.
    pub mean_p: Option<&'a mut [f32]>,
    /// `[d]`.
    pub log_std_p: Option<&'a mut [f32]>,
    /// `[rows, d]`.
    pub mean_q: Option<&'a mut [f32]>,
    /// `[d]`.
    pub log_std_q: Option<&'a mut [f32]>,
}

/// Kullback–Leibler divergence `KL(p ‖ q)` of each row into `value` `[rows]`:
/// `Σ ln(s_q / s_p) + (s_p² + (m_p - m_q)²) / (2 s_q²) - ½`.
///
/// The gradients are those of `weight · Σ value`.
///
/// # Panics
/// If a slice does not have its shape.
pub fn kl(
    mean_p: &[f32],
    log_std_p: &[f32],
    mean_q: &[f32],
    log_std_q: &[f32],
    rows: usize,
    value: &mut [f32],
    weight: f32,
    mut gradients: KlGradients<'_>,
) {
    let d = log_std_p.len();
    assert!(mean_p.len() == rows * d && mean_q.len() == rows * d, "means of gaussian::kl");
    assert!(log_std_q.len() == d && value.len() == rows, "shapes of gaussian::kl");
    value.fill(0.0);
    for j in 0..d {
        let log_ratio = log_std_p[j] - log_std_q[j];
        let variance_ratio = exp(2.0 * log_ratio);
        let precision = exp(-2.0 * log_std_q[j]);
        // (s_p² / s_q² - 1) / 2 - ln(s_p / s_q), per row the same.
        let spread = 0.5 * (variance_ratio - 1.0) - log_ratio;
        let mut squares = 0.0;
        for r in 0..rows {
            let difference = mean_p[r * d + j] - mean_q[r * d + j];
            let scaled = difference * precision;
            value[r] += spread + 0.5 * difference * scaled;
            squares += difference * scaled;
            if let Some(gradient) = gradients.mean_p.as_deref_mut() {
                gradient[r * d + j] += weight * scaled;
            }
            if let Some(gradient) = gradients.mean_q.as_deref_mut() {
                gradient[r * d + j] -= weight * scaled;
            }
        }
        let rows = rows as f32;
        if let Some(gradient) = gradients.log_std_p.as_deref_mut() {
            gradient[j] += weight * rows * (variance_ratio - 1.0);
        }
        if let Some(gradient) = gradients.log_std_q.as_deref_mut() {
            gradient[j] += weight * (rows * (1.0 - variance_ratio) - squares);
        }
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
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (f64::from(*a) - b).abs() < 5e-6 * b.abs().max(1.0))
    }

    #[test]
    fn values_and_gradients_match_f64() {
        let mut rng = Rng::from_seed(1);
        for (rows, d) in [(1, 1), (7, 3), (33, 6)] {
            let (mean, log_std) = (noise(rows * d, &mut rng), noise(d, &mut rng));
            let actions = noise(rows * d, &mut rng);
            let (d_lp, d_h) = (noise(rows, &mut rng), noise(rows, &mut rng));
            let lp = |mean: &[f64], log_std: &[f64], r: usize| -> f64 {
                (0..d)
                    .map(|j| {
                        let z = (f64::from(actions[r * d + j]) - mean[r * d + j]) / log_std[j].exp();
                        -0.5 * z * z - log_std[j] - 0.5 * std::f64::consts::TAU.ln()
                    })
                    .sum()
            };
            let h = |log_std: &[f64]| log_std.iter().map(|l| l + 0.5 + 0.5 * std::f64::consts::TAU.ln()).sum::<f64>();
            let loss = |mean: &[f64], log_std: &[f64]| -> f64 {
                (0..rows).map(|r| f64::from(d_lp[r]) * lp(mean, log_std, r) + f64::from(d_h[r]) * h(log_std)).sum()
            };
            let (mut log_prob, mut entropy) = (vec![0.0; rows], vec![0.0; rows]);
            let mut work = GaussianWork::default();
            evaluate(&mean, &log_std, rows, &actions, &mut log_prob, &mut entropy, &mut work);
            let (m, l) = (wide(&mean), wide(&log_std));
            assert!(close(&log_prob, &(0..rows).map(|r| lp(&m, &l, r)).collect::<Vec<_>>()));
            assert!(close(&entropy, &vec![h(&l); rows]));
            let (mut d_mean, mut d_log_std) = (vec![0.0; rows * d], vec![0.0; d]);
            backward(&work, &d_lp, &d_h, &mut d_mean, &mut d_log_std);
            assert!(close(&d_mean, &differences(&m, |m| loss(m, &l))));
            assert!(close(&d_log_std, &differences(&l, |l| loss(&m, l))));
        }
    }

    #[test]
    fn divergence_and_its_gradients_match_f64() {
        let mut rng = Rng::from_seed(2);
        let (rows, d) = (9, 4);
        let (mp, mq) = (noise(rows * d, &mut rng), noise(rows * d, &mut rng));
        let (lp, lq) = (noise(d, &mut rng), noise(d, &mut rng));
        let exact = |mp: &[f64], lp: &[f64], mq: &[f64], lq: &[f64], r: usize| -> f64 {
            (0..d)
                .map(|j| {
                    let (sp, sq) = (lp[j].exp(), lq[j].exp());
                    let m = mp[r * d + j] - mq[r * d + j];
                    (sq / sp).ln() + (sp * sp + m * m) / (2.0 * sq * sq) - 0.5
                })
                .sum()
        };
        let total = |mp: &[f64], lp: &[f64], mq: &[f64], lq: &[f64]| 0.4 * (0..rows).map(|r| exact(mp, lp, mq, lq, r)).sum::<f64>();
        let mut value = vec![0.0; rows];
        let (mut a, mut b, mut c, mut e) = (vec![0.0; rows * d], vec![0.0; d], vec![0.0; rows * d], vec![0.0; d]);
        let gradients = KlGradients { mean_p: Some(&mut a), log_std_p: Some(&mut b), mean_q: Some(&mut c), log_std_q: Some(&mut e) };
        kl(&mp, &lp, &mq, &lq, rows, &mut value, 0.4, gradients);
        let (mp, lp, mq, lq) = (wide(&mp), wide(&lp), wide(&mq), wide(&lq));
        assert!(close(&value, &(0..rows).map(|r| exact(&mp, &lp, &mq, &lq, r)).collect::<Vec<_>>()));
        assert!(close(&a, &differences(&mp, |x| total(x, &lp, &mq, &lq))));
        assert!(close(&b, &differences(&lp, |x| total(&mp, x, &mq, &lq))));
        assert!(close(&c, &differences(&mq, |x| total(&mp, &lp, x, &lq))));
        assert!(close(&e, &differences(&lq, |x| total(&mp, &lp, &mq, x))));
    }

    #[test]
    fn draws_have_moments_and_the_bits_of_the_batch() {
        let mut rng = Rng::from_seed(3);
        let (mean, log_std) = ([0.5, -1.0], [-0.5, 0.3]);
        let n = 50_000;
        let (mut sum, mut square) = ([0.0_f64; 2], [0.0_f64; 2]);
        for _ in 0..n {
            let mut action = [0.0; 2];
            let drawn = sample(&mean, &log_std, &mut rng, &mut action);
            let (mut log_prob, mut entropy) = ([0.0], [0.0]);
            evaluate(&mean, &log_std, 1, &action, &mut log_prob, &mut entropy, &mut GaussianWork::default());
            assert_eq!(drawn.to_bits(), log_prob[0].to_bits());
            for j in 0..2 {
                sum[j] += f64::from(action[j]);
                square[j] += f64::from(action[j] - mean[j]).powi(2);
            }
        }
        for j in 0..2 {
            assert!((sum[j] / f64::from(n) - f64::from(mean[j])).abs() < 0.02);
            assert!((square[j] / f64::from(n) - f64::from(2.0 * log_std[j]).exp()).abs() < 0.04);
        }
        let mut action = [0.0; 2];
        let at_mean = greedy(&mean, &log_std, &mut action);
        assert_eq!(action, mean);
        assert!((at_mean - (0.2 - TAU.ln())).abs() < 1e-6);
    }
}
