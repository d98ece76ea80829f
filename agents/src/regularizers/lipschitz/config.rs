//! Settings of the penalties on how much a policy's outputs change.

use serde::{Deserialize, Serialize};

use super::{Direction, Norm, Scope};
use crate::AgentError;
use crate::head::Distance;

/// The unit in which a perturbation is measured, feature by feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scale {
    /// The environment's own units.
    Absolute,
    /// The running standard deviation of each feature; one that never varies is not perturbed.
    RunningStd,
}

/// Which of the two outputs the penalty trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gradient {
    /// Both; the perturbation itself counts as a constant (ERNIE without Stackelberg).
    Detached,
    /// Both, and the ascent that found the perturbation: how the attack answers a change of the weights counts
    /// (the Stackelberg form).
    Stackelberg,
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
    /// Whose observations, among agents who share a network, are moved together: `independent`, `joint`, `k_of_n` or `shared`.
    pub scope: Scope,
    /// Agents that are moved at once with `scope = "k_of_n"`, at least 1.
    pub scope_agents: usize,
    /// Ascent steps K, 0 to 1000.
    pub steps: usize,
    /// What a step makes of the slope: `raw`, `normalized` or `sign`; if absent `normalized` in the `l2` ball and `sign`
    /// in the `linf` ball.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direction: Option<Direction>,
    /// Length of an ascent step in the units of the radius, above 0; the radius for one step, else 2 radius / steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step_size: Option<f64>,
    /// Standard deviation of the perturbation from which the ascent starts, in the units of `scale`, above 0. With `gradient =
    /// "stackelberg"` it should not be small beside the radius, or the policy learns to make the first step miss.
    pub initial_std: f64,
    /// Distance of outputs: `kl` or `l2`; if absent `kl` for distributions over actions, `l2` for values and deterministic
    /// actions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub distance: Option<Distance>,
    /// What the penalty trains: `detached`, `stackelberg` or `target_clean`.
    pub gradient: Gradient,
    /// Factor of the leader–follower term of `gradient = "stackelberg"`, at least 0; 0 equals `detached`.
    pub interaction_weight: f64,
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
            scope: Scope::Independent,
            scope_agents: 1,
            steps: 1,
            direction: None,
            step_size: None,
            initial_std: 1e-3,
            distance: None,
            gradient: Gradient::Detached,
            interaction_weight: 1.0,
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
        if !(self.interaction_weight.is_finite() && self.interaction_weight >= 0.0) {
            return Err(out_of_range("interaction_weight", "a finite number of at least 0", self.interaction_weight.to_string()));
        }
        if self.scope_agents == 0 {
            return Err(out_of_range("scope_agents", "at least 1", "0".to_string()));
        }
        if self.scope == Scope::KOfN && self.steps == 0 {
            return Err(out_of_range("steps", "at least 1 with scope = \"k_of_n\", which chooses after a step", "0".to_string()));
        }
        if self.gradient == Gradient::Stackelberg && self.scope != Scope::Independent {
            let expected = "`independent` with gradient = \"stackelberg\": only its adversaries are differentiated";
            return Err(out_of_range("scope", expected, "another".to_string()));
        }
        if self.gradient == Gradient::Stackelberg && self.direction() == Direction::Sign {
            return Err(out_of_range(
                "direction",
                "`raw` or `normalized` with gradient = \"stackelberg\": a sign does not answer a small change of the weights",
                "sign".to_string(),
            ));
        }
        Ok(())
    }

    /// The direction of steps, chosen by the ball if it is not given.
    pub(super) fn direction(&self) -> Direction {
        self.direction.unwrap_or(match self.norm {
            Norm::L2 => Direction::Normalized,
            Norm::Linf => Direction::Sign,
        })
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
    /// Radius of the ball onto which a standard normal draw is projected, at least 0, in the units of `scale`.
    pub radius: f64,
    /// The ball: `l2` or `linf`.
    pub norm: Norm,
    /// Units of the perturbation: `absolute` or `running_std`.
    pub scale: Scale,
    /// Distance of outputs: `kl` or `l2`; if absent `kl` for distributions over actions, `l2` for values and deterministic
    /// actions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub distance: Option<Distance>,
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
        if self.gradient == Gradient::Stackelberg {
            return Err(out_of_range(
                "gradient",
                "`detached` or `target_clean`: a drawn perturbation does not answer the weights",
                "stackelberg".to_string(),
            ));
        }
        check_ball(self.weight, self.warmup_fraction, self.radius)
    }
}

/// Settings of the penalty on the slope of the network itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GradientPenaltyConfig {
    /// Weight of the penalty, at least 0.
    pub weight: f64,
    /// Fraction of the run over which the weight grows linearly from 0, 0 to 1.
    pub warmup_fraction: f64,
    /// Units of the features with respect to which slopes are taken: `absolute` or `running_std`.
    pub scale: Scale,
    /// The Lipschitz constant is bounded from below every so many updates; 0 means never.
    pub probe_every: usize,
}

impl Default for GradientPenaltyConfig {
    fn default() -> Self {
        let LipschitzConfig { warmup_fraction, scale, probe_every, .. } = LipschitzConfig::default();
        Self { weight: 1e-3, warmup_fraction, scale, probe_every }
    }
}

impl GradientPenaltyConfig {
    /// Checks the ranges given with the fields.
    ///
    /// # Errors
    /// [`AgentError::Config`] for the first field out of its range.
    pub fn validate(&self) -> Result<(), AgentError> {
        check_ball(self.weight, self.warmup_fraction, 0.0)
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

pub(in crate::regularizers) fn out_of_range(field: &'static str, expected: &str, got: String) -> AgentError {
    AgentError::Config { field: field.into(), expected: expected.to_string(), got }
}
