//! Penalties that make a network's output change little when its input does.

pub mod action;
pub mod adversary;
pub mod attack;
mod ball;
pub mod bound;
pub mod lipschitz;
mod scope;
pub(crate) mod smoothing;
pub mod spectral;
mod stackelberg;
pub mod value_attack;

use std::ops::Range;

use serde::{Deserialize, Serialize};
use steadfast_envs::Rng;

use crate::head::{Distance, PolicyHead};
use crate::nn::Mlp;
use crate::{AgentError, StateDict};
use lipschitz::{GaussianConfig, GradientPenaltyConfig, LipschitzConfig, LipschitzRegularizer, Scale};
use spectral::{SpectralNorm, SpectralNormConfig};

/// Which penalty is added to the policy's loss. Written in a configuration as `[regularizer.NAME]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RegularizerConfig {
    /// ERNIE: the change of the policy under the worst small perturbation of its observation.
    Lipschitz(LipschitzConfig),
    /// The same penalty at a random perturbation of the same size: ERNIE's baseline.
    Gaussian(GaussianConfig),
    /// The slope of the policy network, without looking for the worst direction.
    GradientPenalty(GradientPenaltyConfig),
    /// No penalty: every layer of the policy network is held below a spectral norm.
    SpectralNorm(SpectralNormConfig),
}

impl RegularizerConfig {
    /// Names and one-line descriptions of all regularisers.
    pub const LIST: &'static [(&'static str, &'static str)] = &[
        ("lipschitz", "ERNIE: change of the policy under the worst small perturbation of its observation"),
        ("gaussian", "the same penalty at a random perturbation of the same size (ERNIE's baseline)"),
        ("gradient_penalty", "the slope of the policy network in a random direction"),
        ("spectral_norm", "no penalty: every layer of the policy network is held below a spectral norm"),
    ];

    /// Name in configurations.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Lipschitz(_) => "lipschitz",
            Self::Gaussian(_) => "gaussian",
            Self::GradientPenalty(_) => "gradient_penalty",
            Self::SpectralNorm(_) => "spectral_norm",
        }
    }

    /// Checks the ranges given with the fields.
    ///
    /// # Errors
    /// [`AgentError::Config`] for the first field out of its range.
    pub fn validate(&self) -> Result<(), AgentError> {
        match self {
            Self::Lipschitz(config) => config.validate(),
            Self::Gaussian(config) => config.validate(),
            Self::GradientPenalty(config) => config.validate(),
            Self::SpectralNorm(config) => config.validate(),
        }
    }

    /// The distance of outputs that it asks for.
    pub fn distance(&self) -> Option<Distance> {
        match self {
            Self::Lipschitz(config) => config.distance,
            Self::Gaussian(config) => config.distance,
            Self::GradientPenalty(_) | Self::SpectralNorm(_) => None,
        }
    }

    /// Builds the regulariser with its own stream of random numbers.
    pub fn build(&self, rng: Rng) -> Box<dyn Regularizer> {
        match self {
            Self::Lipschitz(config) => Box::new(LipschitzRegularizer::adversarial(config, rng)),
            Self::Gaussian(config) => Box::new(LipschitzRegularizer::gaussian(config, rng)),
            Self::GradientPenalty(config) => Box::new(LipschitzRegularizer::gradient_penalty(config, rng)),
            Self::SpectralNorm(config) => Box::new(SpectralNorm::new(config, rng)),
        }
    }
}

/// A minibatch as the policy network saw it.
#[derive(Debug, Clone, Copy)]
pub struct Observed<'a> {
    /// Samples.
    pub rows: usize,
    /// Samples of one moment, which stand together: the agents who share the network. 1 where samples are mixed.
    pub members: usize,
    /// `[rows, input]`: network inputs.
    pub inputs: &'a [f32],
    /// Size of one unit of perturbation in each of the first features of the inputs, in input units. Features behind
    /// are not perturbed.
    pub unit: &'a [f32],
    /// Largest size of an input that the network can meet, if inputs are clamped.
    pub limit: Option<f32>,
    /// `[rows, output]`: network outputs at the inputs.
    pub outputs: &'a [f32],
    /// What the outputs mean.
    pub head: &'a PolicyHead,
}

impl Observed<'_> {
    /// Some of the samples.
    pub(crate) fn part(&self, rows: Range<usize>, net: &Mlp) -> Self {
        let of = |width: usize| rows.start * width..rows.end * width;
        Self { rows: rows.len(), inputs: &self.inputs[of(net.input())], outputs: &self.outputs[of(net.output())], ..*self }
    }
}

/// Where a penalty adds its gradients, all times its weight.
#[derive(Debug)]
pub struct PenaltyGradients<'a> {
    /// `[rows, output]`: with respect to the clean outputs, to be carried back together with the algorithm's own.
    pub outputs: &'a mut [f32],
    /// Flat, with respect to the weights, through the perturbed outputs.
    pub weights: &'a mut [f32],
    /// With respect to the logarithms of the deviations; empty for categorical policies.
    pub log_std: &'a mut [f32],
}

/// A penalty's size.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Penalty {
    /// Mean over samples, before the weight.
    pub value: f64,
    /// Mean size of the perturbations over the allowed size.
    pub relative_norm: f64,
}

/// The leader–follower term of a penalty's gradient, before its factor.
#[derive(Debug, Clone, Copy)]
pub struct Interaction<'a> {
    /// `[rows, output]`: with respect to the clean outputs.
    pub outputs: &'a [f32],
    /// Flat, with respect to the weights, through the perturbed outputs.
    pub weights: &'a [f32],
    /// Its factor in the gradients that the penalty added.
    pub factor: f32,
}

/// A penalty on a policy network that any learner can add to its loss.
pub trait Regularizer: Send {
    /// Weight at a point of the run, `progress` from 0 to 1. At 0 the learner does not ask for the penalty.
    fn weight(&self, progress: f64) -> f64;

    /// Units in which the learner states [`Observed::unit`].
    fn scale(&self) -> Scale;

    /// Computes the penalty and adds its gradients times `weight`.
    ///
    /// # Errors
    /// [`AgentError`] if the penalty cannot be computed.
    fn penalty(
        &mut self,
        net: &Mlp,
        observed: &Observed<'_>,
        weight: f64,
        gradients: &mut PenaltyGradients<'_>,
    ) -> Result<Penalty, AgentError>;

    /// Whether samples of one moment must stand together, all agents of [`Observed::members`].
    fn needs_moments(&self) -> bool {
        false
    }

    /// Changes the network after a step of the optimiser.
    fn constrain(&mut self, net: &mut Mlp) {
        let _ = net;
    }

    /// The leader–follower term of the last penalty, if it has one.
    fn interaction(&self) -> Option<Interaction<'_>> {
        None
    }

    /// The learner asks for the Lipschitz bound every so many updates; never if 0.
    fn probe_every(&self) -> usize;

    /// The largest change of outputs per unit of perturbation that ascent finds among the samples: a lower bound of
    /// the network's Lipschitz constant, in the units of [`Observed::unit`].
    fn lipschitz_lower_bound(&mut self, net: &Mlp, observed: &Observed<'_>) -> f64;

    /// Saves what the next penalty depends on, under names that begin with `prefix`.
    fn save(&self, prefix: &str, state: &mut StateDict);

    /// Restores what [`Regularizer::save`] saved.
    ///
    /// # Errors
    /// [`AgentError`] naming the array that does not fit.
    fn load(&mut self, prefix: &str, state: &StateDict) -> Result<(), AgentError>;
}
