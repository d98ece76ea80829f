//! Training on a fixed set of examples: passes, batches, accumulation, schedule, optimiser, exact resume.
use serde::{Deserialize, Serialize};
use steadfast_envs::SeedTree;

use super::model::Decoder;
use super::optimizer::AdamWConfig;
use crate::schedule::ScheduleConfig;
use crate::{AgentError, Metrics, StateDict};

/// Settings of training on a fixed set of examples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainerConfig {
    /// Passes over the examples, at least 1.
    pub epochs: usize,
    /// Examples (pairs, for preferences) per optimiser step, at least 1.
    pub batch_size: usize,
    /// Examples per forward pass, 1 to `batch_size`; gradients of a batch are accumulated over them.
    pub micro_batch_size: usize,
    /// Learning rate after warm-up, above 0.
    pub learning_rate: f64,
    /// Course of the learning rate.
    pub schedule: ScheduleConfig,
    /// Optimiser.
    pub optimizer: AdamWConfig,
}

impl Default for TrainerConfig {
    fn default() -> Self {
        Self {
            epochs: 1,
            batch_size: 32,
            micro_batch_size: 8,
            learning_rate: 1e-4,
            schedule: ScheduleConfig::default(),
            optimizer: AdamWConfig::default(),
        }
    }
}

/// Sums of named numbers over the examples of a batch, each with its own count.
#[derive(Debug, Clone, Default)]
pub struct MetricSums {
    values: Vec<(&'static str, f64, f64)>,
}

impl MetricSums {
    /// Adds `sum` over `count` things.
    pub fn add(&mut self, name: &'static str, sum: f64, count: f64) {
        match self.values.iter_mut().find(|(n, ..)| *n == name) {
            Some((_, s, c)) => {
                *s += sum;
                *c += count;
            }
            None => self.values.push((name, sum, count)),
        }
    }
    /// Means, in the order of first mention.
    pub fn means(&self) -> Metrics {
        Metrics { values: self.values.iter().map(|&(n, s, c)| (n, if c > 0.0 { s / c } else { f64::NAN })).collect() }
    }
}

/// A loss over numbered examples. Losses are normalised by explicit global counts: `accumulate` gets the sum of
/// [`Objective::weight`] over the WHOLE effective batch and divides by it, so that 8 x 1 accumulated equals 1 x 8.
pub trait Objective: Send {
    /// Number of training examples.
    fn n_examples(&self) -> usize;
    /// What an example counts in the normalisation: 1 for a pair, its completion tokens for token-normalised losses.
    fn weight(&self, example: usize) -> f64;
    /// Once before the first step of a fresh or resumed run, such as to compute or read reference log-probabilities.
    fn prepare(&mut self, decoder: &Decoder) -> Result<(), AgentError>;
    /// Forward and backward of a micro-batch; adds to the decoder's gradients and to `sums`.
    fn accumulate(&mut self, decoder: &mut Decoder, examples: &[usize], batch_weight: f64, sums: &mut MetricSums)
    -> Result<(), AgentError>;
    /// Metrics on held-out examples, names with the group `eval/`; empty if there are none.
    fn evaluate(&mut self, decoder: &Decoder) -> Result<Metrics, AgentError>;
}

/// A training run over fixed examples.
pub struct Trainer {}

#[allow(unused_variables)]
impl Trainer {
    pub fn new(config: &TrainerConfig, decoder: Decoder, objective: Box<dyn Objective>, seeds: SeedTree) -> Result<Self, AgentError> {
        unimplemented!("helper `prefs`")
    }
    /// Optimiser steps of the whole run.
    pub fn n_steps(&self) -> u64 {
        unimplemented!("helper `prefs`")
    }
    /// Steps done.
    pub fn step_count(&self) -> u64 {
        unimplemented!("helper `prefs`")
    }
    /// One optimiser step; metrics `train/loss`, `train/grad_norm`, `train/learning_rate`, `train/epoch`, `train/tokens` and the objective's.
    pub fn step(&mut self) -> Result<Metrics, AgentError> {
        unimplemented!("helper `prefs`")
    }
    pub fn evaluate(&mut self) -> Result<Metrics, AgentError> {
        unimplemented!("helper `prefs`")
    }
    pub fn decoder(&self) -> &Decoder {
        unimplemented!("helper `prefs`")
    }
    pub fn decoder_mut(&mut self) -> &mut Decoder {
        unimplemented!("helper `prefs`")
    }
    /// Parameters, moments, step. The order of examples follows from seed and step.
    pub fn state(&self) -> Result<StateDict, AgentError> {
        unimplemented!("helper `prefs`")
    }
    pub fn load_state(&mut self, state: &StateDict) -> Result<(), AgentError> {
        unimplemented!("helper `prefs`")
    }
}
