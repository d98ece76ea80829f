//! Configuration errors that show the place and suggest a way out.

use std::ops::Range;

use miette::{Diagnostic, NamedSource, SourceSpan};

/// A mistake in a configuration file or in an argument that changes it.
#[derive(Debug, thiserror::Error, Diagnostic)]
#[error("{message}")]
pub struct ConfigError {
    message: String,
    #[source_code]
    source_code: NamedSource<String>,
    #[label("{label}")]
    span: Option<SourceSpan>,
    label: String,
    #[help]
    help: Option<String>,
}

impl ConfigError {
    /// A mistake at `span` of `text`, which is called `name`.
    pub fn new(name: &str, text: &str, span: Option<Range<usize>>, problem: Problem) -> Self {
        // A span past the end could not be drawn, and the message would be lost with it.
        let span = span.filter(|s| s.start <= s.end && s.end <= text.len());
        Self {
            message: problem.message,
            source_code: NamedSource::new(name, text.to_string()),
            span: span.map(|s| SourceSpan::from((s.start, s.end - s.start))),
            label: problem.label,
            help: problem.help,
        }
    }
}

/// What is wrong, before it is known where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// One sentence without a full stop.
    pub message: String,
    /// A few words under the marked place.
    pub label: String,
    /// What to do.
    pub help: Option<String>,
}

impl Problem {
    /// A problem without advice.
    pub fn new(message: impl Into<String>, label: impl Into<String>) -> Self {
        Self { message: message.into(), label: label.into(), help: None }
    }

    /// Adds advice.
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// A name that does not exist. `what` is "key", "choice", ...
    pub fn unknown(what: &str, name: &str, known: &[&str]) -> Self {
        Self::new(format!("unknown {what} `{name}`"), format!("no such {what}")).help(suggest(name, known))
    }

    /// Translates an error of the TOML reader or of serde.
    pub fn from_serde(message: &str) -> Self {
        let words: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
        match words.split_first() {
            Some((name, known)) if message.starts_with("unknown field") => Self::unknown("key", name, known),
            Some((name, known)) if message.starts_with("unknown variant") => Self::unknown("choice", name, known),
            _ if message.starts_with("wanted exactly 1 element") => Self::new("exactly one choice is needed here", "must hold one table")
                .help(
                    "write one table such as `[env.NAME]`; `steadfast list envs` (or agents, regularizers, perturbations) shows the names",
                ),
            _ if is_bare_choice(message) => {
                Self::new("a choice is written as a table", "a string, not a table").help("write `[KEY.NAME]`, as in `[env.cart_pole]`")
            }
            _ => {
                let problem = Self::new(in_plain_words(message.trim()), "here");
                match whole_number(message) {
                    Some(number) => problem.help(format!("write {number}")),
                    None => problem,
                }
            }
        }
    }
}

/// True for serde's complaint about `env = "cart_pole"`.
pub fn is_bare_choice(message: &str) -> bool {
    message.starts_with("invalid type: unit variant")
}

/// The number in a complaint about a whole number that is written with a point or an exponent.
fn whole_number(message: &str) -> Option<i64> {
    let rest = message.strip_prefix("invalid type: floating point `")?;
    let (number, expected) = rest.split_once('`')?;
    let value: f64 = number.parse().ok()?;
    let is_whole = value.fract() == 0.0 && value.abs() <= 2_f64.powi(53) && in_plain_words(expected).contains("a whole number");
    is_whole.then_some(value as i64)
}

/// Replaces the names of Rust types at the end of a message.
fn in_plain_words(message: &str) -> String {
    let message = message.replace('\n', "; ");
    let words = [
        (&["u8", "u16", "u32", "u64", "usize"][..], "a whole number of at least 0"),
        (&["i32", "i64", "isize"], "a whole number"),
        (&["f32", "f64"], "a number"),
        (&["a boolean"], "true or false"),
        (&["a sequence"], "a list"),
    ];
    for (types, plain) in words {
        for name in types {
            if let Some(start) = message.strip_suffix(&format!("expected {name}")) {
                return format!("{start}expected {plain}");
            }
        }
    }
    message
}

/// "did you mean ...?" if a known name is close, else the known names.
pub fn suggest(name: &str, known: &[&str]) -> String {
    let close = known
        .iter()
        .map(|k| (strsim::damerau_levenshtein(&name.to_lowercase(), k), k))
        .min()
        .filter(|(distance, k)| *distance <= 1 + k.len().max(name.len()) / 3);
    match close {
        Some((_, k)) => format!("did you mean `{k}`?"),
        None if known.is_empty() => "nothing can be set here".to_string(),
        None => format!("known: {}", known.iter().map(|k| format!("`{k}`")).collect::<Vec<_>>().join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_names_are_suggested_and_far_ones_listed() {
        assert_eq!(suggest("dicsount", &["clip_range", "discount"]), "did you mean `discount`?");
        assert_eq!(suggest("colour", &["seed", "slots"]), "known: `seed`, `slots`");
    }

    #[test]
    fn types_are_named_in_plain_words() {
        let problem = Problem::from_serde("invalid type: string \"a\", expected usize");
        assert_eq!(problem.message, "invalid type: string \"a\", expected a whole number of at least 0");
    }

    #[test]
    fn whole_numbers_are_spelled_out() {
        let problem = Problem::from_serde("invalid type: floating point `1000000.0`, expected u64");
        assert_eq!(problem.help.as_deref(), Some("write 1000000"));
        assert_eq!(Problem::from_serde("invalid type: floating point `0.5`, expected u64").help, None);
    }

    #[test]
    fn serde_messages_are_understood() {
        let problem = Problem::from_serde("unknown field `sede`, expected one of `name`, `seed`");
        assert_eq!(problem.message, "unknown key `sede`");
        assert_eq!(problem.help.as_deref(), Some("did you mean `seed`?"));
    }
}
