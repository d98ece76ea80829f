//! The data of runs, as pictures need it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use toml::{Table, Value};
use tracing::warn;

use crate::config::Experiment;
use crate::failure::{Failure, Result};
use crate::run::directory::RunDirectory;
use crate::run::manifest::Manifest;
use crate::run::metrics;
use crate::run::results::{self, EvalRow};

/// What a picture can show of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct RunData {
    /// Run directory.
    pub path: PathBuf,
    /// Resolved settings.
    pub config: Experiment,
    /// When it was started: seconds since 1970 by the manifest, then the time of its configuration file.
    pub started: (u64, SystemTime),
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
        let bytes = |name: &str| match std::fs::read(run.file(name)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            other => other.map_err(|e| Failure::file("read", &run.file(name), e)),
        };
        let broken = |name: &str, reason: String| Failure::run(format!("cannot read {}: {reason}", run.file(name).display()));
        let written = std::fs::metadata(run.file("config.toml")).and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        Ok(Self {
            path: path.to_path_buf(),
            config: run.config()?,
            started: (Manifest::read(&run).map_or(0, |m| m.started_unix_seconds), written),
            evaluations: results::parse(&bytes(results::EVAL)?).map_err(|e| broken(results::EVAL, e))?,
            metrics: metrics::parse(&bytes(metrics::METRICS)?)
                .map_err(|(line, e)| broken(metrics::METRICS, format!("line {line}: {e}")))?,
        })
    }

    /// Reads run directories that are to share a picture. A directory that is named twice counts once, and of several
    /// runs of one experiment with one seed the newest counts.
    ///
    /// # Errors
    /// As [`RunData::read`]; [`Failure::Usage`] if the runs are of different environments.
    pub fn read_all(paths: &[PathBuf]) -> Result<Vec<Self>> {
        let mut seen = BTreeSet::new();
        let mut runs: Vec<Self> = Vec::new();
        for path in paths {
            // What cannot be resolved is reported when it is read.
            if seen.insert(path.canonicalize().unwrap_or_else(|_| path.clone())) {
                runs.push(Self::read(path)?);
            }
        }
        if let Some(other) = runs.iter().find(|r| r.config.subject() != runs[0].config.subject()) {
            let first = &runs[0];
            return Err(Failure::usage(
                format!(
                    "{} is a run of `{}`, but {} is one of `{}`",
                    first.path.display(),
                    first.config.subject(),
                    other.path.display(),
                    other.config.subject()
                ),
                "draw one picture per environment",
            ));
        }
        Ok(newest_of_each_seed(runs))
    }
}

/// Runs of one experiment that differ in their seeds only.
#[derive(Debug, Clone, PartialEq)]
pub struct Group<'a> {
    /// Name of the experiment; with what tells it apart if several experiments have this name.
    pub label: String,
    /// One run per seed.
    pub members: Vec<&'a RunData>,
}

fn newest_of_each_seed(runs: Vec<RunData>) -> Vec<RunData> {
    let mut kept: Vec<RunData> = Vec::new();
    for run in runs {
        let is_same = |other: &RunData| {
            let identity = |r: &RunData| (r.config.name().to_string(), r.config.seed(), settings(&r.config));
            identity(other) == identity(&run)
        };
        match kept.iter().position(is_same) {
            None => kept.push(run),
            Some(i) => {
                let is_newer = run.started >= kept[i].started;
                let (newer, older) = if is_newer { (&run, &kept[i]) } else { (&kept[i], &run) };
                let (newer, older) = (newer.path.display(), older.path.display());
                warn!("{older} and {newer} have the same seed, only the newer counts: {newer}");
                if is_newer {
                    kept[i] = run;
                }
            }
        }
    }
    kept
}

/// Groups of runs with one name and equal settings, in the order of their first run.
pub fn groups(runs: &[RunData]) -> Vec<Group<'_>> {
    let mut found: Vec<(&str, Table, Vec<&RunData>)> = Vec::new();
    for run in runs {
        let settings = settings(&run.config);
        match found.iter_mut().find(|(name, s, _)| *name == run.config.name() && *s == settings) {
            Some((.., members)) => members.push(run),
            None => found.push((run.config.name(), settings, vec![run])),
        }
    }
    let labels: Vec<String> = found
        .iter()
        .enumerate()
        .map(|(i, (name, ..))| {
            let same: Vec<usize> = (0..found.len()).filter(|&j| found[j].0 == *name).collect();
            let at = same.iter().position(|&j| j == i).unwrap_or(0);
            let tables: Vec<Option<&Table>> = same.iter().map(|&j| Some(&found[j].1)).collect();
            let mut differences = Vec::new();
            compare(&tables, "", &mut differences);
            let words: Vec<String> = differences.iter().map(|(key, values)| format!("{key}={}", values[at])).collect();
            let words = words.join(", ");
            match (same.len(), words.len()) {
                (1, _) => (*name).to_string(),
                // A legend has no room for more.
                (_, 1..=36) => format!("{name}, {words}"),
                _ => format!("{name} ({})", at + 1),
            }
        })
        .collect();
    labels.into_iter().zip(found).map(|(label, (.., members))| Group { label, members }).collect()
}

/// Settings that make an experiment what it is: all but its name, its seed, and what changes no numbers.
fn settings(config: &Experiment) -> Table {
    let mut table = config.to_table();
    for key in ["name", "seed", "threads", "checkpoint", "log"] {
        table.remove(key);
    }
    table
}

/// Collects the keys in which tables differ, with the values as text.
fn compare(tables: &[Option<&Table>], key: &str, out: &mut Vec<(String, Vec<String>)>) {
    let tables_there: Vec<&Table> = tables.iter().flatten().copied().collect();
    let names: BTreeSet<&String> = tables_there.iter().flat_map(|t| t.keys()).collect();
    let is_choice = tables_there.iter().all(|t| t.len() == 1) && names.len() > 1;
    if tables_there.len() < tables.len() || is_choice {
        let choice = |t: &Option<&Table>| t.and_then(|t| t.keys().next()).map_or_else(|| "none".to_string(), String::clone);
        out.push((key.to_string(), tables.iter().map(choice).collect()));
        return;
    }
    for name in names {
        let values: Vec<Option<&Value>> = tables_there.iter().map(|t| t.get(name)).collect();
        if values.iter().all(|v| *v == values[0]) {
            continue;
        }
        if values.iter().all(|v| v.is_none_or(Value::is_table)) {
            compare(&values.iter().map(|v| v.and_then(Value::as_table)).collect::<Vec<_>>(), name, out);
        } else {
            let text = |v: &Option<&Value>| v.map_or_else(|| "none".to_string(), |v| v.to_string().replace('"', ""));
            out.push((name.clone(), values.iter().map(text).collect()));
        }
    }
}

/// The environments of the runs, for titles.
pub fn environments(runs: &[RunData]) -> String {
    let names: BTreeSet<&str> = runs.iter().map(|r| r.config.subject()).collect();
    names.into_iter().collect::<Vec<_>>().join(", ")
}

/// A column of `eval.csv` that can be drawn.
pub struct Column {
    /// How to say it on an axis.
    pub label: String,
    /// True if there is an interval over episodes.
    pub has_interval: bool,
    value: Box<Reader>,
}

/// Value and half width in a row.
type Reader = dyn Fn(&EvalRow) -> Option<(f64, f64)>;

impl Column {
    /// The column called `name`: a fixed one, or `metric_NAME` if a run has it.
    pub fn find(runs: &[RunData], name: &str) -> Option<Self> {
        let fixed = |label: &str, has_interval, value: fn(&EvalRow) -> (f64, f64)| {
            Some(Self { label: label.to_string(), has_interval, value: Box::new(move |r| Some(value(r))) })
        };
        match name {
            "return_agent_mean" => fixed("episode return, mean over agents", true, |r| (r.return_agent_mean, r.return_agent_mean_ci95)),
            "return_team_sum" => fixed("episode return, sum over agents", true, |r| (r.return_team_sum, r.return_team_sum_ci95)),
            "length" => fixed("episode length (steps)", false, |r| (r.length, f64::INFINITY)),
            "terminated" => fixed("fraction of episodes that terminated", false, |r| (r.terminated, f64::INFINITY)),
            _ => {
                let key = name.to_string();
                let is_there = runs.iter().flat_map(|r| &r.evaluations).any(|r| r.metrics.contains_key(name));
                is_there.then(|| Self {
                    label: name.strip_prefix("metric_").unwrap_or(name).to_string(),
                    has_interval: false,
                    value: Box::new(move |r| r.metrics.get(&key).map(|v| (*v, f64::INFINITY))),
                })
            }
        }
    }

    /// Names of all columns that the runs have.
    pub fn names(runs: &[RunData]) -> Vec<&str> {
        let own: BTreeSet<&str> = runs.iter().flat_map(|r| &r.evaluations).flat_map(|r| r.metrics.keys().map(String::as_str)).collect();
        FIXED.iter().copied().chain(own).collect()
    }

    /// Value and half width of the 95 % interval over episodes (infinite if there is none).
    pub fn value(&self, row: &EvalRow) -> Option<(f64, f64)> {
        (self.value)(row)
    }
}

/// Columns that every run has.
pub const FIXED: [&str; 4] = ["return_agent_mean", "return_team_sum", "length", "terminated"];

/// Runs for the tests of pictures.
#[cfg(test)]
pub fn example(name: &str, seed: u64) -> RunData {
    RunData {
        path: PathBuf::from(format!("runs/{name}-seed{seed}")),
        config: crate::config::ExperimentConfig { name: name.to_string(), seed, ..Default::default() }.into(),
        started: (0, SystemTime::UNIX_EPOCH),
        evaluations: Vec::new(),
        metrics: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use steadfast_agents::algorithms::ppo::PpoConfig;
    use steadfast_agents::{AgentConfig, RegularizerConfig};

    use super::*;
    use crate::config::ExperimentConfig;

    #[test]
    fn experiments_of_one_name_are_told_apart() {
        let config = |run: &RunData| run.config.clone().online().unwrap();
        let mut robust = example("a", 0);
        let regularizer = Some(RegularizerConfig::Lipschitz(Default::default()));
        robust.config = ExperimentConfig { regularizer: regularizer.clone(), ..config(&robust) }.into();
        let mut fast = example("a", 1);
        let ppo = PpoConfig { learning_rate: 0.5, ..Default::default() };
        fast.config = ExperimentConfig { agent: AgentConfig::Ppo(ppo), ..config(&fast) }.into();
        let runs = [example("a", 0), robust.clone(), example("a", 1), example("b", 0)];
        let found = groups(&runs);
        let labels: Vec<&str> = found.iter().map(|g| g.label.as_str()).collect();
        assert_eq!(labels, ["a, regularizer=none", "a, regularizer=lipschitz", "b"]);
        assert_eq!(found[0].members.len(), 2);
        let runs = [example("a", 0), fast.clone()];
        assert_eq!(groups(&runs)[1].label, "a, learning_rate=0.5");
        fast.config = ExperimentConfig { total_steps: 17, regularizer, ..config(&fast) }.into();
        let runs = [example("a", 0), fast];
        assert_eq!(groups(&runs)[1].label, "a (2)");
    }

    #[test]
    fn of_equal_seeds_the_newest_counts() {
        let mut runs = vec![example("a", 0), example("a", 0), example("a", 0), example("a", 1), example("b", 0)];
        runs[1].started.0 = 20;
        runs[2].started.0 = 10;
        runs[2].config = ExperimentConfig { threads: 3, ..runs[2].config.clone().online().unwrap() }.into();
        let kept = newest_of_each_seed(runs);
        let found: Vec<_> = kept.iter().map(|r| (r.config.name(), r.config.seed(), r.started.0)).collect();
        assert_eq!(found, [("a", 0, 20), ("a", 1, 0), ("b", 0, 0)]);
        assert_eq!(groups(&kept).len(), 2);
    }
}
