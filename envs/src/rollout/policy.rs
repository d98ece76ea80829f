//! What the engine asks for actions.

use crate::{Result, Rng};

/// Whether actions are drawn or chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActMode {
    /// Draw from the policy's distribution: for training and for evaluation of stochastic policies.
    Sample,
    /// Take the most likely action.
    Greedy,
}

/// What the agents of some slots see at one time.
#[derive(Debug, Clone, Copy)]
pub struct ObservationBatch<'a> {
    /// Number of slots.
    pub n_slots: usize,
    /// Agents per slot.
    pub n_agents: usize,
    /// Values per agent.
    pub width: usize,
    /// `[slot, agent, width]`.
    pub observations: &'a [f32],
}

/// The same, to be changed.
#[derive(Debug)]
pub struct ObservationBatchMut<'a> {
    /// Number of slots.
    pub n_slots: usize,
    /// Agents per slot.
    pub n_agents: usize,
    /// Values per agent.
    pub width: usize,
    /// `[slot, agent, width]`.
    pub observations: &'a mut [f32],
}

/// Room for token sequences.
#[derive(Debug)]
pub struct TokenRowsMut<'a> {
    /// `[slot, agent, width]`. Policies leave what stands behind a sequence's end at 0.
    pub tokens: &'a mut [u32],
    /// `[slot, agent]`: tokens of each sequence.
    pub lengths: &'a mut [u32],
    /// `[slot, agent, width]`: log-probability of each token when it was drawn; 0 behind the end.
    pub log_probs: &'a mut [f32],
    /// Tokens per row.
    pub width: usize,
}

/// Room for actions of any kind.
#[derive(Debug)]
pub enum ActionsMut<'a> {
    /// `[slot, agent]`.
    Discrete(&'a mut [u32]),
    /// `[slot, agent, action_width]`.
    Continuous(&'a mut [f32]),
    /// A token sequence per slot and agent. The log-probability of the action is the sum over its tokens.
    Tokens(TokenRowsMut<'a>),
}

/// Where a policy writes its decisions.
#[derive(Debug)]
pub struct ActionBatch<'a> {
    /// The actions that the environment gets.
    pub actions: ActionsMut<'a>,
    /// `[slot, agent]`: log-probability of each action under the policy that chose it.
    pub log_probs: &'a mut [f32],
}

/// A mapping from observations to actions. It may keep memory per slot (a recurrent state, a cache).
pub trait Policy: Send {
    /// Forgets what it remembers of a slot whose episode ended.
    fn reset(&mut self, slot: usize);

    /// Changes what the agents are about to see; what it leaves is recorded as observed and given to [`Policy::act`]. For policies that
    /// train against an adversary of their own. The engine asks for it only with [`crate::RolloutOptions::disturbs`].
    ///
    /// # Errors
    /// As [`Policy::act`].
    fn disturb(&mut self, observations: &mut ObservationBatchMut<'_>, rngs: &mut [Rng]) -> Result<()> {
        let _ = (observations, rngs);
        Ok(())
    }

    /// Chooses actions for all slots. `rngs[slot]` is the only source of randomness, so that a slot's actions do not
    /// depend on the other slots.
    ///
    /// # Errors
    /// [`crate::EnvError::Policy`] if the policy cannot act, for instance because an output is NaN.
    fn act(&mut self, observations: &ObservationBatch<'_>, rngs: &mut [Rng], mode: ActMode, out: &mut ActionBatch<'_>) -> Result<()>;
}
