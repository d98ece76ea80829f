//! Networks, algorithms and robust regularisers.
pub mod error;
pub mod nn;

pub use error::AgentError;
