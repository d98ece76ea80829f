//! An annotator to whom recent steps count more.

use serde::{Deserialize, Serialize};

use super::pair::TrueRewards;
use crate::error::{Result, require};

/// Labels by the order of `Σₜ discount^(m−t) · rₜ`, t = 1..m, without randomness, where steps that both things lack are left
/// out. Of things without steps it is the truth.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MyopicNoiseConfig {
    /// Weight of a step against the step after it, 0 to 1; 1 is the truth. 0.3, 0.5 and 0.7 in the paper.
    pub discount: f64,
}

impl Default for MyopicNoiseConfig {
    fn default() -> Self {
        Self { discount: 0.7 }
    }
}

impl MyopicNoiseConfig {
    pub(super) fn validate(&self) -> Result<()> {
        require((0.0..=1.0).contains(&self.discount), "discount", "between 0 and 1", self.discount)
    }

    /// Has the sign of the difference of the discounted sums.
    pub(super) fn gap(&self, first: &TrueRewards, second: &TrueRewards) -> f64 {
        // Steps that both lack scale both sums alike. Left out, two segments that ended early cannot both vanish.
        let both = first.missing().min(second.missing());
        let sum = |r: &TrueRewards| r.myopic_sum_of_rewards(self.discount) * self.discount.powf((r.missing() - both) as f64);
        sum(first) - sum(second)
    }
}
