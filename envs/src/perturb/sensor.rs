//! Sensors that are off, fall silent or are late.

use serde::{Deserialize, Serialize};

use super::schedule::{Schedule, Strength};
use super::signal::Signal;
use super::{at_least_zero, between_zero_and_one, features, out_of_range};
use crate::{EnvSpec, Result, Rng, SnapshotReader, SnapshotWriter};

/// An offset of each observed feature that stays for an episode; its sign is drawn at the start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ObservationBiasConfig {
    /// Size of the offset in units of the feature times its `scale`, at least 0.
    pub magnitude: f64,
    /// Factor per feature; all 1 if empty, and 0 beyond the end of the list.
    pub scale: Vec<f32>,
    /// Names or groups of the agents whose sensors are off; all if empty.
    pub agents: Vec<String>,
    /// Course over an episode: `constant`, or a table `burst`, `onset` or `drift`.
    pub schedule: Schedule,
    /// Whether each episode draws its magnitude between 0 and this one.
    pub randomize: bool,
}

impl Default for ObservationBiasConfig {
    fn default() -> Self {
        Self { magnitude: 0.1, scale: Vec::new(), agents: Vec::new(), schedule: Schedule::Constant, randomize: false }
    }
}

impl ObservationBiasConfig {
    pub(super) fn validate(&self, spec: &EnvSpec) -> Result<()> {
        const NAME: &str = "observation_bias";
        at_least_zero(NAME, "magnitude", self.magnitude)?;
        self.schedule.validate(NAME)?;
        features(NAME, &self.agents, &self.scale, spec).map(drop)
    }
}

/// What a silent sensor shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Silence {
    /// 0.
    Zero,
    /// What it showed last.
    Hold,
}

/// Observed features that fall silent, each step and feature by itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ObservationDropoutConfig {
    /// Probability that a feature is missing at a step, 0 to 1.
    pub probability: f64,
    /// What is seen instead: `zero`, or `hold` for the last value that was seen (0 at first).
    pub silence: Silence,
    /// Names or groups of the agents whose sensors fail; all if empty.
    pub agents: Vec<String>,
    /// Course over an episode: `constant`, or a table `burst`, `onset` or `drift`.
    pub schedule: Schedule,
    /// Whether each episode draws its probability between 0 and this one.
    pub randomize: bool,
}

impl Default for ObservationDropoutConfig {
    fn default() -> Self {
        Self { probability: 0.1, silence: Silence::Zero, agents: Vec::new(), schedule: Schedule::Constant, randomize: false }
    }
}

impl ObservationDropoutConfig {
    pub(super) fn validate(&self, spec: &EnvSpec) -> Result<()> {
        const NAME: &str = "observation_dropout";
        between_zero_and_one(NAME, "probability", self.probability)?;
        self.schedule.validate(NAME)?;
        features(NAME, &self.agents, &[], spec).map(drop)
    }
}

/// Observations that are some steps old; the first one stays until there is one of that age.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ObservationDelayConfig {
    /// Age in steps, a whole number from 0 to 1000.
    pub steps: f64,
    /// Names or groups of the agents who see late; all if empty.
    pub agents: Vec<String>,
}

impl Default for ObservationDelayConfig {
    fn default() -> Self {
        Self { steps: 1.0, agents: Vec::new() }
    }
}

impl ObservationDelayConfig {
    pub(super) fn validate(&self, spec: &EnvSpec) -> Result<()> {
        const NAME: &str = "observation_delay";
        if !(self.steps.fract() == 0.0 && (0.0..=1000.0).contains(&self.steps)) {
            return out_of_range(NAME, "steps", "a whole number from 0 to 1000", self.steps);
        }
        features(NAME, &self.agents, &[], spec).map(drop)
    }
}

/// Offsets prepared for one environment.
pub(super) struct ObservationBias {
    strength: Strength,
    /// Place in the observation array, scale, and sign in the running episode.
    features: Vec<(usize, f32, f32)>,
}

impl ObservationBias {
    pub fn new(config: &ObservationBiasConfig, spec: &EnvSpec) -> Result<Self> {
        config.validate(spec)?;
        let features = features("observation_bias", &config.agents, &config.scale, spec)?;
        Ok(Self {
            strength: Strength::new(config.magnitude, config.randomize, config.schedule),
            features: features.into_iter().map(|(place, scale)| (place, scale, 1.0)).collect(),
        })
    }
}

impl Signal for ObservationBias {
    fn reset(&mut self, mut rng: Rng) {
        self.strength.reset(&mut rng);
        for (_, _, sign) in &mut self.features {
            *sign = if rng.next_u64() >> 63 == 0 { -1.0 } else { 1.0 };
        }
    }

    fn observe(&mut self, step: usize, observations: &mut [f32]) {
        let magnitude = self.strength.at(step) as f32;
        for &(place, scale, sign) in &self.features {
            observations[place] += magnitude * scale * sign;
        }
    }

    fn snapshot(&self, out: &mut SnapshotWriter) {
        self.strength.snapshot(out);
        let signs: Vec<f32> = self.features.iter().map(|(_, _, sign)| *sign).collect();
        out.f32s(&signs);
    }

    fn restore(&mut self, input: &mut SnapshotReader<'_>) -> Result<()> {
        self.strength.restore(input)?;
        let mut signs = vec![0.0; self.features.len()];
        input.f32s(&mut signs)?;
        self.features.iter_mut().zip(signs).for_each(|((_, _, sign), restored)| *sign = restored);
        Ok(())
    }
}

/// Failing sensors prepared for one environment.
pub(super) struct ObservationDropout {
    strength: Strength,
    silence: Silence,
    places: Vec<usize>,
    /// The last value of each, in the order of `places`.
    last: Vec<f32>,
    rng: Rng,
}

impl ObservationDropout {
    pub fn new(config: &ObservationDropoutConfig, spec: &EnvSpec) -> Result<Self> {
        config.validate(spec)?;
        let places: Vec<usize> = features("observation_dropout", &config.agents, &[], spec)?.into_iter().map(|(place, _)| place).collect();
        Ok(Self {
            strength: Strength::new(config.probability, config.randomize, config.schedule),
            silence: config.silence,
            last: vec![0.0; places.len()],
            places,
            rng: Rng::from_seed(0),
        })
    }
}

impl Signal for ObservationDropout {
    fn reset(&mut self, rng: Rng) {
        self.rng = rng;
        self.strength.reset(&mut self.rng);
        self.last.fill(0.0);
    }

    fn observe(&mut self, step: usize, observations: &mut [f32]) {
        let probability = self.strength.at(step);
        for (&place, last) in self.places.iter().zip(&mut self.last) {
            // One draw per feature and step whatever happens, so that levels share their random numbers.
            if self.rng.unit() < probability {
                observations[place] = if self.silence == Silence::Hold { *last } else { 0.0 };
            }
            *last = observations[place];
        }
    }

    fn snapshot(&self, out: &mut SnapshotWriter) {
        self.rng.snapshot(out);
        self.strength.snapshot(out);
        out.f32s(&self.last);
    }

    fn restore(&mut self, input: &mut SnapshotReader<'_>) -> Result<()> {
        self.rng = Rng::restore(input)?;
        self.strength.restore(input)?;
        input.f32s(&mut self.last)
    }
}

/// Late sensors prepared for one environment.
pub(super) struct ObservationDelay {
    steps: usize,
    places: Vec<usize>,
    /// The observations of the last steps, `[steps, place]`, a ring; that of step `t` is at `t % steps`.
    past: Vec<f32>,
}

impl ObservationDelay {
    pub fn new(config: &ObservationDelayConfig, spec: &EnvSpec) -> Result<Self> {
        config.validate(spec)?;
        let places: Vec<usize> = features("observation_delay", &config.agents, &[], spec)?.into_iter().map(|(place, _)| place).collect();
        let steps = config.steps as usize;
        Ok(Self { steps, past: vec![0.0; steps * places.len()], places })
    }
}

impl Signal for ObservationDelay {
    fn reset(&mut self, _rng: Rng) {}

    fn observe(&mut self, step: usize, observations: &mut [f32]) {
        if self.steps == 0 {
            return;
        }
        let n = self.places.len();
        if step == 0 {
            for row in self.past.chunks_exact_mut(n) {
                row.iter_mut().zip(&self.places).for_each(|(kept, &place)| *kept = observations[place]);
            }
        }
        let at = step % self.steps;
        for (kept, &place) in self.past[at * n..(at + 1) * n].iter_mut().zip(&self.places) {
            // What was kept here is `steps` old; in its place comes what is new.
            std::mem::swap(kept, &mut observations[place]);
        }
    }

    fn snapshot(&self, out: &mut SnapshotWriter) {
        out.f32s(&self.past);
    }

    fn restore(&mut self, input: &mut SnapshotReader<'_>) -> Result<()> {
        input.f32s(&mut self.past)
    }
}
