//! `steadfast recipe`.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;

use super::list::described;
use super::print;
use crate::cli::RecipeCommand;
use crate::config::recipe::{RECIPES, SWEEPS, description, sweep_text, text};
use crate::config::report::suggest;
use crate::failure::{Failure, Result};

/// Lists, prints or copies recipes.
pub fn run(command: &RecipeCommand) -> Result<()> {
    match command {
        RecipeCommand::List => {
            let list = |recipes: &'static [(&str, &str)]| described(recipes.iter().map(|(name, text)| (*name, description(text))));
            print(&format!("{}\nSweeps, for `steadfast sweep`:\n{}", list(RECIPES), list(SWEEPS)))
        }
        RecipeCommand::Show { name } => print(find(name)?),
        RecipeCommand::Copy { name, file } => {
            let text = find(name)?;
            let path = file.clone().unwrap_or_else(|| PathBuf::from(format!("{name}.toml")));
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(mut out) => out.write_all(text.as_bytes()).map_err(|e| Failure::file("write", &path, e))?,
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                    return Err(Failure::usage(format!("{} exists already", path.display()), "give another file name"));
                }
                Err(e) => return Err(Failure::usage(format!("cannot write {}: {e}", path.display()), "give another file name")),
            }
            print(&format!("{}\n", path.display()))
        }
    }
}

fn find(name: &str) -> Result<&'static str> {
    text(name).or_else(|| sweep_text(name)).ok_or_else(|| {
        let names: Vec<&str> = RECIPES.iter().chain(SWEEPS).map(|(n, _)| *n).collect();
        Failure::usage(format!("there is no recipe called `{name}`"), suggest(name, &names))
    })
}
