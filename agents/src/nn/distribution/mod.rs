//! Distributions over actions, with their values and gradients in closed form over rows of network outputs.
//!
//! All functions work on contiguous rows. Gradients are added to their output, so several losses can share one array.

pub mod categorical;
pub mod distance;
pub mod gaussian;
pub mod squashed_gaussian;
