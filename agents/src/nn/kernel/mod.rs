//! Vector kernels with a fixed order of summation.
//!
//! Every kernel is written once over the [`lane::Lane`] trait and compiled for AVX-512, AVX2 and portable Rust; the set of
//! instructions is chosen at run time. All three use fused multiply-add and sum in the same order, so they give the same
//! bits, for any batch size and any tiling. The crate's `unsafe` code lives in `lane.rs` and `tile.rs` only.

pub(in crate::nn) mod aligned;
pub(crate) mod lane;
pub(crate) mod math;
pub(in crate::nn) mod tile;

pub use lane::{Isa, isa, set_isa};
pub use math::exp_in_place;
