//! Training on a fixed set of examples: passes, batches, accumulation, schedule, optimiser, exact resume.
//!
//! What is learned is an [`Objective`]; the [`Trainer`] knows nothing of it but how many examples there are and what each
//! counts. Every pass goes through all examples in an order that is drawn from the seed and the number of the pass alone, so
//! a resumed run needs no more than parameters, moments and the number of steps done. The last batch of a pass may be
//! smaller; it is a step like any other, normalised by what is in it.
//!
//! A batch is taken in micro-batches whose gradients add up. Every loss is divided by the weight of the WHOLE batch, so that
//! the size of a micro-batch changes memory and nothing else, also where examples count by their tokens.
//!
//! Metrics of a step, besides those of the objective: `train/grad_norm` (before clipping), `train/learning_rate`,
//! `train/epoch` (passes done, with fraction).

use serde::{Deserialize, Serialize};
use steadfast_envs::SeedTree;

use super::model::Decoder;
use super::optimizer::{AdamW, AdamWConfig};
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

impl TrainerConfig {
    /// Checks the ranges given with the fields.
    ///
    /// # Errors
    /// [`AgentError::Config`] for the first field out of its range.
    pub fn validate(&self) -> Result<(), AgentError> {
        require((1..=1_000_000).contains(&self.epochs), "epochs", "between 1 and 1000000", self.epochs)?;
        require(self.batch_size >= 1, "batch_size", "at least 1", self.batch_size)?;
        let micro = self.micro_batch_size;
        require((1..=self.batch_size).contains(&micro), "micro_batch_size", "between 1 and `batch_size`", micro)?;
        let rate = self.learning_rate;
        require(rate > 0.0 && rate.is_finite(), "learning_rate", "a finite number above 0", rate)?;
        self.schedule.validate()?;
        let o = &self.optimizer;
        require((0.0..1.0).contains(&o.beta1), "optimizer.beta1", "at least 0 and below 1", o.beta1)?;
        require((0.0..1.0).contains(&o.beta2), "optimizer.beta2", "at least 0 and below 1", o.beta2)?;
        require(o.epsilon > 0.0 && o.epsilon.is_finite(), "optimizer.epsilon", "a finite number above 0", o.epsilon)?;
        let decay = o.weight_decay;
        require(decay >= 0.0 && decay.is_finite(), "optimizer.weight_decay", "a finite number of at least 0", decay)?;
        let norm = o.max_grad_norm;
        require(norm >= 0.0 && norm.is_finite(), "optimizer.max_grad_norm", "a finite number of at least 0", norm)
    }
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

/// How the numbers under one name become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reduction {
    Mean,
    GeometricMean,
    Sum,
    Maximum,
    Minimum,
}

/// Named numbers over the examples of a batch: sums with their own counts, totals and maxima.
#[derive(Debug, Clone, Default)]
pub struct MetricSums {
    values: Vec<(&'static str, Reduction, f64, f64)>,
}

impl MetricSums {
    fn entry(&mut self, name: &'static str, reduction: Reduction, start: f64) -> (&mut f64, &mut f64) {
        let at = self.values.iter().position(|(n, ..)| *n == name).unwrap_or_else(|| {
            self.values.push((name, reduction, start, 0.0));
            self.values.len() - 1
        });
        let (_, _, sum, count) = &mut self.values[at];
        (sum, count)
    }

    /// Adds `sum` over `count` things; the metric is their mean.
    pub fn add(&mut self, name: &'static str, sum: f64, count: f64) {
        let (s, c) = self.entry(name, Reduction::Mean, 0.0);
        *s += sum;
        *c += count;
    }

    /// Adds the logarithms of `count` things that sum up to `sum`; the metric is the geometric mean, such as a perplexity.
    pub fn add_logarithms(&mut self, name: &'static str, sum: f64, count: f64) {
        let (s, c) = self.entry(name, Reduction::GeometricMean, 0.0);
        *s += sum;
        *c += count;
    }

    /// Adds to a metric that is a total, such as a number of tokens.
    pub fn add_total(&mut self, name: &'static str, sum: f64) {
        *self.entry(name, Reduction::Sum, 0.0).0 += sum;
    }

    /// Takes part in a metric that is a maximum.
    pub fn add_maximum(&mut self, name: &'static str, value: f64) {
        let (m, _) = self.entry(name, Reduction::Maximum, f64::NEG_INFINITY);
        *m = m.max(value);
    }

    /// Takes part in a metric that is a minimum.
    pub fn add_minimum(&mut self, name: &'static str, value: f64) {
        let (m, _) = self.entry(name, Reduction::Minimum, f64::INFINITY);
        *m = m.min(value);
    }

    /// The metrics, in the order of first mention. A mean over nothing is left out.
    pub fn means(&self) -> Metrics {
        let value = |&(name, reduction, s, c): &(&'static str, Reduction, f64, f64)| {
            let value = match reduction {
                Reduction::Mean => s / c,
                Reduction::GeometricMean => (s / c).exp(),
                Reduction::Sum | Reduction::Maximum | Reduction::Minimum => return Some((name, s)),
            };
            (c > 0.0).then_some((name, value))
        };
        Metrics { values: self.values.iter().filter_map(value).collect() }
    }
}

/// What is known of each training example at the end of a run, one row each, and what follows from all of them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ExampleTable {
    /// Names of the columns; empty if there is no table.
    pub columns: &'static [&'static str],
    /// The rows in the order of the examples, a cell for each column; blank where nothing is known.
    pub rows: Vec<Vec<String>>,
    /// Numbers over all rows.
    pub metrics: Metrics,
}

/// A loss over numbered examples. Losses are normalised by explicit global counts: `accumulate` gets the sum of
/// [`Objective::weight`] over the WHOLE effective batch and divides by it, so that 8 x 1 accumulated equals 1 x 8.
///
/// A loss or log-probability that is not finite is [`AgentError::NonFinite`] naming the example; the trainer adds the step.
pub trait Objective: Send {
    /// Number of training examples.
    fn n_examples(&self) -> usize;
    /// What an example counts in the normalisation: 1 for a pair, its completion tokens for token-normalised losses.
    fn weight(&self, example: usize) -> f64;
    /// Once before the first step of a fresh or resumed run, with the parameters that the run STARTS from also where it is
    /// resumed: the place to check examples against the model and to compute or read reference log-probabilities.
    fn prepare(&mut self, decoder: &Decoder) -> Result<(), AgentError>;
    /// Before the micro-batches of each batch, with all its examples: what a loss must know of the whole batch.
    fn begin_batch(&mut self, decoder: &Decoder, examples: &[usize]) -> Result<(), AgentError> {
        let _ = (decoder, examples);
        Ok(())
    }
    /// Forward and backward of a micro-batch; adds to the decoder's gradients and to `sums`. Logs `train/loss`, the loss that
    /// is minimised, and `train/tokens`, the tokens that went through the model.
    fn accumulate(&mut self, decoder: &mut Decoder, examples: &[usize], batch_weight: f64, sums: &mut MetricSums)
    -> Result<(), AgentError>;
    /// Metrics on held-out examples, names with the group `eval/`; empty if there are none.
    fn evaluate(&mut self, decoder: &Decoder) -> Result<Metrics, AgentError>;
    /// What the model says of each training example at the end; empty if that is nothing of use.
    fn example_table(&mut self, decoder: &Decoder) -> Result<ExampleTable, AgentError> {
        let _ = decoder;
        Ok(ExampleTable::default())
    }
    /// Things that happened and that a user should know of, such as a cache that could not be read; each is told once.
    fn take_notices(&mut self) -> Vec<String> {
        Vec::new()
    }
}

/// A training run over fixed examples.
pub struct Trainer {
    config: TrainerConfig,
    decoder: Decoder,
    objective: Box<dyn Objective>,
    optimizer: AdamW,
    seeds: SeedTree,
    step: u64,
    /// Order of the examples in the pass of this number.
    order: Option<(u64, Vec<usize>)>,
    is_prepared: bool,
}

impl Trainer {
    /// A run that starts from `decoder`. Nothing is computed yet.
    ///
    /// # Errors
    /// [`AgentError::Config`] for a setting out of its range, or if there are no examples.
    pub fn new(config: &TrainerConfig, decoder: Decoder, objective: Box<dyn Objective>, seeds: SeedTree) -> Result<Self, AgentError> {
        config.validate()?;
        require(objective.n_examples() > 0, "data", "at least 1 training example", 0)?;
        let optimizer = AdamW::new(&config.optimizer, &decoder)?;
        Ok(Self { config: config.clone(), decoder, objective, optimizer, seeds, step: 0, order: None, is_prepared: false })
    }

    /// Optimiser steps of the whole run.
    pub fn n_steps(&self) -> u64 {
        self.config.epochs as u64 * self.steps_per_epoch()
    }

    /// Optimiser steps of one pass.
    pub fn steps_per_epoch(&self) -> u64 {
        self.objective.n_examples().div_ceil(self.config.batch_size) as u64
    }

    /// Steps done.
    pub fn step_count(&self) -> u64 {
        self.step
    }

    /// Lets the objective prepare itself, once: checks of the data, reference log-probabilities. The first step, evaluation
    /// or resume does it otherwise.
    ///
    /// # Errors
    /// Those of [`Objective::prepare`].
    pub fn prepare(&mut self) -> Result<(), AgentError> {
        if !self.is_prepared {
            self.objective.prepare(&self.decoder)?;
            self.is_prepared = true;
        }
        Ok(())
    }

    /// The examples of step `step`, counted from 0.
    pub fn batch(&mut self, step: u64) -> Vec<usize> {
        let per_epoch = self.steps_per_epoch();
        let (epoch, at) = (step / per_epoch, (step % per_epoch) as usize * self.config.batch_size);
        let (n, seeds) = (self.objective.n_examples(), self.seeds);
        if self.order.as_ref().is_none_or(|(e, _)| *e != epoch) {
            let mut order: Vec<usize> = (0..n).collect();
            seeds.child("order").index(epoch).rng().shuffle(&mut order);
            self.order = Some((epoch, order));
        }
        let order = self.order.as_ref().map_or(&[] as &[usize], |(_, order)| order);
        order[at..(at + self.config.batch_size).min(n)].to_vec()
    }

    /// One optimiser step; metrics `train/loss`, `train/grad_norm`, `train/learning_rate`, `train/epoch`, `train/tokens` and
    /// the objective's. Going on after the last step of the run is possible; the learning rate then stays where it ended.
    ///
    /// # Errors
    /// [`AgentError::NonFinite`] naming step and example, or the parameter whose gradient is not finite; what the objective
    /// and the decoder report. The run must stop then: gradients may be left behind.
    pub fn step(&mut self) -> Result<Metrics, AgentError> {
        self.prepare()?;
        let update = self.step + 1;
        let at_step = |error| match error {
            AgentError::NonFinite { tensor, value, position, .. } => AgentError::NonFinite { tensor, value, update, position },
            other => other,
        };
        let examples = self.batch(self.step);
        let weight: f64 = examples.iter().map(|&i| self.objective.weight(i)).sum();
        if !(weight > 0.0 && weight.is_finite()) {
            return Err(AgentError::NonFinite {
                tensor: "weight of the batch".into(),
                value: weight as f32,
                update,
                position: examples[0],
            });
        }
        let mut sums = MetricSums::default();
        self.objective.begin_batch(&self.decoder, &examples).map_err(at_step)?;
        for micro in examples.chunks(self.config.micro_batch_size) {
            self.objective.accumulate(&mut self.decoder, micro, weight, &mut sums).map_err(at_step)?;
        }
        let rate = self.config.learning_rate * self.config.schedule.factor(self.step, self.n_steps());
        let norm = self.optimizer.step(&mut self.decoder, rate).map_err(at_step)?;
        self.step = update;
        let mut metrics = sums.means();
        metrics.push("train/grad_norm", norm);
        metrics.push("train/learning_rate", rate);
        metrics.push("train/epoch", update as f64 / self.steps_per_epoch() as f64);
        Ok(metrics)
    }

    /// Metrics on held-out examples.
    ///
    /// # Errors
    /// Those of the objective.
    pub fn evaluate(&mut self) -> Result<Metrics, AgentError> {
        self.prepare()?;
        self.objective.evaluate(&self.decoder)
    }

    /// What the model says of each training example.
    ///
    /// # Errors
    /// Those of the objective.
    pub fn example_table(&mut self) -> Result<ExampleTable, AgentError> {
        self.prepare()?;
        self.objective.example_table(&self.decoder)
    }

    /// The model as it is now.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// The model as it is now.
    pub fn decoder_mut(&mut self) -> &mut Decoder {
        &mut self.decoder
    }

    /// What is learned.
    pub fn objective(&self) -> &dyn Objective {
        self.objective.as_ref()
    }

    /// What is learned.
    pub fn objective_mut(&mut self) -> &mut dyn Objective {
        self.objective.as_mut()
    }

    /// The model, at the end of a run.
    pub fn into_decoder(self) -> Decoder {
        self.decoder
    }

    /// Parameters, moments, step. The order of examples follows from seed and step.
    ///
    /// # Errors
    /// Those of the device.
    pub fn state(&self) -> Result<StateDict, AgentError> {
        let mut state = StateDict::default();
        for (name, shape, values) in self.decoder.parameters()? {
            state.put_f32(format!("{MODEL}{name}"), &shape, &values);
        }
        self.optimizer.save_state(OPTIMIZER, &mut state)?;
        state.put_u64(STEP, &[self.step]);
        state.put_u64(RUN, &self.fingerprint());
        Ok(state)
    }

    /// Goes on where [`Trainer::state`] was taken. The trainer must have been made like that one: from the same STARTING
    /// model (an objective may take its reference from it), the same examples, batch size and seed.
    ///
    /// # Errors
    /// [`AgentError::State`] naming what does not fit; those of [`Objective::prepare`]. The trainer must then be dropped.
    pub fn load_state(&mut self, state: &StateDict) -> Result<(), AgentError> {
        let run = state.u64(RUN)?;
        if run != self.fingerprint() {
            let [examples, batch, epochs, _] = self.fingerprint();
            let reason = format!(
                "it was saved by a run over other examples or with another seed (now {examples} examples, batches of {batch}, \
                 {epochs} passes; saved: {run:?}); resume with the settings of the run"
            );
            return Err(AgentError::State { tensor: RUN.to_string(), reason });
        }
        // The objective must see the model that the run started from, so it comes first.
        self.prepare()?;
        for (name, shape, _) in self.decoder.parameters()? {
            let values = state.f32(&format!("{MODEL}{name}"), shape.iter().product())?;
            self.decoder.set_parameter(&name, values)?;
        }
        self.optimizer.load_state(OPTIMIZER, state)?;
        self.step = state.counter(STEP)?;
        Ok(())
    }

    /// What must not change between a run and its continuation.
    fn fingerprint(&self) -> [u64; 4] {
        let c = &self.config;
        [self.objective.n_examples() as u64, c.batch_size as u64, c.epochs as u64, self.seeds.child("order").seed()]
    }
}

/// Prefix of the parameters in a state.
const MODEL: &str = "model/";
/// Prefix of the optimiser's arrays in a state.
const OPTIMIZER: &str = "optimizer/";
const STEP: &str = "trainer/step";
const RUN: &str = "trainer/run";

/// Checks one range of a configuration.
fn require(is_valid: bool, field: &str, expected: &str, got: impl std::fmt::Display) -> Result<(), AgentError> {
    if is_valid {
        return Ok(());
    }
    Err(AgentError::Config { field: field.to_string(), expected: expected.to_string(), got: got.to_string() })
}
