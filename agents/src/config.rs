//! The choice of a learner.

use serde::{Deserialize, Serialize};

use crate::algorithms::maddpg::MaddpgConfig;
use crate::algorithms::ppo::PpoConfig;
use crate::algorithms::q_learning::QLearningConfig;
#[cfg(feature = "llm")]
use crate::llm::policy_gradient::{GrpoConfig, PolicyGradientConfig, RlooConfig, TextPpoConfig};

/// Which algorithm trains the agents. Written in a configuration as `[agent.NAME]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AgentConfig {
    /// Proximal policy optimisation, for one agent or several (IPPO, MAPPO).
    Ppo(PpoConfig),
    /// Deep Q-learning with replay, for one agent or several (IQL, VDN, QMIX).
    QLearning(QLearningConfig),
    /// Deterministic policy gradients with replay and critics that know all actions, for several agents (MADDPG, M3DDPG).
    Maddpg(MaddpgConfig),
    /// REINFORCE on completions with the other completions of the prompt as baseline.
    #[cfg(feature = "llm")]
    Rloo(RlooConfig),
    /// Policy gradients on completions with rewards compared inside the group of a prompt.
    #[cfg(feature = "llm")]
    Grpo(GrpoConfig),
    /// Proximal policy optimisation on completions, with a critic of each token.
    #[cfg(feature = "llm")]
    TextPpo(TextPpoConfig),
}

impl AgentConfig {
    /// Names and one-line descriptions of all algorithms.
    pub const LIST: &'static [(&'static str, &'static str)] = &[
        ("ppo", "proximal policy optimisation; `critic = \"local\"` is IPPO, `critic = \"central\"` is MAPPO"),
        ("q_learning", "deep Q-learning with replay; `mixer = \"independent\"` is IQL, `\"sum\"` VDN, `\"monotonic\"` QMIX"),
        ("maddpg", "deterministic policy gradients with replay and central critics; with `[agent.maddpg.minimax]` M3DDPG"),
        #[cfg(feature = "llm")]
        ("rloo", "text: REINFORCE with the other completions of a prompt as baseline"),
        #[cfg(feature = "llm")]
        ("grpo", "text: rewards compared inside the group of a prompt; `loss_type` chooses Dr. GRPO, DAPO and others"),
        #[cfg(feature = "llm")]
        ("text_ppo", "text: proximal policy optimisation with a critic of each token"),
    ];

    /// Name in configurations.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Ppo(_) => "ppo",
            Self::QLearning(_) => "q_learning",
            Self::Maddpg(_) => "maddpg",
            #[cfg(feature = "llm")]
            Self::Rloo(_) => "rloo",
            #[cfg(feature = "llm")]
            Self::Grpo(_) => "grpo",
            #[cfg(feature = "llm")]
            Self::TextPpo(_) => "text_ppo",
        }
    }

    /// The settings of a learner of language models, if this is one.
    #[cfg(feature = "llm")]
    pub fn policy_gradient(&self) -> Option<PolicyGradientConfig> {
        match self {
            Self::Ppo(_) | Self::QLearning(_) | Self::Maddpg(_) => None,
            Self::Rloo(config) => Some(PolicyGradientConfig::Rloo(config.clone())),
            Self::Grpo(config) => Some(PolicyGradientConfig::Grpo(config.clone())),
            Self::TextPpo(config) => Some(PolicyGradientConfig::Ppo(config.clone())),
        }
    }

    /// Steps per slot in one rollout.
    pub fn rollout_steps(&self) -> usize {
        match self {
            Self::Ppo(config) => config.rollout_steps,
            Self::QLearning(config) => config.rollout_steps,
            Self::Maddpg(config) => config.rollout_steps,
            #[cfg(feature = "llm")]
            Self::Rloo(RlooConfig { update, .. }) | Self::Grpo(GrpoConfig { update, .. }) | Self::TextPpo(TextPpoConfig { update, .. }) => {
                update.rollout_steps
            }
        }
    }

    /// Checks ranges that the types cannot express.
    ///
    /// # Errors
    /// [`crate::AgentError::Config`] with the field, the allowed values and the value found.
    pub fn validate(&self) -> Result<(), crate::AgentError> {
        #[cfg(feature = "llm")]
        if let Some(config) = self.policy_gradient() {
            return config.validate();
        }
        match self {
            Self::Ppo(config) => config.validate(),
            Self::QLearning(config) => config.validate(),
            Self::Maddpg(config) => config.validate(),
            #[cfg(feature = "llm")]
            Self::Rloo(_) | Self::Grpo(_) | Self::TextPpo(_) => Ok(()),
        }
    }
}
