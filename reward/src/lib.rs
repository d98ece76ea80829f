//! Preferences, label noise and reward learning that survives wrong labels (R3M).
//!
//! The crate sits between the learners (`steadfast-agents`) and the program. Pairs ([`preference`]) come from rollouts or
//! files ([`dataset`]), their labels may be corrupted on purpose, a reward model ([`model`]) is fitted to them with one of
//! the losses of [`margin`], and enters the rollout engine as a [`steadfast_envs::RewardFn`].

pub mod audit;
pub mod config;
pub mod dataset;
pub mod error;
pub mod fit;
pub mod learned;
pub mod log_prob_margin;
pub mod margin;
pub mod metrics;
pub mod model;
pub mod preference;
pub mod r3m;
pub mod testing;

pub use config::{RewardConfig, Ties};
pub use dataset::NoiseConfig;
pub use error::{Result, RewardError};
pub use fit::{Detection, EpochReport, FitConfig, FitReport, PairReport, Selection, fit};
pub use learned::{LearnedReward, RewardNormalization};
pub use log_prob_margin::{AnswerLogProb, LogProbMargin, LogProbMarginConfig};
pub use margin::{LossConfig, LossValue, MarginLoss};
pub use model::{ActionKind, MlpReward, MlpRewardConfig, RewardModel, SegmentSpec};
pub use preference::{Message, Preference, Segment, SegmentPair, SegmentPreference, Text, TextPair, TextPreference, Truth};
pub use r3m::{R3mConfig, RobustLogistic};
