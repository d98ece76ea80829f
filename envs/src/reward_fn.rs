//! Rewards that replace the environment's own.

use crate::{Actions, Result, VectorEnv};

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
    /// The tokens of the completion, if actions are token sequences; else empty. The prompt is the observation; see
    /// [`crate::read_tokens`].
    pub tokens: &'a [u32],
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

    /// The rewards of all transitions of one time step, `[slot, agent]`. The engine calls this one; a reward model that
    /// gains from batches overrides it, with the same values.
    ///
    /// # Errors
    /// As [`RewardFn::reward`].
    fn reward_batch(&mut self, transitions: &TransitionBatch<'_>, rewards: &mut [f32]) -> Result<()> {
        for (i, reward) in rewards.iter_mut().enumerate() {
            *reward = self.reward(&transitions.get(i))?;
        }
        Ok(())
    }
}

/// All transitions of one time step, in the order `[slot, agent]`.
#[derive(Clone, Copy)]
pub struct TransitionBatch<'a> {
    pub(crate) envs: &'a VectorEnv,
    pub(crate) n_agents: usize,
    pub(crate) observation_width: usize,
    pub(crate) action_width: usize,
    pub(crate) actions: Actions<'a>,
    /// `[slot, agent, observation_width]`, before the step.
    pub(crate) observations: &'a [f32],
    /// The same after it; after an end, of the new episode.
    pub(crate) next_observations: &'a [f32],
    /// `[slot, agent]`.
    pub(crate) rewards: &'a [f32],
    /// `[slot]`.
    pub(crate) terminated: &'a [bool],
}

impl<'a> TransitionBatch<'a> {
    /// Number of transitions.
    pub fn len(&self) -> usize {
        self.rewards.len()
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.rewards.is_empty()
    }

    /// The `index`-th transition.
    ///
    /// # Panics
    /// If there is none.
    pub fn get(&self, index: usize) -> Transition<'a> {
        let (slot, agent) = (index / self.n_agents, index % self.n_agents);
        let width = self.observation_width;
        let after = if self.envs.ended(slot).is_some() {
            self.envs.final_observations(slot)
        } else {
            &self.next_observations[slot * self.n_agents * width..]
        };
        let (action_index, action, tokens): (_, &[f32], &[u32]) = match self.actions {
            Actions::Discrete(a) => (Some(a[index]), &[], &[]),
            Actions::Continuous(a) => (None, &a[index * self.action_width..(index + 1) * self.action_width], &[]),
            Actions::Tokens(rows) => (None, &[], rows.row(index)),
        };
        Transition {
            agent,
            observation: &self.observations[index * width..(index + 1) * width],
            action_index,
            action,
            tokens,
            next_observation: &after[agent * width..(agent + 1) * width],
            reward: self.rewards[index],
            terminated: self.terminated[slot],
        }
    }
}
