//! ERNIE's Lipschitz regulariser and its Gaussian baseline.

use serde::{Deserialize, Serialize};

use crate::AgentError;

/// The ball that holds a perturbation, per sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Norm {
    /// Euclidean length.
    L2,
    /// Largest coordinate.
    Linf,
}

/// The unit in which a perturbation is measured, feature by feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scale {
    /// The environment's own units.
    Absolute,
    /// The running standard deviation of each feature.
    RunningStd,
}

/// How far apart two outputs of the policy are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Distance {
    /// Divergence of the perturbed distribution from the clean one.
    Kl,
    /// Squared Euclidean distance of the network outputs (logits or means).
    L2,
}

/// Which of the two outputs the penalty trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gradient {
    /// Both; the perturbation itself counts as a constant (ERNIE without Stackelberg).
    Detached,
    /// Only the perturbed one, which is pulled to the clean one.
    TargetClean,
}

/// Settings of the adversarial penalty.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LipschitzConfig {
    /// Weight of the penalty (the paper's λ), at least 0. With 0 the run equals the unregularised one bit for bit.
    pub weight: f64,
    /// Fraction of the run over which the weight grows linearly from 0, 0 to 1.
    pub warmup_fraction: f64,
    /// Radius of the ball (the paper's ε), at least 0, in the units of `scale`.
    pub radius: f64,
    /// The ball: `l2` or `linf`.
    pub norm: Norm,
    /// Units of the perturbation: `absolute` or `running_std`.
    pub scale: Scale,
    /// Ascent steps K, 0 to 1000.
    pub steps: usize,
    /// Length of an ascent step in the units of the radius, above 0; the radius for one step, else 2 radius / steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step_size: Option<f64>,
    /// Standard deviation of the perturbation from which the ascent starts, in the units of `scale`, above 0.
    pub initial_std: f64,
    /// Distance of outputs: `kl` or `l2`.
    pub distance: Distance,
    /// What the penalty trains: `detached` or `target_clean`.
    pub gradient: Gradient,
    /// The Lipschitz constant is bounded from below every so many updates; 0 means never.
    pub probe_every: usize,
}

impl Default for LipschitzConfig {
    fn default() -> Self {
        Self {
            weight: 0.1,
            // Early policies are nearly uniform, so their divergence says nothing yet about a good weight.
            warmup_fraction: 0.1,
            radius: 0.1,
            norm: Norm::L2,
            scale: Scale::RunningStd,
            steps: 1,
            step_size: None,
            initial_std: 1e-3,
            distance: Distance::Kl,
            gradient: Gradient::Detached,
            probe_every: 10,
        }
    }
}

impl LipschitzConfig {
    /// Checks the ranges given with the fields.
    ///
    /// # Errors
    /// [`AgentError::Config`] for the first field out of its range.
    pub fn validate(&self) -> Result<(), AgentError> {
        check_ball(self.weight, self.warmup_fraction, self.radius)?;
        if self.steps > 1000 {
            return Err(out_of_range("steps", "between 0 and 1000", self.steps.to_string()));
        }
        if let Some(size) = self.step_size
            && !(size.is_finite() && size > 0.0)
        {
            return Err(out_of_range("step_size", "a finite number above 0", size.to_string()));
        }
        if !(self.initial_std.is_finite() && self.initial_std > 0.0) {
            return Err(out_of_range(
                "initial_std",
                "a finite number above 0: at zero the ascent has no direction",
                self.initial_std.to_string(),
            ));
        }
        Ok(())
    }
}

/// Settings of the penalty at a random perturbation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GaussianConfig {
    /// Weight of the penalty, at least 0.
    pub weight: f64,
    /// Fraction of the run over which the weight grows linearly from 0, 0 to 1.
    pub warmup_fraction: f64,
    /// Radius of the ball to whose surface the random direction is brought, at least 0, in the units of `scale`.
    pub radius: f64,
    /// The ball: `l2` or `linf`.
    pub norm: Norm,
    /// Units of the perturbation: `absolute` or `running_std`.
    pub scale: Scale,
    /// Distance of outputs: `kl` or `l2`.
    pub distance: Distance,
    /// What the penalty trains: `detached` or `target_clean`.
    pub gradient: Gradient,
    /// The Lipschitz constant is bounded from below every so many updates; 0 means never.
    pub probe_every: usize,
}

impl Default for GaussianConfig {
    fn default() -> Self {
        let adversarial = LipschitzConfig::default();
        Self {
            weight: adversarial.weight,
            warmup_fraction: adversarial.warmup_fraction,
            radius: adversarial.radius,
            norm: adversarial.norm,
            scale: adversarial.scale,
            distance: adversarial.distance,
            gradient: adversarial.gradient,
            probe_every: adversarial.probe_every,
        }
    }
}

impl GaussianConfig {
    /// Checks the ranges given with the fields.
    ///
    /// # Errors
    /// [`AgentError::Config`] for the first field out of its range.
    pub fn validate(&self) -> Result<(), AgentError> {
        check_ball(self.weight, self.warmup_fraction, self.radius)
    }
}

fn check_ball(weight: f64, warmup_fraction: f64, radius: f64) -> Result<(), AgentError> {
    if !(weight.is_finite() && weight >= 0.0) {
        return Err(out_of_range("weight", "a finite number of at least 0", weight.to_string()));
    }
    if !(0.0..=1.0).contains(&warmup_fraction) {
        return Err(out_of_range("warmup_fraction", "between 0 and 1", warmup_fraction.to_string()));
    }
    if !(radius.is_finite() && radius >= 0.0) {
        return Err(out_of_range("radius", "a finite number of at least 0", radius.to_string()));
    }
    Ok(())
}

fn out_of_range(field: &'static str, expected: &str, got: String) -> AgentError {
    AgentError::Config { field, expected: expected.to_string(), got }
}
