//! What can go wrong with preferences and reward models, said with the file, the row, the field and the remedy.

use std::path::PathBuf;

use steadfast_agents::AgentError;
use steadfast_envs::EnvError;

/// Errors of preferences, label noise and reward models.
#[derive(Debug, thiserror::Error)]
pub enum RewardError {
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
    /// A file cannot be opened, read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// A verb, as in "read".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file as a whole cannot be used: no rows, unknown format, mixed kinds.
    #[error("{}: {reason}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do about it.
        reason: String,
    },
    /// A row of a preference file cannot be used.
    #[error("{}:{line}: {reason}", path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// Line of a JSONL file, row of a Parquet file, from 1.
        line: u64,
        /// What is wrong, and what to do about it.
        reason: String,
    },
    /// Preferences do not fit the task or the model.
    #[error("{0}")]
    Data(String),
    /// A margin, loss or parameter became NaN or infinite.
    #[error("non-finite {tensor} ({value}){}, pair `{pair}`", in_epoch(*epoch))]
    NonFinite {
        /// Which number.
        tensor: &'static str,
        /// The value.
        value: f32,
        /// Pass over the data, from 1; nothing outside of fitting.
        epoch: Option<usize>,
        /// Identifier of the pair.
        pair: String,
    },
    /// A network or its saved state failed.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// An environment failed.
    #[error(transparent)]
    Env(#[from] EnvError),
}

/// Result of this crate.
pub type Result<T, E = RewardError> = std::result::Result<T, E>;

fn in_epoch(epoch: Option<usize>) -> String {
    epoch.map_or_else(String::new, |epoch| format!(" in epoch {epoch}"))
}

/// Checks one range of a configuration.
pub(crate) fn require(is_valid: bool, field: &str, expected: &str, got: impl std::fmt::Display) -> Result<()> {
    if is_valid {
        return Ok(());
    }
    Err(RewardError::Config { field: field.to_string(), expected: expected.to_string(), got: got.to_string() })
}
