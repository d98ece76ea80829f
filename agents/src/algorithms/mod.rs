//! One file per algorithm, readable from top to bottom.

pub mod ppo;
