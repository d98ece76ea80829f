//! Worlds that lie to their agents: perturbations that stand outside the environments.

mod action;
mod dynamics;
mod observation;
mod perturbed;
mod reward;
mod schedule;
mod sensor;
mod signal;

use serde::{Deserialize, Serialize};

pub use action::{ActuatorLossConfig, Behaviour, MaliciousActionConfig};
pub use dynamics::DynamicsConfig;
pub use observation::{CommunicationNoiseConfig, NoiseLaw, ObservationNoiseConfig};
pub use perturbed::Perturbed;
pub use reward::RewardNoiseConfig;
pub use schedule::{BurstConfig, DriftConfig, OnsetConfig, Schedule};
pub use sensor::{ObservationBiasConfig, ObservationDelayConfig, ObservationDropoutConfig, Silence};

use crate::{EnvError, EnvSpec, Result};

/// One perturbation. Several can be active at once; they act in the order of the list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PerturbationConfig {
    /// Noise on what agents observe.
    ObservationNoise(ObservationNoiseConfig),
    /// Sensors that are off by a constant.
    ObservationBias(ObservationBiasConfig),
    /// Sensors that fall silent.
    ObservationDropout(ObservationDropoutConfig),
    /// Sensors that are late.
    ObservationDelay(ObservationDelayConfig),
    /// Noise on the messages that agents hear.
    CommunicationNoise(CommunicationNoiseConfig),
    /// Some agents do something else than their policy says.
    MaliciousAction(MaliciousActionConfig),
    /// Motors that are weaker than they were.
    ActuatorLoss(ActuatorLossConfig),
    /// A physical constant that is not what it was.
    Dynamics(DynamicsConfig),
    /// Noise on what agents are paid.
    RewardNoise(RewardNoiseConfig),
}

impl PerturbationConfig {
    /// Names and one-line descriptions of all perturbations.
    pub const LIST: &'static [(&'static str, &'static str)] = &[
        ("observation_noise", "Gaussian, uniform or sign noise on what agents observe"),
        ("observation_bias", "sensors that are off by a constant for an episode"),
        ("observation_dropout", "sensors that fall silent now and then"),
        ("observation_delay", "sensors that are some steps late"),
        ("communication_noise", "noise on the messages that agents hear"),
        ("malicious_action", "some agents' actions are replaced, always or now and then"),
        ("actuator_loss", "continuous actions that reach the world weakened"),
        ("dynamics", "a physical constant (mass, damping, force, ...) that is not what it was"),
        ("reward_noise", "noise on what agents are paid, for training"),
    ];

    /// Name of the field that holds the strength of each perturbation.
    pub const LEVEL_FIELDS: &'static [&'static str] = &["magnitude", "probability", "steps", "loss", "change"];

    /// Name in configurations.
    pub fn name(&self) -> &'static str {
        match self {
            Self::ObservationNoise(_) => "observation_noise",
            Self::ObservationBias(_) => "observation_bias",
            Self::ObservationDropout(_) => "observation_dropout",
            Self::ObservationDelay(_) => "observation_delay",
            Self::CommunicationNoise(_) => "communication_noise",
            Self::MaliciousAction(_) => "malicious_action",
            Self::ActuatorLoss(_) => "actuator_loss",
            Self::Dynamics(_) => "dynamics",
            Self::RewardNoise(_) => "reward_noise",
        }
    }

    /// The same perturbation at another strength: the magnitude of noise, the probability of a replaced action, the steps of a
    /// delay, the loss of a motor, the change of a constant. At 0 the world is the unperturbed one.
    pub fn with_level(&self, level: f64) -> Self {
        let mut other = self.clone();
        *other.level_mut() = level;
        other
    }

    /// Its strength.
    pub fn level(&self) -> f64 {
        *self.clone().level_mut()
    }

    /// Its course over an episode.
    pub fn schedule(&self) -> Schedule {
        match self {
            Self::ObservationNoise(c) => c.schedule,
            Self::ObservationBias(c) => c.schedule,
            Self::ObservationDropout(c) => c.schedule,
            // A delay has no course.
            Self::ObservationDelay(_) => Schedule::Constant,
            Self::CommunicationNoise(c) => c.schedule,
            Self::MaliciousAction(c) => c.schedule,
            Self::ActuatorLoss(c) => c.schedule,
            Self::Dynamics(c) => c.schedule,
            Self::RewardNoise(c) => c.schedule,
        }
    }

    fn level_mut(&mut self) -> &mut f64 {
        match self {
            Self::ObservationNoise(c) => &mut c.magnitude,
            Self::ObservationBias(c) => &mut c.magnitude,
            Self::ObservationDropout(c) => &mut c.probability,
            Self::ObservationDelay(c) => &mut c.steps,
            Self::CommunicationNoise(c) => &mut c.magnitude,
            Self::MaliciousAction(c) => &mut c.probability,
            Self::ActuatorLoss(c) => &mut c.loss,
            Self::Dynamics(c) => &mut c.change,
            Self::RewardNoise(c) => &mut c.magnitude,
        }
    }

    /// Checks ranges, and that the agents and features exist in `spec`. What else a world must have (a constant, messages)
    /// [`Perturbed::new`] checks.
    ///
    /// # Errors
    /// [`EnvError::Config`] for the first field that does not fit.
    pub fn validate(&self, spec: &EnvSpec) -> Result<()> {
        match self {
            Self::ObservationNoise(c) => c.validate(spec),
            Self::ObservationBias(c) => c.validate(spec),
            Self::ObservationDropout(c) => c.validate(spec),
            Self::ObservationDelay(c) => c.validate(spec),
            Self::CommunicationNoise(c) => c.validate(spec),
            Self::MaliciousAction(c) => c.validate(spec),
            Self::ActuatorLoss(c) => c.validate(spec),
            Self::Dynamics(c) => c.validate(spec),
            Self::RewardNoise(c) => c.validate(spec),
        }
    }

    /// Names or groups of the agents whose observations may leave their boxes; nothing if none do.
    fn opens_observations(&self) -> Option<&[String]> {
        match self {
            Self::ObservationNoise(c) => Some(&c.agents),
            Self::ObservationBias(c) => Some(&c.agents),
            Self::ObservationDropout(c) => Some(&c.agents),
            Self::CommunicationNoise(c) => Some(&c.agents),
            Self::ObservationDelay(_) | Self::MaliciousAction(_) | Self::ActuatorLoss(_) | Self::Dynamics(_) | Self::RewardNoise(_) => None,
        }
    }
}

/// Indices of the agents selected by names or groups; all agents if the list is empty.
fn select_agents(perturbation: &str, agents: &[String], spec: &EnvSpec) -> Result<Vec<usize>> {
    let mut selected = Vec::new();
    for wanted in agents {
        let before = selected.len();
        selected.extend((0..spec.n_agents()).filter(|&i| spec.agents[i].name == *wanted || spec.agents[i].group == *wanted));
        if selected.len() == before {
            let names: Vec<&str> = spec.agents.iter().map(|a| a.name.as_str()).collect();
            let expected = format!("names or groups of agents of `{}` ({})", spec.name, names.join(", "));
            return out_of_range(perturbation, "agents", &expected, format!("`{wanted}`"));
        }
    }
    if agents.is_empty() {
        selected.extend(0..spec.n_agents());
    }
    selected.sort_unstable();
    selected.dedup();
    Ok(selected)
}

/// Place in the observation array and scale of every feature of the selected agents whose scale is above 0. An empty list
/// of scales counts as ones.
fn features(perturbation: &str, agents: &[String], scale: &[f32], spec: &EnvSpec) -> Result<Vec<(usize, f32)>> {
    if let Some(bad) = scale.iter().find(|s| !(s.is_finite() && **s >= 0.0)) {
        return out_of_range(perturbation, "scale", "finite numbers of at least 0", bad);
    }
    let width = spec.observation_width();
    if scale.len() > width {
        return out_of_range(perturbation, "scale", &format!("at most {width} numbers"), scale.len());
    }
    let mut features = Vec::new();
    for agent in select_agents(perturbation, agents, spec)? {
        // A token id plus 0.1 is no token.
        if spec.agents[agent].observation.is_tokens() {
            let got = format!("the text that `{}` reads in `{}`", spec.agents[agent].name, spec.name);
            return out_of_range(perturbation, "agents", "agents that observe numbers", got);
        }
        for feature in 0..spec.agents[agent].observation.width() {
            let scale = if scale.is_empty() { 1.0 } else { scale.get(feature).copied().unwrap_or(0.0) };
            if scale > 0.0 {
                features.push((agent * width + feature, scale));
            }
        }
    }
    Ok(features)
}

/// Checks a magnitude.
fn at_least_zero(perturbation: &str, field: &'static str, value: f64) -> Result<()> {
    if value.is_finite() && value >= 0.0 { Ok(()) } else { out_of_range(perturbation, field, "a finite number of at least 0", value) }
}

/// Checks a probability or a share.
fn between_zero_and_one(perturbation: &str, field: &'static str, value: f64) -> Result<()> {
    if (0.0..=1.0).contains(&value) { Ok(()) } else { out_of_range(perturbation, field, "between 0 and 1", value) }
}

fn out_of_range<T>(perturbation: &str, field: &'static str, expected: &str, got: impl ToString) -> Result<T> {
    Err(EnvError::Config { env: perturbation.to_string(), field, expected: expected.to_string(), got: got.to_string() })
}
