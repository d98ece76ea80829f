//! AdamW over the parameters of a decoder (Loshchilov and Hutter 2019, arXiv 1711.05101), with clipping by the norm of the
//! whole gradient.
//!
//! `m ← β₁ m + (1 − β₁) g`, `v ← β₂ v + (1 − β₂) g²`, `θ ← (1 − η w) θ − η m̂ / (√v̂ + ε)`, with `m̂`, `v̂` divided by
//! `1 − βᵗ`, and `w = 0` for norms and biases. On a GPU parameters and moments are kept in `f32` beside `bf16` copies.

use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};

use super::model::{Decoder, Parameter, Values};
use super::ops::{AdamWStep, sum_of_squares};
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
    /// Largest norm of the whole gradient; longer ones are shortened. 0 switches clipping off.
    pub max_grad_norm: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0, max_grad_norm: 1.0 }
    }
}

impl AdamWConfig {
    /// Checks the ranges given with the fields.
    ///
    /// # Errors
    /// [`AgentError::Config`] for the first field out of its range.
    pub fn validate(&self) -> Result<(), AgentError> {
        let check = |holds: bool, field: &str, expected: &str, got: f64| {
            let wrong = || AgentError::Config { field: field.to_string(), expected: expected.to_string(), got: got.to_string() };
            if holds { Ok(()) } else { Err(wrong()) }
        };
        let is_size = |x: f64| x >= 0.0 && x.is_finite();
        check((0.0..1.0).contains(&self.beta1), "beta1", "at least 0 and below 1", self.beta1)?;
        check((0.0..1.0).contains(&self.beta2), "beta2", "at least 0 and below 1", self.beta2)?;
        check(self.epsilon > 0.0 && self.epsilon.is_finite(), "epsilon", "a finite number above 0", self.epsilon)?;
        check(is_size(self.weight_decay), "weight_decay", "a finite number of at least 0", self.weight_decay)?;
        check(is_size(self.max_grad_norm), "max_grad_norm", "a finite number of at least 0", self.max_grad_norm)
    }
}

/// Moments of one parameter.
enum Moments {
    Host { first: Vec<f32>, second: Vec<f32> },
    Device { first: Tensor, second: Tensor },
}

/// AdamW with its moments.
pub struct AdamW {
    config: AdamWConfig,
    step: u64,
    /// Name and shape of each parameter.
    shapes: Vec<(String, Vec<usize>)>,
    moments: Vec<Moments>,
}

impl AdamW {
    /// Moments of zero for every parameter.
    ///
    /// # Errors
    /// [`AgentError::Config`] for a setting out of its range; [`AgentError::Tensor`] if the device fails.
    pub fn new(config: &AdamWConfig, decoder: &Decoder) -> Result<Self, AgentError> {
        config.validate()?;
        let zero = |p: &Parameter| {
            let n = p.spec.shape.iter().product();
            Ok(match &p.values {
                Values::Host { .. } => Moments::Host { first: vec![0.0; n], second: vec![0.0; n] },
                Values::Device { compute, .. } => {
                    let zeros = Tensor::zeros(p.spec.shape.as_slice(), DType::F32, compute.device())?;
                    Moments::Device { second: zeros.copy()?, first: zeros }
                }
            })
        };
        let shapes = decoder.parameter_list().iter().map(|p| (p.spec.name.clone(), p.spec.shape.clone())).collect();
        let moments = decoder.parameter_list().iter().map(zero).collect::<Result<_, AgentError>>()?;
        Ok(Self { config: config.clone(), step: 0, shapes, moments })
    }

    /// Clips, steps, and sets the decoder's gradients to zero. Gives the gradient's norm before clipping.
    ///
    /// # Errors
    /// [`AgentError::NonFinite`] naming the parameter whose gradient is not finite; the parameters are then unchanged.
    pub fn step(&mut self, decoder: &mut Decoder, learning_rate: f64) -> Result<f64, AgentError> {
        let mut squares = 0.0;
        for parameter in decoder.parameter_list() {
            let square = match &parameter.values {
                Values::Host { .. } => parameter.weight()?.sums().map_or(0.0, |sums| sum_of_squares(&sums)),
                Values::Device { gradient: Some(g), .. } => f64::from(g.sqr()?.sum_all()?.to_scalar::<f32>()?),
                Values::Device { gradient: None, .. } => 0.0,
            };
            if !square.is_finite() {
                let gradient = parameter.gradient()?;
                // Squares may overflow where the gradient itself does not.
                let position = gradient.iter().position(|g| !g.is_finite()).unwrap_or(0);
                return Err(AgentError::NonFinite {
                    tensor: format!("gradient of `{}`", parameter.spec.name),
                    value: gradient.get(position).copied().unwrap_or(f32::NAN),
                    update: self.step + 1,
                    position,
                });
            }
            squares += square;
        }
        let norm = squares.sqrt();
        let c = &self.config;
        let scale = if c.max_grad_norm > 0.0 && norm > c.max_grad_norm { c.max_grad_norm / norm } else { 1.0 };
        self.step += 1;
        let corrected = |beta: f64| 1.0 - beta.powf(self.step as f64);
        let rate = learning_rate / corrected(c.beta1);
        let second_scale = 1.0 / corrected(c.beta2).sqrt();
        for (parameter, moments) in decoder.parameters_mut().iter_mut().zip(&mut self.moments) {
            let keep = if parameter.is_decayed() { 1.0 - learning_rate * c.weight_decay } else { 1.0 };
            match (&mut parameter.values, moments) {
                (Values::Host { value, gradient }, Moments::Host { first, second }) => {
                    let value = std::sync::Arc::make_mut(value);
                    let mut gradient = gradient.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    if gradient.is_empty() {
                        continue;
                    }
                    AdamWStep {
                        value,
                        gradient: &mut gradient,
                        first,
                        second,
                        scale: scale as f32,
                        beta1: c.beta1 as f32,
                        beta2: c.beta2 as f32,
                        rate: rate as f32,
                        second_scale: second_scale as f32,
                        epsilon: c.epsilon as f32,
                        keep: keep as f32,
                    }
                    .run_now();
                }
                (Values::Device { compute, master: Some(master), gradient }, Moments::Device { first, second }) => {
                    let Some(g) = gradient.take() else { continue };
                    let g = (g * scale)?;
                    *first = ((&*first * c.beta1)? + (&g * (1.0 - c.beta1))?)?;
                    *second = ((&*second * c.beta2)? + (g.sqr()? * (1.0 - c.beta2))?)?;
                    let move_by = (&*first * rate)?.div(&((second.sqrt()? * second_scale)? + c.epsilon)?)?;
                    *master = ((&*master * keep)? - move_by)?;
                    compute.set(&master.to_dtype(DType::BF16)?)?;
                }
                _ => {}
            }
        }
        Ok(norm)
    }

    /// Steps done.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// Adds moments and step count to `state`, under names that begin with `prefix`.
    ///
    /// # Errors
    /// [`AgentError::Tensor`] if the device fails.
    pub fn save_state(&self, prefix: &str, state: &mut StateDict) -> Result<(), AgentError> {
        state.put_u64(format!("{prefix}step"), &[self.step]);
        for ((name, shape), moments) in self.shapes.iter().zip(&self.moments) {
            let (first, second) = match moments {
                Moments::Host { first, second } => (first.clone(), second.clone()),
                Moments::Device { first, second } => (first.flatten_all()?.to_vec1()?, second.flatten_all()?.to_vec1()?),
            };
            state.put_f32(format!("{prefix}first.{name}"), shape, &first);
            state.put_f32(format!("{prefix}second.{name}"), shape, &second);
        }
        Ok(())
    }

    /// Restores what [`AdamW::save_state`] wrote.
    ///
    /// # Errors
    /// [`AgentError::State`] naming the array that does not fit.
    pub fn load_state(&mut self, prefix: &str, state: &StateDict) -> Result<(), AgentError> {
        let step = state.counter(&format!("{prefix}step"))?;
        for ((name, shape), moments) in self.shapes.iter().zip(&mut self.moments) {
            let n = shape.iter().product();
            let (new_first, new_second) =
                (state.f32(&format!("{prefix}first.{name}"), n)?, state.f32(&format!("{prefix}second.{name}"), n)?);
            match moments {
                Moments::Host { first, second } => {
                    first.copy_from_slice(new_first);
                    second.copy_from_slice(new_second);
                }
                Moments::Device { first, second } => {
                    let tensor = |x: &[f32]| Tensor::from_slice(x, shape.as_slice(), first.device());
                    let (new_first, new_second) = (tensor(new_first)?, tensor(new_second)?);
                    (*first, *second) = (new_first, new_second);
                }
            }
        }
        self.step = step;
        Ok(())
    }
}
