//! A decoder with its parameters and their gradients.

use std::path::Path;
use std::sync::Arc;

use candle_core::Device;
use steadfast_envs::SeedTree;

use super::parameters::Parameter;
use super::weights::SCORE;
use super::{Checkpoint, DecoderConfig, DenseWeights, Head, TensorInit, TensorSpec, expected_tensors, save_checkpoint};
use crate::AgentError;
use crate::llm::ops::tape::Pool;

/// Name, shape and values of a parameter.
pub type NamedValues = (String, Vec<usize>, Vec<f32>);

/// A transformer decoder with its parameters and their gradients. It has a language-model head, or a scalar head
/// (`score.weight`, `[1, hidden]`).
pub struct Decoder {
    pub(super) config: DecoderConfig,
    pub(super) device: Device,
    has_scalar_head: bool,
    pub(super) parameters: Vec<Parameter>,
    /// Plain operations of candle in place of the fused ones: on devices, and for comparison.
    is_plain: bool,
    /// Room for the results of fused operations.
    pool: Arc<Pool>,
}

impl Decoder {
    /// Fresh weights, normal with the deviations of [`expected_tensors`]. `scalar_head` gives a `score.weight` in place of
    /// the language-model head.
    ///
    /// # Errors
    /// [`AgentError::Tensor`] if the device fails.
    pub fn fresh(config: &DecoderConfig, scalar_head: bool, seeds: SeedTree, device: &Device) -> Result<Self, AgentError> {
        let specs = expected_tensors(config, scalar_head);
        let parameters = specs.into_iter().map(|spec| {
            let values = initial(&spec, seeds);
            Parameter::new(spec, values, device, false)
        });
        Self::from_parameters(config.clone(), scalar_head, parameters.collect::<Result<_, _>>()?, device)
    }

    fn from_parameters(config: DecoderConfig, scalar_head: bool, parameters: Vec<Parameter>, device: &Device) -> Result<Self, AgentError> {
        let is_plain = !device.is_cpu();
        Ok(Self { config, device: device.clone(), has_scalar_head: scalar_head, parameters, is_plain, pool: Arc::default() })
    }

    /// Reads a folder as Hugging Face writes it: `config.json`, one or several safetensors files. A reward model (it has
    /// `score.weight`, or calls itself a classifier) gets its scalar head.
    ///
    /// # Errors
    /// [`AgentError::Model`] naming file and tensor.
    pub fn load(folder: &Path, device: &Device) -> Result<Self, AgentError> {
        let checkpoint = Checkpoint::open(folder)?;
        let scalar_head = checkpoint.has_scalar_head();
        let head = if scalar_head { Head::Scalar } else { Head::LanguageModel };
        let mut parameters = Vec::new();
        checkpoint.load(head, &mut |spec, values| {
            parameters.push(Parameter::new(spec.clone(), values, device, false)?);
            Ok(())
        })?;
        Self::from_parameters(checkpoint.config().clone(), scalar_head, parameters, device)
    }

    /// Writes `config.json` and `model.safetensors` (`f32`) so that `transformers` loads them.
    ///
    /// # Errors
    /// [`AgentError::Model`] naming the file that cannot be written.
    pub fn save(&self, folder: &Path) -> Result<(), AgentError> {
        save_checkpoint(folder, &self.config, self.has_scalar_head, &mut |name| self.named(name)?.to_vec())
    }

    /// The same backbone, copied, with a fresh scalar head.
    ///
    /// # Errors
    /// [`AgentError::Tensor`] if the device fails.
    pub fn with_scalar_head(&self, seeds: SeedTree) -> Result<Self, AgentError> {
        let parameters = expected_tensors(&self.config, true).into_iter().map(|spec| {
            let values = if spec.name == SCORE { initial(&spec, seeds) } else { self.named(&spec.name)?.to_vec()? };
            Parameter::new(spec, values, &self.device, false)
        });
        Self::from_parameters(self.config.clone(), true, parameters.collect::<Result<_, _>>()?, &self.device)
    }

    /// A frozen copy, such as a reference: on a GPU in `bf16` alone, and without room for gradients.
    ///
    /// # Errors
    /// [`AgentError::Tensor`] if the device fails.
    pub fn duplicate(&self) -> Result<Self, AgentError> {
        self.copy(true)
    }

    /// A copy that can be trained.
    ///
    /// # Errors
    /// [`AgentError::Tensor`] if the device fails.
    pub fn trainable_copy(&self) -> Result<Self, AgentError> {
        self.copy(false)
    }

    fn copy(&self, is_frozen: bool) -> Result<Self, AgentError> {
        let parameters = self.parameters.iter().map(|p| Parameter::new(p.spec.clone(), p.to_vec()?, &self.device, is_frozen));
        Self::from_parameters(self.config.clone(), self.has_scalar_head, parameters.collect::<Result<_, _>>()?, &self.device)
    }

    /// The shape.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Where the parameters are.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// True if it scores instead of speaking.
    pub fn has_scalar_head(&self) -> bool {
        self.has_scalar_head
    }

    /// Uses candle's own operations in place of the fused ones, to compare with.
    pub fn use_plain_operations(&mut self, is_plain: bool) {
        self.is_plain = is_plain || !self.device.is_cpu();
    }

    pub(super) fn is_plain(&self) -> bool {
        self.is_plain
    }

    pub(super) fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// Numbers that are trained.
    pub fn n_parameters(&self) -> usize {
        self.parameters.iter().map(|p| p.spec.shape.iter().product::<usize>()).sum()
    }

    /// Names, shapes and values of all parameters as `f32`, in the order of their names.
    ///
    /// # Errors
    /// [`AgentError::Tensor`] if the device fails.
    pub fn parameters(&self) -> Result<Vec<NamedValues>, AgentError> {
        self.parameters.iter().map(|p| Ok((p.spec.name.clone(), p.spec.shape.clone(), p.to_vec()?))).collect()
    }

    /// Names and sums of gradients, in the order of the names.
    ///
    /// # Errors
    /// [`AgentError::Tensor`] if the device fails.
    pub fn gradients(&self) -> Result<Vec<(String, Vec<f32>)>, AgentError> {
        self.parameters.iter().map(|p| Ok((p.spec.name.clone(), p.gradient()?))).collect()
    }

    /// Forgets all gradients.
    pub fn clear_gradients(&mut self) {
        self.parameters.iter_mut().for_each(Parameter::clear_gradient);
    }

    /// Sets one parameter.
    ///
    /// # Errors
    /// [`AgentError::State`] for an unknown name, [`AgentError::Shape`] for another number of values.
    pub fn set_parameter(&mut self, name: &str, values: &[f32]) -> Result<(), AgentError> {
        let i = self.index(name)?;
        self.parameters[i].set(values)
    }

    pub(crate) fn parameters_mut(&mut self) -> &mut [Parameter] {
        &mut self.parameters
    }

    pub(crate) fn parameter_list(&self) -> &[Parameter] {
        &self.parameters
    }

    pub(super) fn index(&self, name: &str) -> Result<usize, AgentError> {
        self.parameters
            .binary_search_by(|p| p.spec.name.as_str().cmp(name))
            .map_err(|_| AgentError::State { tensor: name.to_string(), reason: "the model has no such parameter".to_string() })
    }

    pub(super) fn named(&self, name: &str) -> Result<&Parameter, AgentError> {
        Ok(&self.parameters[self.index(name)?])
    }

    /// Plain copies of all weights in one layout, for generation.
    ///
    /// # Errors
    /// [`AgentError::State`] if there is a scalar head.
    pub fn dense(&self) -> Result<DenseWeights, AgentError> {
        if self.has_scalar_head {
            return Err(AgentError::State {
                tensor: SCORE.to_string(),
                reason: "a reward model has no language-model head and cannot generate".to_string(),
            });
        }
        DenseWeights::from_named(&self.config, &mut |name| self.named(name)?.to_vec())
    }
}

/// Values of a fresh tensor. They depend on the seed and the name alone.
fn initial(spec: &TensorSpec, seeds: SeedTree) -> Vec<f32> {
    let n = spec.shape.iter().product();
    match spec.init {
        TensorInit::Ones => vec![1.0; n],
        TensorInit::Zeros => vec![0.0; n],
        TensorInit::Normal(deviation) => {
            let mut rng = seeds.child(&spec.name).rng();
            (0..n).map(|_| (rng.normal() * deviation) as f32).collect()
        }
    }
}
