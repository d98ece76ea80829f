//! Preferences, label noise and reward learning that survives wrong labels (R3M).
//!
//! The crate sits between the learners (`steadfast-agents`) and the program. Pairs ([`preference`]) come from rollouts or
//! files ([`dataset`]), their labels may be corrupted on purpose, a reward model ([`model`]) is fitted to them with one of
//! the losses of [`margin`], and enters the rollout engine as a [`steadfast_envs::RewardFn`].

pub mod audit;
pub mod config;
pub mod dataset;
#[cfg(feature = "llm")]
pub mod dpo;
#[cfg(feature = "llm")]
pub mod encoded;
pub mod error;
pub mod fit;
#[cfg(feature = "llm")]
pub mod kto;
pub mod learned;
pub mod log_prob_margin;
pub mod margin;
pub mod metrics;
pub mod model;
pub mod preference;
pub mod r3m;
#[cfg(feature = "llm")]
pub mod reference;
#[cfg(feature = "llm")]
pub mod reward_objective;
#[cfg(feature = "llm")]
pub mod sampled;
pub mod testing;
#[cfg(feature = "llm")]
pub mod text_reward;

pub use config::{RewardConfig, Ties};
pub use dataset::NoiseConfig;
#[cfg(feature = "llm")]
pub use dpo::{PairLoss, PreferenceConfig, PreferenceObjective};
#[cfg(feature = "llm")]
pub use encoded::{EncodedAnswer, EncodedPair, EncodedPreference};
pub use error::{Result, RewardError};
pub use fit::{Detection, EpochReport, FitConfig, FitReport, PairReport, Selection, fit};
#[cfg(feature = "llm")]
pub use kto::{KtoConfig, KtoObjective};
pub use learned::{LearnedReward, RewardNormalization};
pub use log_prob_margin::{AnswerLogProb, LogProbMargin, LogProbMarginConfig};
pub use margin::{LossConfig, LossValue, MarginLoss};
pub use model::{ActionKind, MlpReward, MlpRewardConfig, RewardModel, SegmentSpec};
pub use preference::{
    Message, Preference, Segment, SegmentPair, SegmentPreference, Text, TextCompletion, TextPair, TextPreference, TextPrompt, Truth,
};
pub use r3m::{R3mConfig, RobustLogistic};
#[cfg(feature = "llm")]
pub use reference::ReferenceCache;
#[cfg(feature = "llm")]
pub use reward_objective::{RewardObjective, RewardObjectiveConfig};
#[cfg(feature = "llm")]
pub use sampled::{Gold, SampleReport, SampledLabels, sample_preferences, text_row};
#[cfg(feature = "llm")]
pub use text_reward::{RewardScale, TextReward};
