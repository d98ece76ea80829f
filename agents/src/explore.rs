//! How often learners of values act at random.

use serde::{Deserialize, Serialize};

use crate::AgentError;
use crate::ranges::Ranges;
use crate::schedule::warmth;

/// Probability of a random action over the run, falling in a straight line.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExplorationConfig {
    /// Probability of a random action at the beginning, 0 to 1.
    pub initial: f64,
    /// The same from `fraction` on, 0 to 1.
    #[serde(rename = "final")]
    pub last: f64,
    /// Share of the run after which the final probability is reached, 0 to 1.
    pub fraction: f64,
}

impl Default for ExplorationConfig {
    /// Those of PyMARL and EPyMARL, whose 50,000 steps are a fortieth of their runs of 2 million.
    fn default() -> Self {
        Self { initial: 1.0, last: 0.05, fraction: 0.025 }
    }
}

impl ExplorationConfig {
    /// Checks the ranges given with the fields.
    ///
    /// # Errors
    /// [`AgentError::Config`] for the first field out of its range.
    pub fn validate(&self) -> Result<(), AgentError> {
        let mut ranges = Ranges::default();
        ranges.fraction("exploration.initial", self.initial);
        ranges.fraction("exploration.final", self.last);
        ranges.fraction("exploration.fraction", self.fraction);
        ranges.finish()
    }

    /// Probability of a random action at a point of the run, `progress` from 0 to 1.
    pub fn probability(&self, progress: f64) -> f64 {
        self.initial + (self.last - self.initial) * warmth(progress, self.fraction)
    }
}

/// The first of the greatest values: the greedy choice.
pub(crate) fn greedy(values: &[f32]) -> usize {
    values.iter().enumerate().fold(0, |best, (i, v)| if *v > values[best] { i } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probability_falls_to_its_last_value_and_stays() {
        let config = ExplorationConfig { initial: 1.0, last: 0.1, fraction: 0.5 };
        assert_eq!(config.probability(0.0), 1.0);
        assert!((config.probability(0.25) - 0.55).abs() < 1e-12);
        assert!((config.probability(0.5) - 0.1).abs() < 1e-12);
        assert!((config.probability(1.0) - 0.1).abs() < 1e-12);
        assert!((ExplorationConfig { fraction: 0.0, ..config }.probability(0.0) - 0.1).abs() < 1e-12);
    }
}
