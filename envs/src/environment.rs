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
    /// What the agent observes: a [`Space::Box`], or [`Space::Tokens`] in a world of text.
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

    /// Values per agent in an action array: 1 for discrete actions, the longest vector for continuous ones, the most tokens
    /// for token sequences (whose lengths stand in an array of their own).
    pub fn action_width(&self) -> usize {
        let width = |space: &Space| match space {
            Space::Tokens { max_tokens, .. } => *max_tokens,
            other => other.width(),
        };
        self.agents.iter().map(|a| width(&a.action)).max().unwrap_or(0)
    }

    /// True if actions are discrete. All agents of an environment have the same kind of action.
    pub fn has_discrete_actions(&self) -> bool {
        self.agents.first().is_some_and(|a| a.action.is_discrete())
    }

    /// True if actions are token sequences.
    pub fn has_token_actions(&self) -> bool {
        self.agents.first().is_some_and(|a| a.action.is_tokens())
    }

    /// True if actions are vectors.
    pub fn has_continuous_actions(&self) -> bool {
        self.agents.first().is_some_and(|a| matches!(a.action, Space::Box { .. }))
    }
}

/// Token sequences of some agents, each in its own row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenRows<'a> {
    /// `[slot, agent, width]`; what stands behind a sequence's end is not looked at.
    pub tokens: &'a [u32],
    /// `[slot, agent]`: tokens of each sequence, at most `width`.
    pub lengths: &'a [u32],
    /// Tokens per row.
    pub width: usize,
}

impl<'a> TokenRows<'a> {
    /// The sequence of row `row`.
    ///
    /// # Panics
    /// If there is no such row or its length is above the width.
    pub fn row(&self, row: usize) -> &'a [u32] {
        &self.tokens[row * self.width..][..self.width][..self.lengths[row] as usize]
    }

    /// Rows `0..rows` and the rest.
    pub(crate) fn split_at(self, rows: usize) -> (Self, Self) {
        let (t1, t2) = self.tokens.split_at(rows * self.width);
        let (l1, l2) = self.lengths.split_at(rows);
        (Self { tokens: t1, lengths: l1, ..self }, Self { tokens: t2, lengths: l2, ..self })
    }
}

/// Writes a token sequence as an observation: its length, its tokens, zeros.
///
/// # Errors
/// [`EnvError::Tokens`] if the sequence does not fit into the row.
pub fn write_tokens(env: &str, tokens: &[u32], row: &mut [f32]) -> Result<()> {
    if tokens.len() + 1 > row.len() {
        return Err(EnvError::Tokens {
            env: env.to_string(),
            reason: format!("a conversation of {} tokens does not fit into {}", tokens.len(), row.len().saturating_sub(1)),
        });
    }
    row.fill(0.0);
    row[0] = tokens.len() as f32;
    for (out, &token) in row[1..].iter_mut().zip(tokens) {
        *out = token as f32;
    }
    Ok(())
}

/// Reads what [`write_tokens`] wrote; `out` is cleared first.
///
/// # Errors
/// [`EnvError::Tokens`] if the row does not hold a token sequence.
pub fn read_tokens(row: &[f32], out: &mut Vec<u32>) -> Result<()> {
    out.clear();
    let fail = |reason: String| Err(EnvError::Tokens { env: "observation".to_string(), reason });
    let is_index = |value: f32| value >= 0.0 && value < MAX_VOCABULARY as f32 && value.fract() == 0.0;
    let length = row.first().copied().unwrap_or(-1.0);
    if !is_index(length) || length as usize >= row.len() {
        return fail(format!("the first number of a row of {} must be the number of tokens, got {length}", row.len()));
    }
    for (position, &value) in row[1..=length as usize].iter().enumerate() {
        if !is_index(value) {
            return fail(format!("the number at position {position} must be a token id, got {value}"));
        }
        out.push(value as u32);
    }
    Ok(())
}

/// Token ids below this are exact in single precision.
pub const MAX_VOCABULARY: usize = 1 << 24;

/// Actions of the agents of one or more slots.
#[derive(Debug, Clone, Copy)]
pub enum Actions<'a> {
    /// One index per agent.
    Discrete(&'a [u32]),
    /// `action_width` numbers per agent.
    Continuous(&'a [f32]),
    /// A token sequence per agent.
    Tokens(TokenRows<'a>),
}

impl<'a> Actions<'a> {
    /// The part of slot `slot` when each slot has `per_slot` values (`agents × action_width`).
    #[inline]
    pub fn slot(self, slot: usize, per_slot: usize) -> Actions<'a> {
        let range = slot * per_slot..(slot + 1) * per_slot;
        match self {
            Self::Discrete(a) => Actions::Discrete(&a[range]),
            Self::Continuous(a) => Actions::Continuous(&a[range]),
            Self::Tokens(rows) => {
                let agents = per_slot / rows.width.max(1);
                let lengths = &rows.lengths[slot * agents..(slot + 1) * agents];
                Actions::Tokens(TokenRows { tokens: &rows.tokens[range], lengths, width: rows.width })
            }
        }
    }

    /// What they are, in a word.
    fn kind(self) -> &'static str {
        match self {
            Self::Discrete(_) => "discrete",
            Self::Continuous(_) => "continuous",
            Self::Tokens(_) => "token",
        }
    }

    /// The indices.
    ///
    /// # Errors
    /// [`EnvError::Action`] if the actions are of another kind.
    #[inline]
    pub fn discrete(self, env: &str) -> Result<&'a [u32]> {
        match self {
            Self::Discrete(a) => Ok(a),
            other => Err(wrong_kind(env, "discrete", other.kind())),
        }
    }

    /// The numbers.
    ///
    /// # Errors
    /// [`EnvError::Action`] if the actions are of another kind.
    #[inline]
    pub fn continuous(self, env: &str) -> Result<&'a [f32]> {
        match self {
            Self::Continuous(a) => Ok(a),
            other => Err(wrong_kind(env, "continuous", other.kind())),
        }
    }

    /// The token sequences.
    ///
    /// # Errors
    /// [`EnvError::Action`] if the actions are of another kind.
    #[inline]
    pub fn tokens(self, env: &str) -> Result<TokenRows<'a>> {
        match self {
            Self::Tokens(rows) => Ok(rows),
            other => Err(wrong_kind(env, "token", other.kind())),
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

    /// Names of the physical constants that a perturbation can change, none by default.
    fn constants(&self) -> &'static [&'static str] {
        &[]
    }

    /// Makes constant `index` of [`Environment::constants`] `factor` times what the configuration says, from the next step on.
    /// `factor` is above 0.
    fn scale_constant(&mut self, index: usize, factor: f64) {
        debug_assert!(false, "no constant {index} to multiply by {factor}");
    }

    /// Which of the features that `agent` observes are messages of others, none by default.
    fn message_features(&self, agent: usize) -> std::ops::Range<usize> {
        let _ = agent;
        0..0
    }

    /// Writes everything that the future of the episode depends on.
    fn snapshot(&self, out: &mut SnapshotWriter);

    /// Restores what [`Environment::snapshot`] wrote, into an environment of the same configuration.
    ///
    /// # Errors
    /// [`EnvError::Snapshot`] if it does not fit.
    fn restore(&mut self, input: &mut SnapshotReader<'_>) -> Result<()>;
}
