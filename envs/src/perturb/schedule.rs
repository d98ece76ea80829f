//! How strong a perturbation is at each step of an episode.

use serde::{Deserialize, Serialize};

use crate::{EnvError, Result, Rng, SnapshotReader, SnapshotWriter};

/// The course of a perturbation over an episode. Steps are counted from 0, the first observation and the first action.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Full strength at every step.
    #[default]
    Constant,
    /// Full strength for some steps, nothing before and after: a disturbance to recover from.
    Burst(BurstConfig),
    /// Nothing at first, then full strength.
    Onset(OnsetConfig),
    /// Strength that grows linearly from 0.
    Drift(DriftConfig),
}

/// Settings of a burst.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BurstConfig {
    /// First perturbed step.
    pub start: usize,
    /// Perturbed steps, at least 1.
    pub length: usize,
}

impl Default for BurstConfig {
    fn default() -> Self {
        Self { start: 5, length: 5 }
    }
}

/// Settings of an onset.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OnsetConfig {
    /// First perturbed step.
    pub start: usize,
}

impl Default for OnsetConfig {
    fn default() -> Self {
        Self { start: 5 }
    }
}

/// Settings of a drift.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DriftConfig {
    /// Steps until the full strength, at least 1.
    pub length: usize,
}

impl Default for DriftConfig {
    fn default() -> Self {
        Self { length: 25 }
    }
}

impl Schedule {
    /// Fraction of the full strength at step `step`, 0 to 1.
    pub fn factor(&self, step: usize) -> f64 {
        match *self {
            Self::Constant => 1.0,
            Self::Burst(burst) => f64::from(u8::from(step >= burst.start && step - burst.start < burst.length)),
            Self::Onset(onset) => f64::from(u8::from(step >= onset.start)),
            Self::Drift(drift) => (step as f64 / drift.length as f64).min(1.0),
        }
    }

    /// The step from which on agents can recover: the first one after a burst, or the onset, after which they must live with
    /// the disturbance. Nothing for courses without such a moment.
    pub fn recovery_start(&self) -> Option<usize> {
        match *self {
            Self::Burst(burst) => Some(burst.start.saturating_add(burst.length)),
            Self::Onset(onset) => Some(onset.start),
            Self::Constant | Self::Drift(_) => None,
        }
    }

    /// Checks the ranges given with the fields, for the perturbation `name`.
    pub(super) fn validate(&self, name: &str) -> Result<()> {
        match *self {
            Self::Burst(BurstConfig { length: 0, .. }) | Self::Drift(DriftConfig { length: 0 }) => Err(EnvError::Config {
                env: name.to_string(),
                field: "schedule",
                expected: "a length of at least 1".to_string(),
                got: "0".to_string(),
            }),
            _ => Ok(()),
        }
    }
}

/// The strength of a perturbation in the running episode.
#[derive(Debug, Clone, Copy)]
pub(super) struct Strength {
    /// Limits of the draw of an episode; equal if nothing is drawn.
    low: f64,
    high: f64,
    schedule: Schedule,
    episode: f64,
}

impl Strength {
    /// `level` at full strength; if `randomize`, each episode draws its own between 0 and `level`.
    pub fn new(level: f64, randomize: bool, schedule: Schedule) -> Self {
        Self { low: if randomize { 0.0 } else { level }, high: level, schedule, episode: level }
    }

    /// As [`Strength::new`], but drawn between `-level` and `level`.
    pub fn symmetric(level: f64, randomize: bool, schedule: Schedule) -> Self {
        Self { low: if randomize { -level } else { level }, high: level, schedule, episode: level }
    }

    /// Starts an episode.
    pub fn reset(&mut self, rng: &mut Rng) {
        if self.low != self.high {
            self.episode = rng.uniform(self.low.min(self.high), self.low.max(self.high));
        }
    }

    /// The strength at step `step`.
    pub fn at(&self, step: usize) -> f64 {
        self.episode * self.schedule.factor(step)
    }

    pub fn snapshot(&self, out: &mut SnapshotWriter) {
        out.f64(self.episode);
    }

    pub fn restore(&mut self, input: &mut SnapshotReader<'_>) -> Result<()> {
        self.episode = input.f64()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn courses_have_their_shapes() {
        let course = |schedule: Schedule| (0..8).map(|t| schedule.factor(t)).collect::<Vec<_>>();
        assert_eq!(course(Schedule::Constant), [1.0; 8]);
        assert_eq!(course(Schedule::Burst(BurstConfig { start: 2, length: 3 })), [0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]);
        assert_eq!(course(Schedule::Onset(OnsetConfig { start: 6 })), [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0]);
        assert_eq!(course(Schedule::Drift(DriftConfig { length: 4 })), [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0]);
    }

    #[test]
    fn recovery_starts_where_the_disturbance_stops_changing() {
        assert_eq!(Schedule::Burst(BurstConfig { start: 2, length: 3 }).recovery_start(), Some(5));
        assert_eq!(Schedule::Onset(OnsetConfig { start: 6 }).recovery_start(), Some(6));
        assert_eq!(Schedule::Constant.recovery_start(), None);
        assert_eq!(Schedule::Burst(BurstConfig { start: usize::MAX, length: 3 }).recovery_start(), Some(usize::MAX));
    }

    #[test]
    fn randomized_strengths_fill_their_range() {
        let mut rng = Rng::from_seed(1);
        for (mut strength, low) in
            [(Strength::new(0.4, true, Schedule::Constant), 0.0), (Strength::symmetric(0.4, true, Schedule::Constant), -0.4)]
        {
            let drawn: Vec<f64> = (0..2000)
                .map(|_| {
                    strength.reset(&mut rng);
                    strength.at(3)
                })
                .collect();
            let (min, max) = drawn.iter().fold((f64::MAX, f64::MIN), |(a, b), v| (a.min(*v), b.max(*v)));
            assert!(min >= low && min < low + 0.01 && max <= 0.4 && max > 0.39, "{min} {max}");
        }
        let mut fixed = Strength::new(0.4, false, Schedule::Constant);
        let before = rng.clone().next_u64();
        fixed.reset(&mut rng);
        assert_eq!((fixed.at(0), rng.next_u64()), (0.4, before));
    }
}
