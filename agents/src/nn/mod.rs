//! Networks for control.

use serde::{Deserialize, Serialize};

/// What a hidden layer applies to its sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// Hyperbolic tangent.
    Tanh,
    /// max(0, x).
    Relu,
    /// x, or 0.01 x below 0.
    LeakyRelu,
    /// x.
    Identity,
}
