//! Worlds, perturbations and the rollout engine of steadfast.
//!
//! Arrays are plain and contiguous, in the order `[time, slot, agent, feature]`. An [`Environment`] writes into the
//! caller's buffers; a [`VectorEnv`] steps many of them; a [`RolloutEngine`] asks a [`Policy`] for actions and fills a
//! [`RolloutBatch`]. A [`perturb::Perturbed`] environment lies to its agents in a controlled way.

pub mod config;
pub mod control;
pub mod environment;
pub mod error;
pub mod particle;
pub mod perturb;
pub mod random_reward;
mod range;
pub mod reward_fn;
pub mod rollout;
pub mod seed;
pub mod snapshot;
pub mod space;
pub mod testing;
pub mod text;

pub use config::EnvConfig;
pub use environment::{Actions, AgentSpec, EnvSpec, Environment, MAX_VOCABULARY, StepOut, TokenRows, read_tokens, write_tokens};
pub use error::{EnvError, Result};
pub use perturb::{PerturbationConfig, Perturbed};
pub use reward_fn::{RewardFn, Transition, TransitionBatch};
pub use rollout::{
    ActMode, ActionBatch, ActionsMut, EpisodeLog, EpisodeStats, ObservationBatch, ObservationBatchMut, Policy, RolloutBatch, RolloutEngine,
    RolloutOptions, StepRewards, TokenRowsMut, UniformPolicy, VectorEnv,
};
pub use seed::{Rng, SeedTree};
pub use snapshot::{SnapshotReader, SnapshotWriter};
pub use space::Space;
