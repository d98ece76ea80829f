//! From a file, a directory or a recipe to a sweep that is known to be sound.

use std::ops::Range;
use std::path::{Path, PathBuf};

use super::{SweepConfig, Word, check, placeholder};
use crate::config::recipe;
use crate::config::report::{ConfigError, Problem};
use crate::config::source::{Kind, Source};
use crate::failure::{Failure, Result};

/// Name of the description of a sweep in its directory.
pub const FILE: &str = "sweep.toml";

/// A sweep with its text, so that mistakes can be shown in it.
#[derive(Debug, Clone)]
pub struct Sweep {
    /// The settings.
    pub config: SweepConfig,
    /// Where paths in the file start.
    pub directory: PathBuf,
    /// Where it is written if the user does not say.
    pub output: PathBuf,
    name: String,
    text: String,
}

/// Reads the recipe, the file, or the directory of an earlier sweep called `name` and checks what can be checked without
/// resolving its cells.
///
/// # Errors
/// [`Failure::Usage`] that shows the place of the first mistake.
pub fn read(name: &str) -> Result<Sweep> {
    let path = Path::new(name);
    if recipe::sweep_text(name).is_none() && path.is_dir() {
        let file = path.join(FILE);
        let text = std::fs::read_to_string(&file).map_err(|e| {
            Failure::usage(
                format!("{name} is no directory of a sweep: cannot read {FILE}: {e}"),
                "give a file, a recipe or such a directory",
            )
        })?;
        let sweep = parse(&file.display().to_string(), &text, path)?;
        return Ok(Sweep { output: path.to_path_buf(), ..sweep });
    }
    let found = Source::find(Kind::Sweep, name, Path::new(""))?;
    parse(&found.shown, &found.text, &found.directory)
}

/// As [`read`], from text that is called `name` in messages.
///
/// # Errors
/// As [`read`].
pub fn parse(name: &str, text: &str, directory: &Path) -> Result<Sweep> {
    let at = |span: Option<Range<usize>>, problem: Problem| Failure::Usage(ConfigError::new(name, text, span, problem).into());
    let config: SweepConfig = toml::from_str(text).map_err(|error| {
        let mut problem = Problem::from_serde(error.message());
        // A label such as irrational-1/3.
        if error.message().contains("unquoted key") {
            problem = problem.help("labels with other characters than letters, digits, `-` and `_` need quotes, as in \"r3m 0.3\"");
        }
        if let Some(field) = error.message().strip_prefix("missing field ") {
            problem = Problem::new(format!("the key {field} is missing"), "here").help("`steadfast sweep --help` shows a complete file");
        }
        at(error.span(), problem)
    })?;
    if let Err((span, problem)) = check::check(&config) {
        return Err(at(Some(span), problem));
    }
    let output = Path::new("sweeps").join(config.name.get_ref());
    let sweep = Sweep { config, directory: directory.to_path_buf(), output, name: name.to_string(), text: text.to_string() };
    placeholder::check(&sweep)?;
    Ok(sweep)
}

impl Sweep {
    /// The text of the experiment that is varied. It need not be valid without the sweep's changes.
    ///
    /// # Errors
    /// [`Failure::Usage`] if there is no such recipe or file.
    pub fn base(&self) -> Result<Source> {
        let found = Source::find(Kind::Experiment, self.config.base.get_ref(), &self.directory);
        found.map_err(|failure| failure.during("cannot read the base of the sweep"))
    }

    /// A mistake at `span` of the file.
    pub fn mistake(&self, span: Range<usize>, problem: Problem) -> Failure {
        Failure::Usage(ConfigError::new(&self.name, &self.text, Some(span), problem).into())
    }

    /// A mistake at `inner` of a text in the file.
    pub fn mistake_in(&self, word: &Word, inner: Range<usize>, problem: Problem) -> Failure {
        let span = word.span();
        // Between quotes, unless there is an escape.
        let start = span.start + 1;
        let is_verbatim = self.text.get(start..start + word.get_ref().len()) == Some(word.get_ref().as_str());
        let place = if is_verbatim && inner.end <= word.get_ref().len() { start + inner.start..start + inner.end } else { span };
        self.mistake(place, problem)
    }
}
