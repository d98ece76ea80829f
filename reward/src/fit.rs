//! Fitting a reward model to labelled pairs: passes, selection of the pass, diagnostics.

use serde::{Deserialize, Serialize};

use crate::error::{Result, require};

/// Which pass's parameters are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Selection {
    /// Those of the last pass.
    Fixed,
    /// Those with the highest accuracy on held-out pairs with the labels as given, wrong ones included.
    NoisyValidation,
    /// Those with the highest accuracy on held-out pairs with true labels. Real data has none: an upper bound only.
    Oracle,
}

/// Settings of fitting.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FitConfig {
    /// Passes over the pairs, 1 to 100000.
    pub epochs: usize,
    /// Pairs per step of the optimiser, at least 1.
    pub batch_size: usize,
    /// Adam's learning rate, above 0.
    pub learning_rate: f64,
    /// Share of the pairs that is held out to select a pass, at least 0 and below 1; above 0 unless `selection` is `fixed`.
    pub validation_fraction: f64,
    /// Which pass's parameters are kept: `fixed` (the last), `noisy_validation` or `oracle`.
    pub selection: Selection,
}

impl Default for FitConfig {
    fn default() -> Self {
        Self { epochs: 10, batch_size: 64, learning_rate: 3e-3, validation_fraction: 0.0, selection: Selection::Fixed }
    }
}

impl FitConfig {
    /// Checks the ranges given with the fields.
    ///
    /// # Errors
    /// [`crate::RewardError::Config`] for the first field out of its range.
    pub fn validate(&self) -> Result<()> {
        require((1..=100_000).contains(&self.epochs), "epochs", "between 1 and 100000", self.epochs)?;
        require(self.batch_size >= 1, "batch_size", "at least 1", self.batch_size)?;
        let rate = self.learning_rate;
        require(rate > 0.0 && rate.is_finite(), "learning_rate", "a finite number above 0", rate)?;
        let fraction = self.validation_fraction;
        require((0.0..1.0).contains(&fraction), "validation_fraction", "at least 0 and below 1", fraction)?;
        let needs_pairs = self.selection != Selection::Fixed;
        require(!needs_pairs || fraction > 0.0, "validation_fraction", "above 0 where `selection` is not `fixed`", fraction)
    }
}

/// One pass over the pairs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct EpochReport {
    /// Number of the pass, from 1.
    pub epoch: usize,
    /// Mean loss over the pass, each pair at the time of its step.
    pub loss: f64,
    /// Mean cross-entropy at the same margins, comparable across losses.
    pub cross_entropy: f64,
    /// Mean outlier value δ.
    pub delta_mean: f64,
    /// Largest outlier value δ.
    pub delta_max: f64,
    /// Share of pairs with δ > 0.
    pub outlier_fraction: f64,
    /// Mean of |slope| / λ for R3M: 1 where every pair is clipped; nothing for other losses.
    pub clip_saturation: Option<f64>,
    /// Accuracy on held-out pairs, labels as given.
    pub validation_accuracy: Option<f64>,
    /// Mean cross-entropy on held-out pairs, labels as given.
    pub validation_cross_entropy: Option<f64>,
    /// Accuracy on held-out pairs, true labels.
    pub oracle_accuracy: Option<f64>,
    /// Accuracy on separate test pairs with true labels. Nothing is selected by it.
    pub test_accuracy: Option<f64>,
}

/// A pair at the end of fitting.
#[derive(Debug, Clone, PartialEq)]
pub struct PairReport {
    /// Identifier.
    pub id: String,
    /// Margin under the kept parameters.
    pub margin: f32,
    /// Outlier value δ; for losses that have none, 0.
    pub delta: f32,
    /// Whether the label is wrong, if that is known.
    pub flipped: Option<bool>,
}

/// What came of a fit.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FitReport {
    /// The passes.
    pub epochs: Vec<EpochReport>,
    /// The pass whose parameters were kept, from 1.
    pub selected_epoch: usize,
    /// The training pairs at the end, in their order; held-out pairs are not among them.
    pub pairs: Vec<PairReport>,
    /// How well wrong labels were found among them; nothing if the truth is not known or all labels are alike.
    pub detection: Option<Detection>,
}

/// How well low margins point to wrong labels.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Detection {
    /// Share of wrong labels.
    pub rate: f64,
    /// Area under the receiver operating characteristic of −margin.
    pub auroc: f64,
    /// Average precision of −margin.
    pub average_precision: f64,
    /// Precision of the set δ > 0; nothing if it is empty.
    pub precision: Option<f64>,
    /// Recall of the set δ > 0.
    pub recall: f64,
}
