//! `eval.csv` and `episodes.csv`: what evaluations found.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use steadfast_envs::{ActMode, EnvSpec, EpisodeLog, PerturbationConfig, Space};

use super::log::LogFile;
use crate::failure::{Failure, Result};
use crate::plot::stats::Summary;

/// Name of the table of evaluations.
pub const EVAL: &str = "eval.csv";
/// Name of the table of evaluation episodes.
pub const EPISODES: &str = "episodes.csv";

/// The column that is shown if the user names none: the return averaged over agents.
pub const DEFAULT_METRIC: &str = "return_agent_mean";

/// When an evaluation was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// During training, without perturbation.
    Train,
    /// At the end of training, along a robustness axis.
    Final,
    /// By the `eval` command.
    Eval,
}

/// One line of `eval.csv`. The world's own numbers, and what the learner finds, stand in further columns
/// `metric_NAME`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvalRow {
    /// When the evaluation was made.
    pub source: Source,
    /// Joint environment steps of training behind the policy.
    pub step: u64,
    /// Name of the perturbation, or `none`.
    pub perturbation: String,
    /// Its strength; of several perturbations that of the first.
    pub level: f64,
    /// Its other settings as a TOML table; a list of tables if there are several perturbations.
    pub settings: String,
    /// Kind of actions: `discrete` or `continuous`.
    pub actions: String,
    /// How actions were chosen.
    pub mode: ActMode,
    /// Seed of the episodes.
    pub seed: u64,
    /// Number of episodes.
    pub episodes: usize,
    /// Mean over episodes of the return summed over agents.
    pub return_team_sum: f64,
    /// Its standard deviation over episodes.
    pub return_team_sum_std: f64,
    /// Half width of the 95 % interval of the mean.
    pub return_team_sum_ci95: f64,
    /// Mean over episodes of the return averaged over agents.
    pub return_agent_mean: f64,
    /// Its standard deviation over episodes.
    pub return_agent_mean_std: f64,
    /// Half width of the 95 % interval of the mean.
    pub return_agent_mean_ci95: f64,
    /// Mean number of steps.
    pub length: f64,
    /// Fraction of episodes that ended for a reason of the task.
    pub terminated: f64,
    /// Means over episodes of the world's own numbers and of what the learner finds, by the names of their columns.
    #[serde(skip_deserializing, skip_serializing_if = "BTreeMap::is_empty")]
    pub metrics: BTreeMap<String, f64>,
}

/// What was evaluated, besides the episodes.
#[derive(Debug, Clone)]
pub struct Setting<'a> {
    /// When.
    pub source: Source,
    /// Steps of training.
    pub step: u64,
    /// The perturbations, with their levels.
    pub perturbations: &'a [PerturbationConfig],
    /// How actions were chosen.
    pub mode: ActMode,
    /// Seed of the episodes.
    pub seed: u64,
}

impl Setting<'_> {
    /// Names joined by `+`, level of the first, and what else is set.
    fn describe(&self) -> (String, f64, String) {
        let names: Vec<&str> = self.perturbations.iter().map(PerturbationConfig::name).collect();
        match self.perturbations {
            [] => ("none".to_string(), 0.0, String::new()),
            [one] => (names.join("+"), one.level(), settings(one, false).to_string()),
            // The strengths of the others have no column, so they are settings.
            [first, others @ ..] => {
                let tables = std::iter::once(settings(first, false)).chain(others.iter().map(|p| settings(p, true)));
                (names.join("+"), first.level(), toml::Value::Array(tables.collect()).to_string())
            }
        }
    }
}

/// Settings of a perturbation, with or without its strength, as a table.
fn settings(perturbation: &PerturbationConfig, with_level: bool) -> toml::Value {
    let table = toml::Table::try_from(perturbation).unwrap_or_default();
    let inner = table.into_iter().next().and_then(|(_, v)| v.as_table().cloned()).unwrap_or_default();
    let is_default = |k: &str, v: &toml::Value| match k {
        "schedule" => v.as_str() == Some("constant"),
        "randomize" => v.as_bool() == Some(false),
        _ => v.as_array().is_some_and(Vec::is_empty),
    };
    let is_kept = |k: &str, v: &toml::Value| (with_level || !PerturbationConfig::LEVEL_FIELDS.contains(&k)) && !is_default(k, v);
    toml::Value::Table(inner.into_iter().filter(|(k, v)| is_kept(k, v)).collect())
}

impl EvalRow {
    /// Summarises the episodes of an evaluation, of which there must be at least one.
    pub fn new(setting: &Setting<'_>, spec: &EnvSpec, episodes: &EpisodeLog) -> Option<Self> {
        let of = |f: &dyn Fn(&steadfast_envs::EpisodeStats<'_>) -> f64| Summary::of(&episodes.iter().map(|e| f(&e)).collect::<Vec<_>>());
        let team = of(&|e| e.team_sum())?;
        let agent = of(&|e| e.agent_mean())?;
        let (perturbation, level, settings) = setting.describe();
        Some(Self {
            source: setting.source,
            step: setting.step,
            perturbation,
            level,
            settings,
            actions: match spec.agents.first().map(|agent| &agent.action) {
                Some(Space::Discrete { .. }) => "discrete",
                Some(Space::Tokens { .. }) => "tokens",
                _ => "continuous",
            }
            .to_string(),
            mode: setting.mode,
            seed: setting.seed,
            episodes: episodes.len(),
            return_team_sum: team.mean,
            return_team_sum_std: team.std,
            return_team_sum_ci95: team.half_width,
            return_agent_mean: agent.mean,
            return_agent_mean_std: agent.std,
            return_agent_mean_ci95: agent.half_width,
            length: of(&|e| e.length as f64)?.mean,
            terminated: of(&|e| f64::from(u8::from(e.terminated)))?.mean,
            metrics: metric_columns(spec).enumerate().filter_map(|(i, name)| Some((name, of(&|e| e.metrics[i])?.mean))).collect(),
        })
    }

    /// Strengths of all perturbations, in their order.
    pub fn levels(&self) -> Vec<f64> {
        if self.perturbation == "none" {
            return Vec::new();
        }
        let read: Option<toml::Table> = format!("settings = {}", self.settings).parse().ok();
        let others = match read.as_ref().and_then(|t| t.get("settings")) {
            Some(toml::Value::Array(items)) => items.get(1..).unwrap_or_default(),
            _ => &[],
        };
        let level_of = |table: &toml::Value| PerturbationConfig::LEVEL_FIELDS.iter().find_map(|f| table.get(f)?.as_float());
        std::iter::once(self.level).chain(others.iter().filter_map(level_of)).collect()
    }
}

/// Columns of the world's own numbers.
fn metric_columns(spec: &EnvSpec) -> impl Iterator<Item = String> {
    spec.episode_metrics.iter().map(|name| format!("metric_{name}"))
}

/// A table that only grows. Its header says which columns it has; a table of an earlier version keeps its columns.
#[derive(Debug)]
struct Table {
    file: LogFile,
    header: Vec<String>,
}

impl Table {
    fn open(path: &Path, columns: Vec<String>) -> Result<Self> {
        let mut file = LogFile::open(path)?;
        if file.len()? == 0 {
            file.append(&record(columns.iter().map(String::as_str)))?;
            return Ok(Self { file, header: columns });
        }
        let bytes = std::fs::read(path).map_err(|e| Failure::file("read", path, e))?;
        let header = csv::Reader::from_reader(bytes.as_slice()).headers().map(|h| h.iter().map(str::to_string).collect());
        let header = header.map_err(|e| Failure::run(format!("cannot read {}: {e}", path.display())))?;
        Ok(Self { file, header })
    }

    fn line(&self, fields: &[(&str, String)]) -> Vec<u8> {
        let value = |column: &String| fields.iter().find(|(name, _)| name == column).map_or("", |(_, value)| value.as_str());
        record(self.header.iter().map(value))
    }
}

/// The open tables of a run.
#[derive(Debug)]
pub struct ResultsLog {
    eval: Table,
    episodes: Table,
    metrics: Vec<String>,
}

impl ResultsLog {
    /// Opens or creates the tables in `run`. A new table of evaluations has columns for what the learner finds, too.
    ///
    /// # Errors
    /// [`Failure::Run`] naming the file.
    pub fn open(run: &Path, spec: &EnvSpec, learner: &[&str]) -> Result<Self> {
        let of_world: Vec<String> = metric_columns(spec).collect();
        let of_learner = learner.iter().map(|name| format!("metric_{name}")).filter(|name| !of_world.contains(name));
        Self::open_columns(run, of_world.iter().cloned().chain(of_learner).collect(), of_world)
    }

    /// As [`ResultsLog::open`], with these columns `metric_NAME` for new tables.
    ///
    /// # Errors
    /// As [`ResultsLog::open`].
    pub fn open_with(run: &Path, metrics: Vec<String>) -> Result<Self> {
        Self::open_columns(run, metrics.clone(), metrics)
    }

    fn open_columns(run: &Path, of_evaluations: Vec<String>, metrics: Vec<String>) -> Result<Self> {
        let columns = |fixed: &[&str], own: &[String]| fixed.iter().map(ToString::to_string).chain(own.iter().cloned()).collect();
        Ok(Self {
            eval: Table::open(&run.join(EVAL), columns(&EVAL_COLUMNS, &of_evaluations))?,
            episodes: Table::open(&run.join(EPISODES), columns(&EPISODE_COLUMNS, &metrics))?,
            metrics,
        })
    }

    /// Appends an evaluation and its episodes.
    ///
    /// # Errors
    /// [`Failure::Run`] naming the file.
    pub fn write(&mut self, row: &EvalRow, episodes: &EpisodeLog) -> Result<()> {
        let setting = [
            ("source", name_of(row.source)),
            ("step", row.step.to_string()),
            ("perturbation", row.perturbation.clone()),
            ("level", row.level.to_string()),
            ("settings", row.settings.clone()),
            ("actions", row.actions.clone()),
            ("mode", name_of(row.mode)),
            ("seed", row.seed.to_string()),
        ];
        let found = [
            ("episodes", row.episodes.to_string()),
            ("return_team_sum", row.return_team_sum.to_string()),
            ("return_team_sum_std", row.return_team_sum_std.to_string()),
            ("return_team_sum_ci95", row.return_team_sum_ci95.to_string()),
            ("return_agent_mean", row.return_agent_mean.to_string()),
            ("return_agent_mean_std", row.return_agent_mean_std.to_string()),
            ("return_agent_mean_ci95", row.return_agent_mean_ci95.to_string()),
            ("length", row.length.to_string()),
            ("terminated", row.terminated.to_string()),
        ];
        let mut lines = Vec::new();
        for episode in episodes.iter() {
            let mut fields = setting.to_vec();
            fields.extend([
                ("episode", episode.number.to_string()),
                ("return_team_sum", episode.team_sum().to_string()),
                ("return_agent_mean", episode.agent_mean().to_string()),
                ("length", episode.length.to_string()),
                ("terminated", episode.terminated.to_string()),
            ]);
            fields.extend(self.metrics.iter().zip(episode.metrics).map(|(name, value)| (name.as_str(), value.to_string())));
            lines.extend(self.episodes.line(&fields));
        }
        self.episodes.file.append(&lines)?;
        let metrics = row.metrics.iter().map(|(name, value)| (name.as_str(), value.to_string()));
        let fields: Vec<(&str, String)> = setting.into_iter().chain(found).chain(metrics).collect();
        let line = self.eval.line(&fields);
        self.eval.file.append(&line)
    }

    /// Cuts the tables back, but keeps what the `eval` command appended meanwhile.
    ///
    /// # Errors
    /// [`Failure::Run`] naming the file.
    pub fn rewind(&mut self, eval: u64, episodes: u64) -> Result<()> {
        for (file, length) in [(&mut self.eval.file, eval), (&mut self.episodes.file, episodes)] {
            let tail = file.truncate(length)?;
            let kept: Vec<u8> = tail
                .split_inclusive(|&b| b == b'\n')
                .filter(|l| l.starts_with(b"eval,") && l.ends_with(b"\n"))
                .flatten()
                .copied()
                .collect();
            if !kept.is_empty() {
                file.append(&kept)?;
            }
        }
        Ok(())
    }

    /// The files by name, for lengths.
    pub fn files(&self) -> [(&'static str, &LogFile); 2] {
        [(EVAL, &self.eval.file), (EPISODES, &self.episodes.file)]
    }
}

const EVAL_COLUMNS: [&str; 17] = [
    "source",
    "step",
    "perturbation",
    "level",
    "settings",
    "actions",
    "mode",
    "seed",
    "episodes",
    "return_team_sum",
    "return_team_sum_std",
    "return_team_sum_ci95",
    "return_agent_mean",
    "return_agent_mean_std",
    "return_agent_mean_ci95",
    "length",
    "terminated",
];

/// The first eight are those of [`EVAL_COLUMNS`], by which the tables are joined.
const EPISODE_COLUMNS: [&str; 13] = [
    "source",
    "step",
    "perturbation",
    "level",
    "settings",
    "actions",
    "mode",
    "seed",
    "episode",
    "return_team_sum",
    "return_agent_mean",
    "length",
    "terminated",
];

/// Name of a unit variant as serde writes it.
fn name_of(value: impl Serialize) -> String {
    match toml::Value::try_from(value) {
        Ok(toml::Value::String(name)) => name,
        _ => String::new(),
    }
}

/// Fields as a line of CSV.
pub fn record<'a>(fields: impl IntoIterator<Item = &'a str>) -> Vec<u8> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(fields).expect("writing to memory cannot fail");
    writer.into_inner().expect("flushing memory cannot fail")
}

/// Reads `eval.csv`. An unfinished last line is skipped.
///
/// # Errors
/// The reason, with the line.
pub fn parse(text: &[u8]) -> Result<Vec<EvalRow>, String> {
    let finished = text.iter().rposition(|&b| b == b'\n').map_or(0, |i| i + 1);
    let mut reader = csv::Reader::from_reader(&text[..finished]);
    let header = reader.headers().map_err(|e| e.to_string())?.clone();
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|e| e.to_string())?;
        let mut row: EvalRow = record.deserialize(Some(&header)).map_err(|e| e.to_string())?;
        let own = header.iter().zip(&record).filter(|(name, _)| name.starts_with("metric_"));
        row.metrics = own.filter_map(|(name, value)| Some((name.to_string(), value.parse().ok()?))).collect();
        rows.push(row);
    }
    Ok(rows)
}

#[cfg(test)]
impl EvalRow {
    /// A row for tests.
    pub fn example() -> Self {
        Self {
            source: Source::Final,
            step: 100,
            perturbation: "observation_noise".to_string(),
            level: 0.1,
            settings: settings(&PerturbationConfig::ObservationNoise(Default::default()), false).to_string(),
            actions: "discrete".to_string(),
            mode: ActMode::Greedy,
            seed: 3,
            episodes: 2,
            return_team_sum: -1.5,
            return_team_sum_std: 0.1,
            return_team_sum_ci95: f64::INFINITY,
            return_agent_mean: -0.5,
            return_agent_mean_std: 0.1,
            return_agent_mean_ci95: 0.2,
            length: 25.0,
            terminated: 0.0,
            metrics: BTreeMap::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn example() -> EvalRow {
        EvalRow::example()
    }

    #[test]
    fn rows_read_back_and_columns_have_the_names_of_the_fields() {
        let mut writer = csv::Writer::from_writer(Vec::new());
        writer.serialize(example()).unwrap();
        let by_serde = String::from_utf8(writer.into_inner().unwrap()).unwrap();
        assert_eq!(by_serde.lines().next().unwrap(), EVAL_COLUMNS.join(","));

        let directory = tempfile::tempdir().unwrap();
        let spec = steadfast_envs::EnvConfig::SimpleSpread(Default::default()).build().unwrap().spec().clone();
        let mut log = ResultsLog::open(directory.path(), &spec, &[]).unwrap();
        let with_own = EvalRow { metrics: metric_columns(&spec).zip([1.5, -2.0, 0.1, f64::INFINITY, 3.0]).collect(), ..example() };
        assert!(with_own.metrics.contains_key("metric_return_shared_sum"));
        log.write(&with_own, &EpisodeLog::default()).unwrap();
        // Opened again, the header is not repeated.
        ResultsLog::open(directory.path(), &spec, &[]).unwrap().write(&with_own, &EpisodeLog::default()).unwrap();
        let text = std::fs::read(directory.path().join(EVAL)).unwrap();
        assert_eq!(parse(&text).unwrap(), [with_own.clone(), with_own]);
    }

    #[test]
    fn episodes_join_evaluations() {
        assert_eq!(EPISODE_COLUMNS[..8], EVAL_COLUMNS[..8]);
    }

    #[test]
    fn a_table_of_an_earlier_version_keeps_its_columns() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("table.csv");
        std::fs::write(&path, "seed,mode\n").unwrap();
        let table = Table::open(&path, vec!["mode".to_string(), "seed".to_string(), "new".to_string()]).unwrap();
        let line = table.line(&[("mode", "greedy".to_string()), ("seed", "3".to_string()), ("new", "x".to_string())]);
        assert_eq!(line, b"3,greedy\n");
    }

    #[test]
    fn every_level_of_combined_perturbations_is_kept() {
        let noise = PerturbationConfig::ObservationNoise(Default::default()).with_level(0.25);
        let malice = PerturbationConfig::MaliciousAction(Default::default()).with_level(0.75);
        let both = [noise, malice];
        let setting = Setting { source: Source::Eval, step: 0, perturbations: &both, mode: ActMode::Greedy, seed: 0 };
        let (perturbation, level, settings) = setting.describe();
        assert_eq!((perturbation.as_str(), level), ("observation_noise+malicious_action", 0.25));
        assert!(!settings.contains("magnitude") && settings.contains("probability = 0.75"), "{settings}");
        assert_eq!(EvalRow { perturbation, level, settings, ..example() }.levels(), [0.25, 0.75]);
        assert_eq!(example().levels(), [0.1]);
    }

    #[test]
    fn rewinding_keeps_the_rows_of_the_eval_command() {
        let directory = tempfile::tempdir().unwrap();
        let spec = steadfast_envs::EnvConfig::Identity(Default::default()).build().unwrap().spec().clone();
        let mut log = ResultsLog::open(directory.path(), &spec, &[]).unwrap();
        let lengths: Vec<u64> = log.files().iter().map(|(_, f)| f.len().unwrap()).collect();
        log.write(&example(), &EpisodeLog::default()).unwrap();
        log.write(&EvalRow { source: Source::Eval, ..example() }, &EpisodeLog::default()).unwrap();
        log.rewind(lengths[0], lengths[1]).unwrap();
        let rows = parse(&std::fs::read(directory.path().join(EVAL)).unwrap()).unwrap();
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].source, Source::Eval);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }
    }
}
