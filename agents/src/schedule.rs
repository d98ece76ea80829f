//! Courses of a learning rate.

use serde::{Deserialize, Serialize};

use crate::AgentError;

/// What follows the warm-up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    /// The rate stays.
    Constant,
    /// Down to the floor in a straight line.
    Linear,
    /// Down to the floor along half a cosine.
    #[default]
    Cosine,
}

/// Warm-up and decay.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScheduleConfig {
    /// Share of all steps in which the rate rises in a straight line from 0, 0 to 1.
    pub warmup: f64,
    /// What follows: `constant`, `linear` or `cosine`.
    pub decay: Decay,
    /// Share of the rate that is left at the end, 0 to 1.
    pub floor: f64,
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self { warmup: 0.03, decay: Decay::Cosine, floor: 0.1 }
    }
}

impl ScheduleConfig {
    /// Checks the ranges given with the fields.
    ///
    /// # Errors
    /// [`AgentError::Config`] for the first field out of its range.
    pub fn validate(&self) -> Result<(), AgentError> {
        for (field, value) in [("schedule.warmup", self.warmup), ("schedule.floor", self.floor)] {
            if !(0.0..=1.0).contains(&value) {
                let (field, expected) = (field.to_string(), "between 0 and 1".to_string());
                return Err(AgentError::Config { field, expected, got: value.to_string() });
            }
        }
        Ok(())
    }

    /// Factor of the learning rate at step `step` (from 0) of `steps`. The first step of a warm-up is not 0.
    pub fn factor(&self, step: u64, steps: u64) -> f64 {
        let warmup = (self.warmup * steps as f64).ceil();
        let done = step as f64 + 1.0;
        if done < warmup {
            return done / warmup;
        }
        let rest = (steps as f64 - warmup).max(1.0);
        let x = ((done - warmup) / rest).clamp(0.0, 1.0);
        let left = match self.decay {
            Decay::Constant => return 1.0,
            Decay::Linear => 1.0 - x,
            Decay::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * x).cos()),
        };
        self.floor + (1.0 - self.floor) * left
    }
}
