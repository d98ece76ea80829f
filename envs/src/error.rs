//! What can go wrong in a world, said with the world's name, the place and the value.

/// Errors of environments, perturbations and rollouts.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum EnvError {
    /// A field of an environment's configuration is out of its range.
    #[error("{env}: `{field}` must be {expected}, got {got}")]
    Config {
        /// Environment or perturbation.
        env: String,
        /// Name of the field in the configuration.
        field: &'static str,
        /// The allowed values, in words.
        expected: String,
        /// The value found.
        got: String,
    },
    /// An action does not belong to the action space of its agent.
    #[error("{env}: action of agent {agent} must be {expected}, got {got}")]
    Action {
        /// Environment.
        env: String,
        /// Index of the agent.
        agent: usize,
        /// The space, in words.
        expected: String,
        /// The action found.
        got: String,
    },
    /// An observation, state, reward or log-probability became NaN or infinite.
    #[error("{env}: non-finite {tensor} ({value}) at rollout step {step}, slot {slot}, position {position}")]
    NonFinite {
        /// Environment.
        env: String,
        /// Which array.
        tensor: &'static str,
        /// The value.
        value: f32,
        /// Time step within the rollout.
        step: usize,
        /// Environment slot.
        slot: usize,
        /// Position in that slot's part of the array.
        position: usize,
    },
    /// A token sequence, a prompt or a list of prompts that cannot be used.
    #[error("{env}: {reason}")]
    Tokens {
        /// Environment, or file.
        env: String,
        /// What is wrong, with the row, and what to do.
        reason: String,
    },
    /// A saved state does not fit the object it is restored into.
    #[error("cannot restore {place}: {reason}")]
    Snapshot {
        /// What was being restored.
        place: String,
        /// Why it does not fit.
        reason: String,
    },
    /// A policy failed while the engine asked it for actions.
    #[error("policy failed: {0}")]
    Policy(String),
    /// A reward function failed.
    #[error("reward function failed: {0}")]
    Reward(String),
}

/// Result of this crate.
pub type Result<T, E = EnvError> = std::result::Result<T, E>;
