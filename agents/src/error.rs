//! What can go wrong in networks and learners, said with the tensor's name, the shape and the value.

use steadfast_envs::EnvError;

/// Errors of networks, optimisers and learners.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum AgentError {
    /// Two arrays that belong together have different shapes.
    #[error("{op}: expected shape {expected:?}, got {got:?}")]
    Shape {
        /// Operation and array.
        op: String,
        /// Expected shape.
        expected: Vec<usize>,
        /// Found shape.
        got: Vec<usize>,
    },
    /// A field of a configuration is out of its range.
    #[error("`{field}` must be {expected}, got {got}")]
    Config {
        /// Name of the field in the configuration.
        field: String,
        /// The allowed values, in words.
        expected: String,
        /// The value found.
        got: String,
    },
    /// A loss, gradient or parameter became NaN or infinite.
    #[error("non-finite {tensor} ({value}) at update {update}, position {position}")]
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
    /// The content of a checkpoint does not fit the object it is loaded into.
    #[error("cannot load `{tensor}`: {reason}")]
    State {
        /// Tensor or entry of the checkpoint.
        tensor: String,
        /// Why it does not fit.
        reason: String,
    },
    /// A model folder, tokenizer, template or token sequence that cannot be used.
    #[error("{place}: {reason}")]
    Model {
        /// File and tensor or row.
        place: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// The tensor library failed.
    #[error("tensor operation failed: {0}")]
    Tensor(String),
    /// An environment failed.
    #[error(transparent)]
    Env(#[from] EnvError),
}

#[cfg(feature = "llm")]
impl From<candle_core::Error> for AgentError {
    fn from(error: candle_core::Error) -> Self {
        Self::Tensor(error.to_string())
    }
}
