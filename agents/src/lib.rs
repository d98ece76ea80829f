//! Networks, algorithms and robust regularisers.

pub mod algorithms;
pub mod config;
pub mod error;
pub mod learner;
pub mod nn;
pub mod regularizers;

pub use config::AgentConfig;
pub use error::AgentError;
pub use learner::{Array, Learner, Metrics, StateDict};
pub use regularizers::RegularizerConfig;
