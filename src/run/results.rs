//! `eval.csv` and `episodes.csv`: what evaluations found.

use std::path::Path;

use serde::{Deserialize, Serialize};
use steadfast_envs::{ActMode, EnvSpec, EpisodeLog, PerturbationConfig};

use super::log::LogFile;
use crate::failure::Result;
use crate::plot::stats::Summary;

/// Name of the table of evaluations.
pub const EVAL: &str = "eval.csv";
/// Name of the table of evaluation episodes.
pub const EPISODES: &str = "episodes.csv";

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

/// One line of `eval.csv`. The world's own numbers stand in further columns `metric_NAME`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvalRow {
    /// When the evaluation was made.
    pub source: Source,
    /// Joint environment steps of training behind the policy.
    pub step: u64,
    /// Name of the perturbation, or `none`.
    pub perturbation: String,
    /// Its strength.
    pub level: f64,
    /// Its other settings as TOML.
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
    /// Name, level and other settings of the perturbations, joined by `+` if there are several.
    fn describe(&self) -> (String, f64, String) {
        let names: Vec<&str> = self.perturbations.iter().map(PerturbationConfig::name).collect();
        let settings: Vec<String> = self.perturbations.iter().map(settings).collect();
        match self.perturbations {
            [] => ("none".to_string(), 0.0, String::new()),
            [first, ..] => (names.join("+"), first.level(), settings.join("+")),
        }
    }
}

/// Settings of a perturbation without its strength, as an inline table.
fn settings(perturbation: &PerturbationConfig) -> String {
    let level_fields = ["magnitude", "probability"];
    let Ok(toml::Value::Table(table)) = toml::Value::try_from(perturbation) else { return String::new() };
    let inner = table.into_iter().next().and_then(|(_, v)| v.as_table().cloned()).unwrap_or_default();
    let kept: toml::Table =
        inner.into_iter().filter(|(k, v)| !level_fields.contains(&k.as_str()) && !v.as_array().is_some_and(Vec::is_empty)).collect();
    toml::Value::Table(kept).to_string()
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
            actions: if spec.has_discrete_actions() { "discrete" } else { "continuous" }.to_string(),
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
        })
    }
}

/// The open tables of a run.
#[derive(Debug)]
pub struct ResultsLog {
    eval: LogFile,
    episodes: LogFile,
}

impl ResultsLog {
    /// Opens or creates the tables in `run`.
    ///
    /// # Errors
    /// [`crate::failure::Failure::Run`] naming the file.
    pub fn open(run: &Path, spec: &EnvSpec) -> Result<Self> {
        let (mut eval, mut episodes) = (LogFile::open(&run.join(EVAL))?, LogFile::open(&run.join(EPISODES))?);
        let metrics: Vec<String> = spec.episode_metrics.iter().map(|name| format!("metric_{name}")).collect();
        if eval.len()? == 0 {
            let columns = EVAL_COLUMNS.iter().map(ToString::to_string).chain(metrics.clone());
            eval.append(&record(columns))?;
        }
        if episodes.len()? == 0 {
            let columns = EPISODE_COLUMNS.iter().map(ToString::to_string).chain(metrics);
            episodes.append(&record(columns))?;
        }
        Ok(Self { eval, episodes })
    }

    /// Appends an evaluation and its episodes.
    ///
    /// # Errors
    /// [`crate::failure::Failure::Run`] naming the file.
    pub fn write(&mut self, row: &EvalRow, episodes: &EpisodeLog) -> Result<()> {
        let source = name_of(row.source);
        let mode = name_of(row.mode);
        let n_metrics = if episodes.is_empty() { 0 } else { episodes.get(0).metrics.len() };
        let metric_mean = |i: usize| episodes.iter().map(|e| e.metrics[i]).sum::<f64>() / episodes.len() as f64;
        let fixed = [
            source.clone(),
            row.step.to_string(),
            row.perturbation.clone(),
            row.level.to_string(),
            row.settings.clone(),
            row.actions.clone(),
            mode,
            row.seed.to_string(),
            row.episodes.to_string(),
            row.return_team_sum.to_string(),
            row.return_team_sum_std.to_string(),
            row.return_team_sum_ci95.to_string(),
            row.return_agent_mean.to_string(),
            row.return_agent_mean_std.to_string(),
            row.return_agent_mean_ci95.to_string(),
            row.length.to_string(),
            row.terminated.to_string(),
        ];
        let mut lines = Vec::new();
        for episode in episodes.iter() {
            let fixed = [
                source.clone(),
                row.step.to_string(),
                row.perturbation.clone(),
                row.level.to_string(),
                row.seed.to_string(),
                episode.number.to_string(),
                episode.team_sum().to_string(),
                episode.agent_mean().to_string(),
                episode.length.to_string(),
                episode.terminated.to_string(),
            ];
            lines.extend(record(fixed.into_iter().chain(episode.metrics.iter().map(ToString::to_string))));
        }
        self.episodes.append(&lines)?;
        self.eval.append(&record(fixed.into_iter().chain((0..n_metrics).map(|i| metric_mean(i).to_string()))))
    }

    /// Cuts the tables back, but keeps what the `eval` command appended meanwhile.
    ///
    /// # Errors
    /// [`crate::failure::Failure::Run`] naming the file.
    pub fn rewind(&mut self, eval: u64, episodes: u64) -> Result<()> {
        for (file, length) in [(&mut self.eval, eval), (&mut self.episodes, episodes)] {
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
        [(EVAL, &self.eval), (EPISODES, &self.episodes)]
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

const EPISODE_COLUMNS: [&str; 10] =
    ["source", "step", "perturbation", "level", "seed", "episode", "return_team_sum", "return_agent_mean", "length", "terminated"];

/// Name of a unit variant as serde writes it.
fn name_of(value: impl Serialize) -> String {
    match toml::Value::try_from(value) {
        Ok(toml::Value::String(name)) => name,
        _ => String::new(),
    }
}

fn record(fields: impl IntoIterator<Item = String>) -> Vec<u8> {
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
    csv::Reader::from_reader(&text[..finished]).deserialize().collect::<Result<_, csv::Error>>().map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn example() -> EvalRow {
        EvalRow {
            source: Source::Final,
            step: 100,
            perturbation: "observation_noise".to_string(),
            level: 0.1,
            settings: settings(&PerturbationConfig::ObservationNoise(Default::default())),
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
        }
    }

    #[test]
    fn rows_read_back_and_columns_have_the_names_of_the_fields() {
        let mut writer = csv::Writer::from_writer(Vec::new());
        writer.serialize(example()).unwrap();
        let by_serde = String::from_utf8(writer.into_inner().unwrap()).unwrap();
        assert_eq!(by_serde.lines().next().unwrap(), EVAL_COLUMNS.join(","));

        let directory = tempfile::tempdir().unwrap();
        let spec = steadfast_envs::EnvConfig::Identity(Default::default()).build().unwrap().spec().clone();
        let mut log = ResultsLog::open(directory.path(), &spec).unwrap();
        log.write(&example(), &EpisodeLog::default()).unwrap();
        let text = std::fs::read(directory.path().join(EVAL)).unwrap();
        assert_eq!(parse(&text).unwrap(), [example()]);
    }

    #[test]
    fn rewinding_keeps_the_rows_of_the_eval_command() {
        let directory = tempfile::tempdir().unwrap();
        let spec = steadfast_envs::EnvConfig::Identity(Default::default()).build().unwrap().spec().clone();
        let mut log = ResultsLog::open(directory.path(), &spec).unwrap();
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
