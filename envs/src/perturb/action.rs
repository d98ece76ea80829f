//! Agents that turn against their team, or fail, and motors that are weaker than they were.

use serde::{Deserialize, Serialize};

use super::schedule::{Schedule, Strength};
use super::signal::Signal;
use super::{between_zero_and_one, out_of_range, select_agents};
use crate::{Actions, EnvSpec, Result, Rng, SnapshotReader, SnapshotWriter, Space};

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
    /// How many of them can turn in an episode, drawn anew for each; all if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<usize>,
    /// Course over an episode: `constant`, or a table `burst`, `onset` or `drift`.
    pub schedule: Schedule,
    /// Whether each episode draws its probability between 0 and this one.
    pub randomize: bool,
}

impl Default for MaliciousActionConfig {
    fn default() -> Self {
        Self {
            probability: 0.1,
            behaviour: Behaviour::Random,
            agents: Vec::new(),
            count: None,
            schedule: Schedule::Constant,
            randomize: false,
        }
    }
}

impl MaliciousActionConfig {
    pub(super) fn validate(&self, spec: &EnvSpec) -> Result<()> {
        const NAME: &str = "malicious_action";
        between_zero_and_one(NAME, "probability", self.probability)?;
        self.schedule.validate(NAME)?;
        // Neither a random action nor a lower corner exists in an unbounded space.
        let is_bounded = |space: &Space| match space {
            Space::Discrete { .. } => true,
            // What a random completion is depends on the language, and text is never what an agent fails at by chance.
            Space::Tokens { .. } => false,
            Space::Box { low, high } => low.iter().chain(high).all(|v| v.is_finite()),
        };
        let agents = select_agents(NAME, &self.agents, spec)?;
        if let Some(&i) = agents.iter().find(|&&i| !is_bounded(&spec.agents[i].action)) {
            let got = match spec.agents[i].action {
                Space::Tokens { .. } => {
                    format!("the completions of `{}` in `{}`, which cannot be replaced", spec.agents[i].name, spec.name)
                }
                _ => format!("the unbounded actions of `{}` in `{}`", spec.agents[i].name, spec.name),
            };
            return out_of_range(NAME, "agents", "agents with bounded actions", got);
        }
        match self.count {
            Some(count) if count > agents.len() => {
                out_of_range(NAME, "count", &format!("at most the {} agents that can turn", agents.len()), count)
            }
            _ => Ok(()),
        }
    }
}

/// Continuous actions that reach the world weakened: each is multiplied by `1 - loss`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ActuatorLossConfig {
    /// Share of the action that is lost, 0 to 1.
    pub loss: f64,
    /// Names or groups of the agents whose motors are weak; all if empty.
    pub agents: Vec<String>,
    /// Course over an episode: `constant`, or a table `burst`, `onset` or `drift`.
    pub schedule: Schedule,
    /// Whether each episode draws its loss between 0 and this one.
    pub randomize: bool,
}

impl Default for ActuatorLossConfig {
    fn default() -> Self {
        Self { loss: 0.5, agents: Vec::new(), schedule: Schedule::Constant, randomize: false }
    }
}

impl ActuatorLossConfig {
    pub(super) fn validate(&self, spec: &EnvSpec) -> Result<()> {
        const NAME: &str = "actuator_loss";
        between_zero_and_one(NAME, "loss", self.loss)?;
        self.schedule.validate(NAME)?;
        match select_agents(NAME, &self.agents, spec)?.into_iter().find(|&i| !matches!(spec.agents[i].action, Space::Box { .. })) {
            None => Ok(()),
            Some(i) => out_of_range(
                NAME,
                "agents",
                "agents with continuous actions (where actions are choices, `dynamics` can weaken a force)",
                format!("`{}` in `{}`", spec.agents[i].name, spec.name),
            ),
        }
    }
}

/// Replacement prepared for one environment.
pub(super) struct MaliciousAction {
    strength: Strength,
    behaviour: Behaviour,
    agents: Vec<(usize, Space)>,
    /// Whether each of `agents` can turn in the running episode.
    turned: Vec<bool>,
    count: Option<usize>,
    width: usize,
    rng: Rng,
}

impl MaliciousAction {
    pub fn new(config: &MaliciousActionConfig, spec: &EnvSpec) -> Result<Self> {
        config.validate(spec)?;
        let agents = select_agents("malicious_action", &config.agents, spec)?;
        Ok(Self {
            strength: Strength::new(config.probability, config.randomize, config.schedule),
            behaviour: config.behaviour,
            turned: vec![true; agents.len()],
            agents: agents.into_iter().map(|i| (i, spec.agents[i].action.clone())).collect(),
            count: config.count,
            width: spec.action_width(),
            rng: Rng::from_seed(0),
        })
    }
}

impl Signal for MaliciousAction {
    fn reset(&mut self, rng: Rng) {
        self.rng = rng;
        self.strength.reset(&mut self.rng);
        if let Some(count) = self.count {
            for (i, turned) in self.turned.iter_mut().enumerate() {
                *turned = i < count;
            }
            self.rng.shuffle(&mut self.turned);
        }
    }

    fn acts(&self) -> bool {
        true
    }

    fn act(&mut self, step: usize, discrete: &mut [u32], continuous: &mut [f32]) {
        let probability = self.strength.at(step);
        for ((agent, space), &can_turn) in self.agents.iter().zip(&self.turned) {
            // One draw per agent and step whatever happens, so that levels share their random numbers.
            let turns = self.rng.unit() < probability && can_turn;
            match space {
                Space::Discrete { n } => {
                    let random = self.rng.below(*n) as u32;
                    if turns {
                        discrete[*agent] = if self.behaviour == Behaviour::Random { random } else { 0 };
                    }
                }
                // Refused by `validate`.
                Space::Tokens { .. } => {}
                Space::Box { low, high } => {
                    for (i, (&l, &h)) in low.iter().zip(high).enumerate() {
                        let random = l + (h - l) * self.rng.unit_f32();
                        if turns {
                            continuous[agent * self.width + i] = if self.behaviour == Behaviour::Random { random } else { l };
                        }
                    }
                }
            }
        }
    }

    fn snapshot(&self, out: &mut SnapshotWriter) {
        self.rng.snapshot(out);
        self.strength.snapshot(out);
        self.turned.iter().for_each(|turned| out.bool(*turned));
    }

    fn restore(&mut self, input: &mut SnapshotReader<'_>) -> Result<()> {
        self.rng = Rng::restore(input)?;
        self.strength.restore(input)?;
        for turned in &mut self.turned {
            *turned = input.bool()?;
        }
        Ok(())
    }
}

/// Weak motors prepared for one environment.
pub(super) struct ActuatorLoss {
    strength: Strength,
    agents: Vec<usize>,
    width: usize,
}

impl ActuatorLoss {
    pub fn new(config: &ActuatorLossConfig, spec: &EnvSpec) -> Result<Self> {
        config.validate(spec)?;
        Ok(Self {
            strength: Strength::new(config.loss, config.randomize, config.schedule),
            agents: select_agents("actuator_loss", &config.agents, spec)?,
            width: spec.action_width(),
        })
    }
}

impl Signal for ActuatorLoss {
    fn reset(&mut self, mut rng: Rng) {
        self.strength.reset(&mut rng);
    }

    fn acts(&self) -> bool {
        true
    }

    fn act(&mut self, step: usize, _discrete: &mut [u32], continuous: &mut [f32]) {
        let kept = (1.0 - self.strength.at(step)) as f32;
        for &agent in &self.agents {
            continuous[agent * self.width..(agent + 1) * self.width].iter_mut().for_each(|a| *a *= kept);
        }
    }

    fn snapshot(&self, out: &mut SnapshotWriter) {
        self.strength.snapshot(out);
    }

    fn restore(&mut self, input: &mut SnapshotReader<'_>) -> Result<()> {
        self.strength.restore(input)
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
