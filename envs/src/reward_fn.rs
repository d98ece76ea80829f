//! Rewards that replace the environment's own.

use crate::Result;

/// What one agent did and saw in one step.
#[derive(Debug, Clone, Copy)]
pub struct Transition<'a> {
    /// Index of the agent.
    pub agent: usize,
    /// Observation before the step, `[observation_width]`.
    pub observation: &'a [f32],
    /// The discrete action, if actions are discrete.
    pub action_index: Option<u32>,
    /// The continuous action as the policy chose it, `[action_width]`; empty if actions are discrete. The environment
    /// gets it clamped to the action space: a reward of what was really done must clamp it, too.
    pub action: &'a [f32],
    /// Observation after the step, before any reset.
    pub next_observation: &'a [f32],
    /// The environment's own reward.
    pub reward: f32,
    /// True if the task ended with this step.
    pub terminated: bool,
}

/// A reward computed from a transition: learned, shaped or corrupted.
pub trait RewardFn: Send {
    /// The reward that the learner sees. Called once per agent and step.
    ///
    /// # Errors
    /// [`crate::EnvError::Reward`] if it cannot be computed.
    fn reward(&mut self, transition: &Transition<'_>) -> Result<f32>;
}
