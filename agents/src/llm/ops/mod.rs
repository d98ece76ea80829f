//! Fused operations with gradients, one per file, each beside its plain form in candle's own operations: the fallback on
//! devices without a kernel of ours, and the oracle of the tests.
//!
//! On the CPU an operation is a node of our own tape ([`tape`]) over plain loops and the `gemm` crate. Gradients of weights are
//! added to buffers beside the weights. Kernels for CUDA will be custom operations of candle in the same files, which the plain
//! forms call.

pub(crate) mod activation;
pub(crate) mod attention;
pub(crate) mod head;
mod kernel;
pub(crate) mod linear;
pub(crate) mod norm;
mod pieces;
mod product;
pub(crate) mod surrogate;
pub(crate) mod tape;

pub(super) use kernel::{AdamWStep, dot, largest, moments, normalise, softmax, sum_of_squares};
pub(super) use pieces::{Shared, each, in_pieces_of};
