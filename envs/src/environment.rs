//! The one interface between worlds and everything that trains or evaluates in them.

use crate::snapshot::{SnapshotReader, SnapshotWriter};
use crate::{EnvError, Result, Space};

/// One agent of an environment.
#[derive(Debug, Clone, PartialEq)]
pub struct AgentSpec {
    /// Name, as in the reference implementation (`adversary_0`).
    pub name: String,
    /// Agents of one group have the same spaces and role; parameters can be shared within a group.
    pub group: String,
    /// What the agent observes: always a [`Space::Box`].
    pub observation: Space,
    /// What the agent can do.
    pub action: Space,
}

/// The fixed facts of an environment.
#[derive(Debug, Clone, PartialEq)]
pub struct EnvSpec {
    /// Name in configurations.
    pub name: String,
    /// Agents, in the order of every array.
    pub agents: Vec<AgentSpec>,
    /// Length of the global state for central critics; 0 if there is none.
    pub state_dim: usize,
    /// Steps after which an episode is truncated.
    pub horizon: usize,
    /// Seconds of simulated time in a step.
    pub step_seconds: f64,
    /// Names of the numbers that [`Environment::episode_metrics`] reports.
    pub episode_metrics: Vec<String>,
}

impl EnvSpec {
    /// Number of agents.
    pub fn n_agents(&self) -> usize {
        self.agents.len()
    }

    /// Values per agent in an observation array: the longest observation. Shorter ones are padded with zeros.
    pub fn observation_width(&self) -> usize {
        self.agents.iter().map(|a| a.observation.width()).max().unwrap_or(0)
    }

    /// Values per agent in an action array: 1 for discrete actions, else the longest action.
    pub fn action_width(&self) -> usize {
        self.agents.iter().map(|a| a.action.width()).max().unwrap_or(0)
    }

    /// True if actions are discrete. All agents of an environment have the same kind of action.
    pub fn has_discrete_actions(&self) -> bool {
        self.agents.first().is_some_and(|a| a.action.is_discrete())
    }
}

/// Actions of the agents of one or more slots.
#[derive(Debug, Clone, Copy)]
pub enum Actions<'a> {
    /// One index per agent.
    Discrete(&'a [u32]),
    /// `action_width` numbers per agent.
    Continuous(&'a [f32]),
}

impl<'a> Actions<'a> {
    /// The part of slot `slot` when each slot has `per_slot` values.
    #[inline]
    pub fn slot(self, slot: usize, per_slot: usize) -> Actions<'a> {
        let range = slot * per_slot..(slot + 1) * per_slot;
        match self {
            Self::Discrete(a) => Actions::Discrete(&a[range]),
            Self::Continuous(a) => Actions::Continuous(&a[range]),
        }
    }

    /// The indices.
    ///
    /// # Errors
    /// [`EnvError::Action`] if the actions are continuous.
    #[inline]
    pub fn discrete(self, env: &str) -> Result<&'a [u32]> {
        match self {
            Self::Discrete(a) => Ok(a),
            Self::Continuous(_) => Err(wrong_kind(env, "discrete", "continuous")),
        }
    }

    /// The numbers.
    ///
    /// # Errors
    /// [`EnvError::Action`] if the actions are discrete.
    #[inline]
    pub fn continuous(self, env: &str) -> Result<&'a [f32]> {
        match self {
            Self::Continuous(a) => Ok(a),
            Self::Discrete(_) => Err(wrong_kind(env, "continuous", "discrete")),
        }
    }
}

#[cold]
fn wrong_kind(env: &str, expected: &str, got: &str) -> EnvError {
    EnvError::Action { env: env.to_string(), agent: 0, expected: format!("{expected} actions"), got: format!("{got} actions") }
}

/// Error for a discrete action outside its space.
#[cold]
pub(crate) fn invalid_index(env: &str, agent: usize, n: usize, got: u32) -> EnvError {
    EnvError::Action { env: env.to_string(), agent, expected: format!("an index below {n}"), got: got.to_string() }
}

/// Where an environment writes the result of a step.
#[derive(Debug)]
pub struct StepOut<'a> {
    /// `[agent, observation_width]`. Features beyond an agent's own width must be left at 0.
    pub observations: &'a mut [f32],
    /// `[agent]`.
    pub rewards: &'a mut [f32],
    /// The episode ended for a reason of the task: nothing follows, the value of what follows is 0.
    pub terminated: bool,
    /// The episode was cut by the time limit: something would have followed, its value counts.
    pub truncated: bool,
}

/// A world with one or more agents that act at the same time.
///
/// An environment writes into the caller's buffers and allocates nothing per step. It draws every random number of an
/// episode from the seed given to [`Environment::reset`].
pub trait Environment: Send {
    /// The fixed facts.
    fn spec(&self) -> &EnvSpec;

    /// Starts an episode and writes the first observations, `[agent, observation_width]`.
    fn reset(&mut self, seed: u64, observations: &mut [f32]);

    /// Advances by one step. Both ends may be true at once; then the episode terminated.
    ///
    /// # Errors
    /// [`EnvError::Action`] if an action is outside its space.
    fn step(&mut self, actions: Actions<'_>, out: &mut StepOut<'_>) -> Result<()>;

    /// Writes the global state, `[state_dim]`.
    fn state(&self, out: &mut [f32]) {
        debug_assert!(out.is_empty(), "an environment with a global state must write it");
    }

    /// Writes the numbers named in [`EnvSpec::episode_metrics`], over the episode so far.
    fn episode_metrics(&self, out: &mut [f64]) {
        debug_assert!(out.is_empty(), "an environment with metrics must write them");
    }

    /// Writes everything that the future of the episode depends on.
    fn snapshot(&self, out: &mut SnapshotWriter);

    /// Restores what [`Environment::snapshot`] wrote, into an environment of the same configuration.
    ///
    /// # Errors
    /// [`EnvError::Snapshot`] if it does not fit.
    fn restore(&mut self, input: &mut SnapshotReader<'_>) -> Result<()>;
}
