//! Worlds, perturbations and the rollout engine of steadfast.
//!
//! Arrays are plain and contiguous, in the order `[time, slot, agent, feature]`. An [`Environment`] writes into the
//! caller's buffers; a [`Policy`] chooses actions.

pub mod control;
pub mod environment;
pub mod error;
pub mod particle;
pub mod reward_fn;
pub mod rollout;
pub mod seed;
pub mod snapshot;
pub mod space;

pub use environment::{Actions, AgentSpec, EnvSpec, Environment, StepOut};
pub use error::{EnvError, Result};
pub use reward_fn::{RewardFn, Transition};
pub use rollout::{ActMode, ActionBatch, ActionsMut, ObservationBatch, Policy};
pub use seed::{Rng, SeedTree};
pub use snapshot::{SnapshotReader, SnapshotWriter};
pub use space::Space;
