//! `steadfast sweep RUN... --axis ...`: how robust trained policies are, and `steadfast sweep TABLE... --report-only`: what was found so.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use steadfast_agents::AgentConfig;
use steadfast_envs::{ActMode, Perturbed};
use tracing::warn;

use super::eval::find;
use super::{print, table};
use crate::cli::{Mode, SweepArgs, TableFormat};
use crate::config::report::suggest;
use crate::experiment::robustness::axis::{Axis, Hardship, Scale};
use crate::experiment::robustness::cell::{self, CELLS, Cell, Key, UNIFORM};
use crate::experiment::robustness::cross_play::{self, Opponent};
use crate::experiment::robustness::evaluate::{self, Play, Trained};
use crate::experiment::robustness::pooled;
use crate::experiment::robustness::report::{DEFINITIONS, Method, Report};
use crate::experiment::sweep::directory::claim;
use crate::failure::{Failure, Result};
use crate::plot::figure::{Drawing, svg};
use crate::plot::page::Page;
use crate::plot::save_both;
use crate::plot::table::{Group, RunData, environments, groups};
use crate::run::directory::RunDirectory;
use crate::run::log::write_whole;
use crate::run::results::DEFAULT_METRIC;

/// Evaluates what is not evaluated yet, and reports.
pub fn run(arguments: &SweepArgs) -> Result<()> {
    let axes: Vec<Axis> = arguments.axis.iter().map(|text| Axis::parse(text)).collect::<Result<_>>()?;
    if let Some(twice) = axes.iter().enumerate().find(|(i, axis)| axes[..*i].iter().any(|other| other.label == axis.label)) {
        return Err(Failure::usage(format!("--axis {} is given twice", twice.1.label), "put all levels into one --axis"));
    }
    if arguments.episodes == 0 {
        return Err(Failure::usage("--episodes must be at least 1", "100 is the default"));
    }
    let paths: Vec<PathBuf> = arguments.sweep.iter().map(PathBuf::from).collect();
    let data = RunData::read_all(&paths)?;
    let trained: Vec<Trained> = data.iter().map(|run| open(&run.path)).collect::<Result<_>>()?;
    check(&trained, &axes)?;
    let world = trained[0].config.env.build().map_err(|e| Failure::caused("cannot build the world", e))?;
    let axes: Vec<Axis> = axes.into_iter().map(|axis| axis.in_world(world.spec())).collect();
    let metric = metric(arguments, &cell::names(world.spec()), &world.spec().name)?;
    let mode = arguments.mode.map(|mode| match mode {
        Mode::Greedy => ActMode::Greedy,
        Mode::Sample => ActMode::Sample,
    });
    let opponents: Vec<Opponent> = arguments.opponent.iter().map(|text| opponent(text, &trained[0], mode)).collect::<Result<_>>()?;
    cross_play::check(&opponents, world.spec())?;
    warn_of_opponents(metric, opponents.is_empty());
    let groups = groups(&data);
    let methods: Vec<Method> = groups.iter().map(method).collect();
    let baseline = baseline(arguments.baseline.as_deref(), &methods)?.unwrap_or_else(|| plain(&groups));
    let directory = arguments.output.clone().unwrap_or_else(|| PathBuf::from("sweeps/robustness"));
    let _lock = claim(&directory, CELLS, "evaluated cells")?;
    let radii = arguments.lipschitz_radius.clone();
    let play = Play { episodes: arguments.episodes, seed: arguments.episode_seed, mode, radii };
    let jobs = super::sweep::jobs(arguments);
    let cells = evaluate::cells(&directory, &trained, &opponents, &axes, &play, jobs)?;
    let found = Found {
        methods: &methods,
        scales: &axes.iter().map(Axis::scale).collect::<Vec<_>>(),
        cells: &cells,
        radii: &play.radii,
        environment: &environments(&data),
        opponents: &arguments.opponent.join(", "),
        episodes: play.episodes,
        seed: play.seed,
    };
    print(&found.write(&directory, baseline, metric, arguments)?)
}

/// True for what is read as a table of cells.
pub(super) fn is_table(path: &str) -> bool {
    let path = Path::new(path);
    path.extension().is_some_and(|extension| extension == "csv" || extension == "parquet")
}

/// Reports the cells of tables.
pub(super) fn report(arguments: &SweepArgs) -> Result<()> {
    if let Some(other) = arguments.sweep.iter().find(|path| !path.ends_with(".csv")) {
        let help = "tables are read as CSV; --axis with --format csv writes the finished cells of a sweep so without playing again";
        return Err(Failure::usage(format!("{other} is no results.csv"), help));
    }
    let paths: Vec<PathBuf> = arguments.sweep.iter().map(PathBuf::from).collect();
    let pooled = pooled::read(&paths)?;
    let names: BTreeSet<String> = pooled.cells.iter().flat_map(|cell| cell.scores.keys().cloned()).collect();
    // Tables do not name their world; the directory that one stands in usually says more than its own name.
    let first = std::path::absolute(&paths[0]).map_err(|e| Failure::file("find", &paths[0], e))?;
    let title = first.parent().and_then(Path::file_name).map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let metric = metric(arguments, &names.into_iter().collect::<Vec<_>>(), &arguments.sweep[0])?;
    warn_of_opponents(metric, pooled.opponents.is_empty());
    let baseline = baseline(arguments.baseline.as_deref(), &pooled.methods)?.unwrap_or(0);
    let directory = arguments.output.clone().unwrap_or_else(|| PathBuf::from("sweeps/report"));
    for (name, what) in [(CELLS, "evaluated cells"), ("sweep.toml", "a sweep of its own")] {
        if directory.join(name).exists() {
            let message = format!("{} holds {what}, whose report would be replaced", directory.display());
            return Err(Failure::usage(message, "choose another --output"));
        }
    }
    let place = |path: &Path| {
        path.parent().and_then(|parent| std::fs::canonicalize(if parent == Path::new("") { ".".as_ref() } else { parent }).ok())
    };
    if let Some(input) =
        paths.iter().find(|path| place(path).is_some_and(|place| std::fs::canonicalize(&directory).is_ok_and(|d| d == place)))
    {
        let message = format!("{} lies in {}, where the report would be written", input.display(), directory.display());
        return Err(Failure::usage(message, "choose another --output"));
    }
    let _lock = claim(&directory, REPORT, "a report of tables")?;
    let found = Found {
        methods: &pooled.methods,
        scales: &pooled.scales,
        cells: &pooled.cells,
        radii: &pooled.radii,
        environment: &title,
        opponents: &pooled.opponents,
        episodes: pooled.episodes,
        seed: pooled.seed,
    };
    if let Some(gaps) = found.gaps(metric) {
        warn!("{gaps}");
    }
    print(&found.write(&directory, baseline, metric, arguments)?)
}

/// The score that is reported, one of `names`.
fn metric<'a>(arguments: &'a SweepArgs, names: &[String], whose: &str) -> Result<&'a str> {
    let metric = arguments.metric.as_deref().unwrap_or(DEFAULT_METRIC);
    if names.iter().any(|name| name == metric) {
        return Ok(metric);
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    Err(Failure::usage(format!("`{whose}` has no score `{metric}`"), suggest(metric, &names)))
}

fn warn_of_opponents(metric: &str, is_alone: bool) {
    if !is_alone && ["return_agent_mean", "return_team_sum"].contains(&metric) {
        warn!("{metric} counts the returns of opponents; --metric return_GROUP is that of a group alone");
    }
}

/// A run with its newest complete checkpoint.
fn open(path: &Path) -> Result<Trained> {
    let run = RunDirectory::open(path)?;
    let config = run.online_config()?;
    let mut checkpoint = find(&run, None)?;
    let step = checkpoint.progress.step;
    if step < config.total_steps {
        warn!("{} has been trained for {step} of its {} steps; that policy is evaluated", path.display(), config.total_steps);
    }
    // Policies are not trained on; a memory of past transitions would be held for every run.
    checkpoint.learner.arrays.retain(|name, _| !name.starts_with(steadfast_agents::replay::PREFIX));
    Ok(Trained { run: path.display().to_string(), config, checkpoint })
}

/// Agents of the world of `own` and the run that plays them, from `AGENTS=RUN`.
fn opponent(text: &str, own: &Trained, mode: Option<ActMode>) -> Result<Opponent> {
    let Some((agents, run)) = text.split_once('=') else {
        return Err(Failure::usage(format!("--opponent {text} names no run"), "an example: --opponent adversary=runs/reference"));
    };
    let trained = open(Path::new(run))?;
    let mode = mode.unwrap_or(trained.config.eval.mode);
    let opponent = Opponent { agents: agents.to_string(), trained, mode };
    if opponent.trained.config.env != own.config.env {
        return Err(Failure::usage(
            format!("{run} and {} have different settings of `{}`", own.run, own.config.env.name()),
            "opponents must come from the same world; the settings are in their config.toml",
        ));
    }
    Ok(opponent)
}

/// All runs must be of one world, and every axis must exist there.
fn check(runs: &[Trained], axes: &[Axis]) -> Result<()> {
    let first = &runs[0];
    if let Some(other) = runs.iter().find(|run| run.config.env != first.config.env) {
        return Err(Failure::usage(
            format!("{} and {} have different settings of `{}`", first.run, other.run, first.config.env.name()),
            "sweep over runs of one world; the settings are in their config.toml",
        ));
    }
    for axis in axes {
        if let Hardship::Attack(target, attack) = &axis.hardship {
            runs.iter().try_for_each(|run| run.check_attack(*target, attack))?;
        }
        for &level in &axis.levels {
            let hardship = axis.hardship.with_level(level);
            if matches!(hardship, Hardship::Attack(..)) {
                continue;
            }
            let world = first.config.env.build().map_err(|e| Failure::usage(e.to_string(), "give runs of worlds that can be perturbed"))?;
            if let Hardship::LearnedAttacker(attacker) = &hardship {
                attacker.validate(world.spec()).map_err(|reason| {
                    let help = "an example: --axis '{ learned_attacker = { count = 1, steps = 200000 } }=0.5,1'";
                    Failure::usage(format!("--axis {} does not fit at level {level}: {reason}", axis.label), help)
                })?;
            }
            let Hardship::Perturbation(perturbation) = hardship else { continue };
            let fits = perturbation.validate(world.spec()).and_then(|()| Perturbed::new(world, &[perturbation]).map(drop));
            fits.map_err(|e| {
                let help = "`steadfast list perturbations` shows all; the message says what this world has";
                Failure::usage(format!("--axis {} does not fit at level {level}: {e}", axis.label), help)
            })?;
        }
    }
    Ok(())
}

fn method(group: &Group<'_>) -> Method {
    let run = |run: &&RunData| (run.config.seed(), run.path.display().to_string());
    Method { label: group.label.clone(), runs: group.members.iter().map(run).collect() }
}

/// The method that was asked for, if one was.
fn baseline(wanted: Option<&str>, methods: &[Method]) -> Result<Option<usize>> {
    let Some(wanted) = wanted else { return Ok(None) };
    let labels: Vec<&str> = methods.iter().map(|method| method.label.as_str()).collect();
    let found = labels.iter().position(|label| *label == wanted);
    found.map(Some).ok_or_else(|| Failure::usage(format!("no runs are called `{wanted}`"), suggest(wanted, &labels)))
}

/// The only group without regulariser, adversary and perturbed training, else the first.
fn plain(groups: &[Group<'_>]) -> usize {
    let is_plain = |group: &Group<'_>| {
        let config = group.members[0].config.clone().online();
        config.is_some_and(|c| {
            let is_minimax = matches!(&c.agent, AgentConfig::Maddpg(maddpg) if maddpg.minimax.is_some());
            let is_trained_against = c.adversarial_training.is_some() || is_minimax || !c.perturb.is_empty();
            c.regularizer.is_none() && c.action_regularizer.is_none() && !is_trained_against
        })
    };
    let plain: Vec<usize> = (0..groups.len()).filter(|&i| is_plain(&groups[i])).collect();
    if let [only] = plain.as_slice() { *only } else { 0 }
}

/// The file that a report is known by.
const REPORT: &str = "report.html";

/// Finished cells and what they are of.
struct Found<'a> {
    methods: &'a [Method],
    scales: &'a [Scale],
    cells: &'a [Cell],
    radii: &'a [f64],
    environment: &'a str,
    /// Who plays which of the other agents.
    opponents: &'a str,
    episodes: usize,
    seed: u64,
}

impl Found<'_> {
    /// How many cells some run has and another lacks, if any.
    fn gaps(&self, metric: &str) -> Option<String> {
        let cells = self.cells.iter().filter(|cell| cell.scores.contains_key(metric) && !cell.key.is_uniform());
        let n = cells.count();
        let per_run: BTreeSet<(&str, &str)> =
            self.scales.iter().flat_map(|s| s.variants.iter().map(String::as_str)).flat_map(|axis| self.levels(axis)).collect();
        let runs: usize = self.methods.iter().map(|method| method.runs.len()).sum();
        let all = runs * (per_run.len() + 1);
        (n < all).then(|| format!("{n} of {all} cells are there; a run is left out where one is missing"))
    }

    fn levels<'s>(&'s self, axis: &'s str) -> impl Iterator<Item = (&'s str, &'s str)> {
        self.cells.iter().filter(move |cell| cell.key.axis == axis).map(|cell| (cell.key.axis.as_str(), cell.key.level.as_str()))
    }

    /// Writes the tables and pictures; returns what is printed.
    fn write(&self, directory: &Path, baseline: usize, metric: &str, arguments: &SweepArgs) -> Result<String> {
        let format = arguments.format.unwrap_or(TableFormat::Csv);
        let report = Report::new(self.methods, self.scales, baseline, self.cells, metric, self.environment);
        let mut written = Vec::new();
        for (name, table) in [("results", cell::table(self.cells, owner(self.methods))), ("summary", report.summary())] {
            let path = directory.join(format!("{name}.{}", format.extension()));
            write_whole(&path, &table.to_bytes(format)?)?;
            written.push(path);
        }
        let mut sections = report.sections();
        sections.extend(report.lipschitz_sections(self.radii));
        let mut text = String::new();
        for section in &sections {
            let header: Vec<&str> = section.header.iter().map(String::as_str).collect();
            text.push_str(&format!("{}\n{}\n", section.title, table(&header, &section.rows)));
        }
        let gaps = self.gaps(metric).map_or_else(String::new, |gaps| format!("{gaps}.\n"));
        text.push_str(&format!("{gaps}{DEFINITIONS}\n"));
        write_whole(&directory.join("table.txt"), text.as_bytes())?;
        written.push(directory.join("table.txt"));
        let mut pictures = Vec::new();
        if self.methods.len() > 1 {
            picture(directory, "heat-map", &report.heat_map(), &mut pictures, &mut written)?;
        }
        for (scale, panel) in self.scales.iter().zip(report.level_curves()) {
            picture(directory, &file_name(&scale.label), [panel].as_slice(), &mut pictures, &mut written)?;
        }
        picture(directory, "profile", [report.profile()].as_slice(), &mut pictures, &mut written)?;
        let command = command(arguments);
        let seeds: BTreeSet<&u64> = self.methods.iter().flat_map(|m| m.runs.keys()).collect();
        let against = if self.opponents.is_empty() { String::new() } else { format!(" against {}", self.opponents) };
        let summary = format!(
            "{metric} of {} methods in {}{against} over {} training seeds; {} episodes per cell, the same ones for all (seed {}). {gaps}",
            self.methods.len(),
            self.environment,
            seeds.len(),
            self.episodes,
            self.seed
        );
        let page = Page {
            title: &format!("Robustness: {}", self.environment),
            summary: summary.trim_end(),
            sections: &sections,
            definitions: DEFINITIONS,
            pictures: &pictures,
            command: &command,
        };
        write_whole(&directory.join(REPORT), page.html()?.as_bytes())?;
        written.push(directory.join(REPORT));
        let written: String = written.iter().map(|p| format!("{}\n", p.display())).collect();
        Ok(format!("{text}\n{written}"))
    }
}

/// Method and training seed by run.
fn owner<'a>(methods: &'a [Method]) -> impl Fn(&Key) -> (&'a str, Option<u64>) {
    let runs = methods.iter().flat_map(|m| m.runs.iter().map(|(seed, run)| (run.as_str(), (m.label.as_str(), Some(*seed)))));
    let owners: BTreeMap<&'a str, (&'a str, Option<u64>)> = runs.collect();
    move |key| if key.is_uniform() { (UNIFORM, None) } else { owners.get(key.run.as_str()).copied().unwrap_or_default() }
}

/// Draws a picture in both formats, notes the files and keeps the SVG for the page.
fn picture<D: Drawing + ?Sized>(
    directory: &Path,
    name: &str,
    drawing: &D,
    pictures: &mut Vec<String>,
    written: &mut Vec<PathBuf>,
) -> Result<()> {
    written.extend(save_both(drawing, &directory.join("plots"), name)?);
    pictures.push(svg(drawing).map_err(|reason| Failure::run(format!("cannot draw {name}: {reason}")))?);
    Ok(())
}

/// A label with what file names do not like replaced.
fn file_name(label: &str) -> String {
    label.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' }).collect::<String>().trim_matches('-').to_string()
}

/// The command line again, as a shell takes it.
fn command(arguments: &SweepArgs) -> String {
    let quoted = |text: &str| {
        let is_plain = text.chars().all(|c| c.is_ascii_alphanumeric() || "_-./=,+:".contains(c));
        if is_plain { text.to_string() } else { format!("'{}'", text.replace('\'', "'\\''")) }
    };
    let mut words = vec!["steadfast sweep".to_string()];
    words.extend(arguments.sweep.iter().map(|run| quoted(run)));
    if arguments.report_only {
        words.push("--report-only".to_string());
    } else {
        words.extend(arguments.axis.iter().map(|axis| format!("--axis {}", quoted(axis))));
        words.push(format!("--episodes {} --episode-seed {}", arguments.episodes, arguments.episode_seed));
    }
    words.extend(arguments.metric.iter().map(|metric| format!("--metric {metric}")));
    match arguments.mode {
        Some(Mode::Greedy) => words.push("--mode greedy".to_string()),
        Some(Mode::Sample) => words.push("--mode sample".to_string()),
        None => {}
    }
    words.extend(arguments.opponent.iter().map(|opponent| format!("--opponent {}", quoted(opponent))));
    if !arguments.report_only {
        let radii: Vec<String> = arguments.lipschitz_radius.iter().map(ToString::to_string).collect();
        words.push(format!("--lipschitz-radius {}", radii.join(",")));
    }
    words.extend(arguments.baseline.iter().map(|label| format!("--baseline {}", quoted(label))));
    words.extend(arguments.format.iter().map(|format| format!("--format {}", format.extension())));
    words.extend(arguments.output.iter().map(|path| format!("--output {}", quoted(&path.display().to_string()))));
    words.join(" ")
}
