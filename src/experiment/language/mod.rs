//! Language models: where they come from, and how they learn from given examples.

pub mod data;
pub mod device;
pub mod evaluation;
pub mod file;
pub mod model;
pub mod offline;
pub mod show;
pub mod stored;
