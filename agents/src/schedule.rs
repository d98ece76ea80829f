//! Courses of a learning rate.

use serde::{Deserialize, Serialize};

use crate::AgentError;

/// How the learning rate changes during the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// It stays.
    Constant,
    /// It falls linearly to 0 at the last step.
    Linear,
}

impl Schedule {
    /// Factor of the learning rate at a point of the run, `progress` from 0 to 1.
    pub fn remaining(self, progress: f64) -> f64 {
        match self {
            Self::Constant => 1.0,
            Self::Linear => (1.0 - progress).max(0.0),
        }
    }
}

/// Share of its final strength that something has at a point of the run, `progress` from 0 to 1, if it grows in a straight line over the
/// first `fraction`.
pub(crate) fn warmth(progress: f64, fraction: f64) -> f64 {
    if fraction > 0.0 { (progress / fraction).min(1.0) } else { 1.0 }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    fn factors(decay: Decay, warmup: f64, floor: f64, steps: u64) -> Vec<f64> {
        let schedule = ScheduleConfig { warmup, decay, floor };
        (0..steps).map(|step| schedule.factor(step, steps)).collect()
    }

    fn assert_close(got: &[f64], expected: &[f64]) {
        assert!(got.len() == expected.len() && got.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{got:?}");
    }

    #[test]
    fn values_of_small_schedules() {
        assert_close(&factors(Decay::Constant, 0.5, 0.0, 4), &[0.5, 1.0, 1.0, 1.0]);
        assert_close(&factors(Decay::Linear, 0.0, 0.2, 4), &[0.8, 0.6, 0.4, 0.2]);
        // Two steps of warm-up, then cosines of a quarter, a half, three quarters of the way and its end.
        let half = |x: f64| 0.1 + 0.9 * 0.5 * (1.0 + x);
        let root = 0.5_f64.sqrt();
        assert_close(&factors(Decay::Cosine, 1.0 / 3.0, 0.1, 6), &[0.5, 1.0, half(root), half(0.0), half(-root), 0.1]);
    }

    #[test]
    fn no_step_stands_still_and_none_is_above_one() {
        for steps in [1, 2, 7, 100] {
            for decay in [Decay::Constant, Decay::Linear, Decay::Cosine] {
                for warmup in [0.0, 0.03, 0.5, 1.0] {
                    let all = factors(decay, warmup, 0.1, steps);
                    assert!(all.iter().all(|f| (0.0..=1.0 + 1e-12).contains(f)) && all[0] > 0.0, "{all:?}");
                }
            }
        }
        // Beyond the end the rate stays at the floor.
        let schedule = ScheduleConfig { warmup: 0.0, decay: Decay::Linear, floor: 0.3 };
        assert!((schedule.factor(50, 10) - 0.3).abs() < 1e-12);
    }

    #[test]
    fn shares_outside_of_their_range_are_named() {
        for (warmup, floor, field) in [(-0.1, 0.0, "warmup"), (0.0, f64::NAN, "floor")] {
            let error = ScheduleConfig { warmup, floor, ..ScheduleConfig::default() }.validate().unwrap_err();
            assert!(error.to_string().contains(field));
        }
    }
}
