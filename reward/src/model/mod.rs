//! What learns a reward from preferences.

pub mod hashed_text;
pub mod mlp;
pub mod segment_input;
#[cfg(feature = "llm")]
pub mod transformer;

use steadfast_agents::StateDict;

use crate::error::Result;
use crate::margin::LossValue;

pub use hashed_text::{HashedTextConfig, HashedTextReward};
pub use mlp::{MlpReward, MlpRewardConfig, RewardInputs};
pub use segment_input::{ActionKind, SegmentSpec};
#[cfg(feature = "llm")]
pub use transformer::{TransformerReward, TransformerRewardConfig};

/// Computes the loss of a batch from its margins. Called once per member of an ensemble.
pub type BatchLoss<'a> = dyn FnMut(&[f32], &mut [LossValue]) + 'a;

/// A reward model over pairs of kind `P`.
pub trait RewardModel<P>: Send {
    /// Why a pair cannot be used with this model, if it cannot. Looks at every number; [`RewardModel::margins`] and
    /// [`RewardModel::step`] may check shapes alone, so data is checked once before it is used.
    ///
    /// # Errors
    /// The reason, in words that fit behind the pair's identifier.
    fn check(&self, _pair: &P) -> Result<(), String> {
        Ok(())
    }

    /// Called once before the first step with the pairs that will be trained on, such as to take the scales of inputs
    /// from them. A model that has seen pairs before keeps its scales: it goes on from where it was.
    ///
    /// # Errors
    /// As [`RewardModel::margins`].
    fn prepare(&mut self, _pairs: &[&P]) -> Result<()> {
        Ok(())
    }

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
