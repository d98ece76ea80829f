//! The outcome of one policy under one perturbation: a line of `cells.csv`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use steadfast_envs::{ActMode, EnvSpec, EpisodeLog, EpisodeStats};

use super::tidy::{Tidy, Values};
use crate::failure::{Failure, Result};
use crate::run::results;

/// Name of the log of finished cells.
pub const CELLS: &str = "cells.csv";

/// What a cell is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Run directory as it was given.
    pub run: String,
    /// Steps of training behind the policy.
    pub step: u64,
    /// Checksum of its checkpoint, which tells a run from an earlier one in its place.
    pub policy: String,
    /// Name of the perturbation and its settings; `none` for the unperturbed world.
    pub axis: String,
    /// Strength, in the shortest digits that give it back.
    pub level: String,
    /// `greedy` or `sample`.
    pub mode: String,
    /// Seed of the episodes.
    pub seed: u64,
    /// Number of episodes.
    pub episodes: usize,
    /// Who plays which of the other agents; empty if all follow the run's policy.
    pub opponents: String,
}

/// How actions are chosen, as a log of cells says it.
pub fn mode_name(mode: ActMode) -> &'static str {
    match mode {
        ActMode::Greedy => "greedy",
        ActMode::Sample => "sample",
    }
}

/// What stands for the run where actions are random.
pub const UNIFORM: &str = "uniform random policy";
/// Begins the `policy` of such a cell; what follows is the checksum of the world's settings. No checkpoint has it.
const UNIFORM_POLICY: &str = "world-";

impl Key {
    /// The cell of random actions in the world whose settings have this checksum.
    pub fn uniform(world: u32, seed: u64, episodes: usize, opponents: String) -> Self {
        Self {
            run: UNIFORM.to_string(),
            step: 0,
            policy: format!("{UNIFORM_POLICY}{world:08x}"),
            axis: "none".to_string(),
            level: 0.0.to_string(),
            mode: mode_name(ActMode::Sample).to_string(),
            seed,
            episodes,
            opponents,
        }
    }

    /// True if actions were random.
    pub fn is_uniform(&self) -> bool {
        self.run == UNIFORM && self.policy.starts_with(UNIFORM_POLICY)
    }
}

/// Mean of a number over episodes, and over the lowest tenth of the episodes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Score {
    /// Mean over all episodes.
    pub mean: f64,
    /// Mean over the tenth with the lowest values, at least one episode.
    pub worst_decile: f64,
}

impl Score {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_unstable_by(f64::total_cmp);
        let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len().max(1) as f64;
        let worst = values.len().div_ceil(10).max(1).min(values.len());
        Self { mean: mean(&values), worst_decile: mean(&values[..worst]) }
    }
}

/// A finished cell.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    /// What it is.
    pub key: Key,
    /// Scores by name: `return_agent_mean`, `return_team_sum`, `return_GROUP` for each of several groups of agents, and the
    /// world's own numbers as `metric_NAME`.
    pub scores: BTreeMap<String, Score>,
    /// What was found of the episodes as a whole, by name: see [`number_names`].
    pub numbers: BTreeMap<String, f64>,
}

/// How a score is read from an episode.
type Reader = Box<dyn Fn(&EpisodeStats<'_>) -> f64>;

/// Names of the scores of a world, and how to read them.
fn readers(spec: &EnvSpec) -> Vec<(String, Reader)> {
    let mut readers: Vec<(String, Reader)> =
        vec![("return_agent_mean".to_string(), Box::new(|e| e.agent_mean())), ("return_team_sum".to_string(), Box::new(|e| e.team_sum()))];
    for (group, members) in teams(spec).into_iter().skip(1) {
        let mean = move |e: &EpisodeStats<'_>| members.iter().map(|&i| e.returns[i]).sum::<f64>() / members.len() as f64;
        readers.push((format!("return_{group}"), Box::new(mean)));
    }
    for (i, name) in spec.episode_metrics.iter().enumerate() {
        readers.push((format!("metric_{name}"), Box::new(move |e| e.metrics[i])));
    }
    readers
}

/// Agents whose rewards are looked at together: all as `agent_mean`, then each of several groups.
pub fn teams(spec: &EnvSpec) -> Vec<(String, Vec<usize>)> {
    let mut teams = vec![("agent_mean".to_string(), (0..spec.n_agents()).collect())];
    let groups: BTreeSet<&str> = spec.agents.iter().map(|a| a.group.as_str()).collect();
    for group in groups.iter().filter(|_| groups.len() > 1) {
        teams.push(((*group).to_string(), (0..spec.n_agents()).filter(|&i| spec.agents[i].group == **group).collect()));
    }
    teams
}

/// Names of the recovery time of a team and of whether it is censored (1) or not (0).
pub fn recovery_names(team: &str) -> [String; 2] {
    [format!("recovery_{team}"), format!("recovery_{team}_is_censored")]
}

/// The axis of cells that hold the bounds of a policy's Lipschitz constant, over balls whose radius is the level.
pub const LIPSCHITZ: &str = "lipschitz";
/// Names of these bounds: from below by ascent, from above by linear bounds, by intervals and by spectral norms.
pub const LIPSCHITZ_BOUNDS: [&str; 4] = ["lipschitz_lower", "lipschitz_linear", "lipschitz_interval", "lipschitz_product"];

/// Names of the numbers that cells of a world may have.
pub fn number_names(spec: &EnvSpec) -> Vec<String> {
    let recovery = teams(spec).into_iter().flat_map(|(team, _)| recovery_names(&team));
    recovery.chain(LIPSCHITZ_BOUNDS.map(str::to_string)).collect()
}

/// Names of the scores that a world has.
pub fn names(spec: &EnvSpec) -> Vec<String> {
    readers(spec).into_iter().map(|(name, _)| name).collect()
}

/// Scores of the episodes of an evaluation.
pub fn scores(spec: &EnvSpec, episodes: &EpisodeLog) -> BTreeMap<String, Score> {
    readers(spec).into_iter().map(|(name, read)| (name, Score::of(episodes.iter().map(|e| read(&e)).collect()))).collect()
}

const KEY_COLUMNS: [&str; 9] = ["run", "step", "policy", "axis", "level", "mode", "seed", "episodes", OPPONENTS];
/// The column that logs from before cross-play lack.
const OPPONENTS: &str = "opponents";
const WORST: &str = "_worst_decile";
/// Columns that a table for other programs has besides those of a log.
const OWNER_COLUMNS: [&str; 2] = ["method", "run_seed"];

/// Columns of a log of cells besides those of the key.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Columns {
    scores: BTreeSet<String>,
    numbers: BTreeSet<String>,
}

impl Columns {
    /// What cells of a world have.
    pub fn of(spec: &EnvSpec) -> Self {
        Self { scores: names(spec).into_iter().collect(), numbers: number_names(spec).into_iter().collect() }
    }

    /// Adds what the cells have besides.
    pub fn extend(&mut self, cells: &[Cell]) {
        self.scores.extend(cells.iter().flat_map(|cell| cell.scores.keys().cloned()));
        self.numbers.extend(cells.iter().flat_map(|cell| cell.numbers.keys().cloned()));
    }

    /// Names of the columns.
    pub fn header(&self) -> Vec<String> {
        let scores = self.scores.iter().flat_map(|name| [name.clone(), format!("{name}{WORST}")]);
        KEY_COLUMNS.iter().map(ToString::to_string).chain(scores).chain(self.numbers.iter().cloned()).collect()
    }
}

/// The fields of a cell under the header of its log.
pub fn record(cell: &Cell, columns: &Columns) -> Vec<String> {
    let Key { run, step, policy, axis, level, mode, seed, episodes, opponents } = &cell.key;
    let (step, seed, episodes) = (step.to_string(), seed.to_string(), episodes.to_string());
    let key = [run, &step, policy, axis, level, mode, &seed, &episodes, opponents].map(Clone::clone);
    let text = |value: Option<f64>| value.map_or_else(String::new, |v| v.to_string());
    let scores = columns.scores.iter().flat_map(|name| {
        let score = cell.scores.get(name);
        [text(score.map(|s| s.mean)), text(score.map(|s| s.worst_decile))]
    });
    let numbers = columns.numbers.iter().map(|name| text(cell.numbers.get(name).copied()));
    key.into_iter().chain(scores).chain(numbers).collect()
}

/// Cells as a table: what they are, then their scores. `owner` gives the method and the training seed of a run.
pub fn table<'a>(cells: &[Cell], owner: impl Fn(&Key) -> (&'a str, Option<u64>)) -> Tidy {
    let mut table = Tidy::default();
    let text = |of: &dyn Fn(&Key) -> String| Values::Text(cells.iter().map(|cell| of(&cell.key)).collect());
    let whole = |of: &dyn Fn(&Key) -> Option<u64>| Values::Whole(cells.iter().map(|cell| of(&cell.key)).collect());
    let [method, run_seed] = OWNER_COLUMNS;
    table.push(method, text(&|key| owner(key).0.to_string()));
    table.push(run_seed, whole(&|key| owner(key).1));
    table.push("run", text(&|key| key.run.clone()));
    table.push("step", whole(&|key| Some(key.step)));
    table.push("policy", text(&|key| key.policy.clone()));
    table.push("axis", text(&|key| key.axis.clone()));
    table.push("level", Values::Real(cells.iter().map(|cell| cell.key.level.parse().ok()).collect()));
    table.push("mode", text(&|key| key.mode.clone()));
    table.push("seed", whole(&|key| Some(key.seed)));
    table.push("episodes", whole(&|key| Some(key.episodes as u64)));
    if cells.iter().any(|cell| !cell.key.opponents.is_empty()) {
        table.push(OPPONENTS, text(&|key| key.opponents.clone()));
    }
    let scores = |cell: &Cell| -> BTreeMap<String, f64> {
        let both = |(name, score): (&String, &Score)| [(name.clone(), score.mean), (format!("{name}{WORST}"), score.worst_decile)];
        cell.scores.iter().flat_map(both).chain(cell.numbers.clone()).collect()
    };
    table.push_reals(&cells.iter().map(scores).collect::<Vec<_>>());
    table
}

/// Records as lines of CSV.
pub fn lines(records: &[Vec<String>]) -> Vec<u8> {
    records.iter().flat_map(|fields| results::record(fields.iter().map(String::as_str))).collect()
}

/// Reads a log of cells; an unfinished last line is left out.
///
/// # Errors
/// [`Failure::Run`] naming the file and the line.
pub fn parse(path: &Path, text: &[u8]) -> Result<Vec<Cell>> {
    let finished = text.iter().rposition(|&b| b == b'\n').map_or(0, |i| i + 1);
    let rows = parse_rows(path, &text[..finished], "remove the broken line, or the file to evaluate all cells again")?;
    Ok(rows.into_iter().map(|row| row.cell).collect())
}

/// A cell in a table for other programs.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Name of the experiment that the run belongs to; nothing in a log of cells.
    pub method: Option<String>,
    /// Training seed of the run; nothing where actions were random.
    pub run_seed: Option<u64>,
    /// The cell.
    pub cell: Cell,
}

/// Reads a table that [`table`] made.
///
/// # Errors
/// [`Failure::Run`] naming the file and the line.
pub fn parse_table(path: &Path, text: &[u8]) -> Result<Vec<Row>> {
    parse_rows(path, text, "give results.csv of a robustness sweep as it was written")
}

fn parse_rows(path: &Path, text: &[u8], help: &str) -> Result<Vec<Row>> {
    let broken = |reason: String| Failure::run_with_help(format!("cannot read {}: {reason}", path.display()), help);
    let mut reader = csv::Reader::from_reader(text);
    let header = reader.headers().map_err(|e| broken(e.to_string()))?.clone();
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|e| broken(e.to_string()))?;
        let line = record.position().map_or(0, csv::Position::line);
        let fields: BTreeMap<&str, &str> = header.iter().zip(&record).collect();
        let field = |name: &str| fields.get(name).copied().ok_or_else(|| broken(format!("line {line} has no column `{name}`")));
        let number = |name: &str| -> Result<u64> {
            let text = field(name)?;
            text.parse().map_err(|_| broken(format!("line {line}: `{text}` in column `{name}` is not a whole number")))
        };
        let (mut scores, mut numbers) = (BTreeMap::new(), BTreeMap::new());
        for (name, _) in
            fields.iter().filter(|(name, text)| !text.is_empty() && !KEY_COLUMNS.contains(name) && !OWNER_COLUMNS.contains(name))
        {
            let value = |name: &str| -> Result<f64> {
                let text = field(name)?;
                text.parse().map_err(|_| broken(format!("line {line}: `{text}` in column `{name}` is not a number")))
            };
            if let Some(base) = name.strip_suffix(WORST) {
                scores.insert(base.to_string(), Score { mean: value(base)?, worst_decile: value(name)? });
            } else if !fields.contains_key(format!("{name}{WORST}").as_str()) {
                numbers.insert((*name).to_string(), value(name)?);
            }
        }
        let key = Key {
            run: field("run")?.to_string(),
            step: number("step")?,
            policy: field("policy")?.to_string(),
            axis: field("axis")?.to_string(),
            level: field("level")?.to_string(),
            mode: field("mode")?.to_string(),
            seed: number("seed")?,
            episodes: number("episodes")? as usize,
            opponents: fields.get(OPPONENTS).copied().unwrap_or_default().to_string(),
        };
        let [method, run_seed] = OWNER_COLUMNS;
        let is_given = fields.get(run_seed).is_some_and(|text| !text.is_empty());
        let run_seed = if is_given { Some(number(run_seed)?) } else { None };
        rows.push(Row { method: fields.get(method).map(ToString::to_string), run_seed, cell: Cell { key, scores, numbers } });
    }
    Ok(rows)
}

#[cfg(test)]
impl Cell {
    /// A cell with the score `r` for tests; its worst tenth is lower by 2.
    pub(super) fn example(run: &str, axis: &str, level: f64, r: f64) -> Self {
        let key = Key {
            run: run.to_string(),
            step: 5,
            policy: format!("{:08x}", crc32c::crc32c(run.as_bytes())),
            axis: axis.to_string(),
            level: level.to_string(),
            mode: "greedy".to_string(),
            seed: 3,
            episodes: 20,
            opponents: String::new(),
        };
        let scores = [("r".to_string(), Score { mean: r, worst_decile: r - 2.0 })].into();
        Self { key, scores, numbers: BTreeMap::new() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cell(level: &str) -> Cell {
        let key = Key {
            run: "runs/a, \"b\"".to_string(),
            step: 5,
            policy: "0a1b2c3d".to_string(),
            axis: "observation_noise".to_string(),
            level: level.to_string(),
            mode: "greedy".to_string(),
            seed: 3,
            episodes: 20,
            opponents: if level == "0" { String::new() } else { "adversary=0a1b2c3d".to_string() },
        };
        let scores = [("return_agent_mean", -1.5), ("metric_x", 0.1 + 0.2)];
        let scores = scores.map(|(n, v)| (n.to_string(), Score { mean: v, worst_decile: v - 1.0 })).into();
        let numbers = if level == "0" { BTreeMap::new() } else { [("recovery_agent_mean".to_string(), 3.0)].into() };
        Cell { key, scores, numbers }
    }

    #[test]
    fn cells_read_back_bit_for_bit_and_unfinished_lines_are_left_out() {
        let cells = [cell("0"), cell("0.1")];
        let mut columns = Columns::default();
        columns.extend(&cells);
        let records: Vec<Vec<String>> = std::iter::once(columns.header()).chain(cells.iter().map(|c| record(c, &columns))).collect();
        let mut text = lines(&records);
        let path = Path::new("cells.csv");
        assert_eq!(parse(path, &text).unwrap(), cells);
        text.extend(b"runs/c,5,obs");
        assert_eq!(parse(path, &text).unwrap(), cells);
        text.extend(b"\n");
        assert!(parse(path, &text).unwrap_err().render(false, 200).contains("cells.csv"));
    }

    #[test]
    fn logs_from_before_cross_play_have_no_opponents() {
        let text = "run,step,policy,axis,level,mode,seed,episodes,r,r_worst_decile\na,5,0a,none,0,greedy,3,20,1.5,0.5\n";
        let cells = parse(Path::new("cells.csv"), text.as_bytes()).unwrap();
        assert!(cells.len() == 1 && cells[0].key.opponents.is_empty() && cells[0].scores["r"].mean == 1.5, "{cells:?}");
    }

    #[test]
    fn the_worst_decile_is_the_lowest_tenth() {
        let score = Score::of((0..20).map(f64::from).collect());
        assert_eq!((score.mean, score.worst_decile), (9.5, 0.5));
        let few = Score::of(vec![3.0, 1.0]);
        assert_eq!((few.mean, few.worst_decile), (2.0, 1.0));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(Path::new("cells.csv"), &bytes);
        }
    }
}
