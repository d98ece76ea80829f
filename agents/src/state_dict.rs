//! The saved state of learners: named arrays.

use std::collections::BTreeMap;

use steadfast_envs::{Rng, SnapshotReader, SnapshotWriter};

use crate::AgentError;
use crate::nn::{Adam, AdamState, Mlp, RewardScale, RunningNorm, RunningNormState};

/// A saved array.
#[derive(Debug, Clone, PartialEq)]
pub enum Array {
    /// Single-precision numbers with their shape.
    F32(Vec<usize>, Vec<f32>),
    /// Double-precision numbers with their shape.
    F64(Vec<usize>, Vec<f64>),
    /// Words: counters and the positions of generators.
    U64(Vec<u64>),
}

/// Everything a learner needs to go on exactly where it was, by name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StateDict {
    /// The arrays.
    pub arrays: BTreeMap<String, Array>,
}

impl StateDict {
    /// Adds single-precision numbers.
    pub fn put_f32(&mut self, name: impl Into<String>, shape: &[usize], values: &[f32]) {
        self.arrays.insert(name.into(), Array::F32(shape.to_vec(), values.to_vec()));
    }

    /// Adds double-precision numbers.
    pub fn put_f64(&mut self, name: impl Into<String>, shape: &[usize], values: &[f64]) {
        self.arrays.insert(name.into(), Array::F64(shape.to_vec(), values.to_vec()));
    }

    /// Adds words.
    pub fn put_u64(&mut self, name: impl Into<String>, values: &[u64]) {
        self.arrays.insert(name.into(), Array::U64(values.to_vec()));
    }

    fn get(&self, name: &str) -> Result<&Array, AgentError> {
        self.arrays.get(name).ok_or_else(|| AgentError::State { tensor: name.to_string(), reason: "it is missing".to_string() })
    }

    /// Single-precision numbers of a known length.
    ///
    /// # Errors
    /// [`AgentError::State`] if they are missing, of another type or of another length.
    pub fn f32(&self, name: &str, length: usize) -> Result<&[f32], AgentError> {
        match self.get(name)? {
            Array::F32(_, values) if values.len() == length => Ok(values),
            other => Err(unfit(name, &format!("{length} values of type F32"), other)),
        }
    }

    /// Double-precision numbers of a known length.
    ///
    /// # Errors
    /// As [`StateDict::f32`].
    pub fn f64(&self, name: &str, length: usize) -> Result<&[f64], AgentError> {
        match self.get(name)? {
            Array::F64(_, values) if values.len() == length => Ok(values),
            other => Err(unfit(name, &format!("{length} values of type F64"), other)),
        }
    }

    /// Words.
    ///
    /// # Errors
    /// [`AgentError::State`] if they are missing or of another type.
    pub fn u64(&self, name: &str) -> Result<&[u64], AgentError> {
        match self.get(name)? {
            Array::U64(values) => Ok(values),
            other => Err(unfit(name, "values of type U64", other)),
        }
    }

    /// A single word.
    ///
    /// # Errors
    /// [`AgentError::State`] if it is missing, of another type or not alone.
    pub fn counter(&self, name: &str) -> Result<u64, AgentError> {
        match self.u64(name)? {
            [value] => Ok(*value),
            _ => Err(unfit(name, "one value of type U64", self.get(name)?)),
        }
    }
}

/// The parts that learners are made of.
impl StateDict {
    /// Adds the weights of a network, under names that begin with `prefix`.
    pub fn put_net(&mut self, prefix: &str, net: &Mlp) {
        for tensor in net.tensors() {
            self.put_f32(format!("{prefix}.{}", tensor.name), &tensor.shape, &tensor.data);
        }
    }

    /// Loads what [`StateDict::put_net`] added.
    ///
    /// # Errors
    /// [`AgentError::State`] naming the tensor that does not fit.
    pub fn load_net(&self, prefix: &str, net: &mut Mlp) -> Result<(), AgentError> {
        net.load_tensors(&|name| match self.arrays.get(&format!("{prefix}.{name}")) {
            Some(Array::F32(shape, data)) => Some((shape.clone(), data.clone())),
            _ => None,
        })
    }

    /// Adds the moments of an optimiser.
    pub fn put_adam(&mut self, prefix: &str, adam: &Adam) {
        let AdamState { n_steps, mean, square } = adam.state();
        self.put_f32(format!("{prefix}.adam.mean"), &[mean.len()], mean);
        self.put_f32(format!("{prefix}.adam.square"), &[square.len()], square);
        self.put_u64(format!("{prefix}.adam.steps"), &[n_steps]);
    }

    /// Loads what [`StateDict::put_adam`] added.
    ///
    /// # Errors
    /// [`AgentError::State`] naming the array that does not fit.
    pub fn load_adam(&self, prefix: &str, adam: &mut Adam) -> Result<(), AgentError> {
        let n = adam.state().mean.len();
        let mean = self.f32(&format!("{prefix}.adam.mean"), n)?;
        let square = self.f32(&format!("{prefix}.adam.square"), n)?;
        let n_steps = self.counter(&format!("{prefix}.adam.steps"))?;
        adam.load_state(AdamState { n_steps, mean, square })
    }

    /// Adds running statistics.
    pub fn put_norm(&mut self, prefix: &str, norm: &RunningNormState) {
        self.put_f64(format!("{prefix}.mean"), &[norm.mean.len()], &norm.mean);
        self.put_f64(format!("{prefix}.variance"), &[norm.var.len()], &norm.var);
        self.put_f64(format!("{prefix}.count"), &[1], &[norm.count]);
    }

    /// What [`StateDict::put_norm`] added, of `features` features.
    ///
    /// # Errors
    /// [`AgentError::State`] naming the array that does not fit.
    pub fn norm(&self, prefix: &str, features: usize) -> Result<RunningNormState, AgentError> {
        Ok(RunningNormState {
            mean: self.f64(&format!("{prefix}.mean"), features)?.to_vec(),
            var: self.f64(&format!("{prefix}.variance"), features)?.to_vec(),
            count: self.f64(&format!("{prefix}.count"), 1)?[0],
        })
    }

    /// Loads what [`StateDict::put_norm`] added.
    ///
    /// # Errors
    /// [`AgentError::State`] naming the array that does not fit.
    pub fn load_norm(&self, prefix: &str, norm: &mut RunningNorm) -> Result<(), AgentError> {
        norm.load_state(&self.norm(prefix, norm.features())?)
    }

    /// Adds the statistics of rewards. (Checkpoints have them as `return_scale`, by which they were first scaled.)
    pub fn put_reward_scale(&mut self, prefix: &str, scale: &RewardScale) {
        let (returns, statistics) = scale.state();
        self.put_f32(format!("{prefix}.returns"), &[returns.len()], returns);
        self.put_norm(prefix, &statistics);
    }

    /// Loads what [`StateDict::put_reward_scale`] added.
    ///
    /// # Errors
    /// [`AgentError::State`] naming the array that does not fit.
    pub fn load_reward_scale(&self, prefix: &str, scale: &mut RewardScale) -> Result<(), AgentError> {
        let n = scale.state().0.len();
        scale.load_state(self.f32(&format!("{prefix}.returns"), n)?, &self.norm(prefix, 1)?)
    }

    /// Adds a lower and an upper bound, if they were measured.
    pub fn put_bounds(&mut self, name: &str, bounds: Option<[f64; 2]>) {
        let values: Vec<f64> = bounds.into_iter().flatten().collect();
        self.put_f64(name, &[values.len()], &values);
    }

    /// A lower and an upper bound that were measured, or nothing if the array is empty or of a checkpoint from before it.
    ///
    /// # Errors
    /// [`AgentError::State`] if it has another length.
    pub fn bounds(&self, name: &str) -> Result<Option<[f64; 2]>, AgentError> {
        if !self.arrays.contains_key(name) || self.f64(name, 0).is_ok() {
            return Ok(None);
        }
        let bounds = self.f64(name, 2)?;
        Ok(Some([bounds[0], bounds[1]]))
    }

    /// Adds the position of a generator.
    pub fn put_rng(&mut self, name: &str, rng: &Rng) {
        let mut words = SnapshotWriter::default();
        rng.snapshot(&mut words);
        self.put_u64(name, &words.into_words());
    }

    /// The generator that [`StateDict::put_rng`] added.
    ///
    /// # Errors
    /// [`AgentError`] if it is missing or no position of a generator.
    pub fn rng(&self, name: &str) -> Result<Rng, AgentError> {
        let mut words = SnapshotReader::new(name, self.u64(name)?);
        let rng = Rng::restore(&mut words)?;
        words.finish()?;
        Ok(rng)
    }
}

fn unfit(name: &str, expected: &str, got: &Array) -> AgentError {
    let (kind, n) = match got {
        Array::F32(_, v) => ("F32", v.len()),
        Array::F64(_, v) => ("F64", v.len()),
        Array::U64(v) => ("U64", v.len()),
    };
    AgentError::State { tensor: name.to_string(), reason: format!("expected {expected}, got {n} of type {kind}") }
}
