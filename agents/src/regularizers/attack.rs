//! An attacker on the observations of a trained policy.

use steadfast_envs::Rng;

use super::Observed;
use super::lipschitz::{LipschitzConfig, LipschitzRegularizer, Norm, Scale, out_of_range};
use crate::AgentError;
use crate::nn::Mlp;

/// An attacker who changes what a trained policy observes so that it acts as differently as possible: projected gradient
/// ascent on the distance of its outputs, from several starts. It knows the policy and nothing of the reward.
///
/// Source: Zhang et al. 2020, "Robust Deep Reinforcement Learning against Adversarial Perturbations on State Observations"
/// (arXiv 2003.08938), the maximal action difference attack; Madry et al. 2018 (arXiv 1706.06083) for restarts.
#[derive(Debug, Clone, PartialEq)]
pub struct ObservationAttackConfig {
    /// Radius of the ball in the environment's units, at least 0.
    pub radius: f64,
    /// The ball: `l2` or `linf`.
    pub norm: Norm,
    /// Ascent steps per start, 1 to 1000.
    pub steps: usize,
    /// Starts, of which the best end counts, 1 to 100.
    pub restarts: usize,
}

impl Default for ObservationAttackConfig {
    fn default() -> Self {
        Self { radius: 0.1, norm: Norm::Linf, steps: 10, restarts: 3 }
    }
}

impl ObservationAttackConfig {
    /// Checks the ranges given with the fields.
    ///
    /// # Errors
    /// [`AgentError::Config`] for the first field out of its range.
    pub fn validate(&self) -> Result<(), AgentError> {
        if !(self.radius.is_finite() && self.radius >= 0.0) {
            return Err(out_of_range("radius", "a finite number of at least 0", self.radius.to_string()));
        }
        for (field, value, most) in [("steps", self.steps, 1000), ("restarts", self.restarts, 100)] {
            if !(1..=most).contains(&value) {
                return Err(out_of_range(field, &format!("between 1 and {most}"), value.to_string()));
            }
        }
        Ok(())
    }
}

/// An [`ObservationAttackConfig`] at work.
pub struct ObservationAttack {
    ascent: LipschitzRegularizer,
    restarts: usize,
    best: Vec<f32>,
    inputs: Vec<f32>,
}

impl ObservationAttack {
    /// An attacker with its own stream of random numbers.
    pub fn new(config: &ObservationAttackConfig, rng: Rng) -> Self {
        let ball = LipschitzConfig {
            radius: config.radius,
            norm: config.norm,
            scale: Scale::Absolute,
            steps: config.steps,
            // Together somewhat more than the way across the ball.
            step_size: Some((2.5 * config.radius / config.steps as f64).max(f64::MIN_POSITIVE)),
            initial_std: 0.5 * config.radius,
            ..LipschitzConfig::default()
        };
        Self { ascent: LipschitzRegularizer::adversarial(&ball, rng), restarts: config.restarts, best: Vec::new(), inputs: Vec::new() }
    }

    /// The inputs `[rows, input]` at which the policy's outputs are farthest from `observed.outputs`.
    pub fn perturb(&mut self, net: &Mlp, observed: &Observed<'_>) -> &[f32] {
        let (rows, width) = (observed.rows, net.input());
        self.best.clear();
        self.best.resize(rows, f32::NEG_INFINITY);
        self.inputs.clear();
        self.inputs.extend_from_slice(&observed.inputs[..rows * width]);
        for _ in 0..self.restarts {
            let (values, perturbed) = self.ascent.ascend_once(net, observed);
            for (row, &value) in values.iter().enumerate() {
                if value > self.best[row] {
                    self.best[row] = value;
                    let at = row * width..(row + 1) * width;
                    self.inputs[at.clone()].copy_from_slice(&perturbed[at]);
                }
            }
        }
        &self.inputs
    }
}
