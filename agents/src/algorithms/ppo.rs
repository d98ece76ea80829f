//! Proximal policy optimisation.

use serde::{Deserialize, Serialize};

use crate::AgentError;
use crate::nn::Activation;

/// Which agents use the same networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sharing {
    /// One policy and one critic for all agents, who must have equal spaces.
    All,
    /// One policy and one critic per group of agents.
    Group,
    /// Each agent has its own.
    None,
}

/// What the critic sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Critic {
    /// The agent's own observation (IPPO, and single-agent PPO).
    Local,
    /// The environment's global state (MAPPO).
    Central,
}

/// Where advantages are brought to mean 0 and deviation 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdvantageNormalization {
    /// Nowhere.
    None,
    /// In each minibatch.
    Minibatch,
    /// Over the whole rollout.
    Batch,
}

/// How the learning rate changes during the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// It stays.
    Constant,
    /// It falls linearly to 0 at the last step.
    Linear,
}

/// How rewards are scaled before they are learned from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RewardScaling {
    /// Not at all.
    None,
    /// Divided by the running deviation of the discounted return.
    ReturnStd,
}

/// Which reward an agent of a team learns from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RewardSharing {
    /// Its own.
    Individual,
    /// The mean over all agents.
    TeamMean,
}

/// The distribution of continuous actions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContinuousPolicy {
    /// Gaussian with a learned deviation per coordinate; the environment gets the action clamped to its box.
    Gaussian,
    /// Gaussian passed through tanh and stretched to the box.
    SquashedGaussian,
}

/// Settings of PPO. The defaults are those of Stable-Baselines3 2.9 (`PPO("MlpPolicy")`), which follow Schulman et al.
/// 2017 (arXiv 1707.06347) and its later implementations.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PpoConfig {
    /// Discount per step, 0 to 1.
    pub discount: f64,
    /// Decay of generalised advantage estimation, 0 to 1.
    pub gae_lambda: f64,
    /// Steps per slot in one rollout, at least 1.
    pub rollout_steps: usize,
    /// Times each rollout is passed over, at least 1.
    pub epochs: usize,
    /// Samples (one agent at one time) per gradient step, at least 1.
    pub minibatch_size: usize,
    /// Adam's learning rate for policies, above 0.
    pub learning_rate: f64,
    /// Adam's learning rate for critics, above 0; the policies' if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub critic_learning_rate: Option<f64>,
    /// How the learning rates change: `constant` or `linear`.
    pub learning_rate_schedule: Schedule,
    /// Adam's epsilon, above 0.
    pub adam_epsilon: f64,
    /// The probability ratio is clipped to 1 ± this, above 0.
    pub clip_range: f64,
    /// Value predictions may move by this much per rollout, above 0; no limit if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value_clip_range: Option<f64>,
    /// Weight of the entropy bonus, at least 0.
    pub entropy_coefficient: f64,
    /// Weight of the value loss, at least 0.
    pub value_coefficient: f64,
    /// Largest norm of the gradient of policy and critic together, above 0.
    pub max_gradient_norm: f64,
    /// Stop the passes over a rollout when the approximate KL divergence exceeds 1.5 × this, above 0; never if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_kl: Option<f64>,
    /// Where advantages are normalised: `none`, `minibatch` or `batch`.
    pub advantage_normalization: AdvantageNormalization,
    /// Whether observations are normalised by their running mean and deviation.
    pub normalize_observations: bool,
    /// How rewards are scaled: `none` or `return_std`.
    pub reward_scaling: RewardScaling,
    /// Which reward an agent learns from: `individual` or `team_mean`.
    pub reward_sharing: RewardSharing,
    /// What the critic sees: `local` (IPPO) or `central` (MAPPO).
    pub critic: Critic,
    /// Which agents use the same networks: `all`, `group` or `none`.
    pub sharing: Sharing,
    /// Whether a one-hot agent index is appended to the inputs of shared networks.
    pub agent_index: bool,
    /// Widths of the policy's hidden layers.
    pub policy_hidden: Vec<usize>,
    /// Widths of the critic's hidden layers.
    pub critic_hidden: Vec<usize>,
    /// Activation of the hidden layers: `tanh`, `relu` or `leaky_relu`.
    pub activation: Activation,
    /// Distribution of continuous actions: `gaussian` or `squashed_gaussian`.
    pub continuous_policy: ContinuousPolicy,
    /// Initial logarithm of the deviation of continuous actions.
    pub initial_log_std: f64,
}

impl Default for PpoConfig {
    fn default() -> Self {
        Self {
            discount: 0.99,
            gae_lambda: 0.95,
            rollout_steps: 2048,
            epochs: 10,
            minibatch_size: 64,
            learning_rate: 3e-4,
            critic_learning_rate: None,
            learning_rate_schedule: Schedule::Constant,
            adam_epsilon: 1e-5,
            clip_range: 0.2,
            value_clip_range: None,
            entropy_coefficient: 0.0,
            value_coefficient: 0.5,
            max_gradient_norm: 0.5,
            target_kl: None,
            advantage_normalization: AdvantageNormalization::Minibatch,
            normalize_observations: false,
            reward_scaling: RewardScaling::None,
            reward_sharing: RewardSharing::Individual,
            critic: Critic::Local,
            sharing: Sharing::Group,
            agent_index: false,
            policy_hidden: vec![64, 64],
            critic_hidden: vec![64, 64],
            activation: Activation::Tanh,
            continuous_policy: ContinuousPolicy::Gaussian,
            initial_log_std: 0.0,
        }
    }
}

impl PpoConfig {
    /// Checks the ranges given with the fields.
    ///
    /// # Errors
    /// [`AgentError::Config`] for the first field out of its range.
    pub fn validate(&self) -> Result<(), AgentError> {
        let fail =
            |field: &'static str, expected: &str, got: String| Err(AgentError::Config { field, expected: expected.to_string(), got });
        let positive = |field: &'static str, value: f64| {
            if value.is_finite() && value > 0.0 { Ok(()) } else { fail(field, "a finite number above 0", value.to_string()) }
        };
        let not_negative = |field: &'static str, value: f64| {
            if value.is_finite() && value >= 0.0 { Ok(()) } else { fail(field, "a finite number of at least 0", value.to_string()) }
        };
        for (field, value) in [("discount", self.discount), ("gae_lambda", self.gae_lambda)] {
            if !(0.0..=1.0).contains(&value) {
                return fail(field, "between 0 and 1", value.to_string());
            }
        }
        for (field, value) in [("rollout_steps", self.rollout_steps), ("epochs", self.epochs), ("minibatch_size", self.minibatch_size)] {
            if value == 0 {
                return fail(field, "at least 1", value.to_string());
            }
        }
        positive("learning_rate", self.learning_rate)?;
        positive("adam_epsilon", self.adam_epsilon)?;
        positive("clip_range", self.clip_range)?;
        positive("max_gradient_norm", self.max_gradient_norm)?;
        for (field, value) in [
            ("critic_learning_rate", self.critic_learning_rate),
            ("value_clip_range", self.value_clip_range),
            ("target_kl", self.target_kl),
        ] {
            if let Some(value) = value {
                positive(field, value)?;
            }
        }
        not_negative("entropy_coefficient", self.entropy_coefficient)?;
        not_negative("value_coefficient", self.value_coefficient)?;
        if !self.initial_log_std.is_finite() || self.initial_log_std.abs() > 20.0 {
            return fail("initial_log_std", "between -20 and 20", self.initial_log_std.to_string());
        }
        for (field, widths) in [("policy_hidden", &self.policy_hidden), ("critic_hidden", &self.critic_hidden)] {
            if let Some(width) = widths.iter().find(|w| !(1..=65_536).contains(*w)) {
                return fail(field, "widths between 1 and 65536", width.to_string());
            }
        }
        Ok(())
    }
}
