//! A world whose physics differ from those of training.

use serde::{Deserialize, Serialize};

use super::out_of_range;
use super::schedule::{Schedule, Strength};
use super::signal::Signal;
use crate::{EnvSpec, Environment, Result, Rng, SnapshotReader, SnapshotWriter};

/// A physical constant that is not what it was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DynamicsConfig {
    /// Name of the constant, such as `mass`; a wrong name is answered with those that the world has.
    pub constant: String,
    /// Relative change: the constant becomes `1 + change` times its value; above -1.
    pub change: f64,
    /// Course over an episode: `constant`, or a table `burst`, `onset` or `drift`.
    pub schedule: Schedule,
    /// Whether each episode draws its change between minus this and this: domain randomisation in training.
    pub randomize: bool,
}

impl Default for DynamicsConfig {
    fn default() -> Self {
        Self { constant: "mass".to_string(), change: 0.5, schedule: Schedule::Constant, randomize: false }
    }
}

impl DynamicsConfig {
    pub(super) fn validate(&self, _spec: &EnvSpec) -> Result<()> {
        const NAME: &str = "dynamics";
        if !(self.change.is_finite() && self.change > -1.0) {
            return out_of_range(NAME, "change", "a finite number above -1", self.change);
        }
        if self.randomize && self.change.abs() >= 1.0 {
            return out_of_range(NAME, "change", "between -1 and 1 with `randomize`, which draws both signs", self.change);
        }
        self.schedule.validate(NAME)
    }
}

/// A change prepared for one environment.
pub(super) struct Dynamics {
    index: usize,
    strength: Strength,
}

impl Dynamics {
    pub fn new(config: &DynamicsConfig, env: &dyn Environment) -> Result<Self> {
        config.validate(env.spec())?;
        let known = env.constants();
        let Some(index) = known.iter().position(|name| *name == config.constant) else {
            let expected = if known.is_empty() {
                format!("absent: `{}` has no physical constants", env.spec().name)
            } else {
                format!("a constant of `{}` ({})", env.spec().name, known.join(", "))
            };
            return out_of_range("dynamics", "constant", &expected, format!("`{}`", config.constant));
        };
        Ok(Self { index, strength: Strength::symmetric(config.change, config.randomize, config.schedule) })
    }
}

impl Signal for Dynamics {
    fn reset(&mut self, mut rng: Rng) {
        self.strength.reset(&mut rng);
    }

    fn constant(&self, step: usize) -> Option<(usize, f64)> {
        Some((self.index, 1.0 + self.strength.at(step)))
    }

    fn snapshot(&self, out: &mut SnapshotWriter) {
        self.strength.snapshot(out);
    }

    fn restore(&mut self, input: &mut SnapshotReader<'_>) -> Result<()> {
        self.strength.restore(input)
    }
}
