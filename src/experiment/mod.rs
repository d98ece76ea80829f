//! Experiments: what happens between a configuration and a finished run directory.

pub mod build;
pub mod evaluate;
#[cfg(feature = "llm")]
pub mod language;
pub mod online;
pub mod parallel;
pub mod reward;
pub mod robustness;
pub mod sweep;
pub mod window;
