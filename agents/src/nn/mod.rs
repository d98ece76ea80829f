//! Networks for control: fused kernels, distributions, the optimiser and normalisers.
//!
//! [`Mlp`] is the one network of control agents. It computes outputs, weight gradients and input gradients with kernels
//! whose results have the same bits for every batch size and every set of vector instructions. Losses that are hot have a
//! closed form in [`distribution`]; any other loss can be composed of dfdx operations over the network as one node.

mod activation;
mod dfdx_node;
pub mod distribution;
mod init;
pub(crate) mod kernel;
mod mixer;
mod mlp;
mod normalizer;
mod optimizer;
mod tangent;
mod tensors;

pub use activation::Activation;
pub use dfdx_node::{MlpNode, Rows};
pub use distribution::{categorical, distance, gaussian, squashed_gaussian};
pub use kernel::{Isa, exp_in_place, isa, set_isa};
pub use mixer::{Combined, Mixer, Mixing};
pub use mlp::{Mlp, Trace, Workspace};
pub use normalizer::{RewardScale, RunningNorm, RunningNormState};
pub use optimizer::{Adam, AdamConfig, AdamState, clip_scale, squared_norm};
pub use tangent::Tangent;
pub use tensors::{NamedTensor, TensorLookup};
