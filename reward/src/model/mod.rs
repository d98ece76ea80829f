//! What learns a reward from preferences.

pub mod hashed_text;

use steadfast_agents::StateDict;

use crate::error::Result;
use crate::margin::LossValue;

/// Computes the loss of a batch from its margins. Called once per member of an ensemble.
pub type BatchLoss<'a> = dyn FnMut(&[f32], &mut [LossValue]) + 'a;

/// A reward model over pairs of kind `P`.
pub trait RewardModel<P>: Send {
    /// Margins `r(chosen) − r(rejected)`, one per pair; of an ensemble, their mean.
    ///
    /// # Errors
    /// [`crate::RewardError::Data`] if a pair does not fit the model.
    fn margins(&mut self, pairs: &[&P], out: &mut [f32]) -> Result<()>;

    /// One step of the optimiser along the mean of the losses of a batch: margins, `loss`, gradient, step. The slopes
    /// that `loss` gives are constants of the step.
    ///
    /// # Errors
    /// As [`RewardModel::margins`]; [`crate::RewardError::Agent`] if a gradient or parameter becomes non-finite.
    fn step(&mut self, pairs: &[&P], loss: &mut BatchLoss<'_>, learning_rate: f32) -> Result<()>;

    /// Back to untrained parameters, drawn from `seed`; the optimiser forgets everything.
    fn reset(&mut self, seed: u64);

    /// Everything needed to continue exactly: parameters, optimiser, scales.
    fn state(&self) -> StateDict;

    /// Restores what [`RewardModel::state`] gave.
    ///
    /// # Errors
    /// [`crate::RewardError::Agent`] naming the array that does not fit.
    fn load_state(&mut self, state: &StateDict) -> Result<()>;
}
