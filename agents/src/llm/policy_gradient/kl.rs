//! Keeping a policy near its reference: estimates of the divergence, and a coefficient that follows a target.

use serde::{Deserialize, Serialize};

use super::config::{not_negative, positive};
use crate::AgentError;

/// How the divergence from the reference is estimated from drawn tokens, with `d = log π − log π_ref` of a token.
///
/// Source: Schulman 2020, "Approximating KL Divergence". In the mean over tokens drawn from π, k1 and k3 are the divergence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KlEstimator {
    /// `d`: without bias, can be negative.
    K1,
    /// `d² / 2`: biased, never negative.
    K2,
    /// `exp(−d) − 1 + d`: without bias, never negative.
    K3,
}

impl KlEstimator {
    /// The estimate of one token.
    pub fn value(self, d: f64) -> f64 {
        match self {
            Self::K1 => d,
            Self::K2 => 0.5 * d * d,
            // Not `exp(−d) − 1`, which loses the digits of small differences.
            Self::K3 => (-d).exp_m1() + d,
        }
    }

    /// Its derivative by `log π`.
    pub fn slope(self, d: f64) -> f64 {
        match self {
            Self::K1 => 1.0,
            Self::K2 => d,
            Self::K3 => -(-d).exp_m1(),
        }
    }
}

/// Settings of the divergence from the reference model, which is a frozen copy of the policy at the start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KlConfig {
    /// Price of a nat of divergence in units of reward, at least 0; the first one if `target` is given.
    pub coefficient: f64,
    /// Estimate of the divergence: `k1`, `k2` or `k3`.
    pub estimator: KlEstimator,
    /// Divergence per completion in nats that the coefficient is steered to, above 0; the coefficient stays if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<f64>,
    /// Completions over which the coefficient can change by a factor of about e^0.2, above 0. Matters with `target` only.
    pub horizon: f64,
    /// Whether the divergence is measured and logged even if it has no price. Without a price and this, there is no
    /// reference model.
    pub measure: bool,
}

impl KlConfig {
    pub(super) fn new(coefficient: f64, estimator: KlEstimator) -> Self {
        Self { coefficient, estimator, target: None, horizon: 10_000.0, measure: true }
    }

    pub(super) fn validate(&self) -> Result<(), AgentError> {
        not_negative("kl.coefficient", self.coefficient)?;
        if let Some(target) = self.target {
            positive("kl.target", target)?;
            // A coefficient is changed by a factor: 0 would stay 0.
            positive("kl.coefficient", self.coefficient)?;
        }
        positive("kl.horizon", self.horizon)
    }

    /// True if a reference model is needed.
    pub(super) fn uses_reference(&self) -> bool {
        self.coefficient > 0.0 || self.measure
    }

    /// The coefficient after a batch of `n` completions with a mean divergence of `kl` nats:
    /// `β ← β (1 + clip(kl / target − 1, ±0.2) n / horizon)`.
    ///
    /// Source: Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences" (arXiv 1909.08593).
    pub(super) fn next_coefficient(&self, coefficient: f64, kl: f64, n: usize) -> f64 {
        let Some(target) = self.target else { return coefficient };
        let error = (kl / target - 1.0).clamp(-0.2, 0.2);
        // A horizon below a fifth of the batch could turn the coefficient negative.
        coefficient * (1.0 + error * n as f64 / self.horizon).max(0.1)
    }
}

impl Default for KlConfig {
    fn default() -> Self {
        Self::new(0.05, KlEstimator::K1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_policies_have_no_divergence_and_k3_is_never_negative() {
        for estimator in [KlEstimator::K1, KlEstimator::K2, KlEstimator::K3] {
            assert_eq!(estimator.value(0.0), 0.0);
        }
        for i in -400..=400 {
            let d = f64::from(i) / 40.0;
            assert!(KlEstimator::K3.value(d) >= 0.0 && KlEstimator::K2.value(d) >= 0.0);
        }
        assert!((KlEstimator::K3.value(1.0) - (-1.0_f64).exp()).abs() < 1e-12);
    }

    #[test]
    fn slopes_are_those_of_the_values() {
        for estimator in [KlEstimator::K1, KlEstimator::K2, KlEstimator::K3] {
            for d in [-2.0, -0.1, 0.0, 0.3, 1.7] {
                let numeric = (estimator.value(d + 1e-5) - estimator.value(d - 1e-5)) / 2e-5;
                assert!((estimator.slope(d) - numeric).abs() < 1e-8, "{estimator:?} {d}");
            }
        }
    }

    #[test]
    fn mean_of_k1_and_k3_is_the_divergence_of_a_table() {
        let (policy, reference) = ([0.5, 0.3, 0.2], [0.2, 0.3, 0.5_f64]);
        let exact: f64 = policy.iter().zip(reference).map(|(p, r): (&f64, f64)| p * (p / r).ln()).sum();
        for estimator in [KlEstimator::K1, KlEstimator::K3] {
            let mean: f64 = policy.iter().zip(reference).map(|(p, r): (&f64, f64)| p * estimator.value((p / r).ln())).sum();
            assert!((mean - exact).abs() < 1e-12, "{estimator:?}");
        }
    }

    #[test]
    fn coefficient_follows_its_target() {
        let config = KlConfig { target: Some(6.0), ..KlConfig::default() };
        let close = |x: f64, y: f64| assert!((x - y).abs() < 1e-12, "{x} {y}");
        close(config.next_coefficient(0.1, 6.6, 500), 0.1 * (1.0 + 0.1 * 0.05));
        close(config.next_coefficient(0.1, 60.0, 500), 0.1 * (1.0 + 0.2 * 0.05));
        close(config.next_coefficient(0.1, -3.0, 500), 0.1 * (1.0 - 0.2 * 0.05));
        close(KlConfig::default().next_coefficient(0.1, 60.0, 500), 0.1);
        assert!(KlConfig { horizon: 1.0, ..config }.next_coefficient(0.1, 0.0, 500) > 0.0);
    }

    #[test]
    fn values_out_of_range_are_refused() {
        let default = KlConfig::default;
        assert!(default().validate().is_ok());
        assert!(KlConfig { coefficient: -1.0, ..default() }.validate().is_err());
        assert!(KlConfig { coefficient: 0.0, target: Some(1.0), ..default() }.validate().is_err());
        assert!(KlConfig { target: Some(0.0), ..default() }.validate().is_err());
        assert!(KlConfig { horizon: f64::NAN, ..default() }.validate().is_err());
    }
}
