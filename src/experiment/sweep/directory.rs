//! Where a sweep lives, and which of its cells are done.

use std::path::{Path, PathBuf};

use toml::Value;
use tracing::warn;

use crate::config::Experiment;
use crate::config::source::Source;
use crate::config::sweep::{Cell, Sweep};
use crate::failure::{Failure, Result};
use crate::run::directory::{RunDirectory, RunLock};
use crate::run::log::write_whole;

/// A directory of a sweep.
#[derive(Debug, Clone)]
pub struct SweepDirectory {
    path: PathBuf,
}

impl SweepDirectory {
    /// The sweep at `path`, which need not exist yet.
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The run directory of a cell.
    pub fn cell(&self, cell: &Cell) -> RunDirectory {
        RunDirectory::at(self.path.join("cells").join(&cell.name))
    }

    /// Creates the directory and takes the right to write there.
    ///
    /// # Errors
    /// [`Failure::Usage`] if it cannot be created or holds something else; [`Failure::Run`] if another process writes there.
    pub fn claim(&self) -> Result<RunLock> {
        let lock = claim(&self.path, "cells", "a sweep")?;
        let cells = self.file("cells");
        std::fs::create_dir_all(&cells).map_err(|e| Failure::file("create", &cells, e))?;
        Ok(lock)
    }

    /// Stores what the sweep is: `base` word for word, because a change may depend on what it leaves out, and because it
    /// need not be valid without the changes.
    ///
    /// # Errors
    /// [`Failure::Run`] naming the file.
    pub fn describe(&self, sweep: &Sweep, base: &Source) -> Result<()> {
        write_whole(&self.file("base.toml"), base.text.as_bytes())?;
        write_whole(&self.file("sweep.toml"), sweep.config.resolved("base.toml").as_bytes())
    }

    /// Makes sure that the runs that exist are those of the cells. Runs that belong to no cell are left alone and counted
    /// nowhere.
    ///
    /// # Errors
    /// [`Failure::Usage`] if a run was made with other settings than its cell has now.
    pub fn check(&self, cells: &[Cell]) -> Result<()> {
        let mut changed = Vec::new();
        for cell in cells {
            let run = self.cell(cell);
            if run.file("config.toml").is_file() {
                let config =
                    run.config().map_err(|failure| failure.during(&format!("the settings of cell `{}` are unreadable", cell.name)))?;
                if let Some(difference) = difference(&config, &cell.config) {
                    changed.push((run, difference));
                }
            }
        }
        if let Some((run, difference)) = changed.first() {
            let others = match changed.len() {
                1 => String::new(),
                n => format!(" ({n} cells differ)"),
            };
            return Err(Failure::usage(
                format!("{} was made with other settings: {difference}{others}", run.path().display()),
                "give the changed sweep another name or --output, or remove the directories of these cells to run them again",
            ));
        }
        let known = |name: &std::ffi::OsStr| cells.iter().any(|c| name == c.name.as_str());
        let entries = std::fs::read_dir(self.file("cells")).into_iter().flatten().flatten();
        let mut strangers: Vec<String> =
            entries.map(|e| e.file_name()).filter(|n| !known(n)).map(|n| n.to_string_lossy().into_owned()).collect();
        strangers.sort();
        if !strangers.is_empty() {
            warn!("not part of the sweep any more, and left out: {}", strangers.join(", "));
        }
        Ok(())
    }
}

/// Creates a directory and takes the right to write there. A directory that holds anything without the file or directory
/// `mark` belongs to somebody else; `what` says what was expected.
///
/// # Errors
/// [`Failure::Usage`] if it cannot be created or holds something else; [`Failure::Run`] if another process writes there.
pub fn claim(path: &Path, mark: &str, what: &str) -> Result<RunLock> {
    const LOCK: &str = "sweep.lock";
    let mut entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    if !path.join(mark).exists() && entries.any(|e| e.file_name() != LOCK) {
        let message = format!("{} exists and holds something else than {what}", path.display());
        return Err(Failure::usage(message, "choose another --output"));
    }
    std::fs::create_dir_all(path)
        .map_err(|e| Failure::usage(format!("cannot create {}: {e}", path.display()), "choose a writable directory with --output"))?;
    RunLock::take(path, LOCK)
}

/// The first setting that differs, in words. The number of threads does not count: no number depends on it.
fn difference(before: &Experiment, now: &Experiment) -> Option<String> {
    let table = |config: &Experiment| {
        let mut table = config.to_table();
        table.remove("threads");
        Value::Table(table)
    };
    fn first(path: &str, before: Option<&Value>, now: Option<&Value>) -> Option<String> {
        if before == now {
            return None;
        }
        if let (Some(Value::Table(before)), Some(Value::Table(now))) = (before, now) {
            let keys: std::collections::BTreeSet<&String> = before.keys().chain(now.keys()).collect();
            let inner = |key: &String| if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            return keys.into_iter().find_map(|key| first(&inner(key), before.get(key), now.get(key)));
        }
        let text = |value: Option<&Value>| value.map_or_else(|| "absent".to_string(), |v| format!("`{v}`"));
        Some(format!("`{path}` was {}, is {} now", text(before), text(now)))
    }
    first("", Some(&table(before)), Some(&table(now)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ExperimentConfig;

    #[test]
    fn the_first_difference_is_named() {
        let difference = |a: &ExperimentConfig, b: &ExperimentConfig| difference(&a.clone().into(), &b.clone().into());
        let a = ExperimentConfig::default();
        assert_eq!(difference(&a, &ExperimentConfig { threads: 7, ..a.clone() }), None);
        let mut b = a.clone();
        b.eval.episodes = 7;
        assert_eq!(difference(&a, &b).unwrap(), "`eval.episodes` was `32`, is `7` now");
    }
}
