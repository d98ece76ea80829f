//! Collecting experience: a vector of environments, a policy, and the arrays between them and a learner.

mod batch;
mod engine;
mod episode;
mod policy;
mod step_rewards;
mod uniform;
mod vector;

pub use batch::RolloutBatch;
pub use engine::{RolloutEngine, RolloutOptions};
pub use episode::{EpisodeLog, EpisodeStats};
pub use policy::{ActMode, ActionBatch, ActionsMut, ObservationBatch, ObservationBatchMut, Policy, TokenRowsMut};
pub use step_rewards::StepRewards;
pub use uniform::UniformPolicy;
pub use vector::{StepBuffers, VectorEnv};
