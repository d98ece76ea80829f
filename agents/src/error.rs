//! What can go wrong in a learner.

/// Errors of networks, regularisers and algorithms.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum AgentError {
    /// A field of a configuration is out of its range.
    #[error("`{field}` must be {expected}, got {got}")]
    Config {
        /// Name of the field in the configuration.
        field: &'static str,
        /// The allowed values, in words.
        expected: String,
        /// The value found.
        got: String,
    },
    /// A loss, gradient or parameter became NaN or infinite.
    #[error("non-finite {tensor} ({value}) in update {update}, position {position}")]
    NonFinite {
        /// Which array.
        tensor: String,
        /// The value.
        value: f32,
        /// Number of the update, from 1.
        update: u64,
        /// Position in the array.
        position: usize,
    },
    /// A saved array does not fit.
    #[error("saved array `{tensor}`: {reason}")]
    State {
        /// Name of the array.
        tensor: String,
        /// Why it does not fit.
        reason: String,
    },
    /// An environment failed.
    #[error(transparent)]
    Env(#[from] steadfast_envs::EnvError),
}
