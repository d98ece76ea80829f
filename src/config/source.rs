//! Where the text of an experiment or of a sweep comes from: a recipe, or a file.

use std::path::{Path, PathBuf};

use super::recipe;
use super::report::suggest;
use crate::failure::{Failure, Result};

/// What a text describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One experiment.
    Experiment,
    /// A grid of experiments.
    Sweep,
}

/// A text and where it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// What it is called in messages.
    pub shown: String,
    /// The text.
    pub text: String,
    /// Where paths in it start.
    pub directory: PathBuf,
}

impl Source {
    /// Finds the recipe or file called `name`. Paths of files start at `directory`.
    ///
    /// # Errors
    /// [`Failure::Usage`] if there is no such recipe or file.
    pub fn find(kind: Kind, name: &str, directory: &Path) -> Result<Self> {
        let (recipe, what, of_other_kind) = match kind {
            Kind::Experiment => (recipe::text(name), "recipe", recipe::sweep_text(name)),
            Kind::Sweep => (recipe::sweep_text(name), "sweep recipe", recipe::text(name)),
        };
        if let Some(found) = recipe {
            return Ok(Self { shown: format!("recipe {name}"), text: found.to_string(), directory: PathBuf::new() });
        }
        let path = directory.join(name);
        let shown = path.display().to_string();
        let bytes = std::fs::read(&path).map_err(|error| {
            if error.kind() != std::io::ErrorKind::NotFound {
                return Failure::usage(format!("cannot read {shown}: {error}"), "give a recipe or a TOML file");
            }
            let help = match (of_other_kind, kind) {
                (Some(_), Kind::Experiment) => format!("`{name}` is a sweep: run it with `steadfast sweep {name}`"),
                (Some(_), Kind::Sweep) => format!("`{name}` is a recipe of one experiment: write a sweep with `base = \"{name}\"`"),
                (None, _) => format!("{} (`steadfast recipe list` shows the recipes)", suggest(name, &known(kind))),
            };
            Failure::usage(format!("there is no {what} and no file called `{name}`"), help)
        })?;
        let text = String::from_utf8(bytes).map_err(|_| {
            let help = match kind {
                Kind::Experiment => "a configuration is a TOML file",
                Kind::Sweep => "a sweep is a TOML file",
            };
            Failure::usage(format!("{shown} is not UTF-8 text"), help)
        })?;
        Ok(Self { shown, text, directory: path.parent().unwrap_or(Path::new("")).to_path_buf() })
    }
}

/// Names of recipes.
fn known(kind: Kind) -> Vec<&'static str> {
    let recipes = match kind {
        Kind::Experiment => recipe::RECIPES,
        Kind::Sweep => recipe::SWEEPS,
    };
    recipes.iter().map(|(name, _)| *name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_found_and_what_is_no_text_is_refused() {
        let place = tempfile::tempdir().unwrap();
        std::fs::create_dir(place.path().join("inner")).unwrap();
        std::fs::write(place.path().join("inner/a.toml"), "seed = 1\n").unwrap();
        std::fs::write(place.path().join("b.toml"), [0xFF]).unwrap();
        for kind in [Kind::Experiment, Kind::Sweep] {
            let found = Source::find(kind, "inner/a.toml", place.path()).unwrap();
            assert_eq!((found.text.as_str(), found.directory), ("seed = 1\n", place.path().join("inner")));
            let message = |name: &str| Source::find(kind, name, place.path()).unwrap_err().render(false, 200);
            assert!(message("b.toml").contains("b.toml is not UTF-8 text"));
            assert!(message("c.toml").contains("no file called `c.toml`"));
            assert!(message("inner").contains("cannot read"));
        }
    }
}
