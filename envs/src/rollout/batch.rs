//! The arrays between the engine and a learner.
//!
//! A batch keeps its memory from one collection to the next. After warm-up, once it has held as many steps and as many
//! ends of episodes as it will again, filling it asks for no heap memory. Where only the time limit ends episodes the
//! first collection is enough; where tasks terminate early, room for their ends grows with the most that one collection
//! has seen.

use crate::{EnvSpec, TokenRows};

/// Experience of `n_steps` steps in `n_slots` environments, as plain arrays in the order `[time, slot, agent, feature]`.
///
/// The engine fills it anew at each collection and keeps its memory.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RolloutBatch {
    /// Steps per slot.
    pub n_steps: usize,
    /// Slots.
    pub n_slots: usize,
    /// Agents per slot.
    pub n_agents: usize,
    /// Values per observation (the longest one; shorter ones are padded with zeros).
    pub observation_width: usize,
    /// Values per continuous action; 0 if actions are of another kind.
    pub action_width: usize,
    /// Most tokens of an action; 0 if actions are of another kind.
    pub token_width: usize,
    /// Values of the global state; 0 if it was not asked for.
    pub state_dim: usize,
    /// `[time + 1, slot, agent, observation_width]`. Where an episode ended at `t`, row `t + 1` is the first observation
    /// of the next episode; the last one of the ended episode is in [`RolloutBatch::final_observations`].
    pub observations: Vec<f32>,
    /// `[time + 1, slot, state_dim]`, with the same rule.
    pub states: Vec<f32>,
    /// `[time, slot, agent]`; empty unless actions are discrete.
    pub discrete_actions: Vec<u32>,
    /// `[time, slot, agent, action_width]`; empty unless actions are continuous.
    pub continuous_actions: Vec<f32>,
    /// `[time, slot, agent, token_width]`; empty unless actions are token sequences, as are the next two. 0 behind the end of
    /// a sequence.
    pub token_actions: Vec<u32>,
    /// `[time, slot, agent]`: tokens of each action.
    pub token_lengths: Vec<u32>,
    /// `[time, slot, agent, token_width]`: log-probability of each token when it was drawn; 0 behind the end.
    pub token_log_probs: Vec<f32>,
    /// `[time, slot, agent]`: log-probability of each action when it was chosen.
    pub log_probs: Vec<f32>,
    /// `[time, slot, agent]`.
    pub rewards: Vec<f32>,
    /// `[time, slot, agent]`: the environment's own rewards where a reward function replaced them in `rewards`; else empty.
    pub environment_rewards: Vec<f32>,
    /// `[time, slot]`: the task ended.
    pub terminated: Vec<bool>,
    /// `[time, slot]`: the time limit cut the episode.
    pub truncated: Vec<bool>,
    /// `(time, slot)` of every end of an episode, in that order.
    pub ends: Vec<(usize, usize)>,
    /// `[end, agent, observation_width]`: the observation after the last step of each ended episode.
    pub final_observations: Vec<f32>,
    /// `[end, state_dim]`.
    pub final_states: Vec<f32>,
}

impl RolloutBatch {
    /// Gives every array the length for `n_steps`; contents are unspecified until the engine fills them.
    pub(super) fn prepare(&mut self, spec: &EnvSpec, n_steps: usize, n_slots: usize, with_state: bool, with_reward_fn: bool) {
        self.n_steps = n_steps;
        self.n_slots = n_slots;
        self.n_agents = spec.n_agents();
        self.observation_width = spec.observation_width();
        self.action_width = if spec.has_continuous_actions() { spec.action_width() } else { 0 };
        self.token_width = if spec.has_token_actions() { spec.action_width() } else { 0 };
        self.state_dim = if with_state { spec.state_dim } else { 0 };
        let agents = n_steps * n_slots * self.n_agents;
        let discrete = if spec.has_discrete_actions() { agents } else { 0 };
        let sequences = if spec.has_token_actions() { agents } else { 0 };
        self.observations.resize((n_steps + 1) * self.observation_row(), 0.0);
        self.states.resize((n_steps + 1) * self.state_row(), 0.0);
        self.discrete_actions.resize(discrete, 0);
        self.continuous_actions.resize(agents * self.action_width, 0.0);
        // Policies write the tokens they drew; the rest must be 0 whatever an earlier collection left.
        self.token_actions.clear();
        self.token_actions.resize(agents * self.token_width, 0);
        self.token_lengths.clear();
        self.token_lengths.resize(sequences, 0);
        self.token_log_probs.clear();
        self.token_log_probs.resize(agents * self.token_width, 0.0);
        self.log_probs.resize(agents, 0.0);
        self.rewards.resize(agents, 0.0);
        self.environment_rewards.resize(if with_reward_fn { agents } else { 0 }, 0.0);
        self.terminated.resize(n_steps * n_slots, false);
        self.truncated.resize(n_steps * n_slots, false);
        self.ends.clear();
        self.final_observations.clear();
        self.final_states.clear();
        // Room for the ends that the time limit makes. Early terminations can be more: then the arrays grow while the
        // batch is filled, and keep that room.
        let ends = n_slots * (n_steps / spec.horizon + 1);
        self.ends.reserve(ends);
        self.final_observations.reserve(ends * self.n_agents * self.observation_width);
        self.final_states.reserve(ends * self.state_dim);
    }

    /// Values of all observations at one time.
    pub fn observation_row(&self) -> usize {
        self.n_slots * self.n_agents * self.observation_width
    }

    /// Token actions in the order `[time, slot, agent]`.
    pub fn token_rows(&self) -> TokenRows<'_> {
        TokenRows { tokens: &self.token_actions, lengths: &self.token_lengths, width: self.token_width }
    }

    /// Values of all states at one time.
    pub fn state_row(&self) -> usize {
        self.n_slots * self.state_dim
    }
}
