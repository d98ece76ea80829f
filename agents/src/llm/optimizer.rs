//! AdamW over the parameters of a decoder.
use serde::{Deserialize, Serialize};

use super::model::Decoder;
use crate::{AgentError, StateDict};

/// Settings of AdamW.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdamWConfig {
    /// Decay of the mean of gradients, 0 to below 1.
    pub beta1: f64,
    /// Decay of the mean of squared gradients, 0 to below 1.
    pub beta2: f64,
    /// Added to the root of the second moment, above 0.
    pub epsilon: f64,
    /// Decoupled weight decay, at least 0; not applied to norms and biases.
    pub weight_decay: f64,
    /// Largest norm of the whole gradient, above 0; longer ones are shortened. 0 switches clipping off.
    pub max_grad_norm: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0, max_grad_norm: 1.0 }
    }
}

/// AdamW with its moments.
pub struct AdamW {}

#[allow(unused_variables)]
impl AdamW {
    /// Moments of zero for every parameter.
    pub fn new(config: &AdamWConfig, decoder: &Decoder) -> Result<Self, AgentError> {
        unimplemented!("helper `ops`")
    }
    /// Clips, steps, and sets the decoder's gradients to zero. Returns the gradient's norm before clipping.
    /// Errors with the parameter's name if a gradient is not finite (the parameters are then unchanged).
    pub fn step(&mut self, decoder: &mut Decoder, learning_rate: f64) -> Result<f64, AgentError> {
        unimplemented!("helper `ops`")
    }
    /// Moments and step count, names prefixed with `prefix`.
    pub fn save_state(&self, prefix: &str, state: &mut StateDict) -> Result<(), AgentError> {
        unimplemented!("helper `ops`")
    }
    pub fn load_state(&mut self, prefix: &str, state: &StateDict) -> Result<(), AgentError> {
        unimplemented!("helper `ops`")
    }
}
