//! From a file, a recipe and arguments to a configuration that is known to be sound.

use std::ops::Range;
use std::path::Path;

use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table};

use super::ExperimentConfig;
#[cfg(feature = "llm")]
use super::LanguageConfig;
use super::experiment::{Experiment, Root};
use super::overrides::Override;
use super::report::{ConfigError, Problem, is_bare_choice};
use super::source::{Kind, Source};
use super::validate::Misfit;
use crate::failure::{Failure, Result};

/// Reads a choice that is written as an inline TOML table, as in `{ observation_noise = { magnitude = 0.2 } }`.
///
/// # Errors
/// [`Failure::Usage`] that shows the place of the mistake in `text`, which was given by `flag`.
pub fn inline<T: serde::de::DeserializeOwned>(flag: &str, text: &str) -> Result<T> {
    let read = || T::deserialize(toml::de::ValueDeserializer::parse(text)?);
    read().map_err(|error: toml::de::Error| {
        Failure::Usage(ConfigError::new(flag, text, error.span(), Problem::from_serde(error.message())).into())
    })
}

/// A configuration that passed every check.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The settings.
    pub config: Experiment,
}

/// Reads the recipe or file called `name`, changes it by `overrides` and checks the result.
///
/// # Errors
/// [`Failure::Usage`] that shows the place of the first mistake.
pub fn named(name: &str, overrides: &[String]) -> Result<Loaded> {
    let found = Source::find(Kind::Experiment, name, Path::new(""))?;
    text(&found.shown, &found.text, overrides)
}

/// As [`named`], from text that is called `name` in messages.
///
/// # Errors
/// As [`named`].
pub fn text(name: &str, text: &str, overrides: &[String]) -> Result<Loaded> {
    let config = resolve(name, text, overrides).map_err(|mistake| match mistake {
        Mistake::InFile(error) => Failure::Usage((*error).into()),
        Mistake::InChange { index, span, problem } => {
            Failure::Usage(ConfigError::new("command line", &overrides[index], Some(span), problem).into())
        }
    })?;
    Ok(Loaded { config })
}

/// A mistake, with its place.
#[derive(Debug)]
pub enum Mistake {
    /// In the file.
    InFile(Box<ConfigError>),
    /// In a change to it.
    InChange {
        /// Which change.
        index: usize,
        /// Where in its text.
        span: Range<usize>,
        /// What is wrong.
        problem: Problem,
    },
}

/// As [`text`], for callers who know better where the changes come from.
///
/// # Errors
/// The first [`Mistake`].
pub fn resolve(name: &str, text: &str, overrides: &[String]) -> Result<Experiment, Mistake> {
    #[cfg(feature = "llm")]
    if is_offline(text) {
        return resolve_with::<LanguageConfig>(name, text, overrides, true);
    }
    resolve_with::<ExperimentConfig>(name, text, overrides, true)
}

/// True for the text of an experiment over given examples: it has a table that the other kind does not know. What is no TOML
/// is reported by whoever reads it.
#[cfg(feature = "llm")]
fn is_offline(text: &str) -> bool {
    let is_own = |key: &str| ["objective", "data", "trainer"].contains(&key);
    DeTable::parse(text).is_ok_and(|table| table.get_ref().keys().any(|key| is_own(key.get_ref())))
}

/// The configuration of a run that was made before. The files that it names were read then and may be gone by now.
///
/// # Errors
/// As [`named`].
pub fn stored(name: &str, text: &str) -> Result<Experiment> {
    let resolve = || {
        #[cfg(feature = "llm")]
        if is_offline(text) {
            return resolve_with::<LanguageConfig>(name, text, &[], false);
        }
        resolve_with::<ExperimentConfig>(name, text, &[], false)
    };
    resolve().map_err(|mistake| match mistake {
        Mistake::InFile(error) => Failure::Usage((*error).into()),
        Mistake::InChange { problem, .. } => Failure::run(problem.message),
    })
}

fn resolve_with<T: Root>(name: &str, text: &str, overrides: &[String], with_files: bool) -> Result<Experiment, Mistake> {
    let at_file = |error: toml::de::Error| {
        let mut problem = Problem::from_serde(error.message());
        if is_bare_choice(error.message())
            && let Some(span) = error.span()
            && let Ok(table) = DeTable::parse(text)
            && let Some((keys, choice)) = string_at(table.get_ref(), &span)
        {
            problem = problem.help(format!("write `[{}.{choice}]`", keys.join(".")));
        }
        Mistake::InFile(Box::new(ConfigError::new(name, text, error.span(), problem)))
    };
    let mut config: T = toml::from_str(text).map_err(at_file)?;
    let mut table: Table = text.parse().map_err(at_file)?;
    let mut parsed = Vec::new();
    for (index, argument) in overrides.iter().enumerate() {
        let at_argument = |span: Range<usize>, problem: Problem| Mistake::InChange { index, span, problem };
        let change = Override::parse(argument).map_err(|problem| at_argument(0..argument.len(), problem))?;
        change.apply(&mut table, T::schema()).map_err(|(key, problem)| at_argument(change.key_span(key), problem))?;
        config = match (T::deserialize(table.clone()), change.with_whole_number()) {
            (Ok(config), _) => config,
            // `total_steps=1e6`: what the field does not take as a number with an exponent it may take as a whole one.
            (Err(error), whole) => whole
                .and_then(|whole| {
                    whole.apply(&mut table, T::schema()).ok()?;
                    T::deserialize(table.clone()).ok()
                })
                .ok_or_else(|| at_argument(change.value_span(), Problem::from_serde(error.message())))?,
        };
        parsed.push(change);
    }
    match config.validate().and_then(|()| if with_files { config.files() } else { Ok(()) }) {
        Ok(()) => Ok(config.into_experiment()),
        Err(misfit) => Err(locate(name, text, &parsed, misfit)),
    }
}

/// Attaches the place where a value was given: the last argument that set it, or the file.
fn locate(name: &str, text: &str, overrides: &[Override], misfit: Misfit) -> Mistake {
    let Misfit { path, problem } = misfit;
    let is_prefix = |a: &[String], b: &[String]| a.len() <= b.len() && a.iter().zip(b).all(|(x, y)| x == y);
    if let Some(index) = overrides.iter().rposition(|o| is_prefix(&o.path, &path) || is_prefix(&path, &o.path)) {
        return Mistake::InChange { index, span: overrides[index].value_span(), problem };
    }
    let span = DeTable::parse(text).ok().and_then(|table| span_in_table(table.get_ref(), &path));
    Mistake::InFile(Box::new(ConfigError::new(name, text, span, problem)))
}

/// Keys and content of the string that stands at `span`.
fn string_at(table: &DeTable<'_>, span: &Range<usize>) -> Option<(Vec<String>, String)> {
    let in_value = |value: &Spanned<DeValue<'_>>| match value.get_ref() {
        DeValue::String(text) if value.span() == *span => Some((Vec::new(), text.to_string())),
        DeValue::Table(table) => string_at(table, span),
        DeValue::Array(items) => items.iter().find_map(|item| match item.get_ref() {
            DeValue::Table(table) => string_at(table, span),
            _ => None,
        }),
        _ => None,
    };
    table.iter().find_map(|(key, value)| {
        let (mut keys, text) = in_value(value)?;
        keys.insert(0, key.get_ref().to_string());
        Some((keys, text))
    })
}

/// The value at `path`, or the innermost table around it.
fn span_in_table(table: &DeTable<'_>, path: &[String]) -> Option<Range<usize>> {
    let (first, rest) = path.split_first()?;
    let (key, value) = table.iter().find(|(k, _)| k.get_ref() == first)?;
    if rest.is_empty() && !value.get_ref().is_table() {
        return Some(value.span());
    }
    Some(span_in_value(value, rest).unwrap_or_else(|| key.span()))
}

fn span_in_value(value: &Spanned<DeValue<'_>>, path: &[String]) -> Option<Range<usize>> {
    match value.get_ref() {
        DeValue::Table(table) => span_in_table(table, path),
        DeValue::Array(items) => {
            let (first, rest) = path.split_first()?;
            let item = items.get(first.parse::<usize>().ok()?)?;
            Some(span_in_value(item, rest).unwrap_or_else(|| item.span()))
        }
        _ => Some(value.span()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::ExperimentConfig;

    fn message(text: &str, overrides: &[&str]) -> String {
        let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
        super::text("test.toml", text, &overrides).unwrap_err().render(false, 100)
    }

    #[test]
    fn mistakes_in_the_file_are_shown_in_the_file() {
        let text = message("seed = 1\n[agent.ppo]\ndicsount = 0.9\n", &[]);
        assert!(text.contains("test.toml:3:1") && text.contains("did you mean `discount`?"), "{text}");
        let text = message("[agent.ppo]\ndiscount = 1.5\n", &[]);
        assert!(text.contains("test.toml:2:12") && text.contains("between 0 and 1"), "{text}");
        let text = message("slots = \"four\"\n", &[]);
        assert!(text.contains("test.toml:1:9"), "{text}");
        let text = message("[env.identity]\nsymbols = 0\n", &[]);
        assert!(text.contains("test.toml:2:11"), "{text}");
    }

    #[test]
    fn mistakes_in_arguments_are_shown_in_the_argument() {
        let text = message("seed = 1\n", &["slots=2", "agent.ppo.discount=7"]);
        assert!(text.contains("command line:1:20"), "{text}");
        let text = message("", &["agent.ppo.clip_rnage=7"]);
        assert!(text.contains("command line:1:11") && text.contains("clip_range"), "{text}");
        let text = message("", &["slots=many"]);
        assert!(text.contains("command line:1:7"), "{text}");
    }

    #[test]
    fn a_choice_that_is_written_as_a_string_is_corrected() {
        let text = message("env = \"cart_pole\"\n", &[]);
        assert!(text.contains("test.toml:1:7") && text.contains("write `[env.cart_pole]`"), "{text}");
        let text = message("[[robustness]]\naxis = \"observation_noise\"\n", &[]);
        assert!(text.contains("write `[robustness.axis.observation_noise]`"), "{text}");
    }

    #[test]
    fn whole_numbers_may_have_an_exponent_in_arguments() {
        let changes = ["total_steps=1e6", "agent.ppo.learning_rate=1e0", "slots=4.0"].map(str::to_string);
        let config = super::text("test.toml", "", &changes).unwrap().config;
        let config = config.online().unwrap();
        assert_eq!((config.total_steps, config.slots), (1_000_000, 4));
        for change in ["slots=1.5", "slots=-1e3", "slots=1e300"] {
            assert!(message("", &[change]).contains("a whole number"), "{change}");
        }
        assert!(message("total_steps = 1e6\n", &[]).contains("write 1000000"));
    }

    #[test]
    fn a_resolved_configuration_reads_back_equal() {
        let loaded = super::text("a", "", &["agent.ppo.learning_rate=0.00031".to_string(), "seed=12".to_string()]).unwrap();
        let text = crate::config::render::resolved(&loaded.config);
        assert_eq!(super::text("b", &text, &[]).unwrap().config, loaded.config);
    }

    /// Every number of every table, at values that no one checks for by accident.
    #[test]
    fn extreme_numbers_are_accepted_or_refused_but_never_panic() {
        let (mut table, mut tried, mut refused) = (String::new(), 0, 0);
        for line in crate::config::render::defaults::<ExperimentConfig>().lines() {
            let line = line.trim_start_matches(['#', ' ']);
            if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
                table = if name.starts_with('[') { String::new() } else { format!("{name}.") };
            }
            let Some((key, value)) = line.split_once(" = ") else { continue };
            let values: &[&str] = match value.chars().next() {
                Some('0'..='9' | '-') => &["-1", "0", "65537", "1e300", "nan", "inf"],
                Some('[') => &["[]", "[nan]", "[1e300]", "[-1]", "[0]", "[1, 2, 3, 4, 5, 6, 7, 8, 9]"],
                _ => continue,
            };
            let path: Vec<&str> = table.split('.').collect();
            for value in values {
                let mut changes = vec![format!("{table}{key}={value}")];
                if ["env", "agent", "regularizer"].contains(&path[0]) {
                    changes.insert(0, format!("{}={}", path[0], path[1]));
                }
                tried += 1;
                refused += usize::from(super::text("extreme", "", &changes).is_err());
            }
        }
        assert!(tried > 500 && refused > tried / 3, "{refused} of {tried}");
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in ".{0,200}", change in ".{0,40}") {
            let _ = super::text("fuzz", &text, std::slice::from_ref(&change)).map_err(|e| e.render(false, 80));
            let _ = super::text("fuzz", "[[robustness]]\n", &[change]).map_err(|e| e.render(false, 80));
        }

        #[test]
        fn arbitrary_settings_never_panic(
            key in "(seed|name|slots|threads|env|agent|regularizer|perturb|robustness|eval|log)(\\.[a-z0-9_]{1,12}){0,3}",
            value in "(-?[0-9]{1,20}|[a-z]{1,8}|\\[[0-9]{1,2}\\]|nan|-inf|true|\\{\\}|\"\")",
        ) {
            let _ = super::text("fuzz", &format!("{key} = {value}\n"), &[]).map_err(|e| e.render(false, 80));
            let _ = super::text("fuzz", "", &[format!("{key}={value}")]).map_err(|e| e.render(false, 80));
        }
    }
}
