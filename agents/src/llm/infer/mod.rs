//! Weights packed once, decoded many times; no tape.
//!
//! A matrix `[output, input]` is cut into panels of 16 outputs, `[panel][input][16]`, in which one pass over the inputs
//! serves one row of activations or many. Every output is one chain of fused multiply-adds in the order of the inputs, so a
//! row's result has the same bits whatever rows stand beside it, for any number of threads and any set of vector
//! instructions.

mod packed;
mod transformer;

pub(crate) use transformer::{NewTokens, Transformer};
