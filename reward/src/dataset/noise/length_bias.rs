//! Annotators who take length for quality.

use serde::{Deserialize, Serialize};
use steadfast_envs::{Rng, SeedTree};

use crate::error::{Result, require};

/// A share of the annotators always prefers the longer one: the segment of more steps, the text of more characters.
///
/// All pairs of a named annotator are labelled by the same rule; pairs without one count as an annotator each. Things of
/// equal length get the true label. These errors are systematic and not sparse.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LengthBiasConfig {
    /// Probability that an annotator goes by length, 0 to 1.
    pub fraction: f64,
}

impl Default for LengthBiasConfig {
    fn default() -> Self {
        Self { fraction: 0.3 }
    }
}

impl LengthBiasConfig {
    pub(super) fn validate(&self) -> Result<()> {
        require((0.0..=1.0).contains(&self.fraction), "fraction", "between 0 and 1", self.fraction)
    }

    /// Whether length makes the first the preferred one; nothing if length does not decide.
    pub(super) fn prefers_first(&self, lengths: (usize, usize), annotator: Option<&str>, seed: &SeedTree, rng: &mut Rng) -> Option<bool> {
        let draw = match annotator {
            Some(name) => seed.child("annotator").child(name).rng().unit(),
            None => rng.unit(),
        };
        (draw < self.fraction && lengths.0 != lengths.1).then_some(lengths.0 > lengths.1)
    }
}
