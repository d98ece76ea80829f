//! The choice of a world.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::control::{AcrobotConfig, CartPoleConfig, MountainCarContinuousConfig, PendulumConfig};
use crate::particle::{
    SimpleAdversaryConfig, SimpleConfig, SimpleCryptoConfig, SimplePushConfig, SimpleReferenceConfig, SimpleSpeakerListenerConfig,
    SimpleSpreadConfig, SimpleTagConfig, SimpleWorldCommConfig,
};
use crate::random_reward::RandomRewardConfig;
use crate::testing::{BanditConfig, ChainConfig, IdentityConfig};
use crate::text::{EncodedPrompts, PromptsConfig, SalientCopyConfig, ShortcutStyleConfig, TextEnv, TextTask, TopicLexiconConfig};
use crate::{EnvError, Environment, Result};

/// Which environment to build, and with what settings. Written in a configuration as `[env.NAME]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EnvConfig {
    /// Repeat the observed symbol. Learners are tested on it.
    Identity(IdentityConfig),
    /// One choice without context.
    Bandit(BanditConfig),
    /// A corridor whose reward is at the far end.
    Chain(ChainConfig),
    /// Noise, rewarded by a fixed random network. Reward learning is tested on it.
    RandomReward(RandomRewardConfig),
    /// Balance a pole on a cart.
    CartPole(CartPoleConfig),
    /// Swing a pendulum up with a weak motor.
    Pendulum(PendulumConfig),
    /// Swing a two-link pendulum above a line.
    Acrobot(AcrobotConfig),
    /// Drive an underpowered car out of a valley.
    MountainCarContinuous(MountainCarContinuousConfig),
    /// One agent walks to a landmark.
    Simple(SimpleConfig),
    /// Good agents hide their goal from an adversary.
    SimpleAdversary(SimpleAdversaryConfig),
    /// Alice and Bob talk, Eve listens in.
    SimpleCrypto(SimpleCryptoConfig),
    /// An adversary pushes an agent off its goal.
    SimplePush(SimplePushConfig),
    /// Two agents tell each other where to go.
    SimpleReference(SimpleReferenceConfig),
    /// A speaker tells a listener where to go.
    SimpleSpeakerListener(SimpleSpeakerListenerConfig),
    /// Agents cover landmarks without collisions.
    SimpleSpread(SimpleSpreadConfig),
    /// Adversaries chase faster prey around obstacles.
    SimpleTag(SimpleTagConfig),
    /// A led chase with food and forests.
    SimpleWorldComm(SimpleWorldCommConfig),
    /// Text: say words that the topic likes.
    TopicLexicon(TopicLexiconConfig),
    /// Text: repeat what is marked.
    SalientCopy(SalientCopyConfig),
    /// Text: a hidden pattern and a visible mark.
    ShortcutStyle(ShortcutStyleConfig),
    /// Text: prompts from a file, rewarded by a reward model.
    Prompts(PromptsConfig),
}

impl EnvConfig {
    /// Names and one-line descriptions of all environments.
    pub const LIST: &'static [(&'static str, &'static str)] = &[
        ("identity", "repeat the observed symbol (test world)"),
        ("bandit", "one choice without context (test world)"),
        ("chain", "a corridor with its reward at the far end (test world)"),
        ("random_reward", "noise, rewarded by a fixed random network (test world for reward learning)"),
        ("cart_pole", "balance a pole on a cart"),
        ("pendulum", "swing a pendulum up with a weak motor (continuous)"),
        ("acrobot", "swing a two-link pendulum above a line"),
        ("mountain_car_continuous", "drive an underpowered car out of a valley (continuous)"),
        ("simple", "one agent walks to a landmark"),
        ("simple_adversary", "good agents hide their goal from an adversary (physical deception)"),
        ("simple_crypto", "Alice and Bob talk, Eve listens in (covert communication)"),
        ("simple_push", "an adversary pushes an agent off its goal (keep away)"),
        ("simple_reference", "two agents tell each other where to go (reference game)"),
        ("simple_speaker_listener", "a speaker tells a listener where to go"),
        ("simple_spread", "agents cover landmarks without collisions (cooperative navigation)"),
        ("simple_tag", "adversaries chase faster prey around obstacles (predator and prey)"),
        ("simple_world_comm", "a chase with food, forests and a leader who speaks"),
        ("topic_lexicon", "text: say words that the prompt's topic likes"),
        ("salient_copy", "text: repeat the marked words of the prompt"),
        ("shortcut_style", "text: a hidden pattern is right, a visible mark is tempting"),
        ("prompts", "text: prompts from a file, rewarded by a reward model"),
    ];

    /// Name in configurations.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Identity(_) => "identity",
            Self::Bandit(_) => "bandit",
            Self::Chain(_) => "chain",
            Self::RandomReward(_) => "random_reward",
            Self::CartPole(_) => "cart_pole",
            Self::Pendulum(_) => "pendulum",
            Self::Acrobot(_) => "acrobot",
            Self::MountainCarContinuous(_) => "mountain_car_continuous",
            Self::Simple(_) => "simple",
            Self::SimpleAdversary(_) => "simple_adversary",
            Self::SimpleCrypto(_) => "simple_crypto",
            Self::SimplePush(_) => "simple_push",
            Self::SimpleReference(_) => "simple_reference",
            Self::SimpleSpeakerListener(_) => "simple_speaker_listener",
            Self::SimpleSpread(_) => "simple_spread",
            Self::SimpleTag(_) => "simple_tag",
            Self::SimpleWorldComm(_) => "simple_world_comm",
            Self::TopicLexicon(_) => "topic_lexicon",
            Self::SalientCopy(_) => "salient_copy",
            Self::ShortcutStyle(_) => "shortcut_style",
            Self::Prompts(_) => "prompts",
        }
    }

    /// The synthetic task of text that this is, if it is one: its vocabulary, its reference process, its gold reward.
    ///
    /// # Errors
    /// [`crate::EnvError::Config`] if a setting is out of its range.
    pub fn text_task(&self) -> Result<Option<Arc<dyn TextTask>>> {
        Ok(Some(match self {
            Self::TopicLexicon(c) => Arc::new(c.build()?),
            Self::SalientCopy(c) => Arc::new(c.build()?),
            Self::ShortcutStyle(c) => Arc::new(c.build()?),
            _ => return Ok(None),
        }))
    }

    /// True for worlds whose actions are texts.
    pub fn is_text(&self) -> bool {
        matches!(self, Self::TopicLexicon(_) | Self::SalientCopy(_) | Self::ShortcutStyle(_) | Self::Prompts(_))
    }

    /// Builds the environment; `encode` reads a file of prompts with a tokenizer, which this crate knows nothing of.
    ///
    /// # Errors
    /// As [`EnvConfig::build`], and what `encode` reports.
    pub fn build_with(&self, encode: &dyn Fn(&PromptsConfig) -> Result<EncodedPrompts>) -> Result<Box<dyn Environment>> {
        match self {
            Self::Prompts(c) => Ok(Box::new(c.build(encode(c)?)?)),
            other => other.build(),
        }
    }

    /// Builds the environment.
    ///
    /// # Errors
    /// [`crate::EnvError::Config`] if a setting is out of its range, or for prompts from a file, which need a tokenizer:
    /// [`EnvConfig::build_with`].
    pub fn build(&self) -> Result<Box<dyn Environment>> {
        Ok(match self {
            Self::Identity(c) => Box::new(c.build()?),
            Self::Bandit(c) => Box::new(c.build()?),
            Self::Chain(c) => Box::new(c.build()?),
            Self::RandomReward(c) => Box::new(c.build()?),
            Self::CartPole(c) => Box::new(c.build()?),
            Self::Pendulum(c) => Box::new(c.build()?),
            Self::Acrobot(c) => Box::new(c.build()?),
            Self::MountainCarContinuous(c) => Box::new(c.build()?),
            Self::Simple(c) => Box::new(c.build()?),
            Self::SimpleAdversary(c) => Box::new(c.build()?),
            Self::SimpleCrypto(c) => Box::new(c.build()?),
            Self::SimplePush(c) => Box::new(c.build()?),
            Self::SimpleReference(c) => Box::new(c.build()?),
            Self::SimpleSpeakerListener(c) => Box::new(c.build()?),
            Self::SimpleSpread(c) => Box::new(c.build()?),
            Self::SimpleTag(c) => Box::new(c.build()?),
            Self::SimpleWorldComm(c) => Box::new(c.build()?),
            Self::TopicLexicon(c) => Box::new(TextEnv::new(Arc::new(c.build()?))?),
            Self::SalientCopy(c) => Box::new(TextEnv::new(Arc::new(c.build()?))?),
            Self::ShortcutStyle(c) => Box::new(TextEnv::new(Arc::new(c.build()?))?),
            Self::Prompts(c) => {
                return Err(EnvError::Config {
                    env: self.name().to_string(),
                    field: "file",
                    expected: "read with a tokenizer: this world needs a language-model policy".to_string(),
                    got: c.file.display().to_string(),
                });
            }
        })
    }
}
