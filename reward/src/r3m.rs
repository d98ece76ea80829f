//! R3M: the ℓ1-robust logistic loss, and the outlier value of each pair.
//!
//! A pair with margin `d = r(chosen) − r(rejected)` may carry an outlier δ ≥ 0 that explains a wrong label at the price
//! λ|δ|: the loss is `−ln σ(d + δ) + λ δ`. For fixed d the best δ has a closed form, `δ = max(c − d, 0)` with
//! `c = ln(1/λ − 1)`, so no state is kept per pair. Put back in, it gives a logistic loss that is linear below c:
//!
//! ```text
//! ρ(d) = −ln σ(d)                   for d ≥ c
//!        −ln(1 − λ) + λ (c − d)     for d < c          ρ′(d) = −min(σ(−d), λ)
//! ```
//!
//! λ counts per pair, so that data given twice has the same minimiser, and λ ≥ 1 *is* cross-entropy.
//!
//! Source: Bukharin et al. 2024, "Robust Reinforcement Learning from Corrupted Human Feedback" (arXiv 2406.15568). The
//! paper's objective with its λ before the sum over n pairs corresponds to n times that λ here.

use serde::{Deserialize, Serialize};

use crate::error::{Result, require};
use crate::margin::{LossValue, log_one_plus_exp, sigmoid};

/// Settings of R3M.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct R3mConfig {
    /// Price of explaining a label away, and the largest weight a pair can have, above 0. From 1 on the loss is
    /// cross-entropy; below 0.5 even pairs in the right order are clipped while their margin is small.
    pub lambda: f64,
}

impl Default for R3mConfig {
    fn default() -> Self {
        Self { lambda: 0.75 }
    }
}

/// The loss for one λ.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RobustLogistic {
    lambda: f32,
    /// `c`, or −∞ if nothing is ever an outlier.
    threshold: f32,
    /// `−ln(1 − λ)`.
    floor: f32,
}

impl RobustLogistic {
    /// The loss for `config.lambda`.
    ///
    /// # Errors
    /// [`crate::RewardError::Config`] if it is not a number above 0.
    pub fn new(config: &R3mConfig) -> Result<Self> {
        let lambda = config.lambda;
        require(lambda as f32 > 0.0 && lambda.is_finite(), "lambda", "a finite number above 0", lambda)?;
        let threshold = if lambda >= 1.0 { f64::NEG_INFINITY } else { (-lambda).ln_1p() - lambda.ln() };
        let floor = if lambda >= 1.0 { f64::INFINITY } else { -(-lambda).ln_1p() };
        Ok(Self { lambda: lambda as f32, threshold: threshold as f32, floor: floor as f32 })
    }

    /// `c`: pairs with a smaller margin are outliers.
    pub fn threshold(&self) -> f32 {
        self.threshold
    }

    /// δ of a pair: how much its margin lacks to be believed; 0 for inliers, NaN for a margin that is NaN.
    pub fn outlier(&self, margin: f32) -> f32 {
        // With c = −∞ the difference would be −∞, or NaN for an infinite margin.
        if margin >= self.threshold { 0.0 } else { self.threshold - margin }
    }

    /// ρ and its derivative.
    pub fn evaluate(&self, margin: f32) -> LossValue {
        if margin < self.threshold {
            LossValue { value: self.floor + self.lambda * (self.threshold - margin), slope: -self.lambda }
        } else {
            LossValue { value: log_one_plus_exp(-margin), slope: -sigmoid(-margin) }
        }
    }
}
