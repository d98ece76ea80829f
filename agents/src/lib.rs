//! Networks, algorithms and robust regularisers.
//!
//! A [`Learner`] owns a policy and improves it from rollouts; which one, and with which [`regularizers::Regularizer`],
//! is the choice of an [`AgentConfig`] and a [`RegularizerConfig`]. Control networks live in [`nn`], the meaning of their
//! outputs in [`head`].

mod acting;
pub mod algorithms;
pub mod config;
pub mod error;
pub mod explore;
pub mod head;
pub mod learner;
#[cfg(feature = "llm")]
pub mod llm;
pub mod nn;
mod ranges;
pub mod regularizers;
pub mod replay;
pub mod returns;
pub mod schedule;
pub mod state_dict;
pub mod target;
pub mod team;

pub use config::AgentConfig;
pub use error::AgentError;
pub use learner::{Learner, Metrics};
pub use regularizers::RegularizerConfig;
pub use regularizers::action::ActionRegularizerConfig;
pub use regularizers::adversary::AdversarialTrainingConfig;
pub use state_dict::{Array, StateDict};
