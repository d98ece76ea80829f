//! Agents that turn against their team, or fail.

use serde::{Deserialize, Serialize};

use super::select_agents;
use crate::{Actions, EnvError, EnvSpec, Result, Rng, Space};

/// What a malicious agent does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Behaviour {
    /// A uniformly random action.
    Random,
    /// Always the same action: the first index, or the lower corner of the box.
    Frozen,
}

/// The actions of chosen agents are replaced, step by step with a probability.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MaliciousActionConfig {
    /// Probability that an action is replaced, per agent and step, 0 to 1.
    pub probability: f64,
    /// What is done instead: `random` or `frozen`.
    pub behaviour: Behaviour,
    /// Names or groups of the agents that can turn; all if empty.
    pub agents: Vec<String>,
}

impl Default for MaliciousActionConfig {
    fn default() -> Self {
        Self { probability: 0.1, behaviour: Behaviour::Random, agents: Vec::new() }
    }
}

impl MaliciousActionConfig {
    pub(super) fn validate(&self, spec: &EnvSpec) -> Result<()> {
        if !(0.0..=1.0).contains(&self.probability) {
            return Err(EnvError::Config {
                env: "malicious_action".to_string(),
                field: "probability",
                expected: "between 0 and 1".to_string(),
                got: self.probability.to_string(),
            });
        }
        // Neither a random action nor a lower corner exists in an unbounded space.
        let is_bounded = |space: &Space| match space {
            Space::Discrete { .. } => true,
            // What a random completion is depends on the language, and text is never what an agent fails at by chance.
            Space::Tokens { .. } => false,
            Space::Box { low, high } => low.iter().chain(high).all(|v| v.is_finite()),
        };
        let agents = select_agents("malicious_action", &self.agents, spec)?;
        match agents.into_iter().find(|&i| !is_bounded(&spec.agents[i].action)) {
            None => Ok(()),
            Some(i) => Err(EnvError::Config {
                env: "malicious_action".to_string(),
                field: "agents",
                expected: "agents with bounded actions".to_string(),
                got: match spec.agents[i].action {
                    Space::Tokens { .. } => {
                        format!("the completions of `{}` in `{}`, which cannot be replaced", spec.agents[i].name, spec.name)
                    }
                    _ => format!("the unbounded actions of `{}` in `{}`", spec.agents[i].name, spec.name),
                },
            }),
        }
    }
}

/// Replacement prepared for one environment.
#[derive(Debug)]
pub(super) struct MaliciousAction {
    probability: f64,
    behaviour: Behaviour,
    agents: Vec<(usize, Space)>,
    width: usize,
}

impl MaliciousAction {
    pub(super) fn new(config: &MaliciousActionConfig, spec: &EnvSpec) -> Result<Self> {
        config.validate(spec)?;
        let agents = select_agents("malicious_action", &config.agents, spec)?;
        Ok(Self {
            probability: config.probability,
            behaviour: config.behaviour,
            agents: agents.into_iter().map(|i| (i, spec.agents[i].action.clone())).collect(),
            width: spec.action_width(),
        })
    }

    /// Replaces actions in the copies; only the one of the environment's kind is touched, the other may be empty.
    pub(super) fn apply(&self, rng: &mut Rng, discrete: &mut [u32], continuous: &mut [f32]) {
        for (agent, space) in &self.agents {
            // One draw per agent and step whatever happens, so that levels share their random numbers.
            let turns = rng.unit() < self.probability;
            match space {
                Space::Discrete { n } => {
                    let random = rng.below(*n) as u32;
                    if turns {
                        discrete[*agent] = if self.behaviour == Behaviour::Random { random } else { 0 };
                    }
                }
                // Refused by `validate`.
                Space::Tokens { .. } => {}
                Space::Box { low, high } => {
                    for (i, (&l, &h)) in low.iter().zip(high).enumerate() {
                        let random = l + (h - l) * rng.unit_f32();
                        if turns {
                            continuous[agent * self.width + i] = if self.behaviour == Behaviour::Random { random } else { l };
                        }
                    }
                }
            }
        }
    }
}

/// Copies the actions of one slot so that they can be changed.
pub(super) fn copy_actions(actions: Actions<'_>, discrete: &mut [u32], continuous: &mut [f32]) {
    match actions {
        Actions::Discrete(a) => discrete.copy_from_slice(a),
        Actions::Continuous(a) => continuous.copy_from_slice(a),
        Actions::Tokens(_) => {}
    }
}
