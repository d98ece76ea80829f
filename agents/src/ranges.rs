//! Checks of the ranges that the fields of settings promise.

use crate::AgentError;

/// Widest hidden layer.
const MAX_WIDTH: usize = 8192;
/// Most hidden layers.
const MAX_LAYERS: usize = 16;

/// Collects checks; the first that fails is reported.
#[derive(Debug, Default)]
pub(crate) struct Ranges {
    error: Option<AgentError>,
}

impl Ranges {
    fn check(&mut self, holds: bool, field: &str, expected: &str, got: String) {
        if !holds && self.error.is_none() {
            self.error = Some(AgentError::Config { field: field.to_string(), expected: expected.to_string(), got });
        }
    }

    /// Between 0 and 1.
    pub(crate) fn fraction(&mut self, field: &str, value: f64) {
        self.check((0.0..=1.0).contains(&value), field, "between 0 and 1", value.to_string());
    }

    /// Finite and above 0.
    pub(crate) fn positive(&mut self, field: &str, value: f64) {
        self.check(value.is_finite() && value > 0.0, field, "a finite number above 0", value.to_string());
    }

    /// As [`Ranges::positive`], if present.
    pub(crate) fn positive_if_given(&mut self, field: &str, value: Option<f64>) {
        if let Some(value) = value {
            self.positive(field, value);
        }
    }

    /// Finite and at least 0.
    pub(crate) fn not_negative(&mut self, field: &str, value: f64) {
        self.check(value.is_finite() && value >= 0.0, field, "a finite number of at least 0", value.to_string());
    }

    /// At least 1 and at most `most`.
    pub(crate) fn count(&mut self, field: &str, value: usize, most: usize) {
        self.check(value >= 1, field, "at least 1", value.to_string());
        self.check(value <= most, field, &format!("at most {most}"), value.to_string());
    }

    /// Between the bounds.
    pub(crate) fn between(&mut self, field: &str, value: f64, least: f64, most: f64) {
        self.check((least..=most).contains(&value), field, &format!("between {least} and {most}"), value.to_string());
    }

    /// Widths of hidden layers.
    pub(crate) fn widths(&mut self, field: &str, widths: &[usize]) {
        if let Some(width) = widths.iter().find(|w| !(1..=MAX_WIDTH).contains(*w)) {
            self.check(false, field, &format!("widths between 1 and {MAX_WIDTH}"), width.to_string());
        }
        self.check(widths.len() <= MAX_LAYERS, field, &format!("at most {MAX_LAYERS} widths"), widths.len().to_string());
    }

    /// The first check that failed.
    ///
    /// # Errors
    /// [`AgentError::Config`] with the field, what it must be and what it is.
    pub(crate) fn finish(self) -> Result<(), AgentError> {
        self.error.map_or(Ok(()), Err)
    }
}
