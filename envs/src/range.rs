//! Ranges of configuration fields: the checks, and starts drawn from a range.

use crate::{EnvError, Result, Rng};

/// Checks that every named number is finite and satisfies its condition.
pub(crate) fn require_all(env: &str, fields: &[(&'static str, f64, bool, &str)]) -> Result<()> {
    for &(field, value, is_valid, expected) in fields {
        if !(value.is_finite() && is_valid) {
            return Err(EnvError::Config { env: env.to_string(), field, expected: expected.to_string(), got: value.to_string() });
        }
    }
    Ok(())
}

/// Checks that an episode has at least one step.
pub(crate) fn require_horizon(env: &str, horizon: usize) -> Result<()> {
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

/// Checks that a count lies between `low` and `high`.
pub(crate) fn require(env: &str, field: &'static str, value: usize, low: usize, high: usize) -> Result<()> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    Err(EnvError::Config { env: env.to_string(), field, expected: format!("from {low} to {high}"), got: value.to_string() })
}

/// Checks that a share lies between 0 and 1.
pub(crate) fn require_share(env: &str, field: &'static str, value: f64) -> Result<()> {
    require_all(env, &[(field, value, (0.0..=1.0).contains(&value), "a number from 0 to 1")])
}

/// Numbers drawn uniformly between `-half_width` and `half_width` from the episode's seed.
pub(crate) fn uniform_start<const N: usize>(seed: u64, half_width: f64) -> [f64; N] {
    let mut rng = Rng::from_seed(seed);
    std::array::from_fn(|_| rng.uniform(-half_width, half_width))
}
