//! Checks of the ranges of configuration fields.

use crate::{EnvError, Result};

/// Checks that every named number is finite and satisfies its condition.
pub(super) fn require_all(env: &str, fields: &[(&'static str, f64, bool, &str)]) -> Result<()> {
    for &(field, value, is_valid, expected) in fields {
        if !(value.is_finite() && is_valid) {
            return Err(EnvError::Config { env: env.to_string(), field, expected: expected.to_string(), got: value.to_string() });
        }
    }
    Ok(())
}

/// Checks that an episode has at least one step.
pub(super) fn require_horizon(env: &str, horizon: usize) -> Result<()> {
    if horizon == 0 {
        return Err(EnvError::Config {
            env: env.to_string(),
            field: "horizon",
            expected: "at least 1".to_string(),
            got: horizon.to_string(),
        });
    }
    Ok(())
}
