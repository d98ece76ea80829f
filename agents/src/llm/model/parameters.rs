//! Named parameters with their gradients, on the CPU or on a device.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Tensor, Var};

use super::TensorSpec;
use crate::AgentError;
use crate::llm::ops::tape::Weight;

/// Where a parameter's numbers are.
pub(crate) enum Values {
    /// `f32` in memory, the form that the fused operations work on.
    Host {
        /// The values.
        value: Arc<Vec<f32>>,
        /// Sums of gradients; empty for a frozen model.
        gradient: Arc<Mutex<Vec<f32>>>,
    },
    /// On a device: `bf16` for computing, beside it the `f32` numbers that the optimiser works on.
    Device {
        /// What operations read.
        compute: Var,
        /// None for a frozen model, which is `bf16` alone.
        master: Option<Tensor>,
        /// Sums of gradients in `f32`.
        gradient: Option<Tensor>,
    },
}

/// One parameter.
pub(crate) struct Parameter {
    /// Name and shape as in the checkpoint.
    pub spec: TensorSpec,
    /// Its numbers.
    pub values: Values,
}

impl Parameter {
    /// From `f32` values. A frozen parameter on a device has no `f32` copy.
    pub fn new(spec: TensorSpec, value: Vec<f32>, device: &Device, is_frozen: bool) -> Result<Self, AgentError> {
        let n: usize = spec.shape.iter().product();
        if value.len() != n {
            return Err(AgentError::Shape { op: format!("tensor `{}`", spec.name), expected: spec.shape, got: vec![value.len()] });
        }
        let values = if device.is_cpu() {
            Values::Host { value: Arc::new(value), gradient: Arc::new(Mutex::new(if is_frozen { Vec::new() } else { vec![0.0; n] })) }
        } else {
            let master = Tensor::from_vec(value, spec.shape.as_slice(), device)?;
            let compute = Var::from_tensor(&master.to_dtype(DType::BF16)?)?;
            Values::Device { compute, gradient: None, master: (!is_frozen).then_some(master) }
        };
        Ok(Self { spec, values })
    }

    /// Decayed by AdamW: matrices, not norms and biases.
    pub fn is_decayed(&self) -> bool {
        self.spec.shape.len() > 1
    }

    /// The `f32` values.
    pub fn to_vec(&self) -> Result<Vec<f32>, AgentError> {
        Ok(match &self.values {
            Values::Host { value, .. } => value.to_vec(),
            Values::Device { compute, master, .. } => {
                let tensor = master.as_ref().unwrap_or(compute.as_tensor());
                tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?
            }
        })
    }

    /// Replaces the values.
    pub fn set(&mut self, new: &[f32]) -> Result<(), AgentError> {
        let n: usize = self.spec.shape.iter().product();
        if new.len() != n {
            let (expected, got) = (self.spec.shape.clone(), vec![new.len()]);
            return Err(AgentError::Shape { op: format!("tensor `{}`", self.spec.name), expected, got });
        }
        match &mut self.values {
            Values::Host { value, .. } => Arc::make_mut(value).copy_from_slice(new),
            Values::Device { compute, master, .. } => {
                let tensor = Tensor::from_slice(new, self.spec.shape.as_slice(), compute.device())?;
                compute.set(&tensor.to_dtype(DType::BF16)?)?;
                if let Some(master) = master {
                    *master = tensor;
                }
            }
        }
        Ok(())
    }

    /// The sums of gradients so far.
    pub fn gradient(&self) -> Result<Vec<f32>, AgentError> {
        Ok(match &self.values {
            Values::Host { gradient, .. } => gradient.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            Values::Device { gradient: Some(gradient), .. } => gradient.flatten_all()?.to_vec1()?,
            Values::Device { gradient: None, .. } => vec![0.0; self.spec.shape.iter().product()],
        })
    }

    /// The parameter as an operand of the fused operations; they exist on the CPU alone.
    pub fn weight(&self) -> Result<Weight, AgentError> {
        match &self.values {
            Values::Host { value, gradient } => {
                let is_frozen = gradient.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
                Ok(Weight { value: value.clone(), gradient: (!is_frozen).then(|| gradient.clone()) })
            }
            Values::Device { .. } => Err(AgentError::Tensor(format!("`{}` is not on the CPU", self.spec.name))),
        }
    }

    /// Adds a gradient that a tape of plain operations gave.
    pub fn add_gradient(&mut self, added: &Tensor) -> Result<(), AgentError> {
        let added = added.to_dtype(DType::F32)?;
        match &mut self.values {
            Values::Host { gradient, .. } => {
                let added = added.flatten_all()?.to_vec1::<f32>()?;
                let mut sums = gradient.lock().unwrap_or_else(PoisonError::into_inner);
                sums.iter_mut().zip(added).for_each(|(sum, g)| *sum += g);
            }
            Values::Device { gradient, .. } => {
                *gradient = Some(match gradient.take() {
                    Some(sums) => (sums + added)?,
                    None => added,
                });
            }
        }
        Ok(())
    }

    /// Forgets the sums of gradients.
    pub fn clear_gradient(&mut self) {
        match &mut self.values {
            Values::Host { gradient, .. } => gradient.lock().unwrap_or_else(PoisonError::into_inner).fill(0.0),
            Values::Device { gradient, .. } => *gradient = None,
        }
    }
}
