//! Activation functions of hidden layers.

use serde::{Deserialize, Serialize};

use super::kernel::tile::Finish;

/// Activation of hidden layers; the output layer is always linear.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// Hyperbolic tangent, within 3e-7 of the exact one.
    #[default]
    Tanh,
    /// `max(x, 0)`.
    Relu,
    /// `x` where positive, `0.01 x` elsewhere.
    LeakyRelu,
    /// `x`.
    Identity,
}

/// First and second derivatives of an activation function, given its output.
#[derive(Debug, Clone, Copy)]
pub(super) enum Derivatives {
    /// The slope `1 - h²`, which changes with the input.
    Tanh,
    /// 1 where the output is positive, else this.
    Slope(f32),
}

/// Slope of [`Activation::LeakyRelu`] below zero.
const LEAKY_SLOPE: f32 = 0.01;

impl Activation {
    /// Its value at `z`, in double precision.
    pub(crate) fn value(self, z: f64) -> f64 {
        match self {
            Self::Tanh => z.tanh(),
            Self::Relu => z.max(0.0),
            Self::LeakyRelu => z.max(f64::from(LEAKY_SLOPE) * z),
            Self::Identity => z,
        }
    }

    /// What the forward kernel does with a finished sum.
    pub(super) fn finish(self) -> Finish<'static> {
        match self {
            Self::Tanh => Finish::Tanh,
            Self::Relu => Finish::Slope(0.0),
            Self::LeakyRelu => Finish::Slope(LEAKY_SLOPE),
            Self::Identity => Finish::Store,
        }
    }

    /// What the backward kernel does with a finished sum, given the activation's output `h`.
    pub(super) fn derivative(self, h: &[f32], h_row: usize) -> Finish<'_> {
        match self {
            Self::Tanh => Finish::TanhDerivative(h, h_row),
            Self::Relu => Finish::SlopeDerivative(h, h_row, 0.0),
            Self::LeakyRelu => Finish::SlopeDerivative(h, h_row, LEAKY_SLOPE),
            Self::Identity => Finish::Store,
        }
    }

    /// Its first and second derivatives.
    pub(super) fn derivatives(self) -> Derivatives {
        match self {
            Self::Tanh => Derivatives::Tanh,
            Self::Relu => Derivatives::Slope(0.0),
            Self::LeakyRelu => Derivatives::Slope(LEAKY_SLOPE),
            Self::Identity => Derivatives::Slope(1.0),
        }
    }
}
