//! Networks, algorithms and robust regularisers.
pub mod nn;
