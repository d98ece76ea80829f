//! The data of runs, as pictures need it.

use std::path::Path;

use crate::failure::{Failure, Result};
use crate::run::directory::RunDirectory;
use crate::run::metrics;
use crate::run::results::{self, EvalRow};

/// What a picture can show of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct RunData {
    /// Name of the experiment; runs of one name are drawn as one series.
    pub name: String,
    /// Name of the environment.
    pub env: String,
    /// Lines of `eval.csv`.
    pub evaluations: Vec<EvalRow>,
    /// Lines of `metrics.jsonl`.
    pub metrics: Vec<metrics::Row>,
}

impl RunData {
    /// Reads a run directory.
    ///
    /// # Errors
    /// [`Failure::Usage`] if it is none; [`Failure::Run`] if a table cannot be read.
    pub fn read(path: &Path) -> Result<Self> {
        let run = RunDirectory::open(path)?;
        let config = run.config()?;
        let bytes = |name: &str| match std::fs::read(run.file(name)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            other => other.map_err(|e| Failure::file("read", &run.file(name), e)),
        };
        let broken = |name: &str, reason: String| Failure::run(format!("cannot read {}: {reason}", run.file(name).display()));
        Ok(Self {
            name: config.name,
            env: config.env.name().to_string(),
            evaluations: results::parse(&bytes(results::EVAL)?).map_err(|e| broken(results::EVAL, e))?,
            metrics: metrics::parse(&bytes(metrics::METRICS)?)
                .map_err(|(line, e)| broken(metrics::METRICS, format!("line {line}: {e}")))?,
        })
    }
}

/// Groups of runs with one name, in the order of their first run.
pub fn by_name(runs: &[RunData]) -> Vec<(&str, Vec<&RunData>)> {
    let mut groups: Vec<(&str, Vec<&RunData>)> = Vec::new();
    for run in runs {
        match groups.iter_mut().find(|(name, _)| *name == run.name) {
            Some((_, members)) => members.push(run),
            None => groups.push((&run.name, vec![run])),
        }
    }
    groups
}

/// The environments of the runs, for titles.
pub fn environments(runs: &[RunData]) -> String {
    let mut names: Vec<&str> = runs.iter().map(|r| r.env.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    names.join(", ")
}

/// A column of `eval.csv` and how to say it on an axis.
pub type Column = (&'static str, &'static str, fn(&EvalRow) -> (f64, f64));

/// The columns that can be drawn, with value and half width of the 95 % interval over episodes.
pub const COLUMNS: &[Column] = &[
    ("return_agent_mean", "episode return, mean over agents", |r| (r.return_agent_mean, r.return_agent_mean_ci95)),
    ("return_team_sum", "episode return, sum over agents", |r| (r.return_team_sum, r.return_team_sum_ci95)),
    ("length", "episode length (steps)", |r| (r.length, f64::INFINITY)),
    ("terminated", "fraction of episodes that terminated", |r| (r.terminated, f64::INFINITY)),
];
