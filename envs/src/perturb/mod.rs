//! Worlds that lie to their agents: perturbations that stand outside the environments.

mod action;
mod observation;
mod wrapper;

use serde::{Deserialize, Serialize};

pub use action::{Behaviour, MaliciousActionConfig};
pub use observation::{NoiseLaw, ObservationNoiseConfig};
pub use wrapper::Perturbed;

use crate::{EnvError, EnvSpec, Result};

/// One perturbation. Several can be active at once; they act in the order of the list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PerturbationConfig {
    /// Noise on what agents observe.
    ObservationNoise(ObservationNoiseConfig),
    /// Some agents do something else than their policy says.
    MaliciousAction(MaliciousActionConfig),
}

impl PerturbationConfig {
    /// Names and one-line descriptions of all perturbations.
    pub const LIST: &'static [(&'static str, &'static str)] = &[
        ("observation_noise", "Gaussian, uniform or sign noise on what agents observe"),
        ("malicious_action", "some agents' actions are replaced, always or now and then"),
    ];

    /// Name in configurations.
    pub fn name(&self) -> &'static str {
        match self {
            Self::ObservationNoise(_) => "observation_noise",
            Self::MaliciousAction(_) => "malicious_action",
        }
    }

    /// The same perturbation at another strength: the magnitude of noise, the probability of a replaced action.
    pub fn with_level(&self, level: f64) -> Self {
        let mut other = self.clone();
        match &mut other {
            Self::ObservationNoise(c) => c.magnitude = level,
            Self::MaliciousAction(c) => c.probability = level,
        }
        other
    }

    /// Its strength.
    pub fn level(&self) -> f64 {
        match self {
            Self::ObservationNoise(c) => c.magnitude,
            Self::MaliciousAction(c) => c.probability,
        }
    }

    /// Checks ranges, and that the agents and features exist in `spec`.
    ///
    /// # Errors
    /// [`EnvError::Config`] for the first field that does not fit.
    pub fn validate(&self, spec: &EnvSpec) -> Result<()> {
        match self {
            Self::ObservationNoise(c) => c.validate(spec),
            Self::MaliciousAction(c) => c.validate(spec),
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
            return Err(EnvError::Config {
                env: perturbation.to_string(),
                field: "agents",
                expected: format!("names or groups of agents of `{}` ({})", spec.name, names.join(", ")),
                got: format!("`{wanted}`"),
            });
        }
    }
    if agents.is_empty() {
        selected.extend(0..spec.n_agents());
    }
    selected.sort_unstable();
    selected.dedup();
    Ok(selected)
}
