//! Evaluates what is not evaluated yet, several cells at once.

use std::collections::BTreeMap;
use std::path::Path;

use steadfast_agents::Learner;
use steadfast_agents::regularizers::attack::ObservationAttackConfig;
use steadfast_envs::{ActMode, EnvConfig, EnvSpec, ObservationBatch, PerturbationConfig, SeedTree, UniformPolicy};

use super::attacker::{Attacker, LearnedAttackerConfig};
use super::axis::{Axis, Hardship, Target};
use super::cell::{self, CELLS, Cell, Columns, Key, LIPSCHITZ, LIPSCHITZ_BOUNDS, mode_name};
use super::cross_play::{Opponent, Opponents, fingerprint};
use super::recovery::recovery;
use crate::config::ExperimentConfig;
use crate::experiment::build::{self, Ground};
use crate::experiment::evaluate::Evaluator;
use crate::experiment::parallel::in_parallel;
use crate::failure::{Failure, Result};
use crate::run::checkpoint::Checkpoint;
use crate::run::log::{LogFile, write_whole};
use crate::terminal::CellLine;

/// A trained policy.
pub struct Trained {
    /// Run directory as it was given.
    pub run: String,
    /// Its settings.
    pub config: ExperimentConfig,
    /// Its newest complete checkpoint.
    pub checkpoint: Checkpoint,
}

/// Moments of an evaluation at whose observations Lipschitz constants are bounded.
const MOMENTS: usize = 64;

impl Trained {
    /// Makes sure that the policy can be attacked so.
    ///
    /// # Errors
    /// [`Failure::Usage`] if it cannot be; [`Failure::Run`] if it cannot be built.
    pub fn check_attack(&self, target: Target, attack: &ObservationAttackConfig) -> Result<()> {
        let ground = Ground::of(&self.config)?;
        let world = self.config.env.build().map_err(|e| Failure::caused("cannot build the world", e))?;
        let mut learner = self.learner(&self.config, &ground, world.spec())?;
        self.attack(learner.as_mut(), target, attack, SeedTree::new(0))
    }

    /// From now on the policy is attacked.
    fn attack(&self, learner: &mut dyn Learner, target: Target, attack: &ObservationAttackConfig, seeds: SeedTree) -> Result<()> {
        let (is_possible, what, help) = match target {
            Target::Outputs => {
                let help = "attacks follow the slopes of a policy network; perturbations of the world need none";
                (learner.set_attack(Some((attack, seeds))), "cannot be attacked", help)
            }
            Target::Value => {
                let help =
                    "PPO's critic must see what the agent sees, as with critic = \"local\"; attack_linf and attack_l2 need no critic";
                (learner.set_value_attack(Some((attack, seeds))), "cannot be attacked through its value", help)
            }
        };
        if is_possible { Ok(()) } else { Err(Failure::usage(format!("the policy of {} {what}", self.run), help)) }
    }

    /// The learner as it was saved, for worlds of `config`, which may differ from the run's own in what is evaluated.
    ///
    /// # Errors
    /// [`Failure::Run`] naming the run if it cannot be restored.
    pub fn learner(&self, config: &ExperimentConfig, ground: &Ground, spec: &EnvSpec) -> Result<Box<dyn Learner>> {
        let mut learner = build::learner(config, ground, spec).map_err(|e| Failure::caused("cannot build the learner", e))?;
        let fits = learner.load_policy(&self.checkpoint.learner);
        fits.map_err(|e| Failure::caused(format!("the checkpoint of {} does not fit its configuration", self.run), e))?;
        Ok(learner)
    }
}

/// How episodes are played.
#[derive(Debug, Clone)]
pub struct Play {
    /// Episodes per cell.
    pub episodes: usize,
    /// Their seed: the same episodes for every policy and every level.
    pub seed: u64,
    /// How actions are chosen; as the run says if absent.
    pub mode: Option<ActMode>,
    /// Radii of the balls over which Lipschitz constants are bounded.
    pub radii: Vec<f64>,
}

/// Who acts in a cell.
#[derive(Clone, Copy)]
enum Player<'a> {
    /// A trained policy.
    Trained(&'a Trained),
    /// Random actions, in the world of these settings.
    Uniform(&'a ExperimentConfig),
}

/// What is done.
enum Work {
    /// Episodes are played, with a hardship or without.
    Episodes(Option<Hardship>),
    /// The Lipschitz constant of the policy is bounded over balls of this radius.
    Lipschitz(f64),
}

/// A cell to evaluate.
struct Task<'a> {
    player: Player<'a>,
    work: Work,
    mode: ActMode,
    key: Key,
}

/// The cells of random actions in the unperturbed world, if they have a law there, and of `runs` × `axes`, in this order; finished
/// ones are read from the log in `directory`, the others are evaluated on `jobs` threads and logged as they finish.
///
/// # Errors
/// [`Failure::Run`] naming the run and the cell that failed, or the file that cannot be written; what is finished by then is in the
/// log.
pub fn cells(directory: &Path, runs: &[Trained], opponents: &[Opponent], axes: &[Axis], play: &Play, jobs: usize) -> Result<Vec<Cell>> {
    let Some(first) = runs.first() else { return Ok(Vec::new()) };
    let world = first.config.env.build().map_err(|e| Failure::caused("cannot build the world", e))?;
    let (known, mut writer) = Writer::open(&directory.join(CELLS), world.spec())?;
    let tasks = tasks(runs, &fingerprint(opponents), axes, play, world.spec())?;
    let mut done: BTreeMap<Key, Cell> = known.into_iter().map(|cell| (cell.key.clone(), cell)).collect();
    let pending: Vec<&Task<'_>> = tasks.iter().filter(|task| !done.contains_key(&task.key)).collect();
    if !pending.is_empty() {
        let finished = tasks.len() - pending.len();
        tracing::info!(cells = tasks.len(), finished, jobs, "evaluating; the same command continues a stopped sweep");
    }
    let mut line = CellLine::new(tasks.len(), tasks.len() - pending.len());
    let report = |task: &&Task<'_>, outcome: Result<Cell>| {
        let cell = outcome.map_err(|failure| failure.during(&format!("{} under {} failed", task.key.run, in_words(&task.key))))?;
        writer.write(&cell)?;
        line.advance(&format!("{} {}", task.key.run, in_words(&task.key)), "evaluated");
        done.insert(task.key.clone(), cell);
        Ok(())
    };
    in_parallel(&pending, jobs, |task| evaluate(directory, task, opponents), report)?;
    line.finish();
    Ok(tasks.iter().filter_map(|task| done.get(&task.key).cloned()).collect())
}

fn in_words(key: &Key) -> String {
    if key.axis == "none" { "no perturbation".to_string() } else { format!("{} {}", key.axis, key.level) }
}

/// Random actions in the unperturbed world, that world once per run with the bounds of its policy, then every axis at every
/// level but 0.
fn tasks<'a>(runs: &'a [Trained], opponents: &str, axes: &[Axis], play: &Play, spec: &EnvSpec) -> Result<Vec<Task<'a>>> {
    let mut tasks = Vec::new();
    if let Some(first) = runs.first() {
        tasks.extend(uniform(&first.config, opponents, play, spec)?);
    }
    for trained in runs {
        let mode = play.mode.unwrap_or(trained.config.eval.mode);
        let key = |axis: &str, level: f64| Key {
            run: trained.run.clone(),
            step: trained.checkpoint.progress.step,
            policy: trained.checkpoint.fingerprint(),
            axis: axis.to_string(),
            level: level.to_string(),
            mode: mode_name(mode).to_string(),
            seed: play.seed,
            episodes: play.episodes,
            opponents: opponents.to_string(),
        };
        let player = Player::Trained(trained);
        tasks.push(Task { player, work: Work::Episodes(None), mode, key: key("none", 0.0) });
        for &radius in &play.radii {
            tasks.push(Task { player, work: Work::Lipschitz(radius), mode, key: key(LIPSCHITZ, radius) });
        }
        for axis in axes {
            for &level in axis.levels.iter().filter(|level| **level != 0.0) {
                for (label, hardship) in &axis.variants {
                    let work = Work::Episodes(Some(hardship.with_level(level)));
                    tasks.push(Task { player, work, mode, key: key(label, level) });
                }
            }
        }
    }
    Ok(tasks)
}

/// Random actions in the unperturbed world; nothing where actions have no uniform law.
fn uniform<'a>(config: &'a ExperimentConfig, opponents: &str, play: &Play, spec: &EnvSpec) -> Result<Option<Task<'a>>> {
    if let Err(error) = UniformPolicy::new(spec) {
        tracing::warn!("there is no random policy to measure drops of return by: {error}");
        return Ok(None);
    }
    let key = Key::uniform(checksum(&config.env)?, play.seed, play.episodes, opponents.to_string());
    Ok(Some(Task { player: Player::Uniform(config), work: Work::Episodes(None), mode: ActMode::Sample, key }))
}

/// Checksum of the settings of a world.
fn checksum(env: &EnvConfig) -> Result<u32> {
    let text = toml::to_string(env).map_err(|e| Failure::caused("cannot write down the settings of the world", e))?;
    Ok(crc32c::crc32c(text.as_bytes()))
}

/// Where attackers are kept.
const ATTACKERS: &str = "attackers";

/// Name of the attacker of a policy: checksums of the policy, and of all else that its training depends on.
fn attacker_name(key: &Key, settings: &LearnedAttackerConfig, env: &EnvConfig) -> Result<String> {
    let rest = format!("{}{:08x} {}{}", settings.in_words()?, checksum(env)?, key.mode, key.opponents);
    Ok(format!("{}-{:08x}", key.policy, crc32c::crc32c(rest.as_bytes())))
}

fn evaluate(directory: &Path, task: &Task<'_>, opponents: &[Opponent]) -> Result<Cell> {
    // One thread of its own: a cell is small, and several run side by side.
    build::thread_pool(1)?.install(|| {
        let mut config = match task.player {
            Player::Trained(trained) => trained.config.clone(),
            Player::Uniform(config) => config.clone(),
        };
        config.eval.seed = task.key.seed;
        let ground = Ground::of(&config)?;
        let evaluator =
            |perturbations: &[PerturbationConfig]| Evaluator::new(&config, &ground, perturbations, task.key.episodes, task.mode);
        let hardship = match &task.work {
            Work::Episodes(hardship) => hardship.as_ref(),
            Work::Lipschitz(_) => None,
        };
        let perturbations: Vec<PerturbationConfig> = match hardship {
            Some(Hardship::Perturbation(perturbation)) => vec![perturbation.clone()],
            _ => Vec::new(),
        };
        let mut hard = evaluator(&perturbations)?;
        let spec = hard.spec().clone();
        let seeds = SeedTree::new(task.key.seed);
        let mut cell = Cell { key: task.key.clone(), scores: BTreeMap::new(), numbers: BTreeMap::new() };
        let mut opponents = Opponents::restore(opponents, &spec)?;
        let trained = match task.player {
            Player::Trained(trained) => trained,
            Player::Uniform(_) => {
                let mut policy = UniformPolicy::new(&spec).map_err(|e| Failure::caused("cannot act at random", e))?;
                cell.scores = cell::scores(&spec, &hard.play(&mut opponents.with(&mut policy))?);
                return Ok(cell);
            }
        };
        let mut learner = trained.learner(&config, &ground, &spec)?;
        if let Work::Lipschitz(radius) = task.work {
            let visited = hard.visit(&mut opponents.with(learner.policy()), MOMENTS)?;
            let (n_agents, width) = (spec.n_agents(), spec.observation_width());
            let n_slots = visited.len() / (n_agents * width);
            let observations = ObservationBatch { n_slots, n_agents, width, observations: &visited };
            if let Some(b) = learner.lipschitz_bracket(&observations, radius, seeds.child("lipschitz")) {
                let values = [b.lower, b.linear, b.interval, b.product];
                cell.numbers = LIPSCHITZ_BOUNDS.into_iter().map(str::to_string).zip(values).collect();
            }
            return Ok(cell);
        }
        if let Some(Hardship::LearnedAttacker(settings)) = hardship {
            let place = directory.join(ATTACKERS).join(attacker_name(&task.key, settings, &config.env)?);
            let mut victims = opponents.with(learner.policy());
            let mut attacker = Attacker::kept(&place, settings, &config, &ground, &spec, &mut victims, task.mode)?;
            cell.scores = cell::scores(&spec, &hard.play(&mut attacker.against(&mut victims, task.mode))?);
            return Ok(cell);
        }
        if let Some(Hardship::Attack(target, attack)) = hardship {
            trained.attack(learner.as_mut(), *target, attack, seeds.child("attack"))?;
        }
        let mut policy = opponents.with(learner.policy());
        let episodes = match perturbations.iter().find_map(|p| p.schedule().recovery_start()) {
            None => hard.play(&mut policy)?,
            Some(start) => {
                let (_, nominal) = evaluator(&[])?.play_steps(&mut policy)?;
                let (episodes, disturbed) = hard.play_steps(&mut policy)?;
                for (team, agents) in cell::teams(&spec) {
                    if let Some(found) = recovery(&nominal, &disturbed, &agents, start, spec.horizon) {
                        let values = [found.steps as f64, f64::from(u8::from(found.is_censored))];
                        cell.numbers.extend(cell::recovery_names(&team).into_iter().zip(values));
                    }
                }
                episodes
            }
        };
        cell.scores = cell::scores(&spec, &episodes);
        Ok(cell)
    })
}

/// Appends cells to their log.
struct Writer {
    log: LogFile,
    columns: Columns,
}

impl Writer {
    /// Opens the log of a world, new or begun, and reads the cells that it has.
    fn open(path: &Path, spec: &EnvSpec) -> Result<(Vec<Cell>, Self)> {
        let text = match std::fs::read(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            other => other.map_err(|e| Failure::file("read", path, e))?,
        };
        let known = cell::parse(path, &text)?;
        let mut columns = Columns::of(spec);
        columns.extend(&known);
        let header = cell::lines(&[columns.header()]);
        // What a process that was killed left of its last line.
        let finished = text.iter().rposition(|&b| b == b'\n').map_or(0, |i| i + 1);
        if !text.starts_with(&header) {
            // A new log, or one of another world or an earlier version, which lacks columns.
            let records: Vec<Vec<String>> =
                std::iter::once(columns.header()).chain(known.iter().map(|cell| cell::record(cell, &columns))).collect();
            write_whole(path, &cell::lines(&records))?;
            return Ok((known, Self { log: LogFile::open(path)?, columns }));
        }
        let mut log = LogFile::open(path)?;
        log.truncate(finished as u64)?;
        Ok((known, Self { log, columns }))
    }

    fn write(&mut self, cell: &Cell) -> Result<()> {
        self.log.append(&cell::lines(&[cell::record(cell, &self.columns)]))
    }
}
