//! One file per algorithm, readable from top to bottom.

pub mod maddpg;
pub mod ppo;
pub mod q_learning;
