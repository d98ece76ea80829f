//! Experiments: what happens between a configuration and a finished run directory.

pub mod build;
pub mod evaluate;
pub mod online;
pub mod reward;
pub mod sweep;
pub mod window;
