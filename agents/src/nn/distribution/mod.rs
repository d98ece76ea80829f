//! Distributions over actions, with their values and gradients in closed form over rows of network outputs.
//!
//! All functions work on contiguous rows and are vectorised over blocks of 16 rows. Gradients are added to their output.

pub mod categorical;
