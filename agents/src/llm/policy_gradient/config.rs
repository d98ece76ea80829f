//! Settings of policy gradients on completions.

use serde::{Deserialize, Serialize};

use super::advantage::RewardScale;
use super::kl::{KlConfig, KlEstimator};
use super::loss::{ClipRange, LossType, RatioLevel};
use crate::AgentError;
use crate::llm::generate::GenerationConfig;
use crate::llm::optimizer::AdamWConfig;
use crate::schedule::{Decay, ScheduleConfig};

/// How a rollout is learned from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UpdateConfig {
    /// Completions per slot in one rollout, at least 1. A rollout has `slots × rollout_steps` completions.
    pub rollout_steps: usize,
    /// Times each rollout is passed over, at least 1.
    pub epochs: usize,
    /// Optimiser steps per pass, at least 1 and at most the completions of a rollout.
    pub minibatches: usize,
    /// Completions per forward pass, at least 1; gradients of a minibatch are accumulated over them.
    pub micro_batch_size: usize,
    /// Learning rate after warm-up, above 0.
    pub learning_rate: f64,
    /// Course of the learning rates over all updates of the run.
    pub schedule: ScheduleConfig,
    /// Optimiser.
    pub optimizer: AdamWConfig,
}

impl Default for UpdateConfig {
    fn default() -> Self {
        Self {
            rollout_steps: 1,
            epochs: 1,
            minibatches: 1,
            micro_batch_size: 8,
            learning_rate: 1e-6,
            // As TRL: a straight line to 0, without warm-up.
            schedule: ScheduleConfig { warmup: 0.0, decay: Decay::Linear, floor: 0.0 },
            optimizer: AdamWConfig::default(),
        }
    }
}

/// Settings of RLOO. Defaults are those of TRL 1.16, but for `group_size`, where two completions leave one as the baseline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RlooConfig {
    /// Completions per prompt, at least 2; `slots` must be a multiple of it.
    pub group_size: usize,
    /// Whether advantages are brought to mean 0 and deviation 1 over the rollout.
    pub normalize_advantages: bool,
    /// The ratio of the probabilities of a completion is clipped below at 1 minus this, 0 to 1.
    pub clip_low: f64,
    /// And above at 1 plus this, at least 0.
    pub clip_high: f64,
    /// Divergence from the reference; its price is taken from the reward.
    pub kl: KlConfig,
    /// Taken from the reward of completions without an end, at least 0.
    pub missing_eos_penalty: f64,
    /// How completions are drawn.
    pub generation: GenerationConfig,
    /// How a rollout is learned from.
    pub update: UpdateConfig,
}

impl Default for RlooConfig {
    fn default() -> Self {
        Self {
            group_size: 4,
            normalize_advantages: false,
            clip_low: 0.2,
            clip_high: 0.2,
            kl: KlConfig::new(0.05, KlEstimator::K1),
            missing_eos_penalty: 0.0,
            generation: GenerationConfig::default(),
            update: UpdateConfig::default(),
        }
    }
}

/// Settings of GRPO. Defaults are those of TRL 1.16.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GrpoConfig {
    /// Completions per prompt, at least 2; `slots` must be a multiple of it.
    pub group_size: usize,
    /// By what the advantages are divided: the deviation of the `group`, of the `batch`, or `none`.
    pub scale_rewards: RewardScale,
    /// How the losses of tokens are averaged: `grpo`, `bnpo`, `dr_grpo` or `dapo`.
    pub loss_type: LossType,
    /// Whether the probability ratio is that of each `token` or of the `sequence`.
    pub ratio: RatioLevel,
    /// The ratio is clipped below at 1 minus this, 0 to 1.
    pub clip_low: f64,
    /// And above at 1 plus this, at least 0.
    pub clip_high: f64,
    /// Divergence from the reference; a term of the loss.
    pub kl: KlConfig,
    /// Taken from the reward of completions without an end, at least 0.
    pub missing_eos_penalty: f64,
    /// How completions are drawn.
    pub generation: GenerationConfig,
    /// How a rollout is learned from.
    pub update: UpdateConfig,
}

impl Default for GrpoConfig {
    fn default() -> Self {
        Self {
            group_size: 8,
            scale_rewards: RewardScale::Group,
            loss_type: LossType::Dapo,
            ratio: RatioLevel::Token,
            clip_low: 0.2,
            clip_high: 0.2,
            kl: KlConfig::new(0.0, KlEstimator::K3),
            missing_eos_penalty: 0.0,
            generation: GenerationConfig::default(),
            update: UpdateConfig::default(),
        }
    }
}

/// Settings of PPO on completions, with a critic of its own that is as large as the policy. Defaults are those of TRL 1.16,
/// but for the critic's learning rate: there it shares the policy's and has a weight in a common loss instead.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TextPpoConfig {
    /// Completions per prompt, at least 1; `slots` must be a multiple of it.
    pub group_size: usize,
    /// Discount per token, 0 to 1.
    pub discount: f64,
    /// Decay of generalised advantage estimation, 0 to 1.
    pub gae_lambda: f64,
    /// Whether advantages are brought to mean 0 and deviation 1 over the tokens of the rollout.
    pub whiten_advantages: bool,
    /// Whether rewards of tokens are brought to deviation 1 over the rollout, their mean kept.
    pub whiten_rewards: bool,
    /// The ratio of the probabilities of a token is clipped below at 1 minus this, 0 to 1.
    pub clip_low: f64,
    /// And above at 1 plus this, at least 0.
    pub clip_high: f64,
    /// Values may move by this much per rollout, above 0; no limit if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value_clip: Option<f64>,
    /// Learning rate of the critic, above 0. Schedule and optimiser are those of the policy.
    pub critic_learning_rate: f64,
    /// Divergence from the reference; its price is taken from the reward of each token.
    pub kl: KlConfig,
    /// Taken from the reward of completions without an end, at least 0.
    pub missing_eos_penalty: f64,
    /// How completions are drawn.
    pub generation: GenerationConfig,
    /// How a rollout is learned from.
    pub update: UpdateConfig,
}

impl Default for TextPpoConfig {
    fn default() -> Self {
        Self {
            group_size: 1,
            discount: 1.0,
            gae_lambda: 0.95,
            whiten_advantages: true,
            whiten_rewards: false,
            clip_low: 0.2,
            clip_high: 0.2,
            value_clip: Some(0.2),
            critic_learning_rate: 1e-5,
            kl: KlConfig::new(0.05, KlEstimator::K1),
            missing_eos_penalty: 0.0,
            generation: GenerationConfig { temperature: 0.7, ..GenerationConfig::default() },
            update: UpdateConfig { learning_rate: 3e-6, epochs: 4, ..UpdateConfig::default() },
        }
    }
}

/// Which estimate of the gradient, with its settings.
#[derive(Debug, Clone, PartialEq)]
pub enum PolicyGradientConfig {
    /// The mean reward of the other completions of the prompt is the baseline.
    Rloo(RlooConfig),
    /// Rewards are compared inside the group, token by token ratios.
    Grpo(GrpoConfig),
    /// A critic says what each token was worth.
    Ppo(TextPpoConfig),
}

impl PolicyGradientConfig {
    /// Completions per prompt.
    pub fn group_size(&self) -> usize {
        match self {
            Self::Rloo(c) => c.group_size,
            Self::Grpo(c) => c.group_size,
            Self::Ppo(c) => c.group_size,
        }
    }

    /// Divergence from the reference.
    pub fn kl(&self) -> &KlConfig {
        match self {
            Self::Rloo(c) => &c.kl,
            Self::Grpo(c) => &c.kl,
            Self::Ppo(c) => &c.kl,
        }
    }

    /// How a rollout is learned from.
    pub fn update(&self) -> &UpdateConfig {
        match self {
            Self::Rloo(c) => &c.update,
            Self::Grpo(c) => &c.update,
            Self::Ppo(c) => &c.update,
        }
    }

    /// How completions are drawn.
    pub fn generation(&self) -> &GenerationConfig {
        match self {
            Self::Rloo(c) => &c.generation,
            Self::Grpo(c) => &c.generation,
            Self::Ppo(c) => &c.generation,
        }
    }

    pub(super) fn missing_eos_penalty(&self) -> f64 {
        match self {
            Self::Rloo(c) => c.missing_eos_penalty,
            Self::Grpo(c) => c.missing_eos_penalty,
            Self::Ppo(c) => c.missing_eos_penalty,
        }
    }

    pub(super) fn clip(&self) -> ClipRange {
        let (low, high) = match self {
            Self::Rloo(c) => (c.clip_low, c.clip_high),
            Self::Grpo(c) => (c.clip_low, c.clip_high),
            Self::Ppo(c) => (c.clip_low, c.clip_high),
        };
        ClipRange { low, high }
    }

    /// Checks the ranges given with the fields.
    ///
    /// # Errors
    /// [`AgentError::Config`] for the first field out of its range.
    pub fn validate(&self) -> Result<(), AgentError> {
        let least = if matches!(self, Self::Ppo(_)) { 1 } else { 2 };
        if self.group_size() < least {
            return fail("group_size", format!("at least {least}"), self.group_size());
        }
        if let Self::Ppo(c) = self {
            share("discount", c.discount)?;
            share("gae_lambda", c.gae_lambda)?;
            positive("critic_learning_rate", c.critic_learning_rate)?;
            if let Some(range) = c.value_clip {
                positive("value_clip", range)?;
            }
        }
        let clip = self.clip();
        share("clip_low", clip.low)?;
        not_negative("clip_high", clip.high)?;
        self.kl().validate()?;
        not_negative("missing_eos_penalty", self.missing_eos_penalty())?;
        let update = self.update();
        for (field, value) in [
            ("update.rollout_steps", update.rollout_steps),
            ("update.epochs", update.epochs),
            ("update.minibatches", update.minibatches),
            ("update.micro_batch_size", update.micro_batch_size),
        ] {
            if value == 0 {
                return fail(field, "at least 1".to_string(), value);
            }
        }
        positive("update.learning_rate", update.learning_rate)?;
        within("update.schedule", update.schedule.validate())?;
        within("update.optimizer", update.optimizer.validate())?;
        let generation = self.generation();
        within("generation", generation.validate())?;
        // The trainer's probabilities know nothing of what was said before, and a policy that never varies learns nothing.
        if generation.repetition_penalty != 1.0 {
            return fail("generation.repetition_penalty", "1 while a policy is trained".to_string(), generation.repetition_penalty);
        }
        if generation.greedy {
            return fail("generation.greedy", "false while a policy is trained".to_string(), generation.greedy);
        }
        Ok(())
    }
}

/// Puts the table's name in front of the field that one of its settings fails in.
fn within(table: &str, checked: Result<(), AgentError>) -> Result<(), AgentError> {
    checked.map_err(|error| match error {
        AgentError::Config { field, expected, got } => AgentError::Config { field: format!("{table}.{field}"), expected, got },
        other => other,
    })
}

fn fail(field: &str, expected: String, got: impl std::fmt::Display) -> Result<(), AgentError> {
    Err(AgentError::Config { field: field.to_string(), expected, got: got.to_string() })
}

pub(super) fn positive(field: &str, value: f64) -> Result<(), AgentError> {
    if value.is_finite() && value > 0.0 { Ok(()) } else { fail(field, "a finite number above 0".to_string(), value) }
}

pub(super) fn not_negative(field: &str, value: f64) -> Result<(), AgentError> {
    if value.is_finite() && value >= 0.0 { Ok(()) } else { fail(field, "a finite number of at least 0".to_string(), value) }
}

fn share(field: &str, value: f64) -> Result<(), AgentError> {
    if (0.0..=1.0).contains(&value) { Ok(()) } else { fail(field, "between 0 and 1".to_string(), value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_and_bad_values_are_named() {
        let rloo = RlooConfig::default;
        for config in [
            PolicyGradientConfig::Rloo(rloo()),
            PolicyGradientConfig::Grpo(GrpoConfig::default()),
            PolicyGradientConfig::Ppo(TextPpoConfig::default()),
        ] {
            config.validate().unwrap();
        }
        let generation = |g: GenerationConfig| PolicyGradientConfig::Rloo(RlooConfig { generation: g, ..rloo() });
        let update = |u: UpdateConfig| PolicyGradientConfig::Rloo(RlooConfig { update: u, ..rloo() });
        let cases = [
            (PolicyGradientConfig::Rloo(RlooConfig { group_size: 1, ..rloo() }), "group_size"),
            (PolicyGradientConfig::Rloo(RlooConfig { clip_low: 1.5, ..rloo() }), "clip_low"),
            (PolicyGradientConfig::Ppo(TextPpoConfig { value_clip: Some(0.0), ..Default::default() }), "value_clip"),
            (PolicyGradientConfig::Ppo(TextPpoConfig { group_size: 0, ..Default::default() }), "group_size"),
            (generation(GenerationConfig { repetition_penalty: 1.2, ..Default::default() }), "repetition_penalty"),
            (generation(GenerationConfig { greedy: true, ..Default::default() }), "greedy"),
            (generation(GenerationConfig { temperature: 0.0, ..Default::default() }), "temperature"),
            (generation(GenerationConfig { top_p: 0.0, ..Default::default() }), "top_p"),
            (update(UpdateConfig { minibatches: 0, ..Default::default() }), "minibatches"),
            (update(UpdateConfig { learning_rate: f64::NAN, ..Default::default() }), "learning_rate"),
        ];
        for (config, field) in cases {
            let message = config.validate().unwrap_err().to_string();
            assert!(message.contains(field), "{field}: {message}");
        }
    }
}
