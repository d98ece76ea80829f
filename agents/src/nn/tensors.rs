//! Parameters by name, for checkpoints.

use super::mlp::Mlp;
use crate::AgentError;

/// A tensor with its name: row-major data without padding.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedTensor {
    /// Such as `layers.0.weight`.
    pub name: String,
    /// Sizes of the axes.
    pub shape: Vec<usize>,
    /// Row-major elements.
    pub data: Vec<f32>,
}

/// Finds a tensor's shape and row-major data by its name.
pub type TensorLookup<'a> = &'a dyn Fn(&str) -> Option<(Vec<usize>, Vec<f32>)>;

impl Mlp {
    /// All parameters: `layers.{i}.weight` `[output, input]` and `layers.{i}.bias` `[output]`, first layer first.
    pub fn tensors(&self) -> Vec<NamedTensor> {
        let mut tensors = Vec::with_capacity(2 * self.layers.len());
        for (index, layer) in self.layers.iter().enumerate() {
            let weight = (0..layer.output)
                .flat_map(|o| (0..layer.input).map(move |i| layer.offset + i * layer.stride() + o))
                .map(|at| self.parameters[at])
                .collect();
            let bias = self.parameters[layer.bias()..][..layer.output].to_vec();
            tensors.push(NamedTensor { name: format!("layers.{index}.weight"), shape: vec![layer.output, layer.input], data: weight });
            tensors.push(NamedTensor { name: format!("layers.{index}.bias"), shape: vec![layer.output], data: bias });
        }
        tensors
    }

    /// Replaces all parameters by what `lookup` finds under the names of [`Mlp::tensors`] as (shape, row-major data).
    ///
    /// # Errors
    /// [`AgentError::State`] if a tensor is missing, has another shape, or holds a number of elements that does not belong
    /// to its shape. The network is then unchanged.
    pub fn load_tensors(&mut self, lookup: TensorLookup<'_>) -> Result<(), AgentError> {
        let mut found = Vec::with_capacity(2 * self.layers.len());
        for (index, layer) in self.layers.iter().enumerate() {
            found.push(fetch(lookup, &format!("layers.{index}.weight"), &[layer.output, layer.input])?);
            found.push(fetch(lookup, &format!("layers.{index}.bias"), &[layer.output])?);
        }
        let layers = self.layers.clone();
        let parameters = self.parameters_mut();
        for (layer, pair) in layers.iter().zip(found.chunks_exact(2)) {
            for (o, row) in pair[0].chunks_exact(layer.input).enumerate() {
                for (i, value) in row.iter().enumerate() {
                    parameters[layer.offset + i * layer.stride() + o] = *value;
                }
            }
            parameters[layer.bias()..][..layer.output].copy_from_slice(&pair[1]);
        }
        Ok(())
    }
}

fn fetch(lookup: TensorLookup<'_>, name: &str, expected: &[usize]) -> Result<Vec<f32>, AgentError> {
    let error = |reason: String| AgentError::State { tensor: name.into(), reason };
    let (shape, data) = lookup(name).ok_or_else(|| error(format!("missing, expected shape {expected:?}")))?;
    if shape != expected {
        return Err(error(format!("expected shape {expected:?}, found {shape:?}")));
    }
    if data.len() != expected.iter().product::<usize>() {
        return Err(error(format!("shape {expected:?} needs {} elements, found {}", expected.iter().product::<usize>(), data.len())));
    }
    Ok(data)
}
