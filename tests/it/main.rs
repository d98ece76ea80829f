//! Runs the command itself.
#![allow(clippy::unwrap_used, missing_docs)]

mod audit;
mod command;
mod errors;
#[cfg(feature = "llm")]
mod language;
mod output;
mod resume;
mod reward;
mod robustness;
mod storage;
mod sweep;
mod train;
