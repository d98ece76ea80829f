//! Preferences, label noise and reward learning that survives wrong labels (R3M).
//!
//! The crate sits between the learners (`steadfast-agents`) and the program. It is empty in this version: rewards
//! come from the environments, through [`steadfast_envs::RewardFn`], which is the door a learned reward enters by.
