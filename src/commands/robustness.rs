//! `steadfast sweep RUN... --axis ...`: how robust trained policies are.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use steadfast_agents::AgentConfig;
use steadfast_envs::{ActMode, Perturbed};
use tracing::warn;

use super::eval::find;
use super::{print, table};
use crate::cli::{Mode, SweepArgs, TableFormat};
use crate::config::report::suggest;
use crate::experiment::robustness::axis::{Axis, Hardship};
use crate::experiment::robustness::cell::{self, CELLS, Cell, Key, UNIFORM};
use crate::experiment::robustness::cross_play::{self, Opponent};
use crate::experiment::robustness::evaluate::{self, Play, Trained};
use crate::experiment::robustness::report::{DEFINITIONS, Method, Report};
use crate::experiment::sweep::directory::claim;
use crate::failure::{Failure, Result};
use crate::plot::figure::{Drawing, svg};
use crate::plot::page::Page;
use crate::plot::save_both;
use crate::plot::table::{Group, RunData, environments, groups};
use crate::run::directory::RunDirectory;
use crate::run::log::write_whole;

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
    let names = cell::names(world.spec());
    if !names.contains(&arguments.metric) {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let message = format!("`{}` has no score `{}`", world.spec().name, arguments.metric);
        return Err(Failure::usage(message, suggest(&arguments.metric, &names)));
    }
    let mode = arguments.mode.map(|mode| match mode {
        Mode::Greedy => ActMode::Greedy,
        Mode::Sample => ActMode::Sample,
    });
    let opponents: Vec<Opponent> = arguments.opponent.iter().map(|text| opponent(text, &trained[0], mode)).collect::<Result<_>>()?;
    cross_play::check(&opponents, world.spec())?;
    if !opponents.is_empty() && ["return_agent_mean", "return_team_sum"].contains(&arguments.metric.as_str()) {
        warn!("{} counts the returns of opponents; --metric return_GROUP is that of a group alone", arguments.metric);
    }
    let groups = groups(&data);
    let methods: Vec<Method> = groups.iter().map(method).collect();
    let baseline = baseline(arguments.baseline.as_deref(), &groups)?;
    let directory = arguments.output.clone().unwrap_or_else(|| PathBuf::from("sweeps/robustness"));
    let _lock = claim(&directory, CELLS, "evaluated cells")?;
    let radii = arguments.lipschitz_radius.clone();
    let play = Play { episodes: arguments.episodes, seed: arguments.episode_seed, mode, radii };
    let jobs = super::sweep::jobs(arguments);
    let cells = evaluate::cells(&directory, &trained, &opponents, &axes, &play, jobs)?;
    let environment = environments(&data);
    let report = Report::new(&methods, &axes, baseline, &cells, &arguments.metric, &environment);
    print(&write(&directory, &report, &methods, &axes, &cells, arguments, &environment)?)
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

/// The method that the others are compared with: the one that was asked for, else the only one without regulariser,
/// adversary and perturbed training, else the first.
fn baseline(wanted: Option<&str>, groups: &[Group<'_>]) -> Result<usize> {
    if let Some(wanted) = wanted {
        let labels: Vec<&str> = groups.iter().map(|g| g.label.as_str()).collect();
        return labels
            .iter()
            .position(|label| *label == wanted)
            .ok_or_else(|| Failure::usage(format!("no runs are called `{wanted}`"), suggest(wanted, &labels)));
    }
    let is_plain = |group: &Group<'_>| {
        let config = group.members[0].config.clone().online();
        config.is_some_and(|c| {
            let is_minimax = matches!(&c.agent, AgentConfig::Maddpg(maddpg) if maddpg.minimax.is_some());
            let is_trained_against = c.adversarial_training.is_some() || is_minimax || !c.perturb.is_empty();
            c.regularizer.is_none() && c.action_regularizer.is_none() && !is_trained_against
        })
    };
    let plain: Vec<usize> = (0..groups.len()).filter(|&i| is_plain(&groups[i])).collect();
    Ok(if let [only] = plain.as_slice() { *only } else { 0 })
}

/// Writes the tables and pictures; returns what is printed.
fn write(
    directory: &Path,
    report: &Report<'_>,
    methods: &[Method],
    axes: &[Axis],
    cells: &[Cell],
    arguments: &SweepArgs,
    environment: &str,
) -> Result<String> {
    let mut written = Vec::new();
    for (name, table) in [("results", cell::table(cells, owner(methods))), ("summary", report.summary())] {
        let path = directory.join(format!("{name}.{}", arguments.format.extension()));
        write_whole(&path, &table.to_bytes(arguments.format)?)?;
        written.push(path);
    }
    let mut sections = report.sections();
    sections.extend(report.lipschitz_sections(&arguments.lipschitz_radius));
    let mut text = String::new();
    for section in &sections {
        let header: Vec<&str> = section.header.iter().map(String::as_str).collect();
        text.push_str(&format!("{}\n{}\n", section.title, table(&header, &section.rows)));
    }
    text.push_str(DEFINITIONS);
    text.push('\n');
    write_whole(&directory.join("table.txt"), text.as_bytes())?;
    written.push(directory.join("table.txt"));
    let mut pictures = Vec::new();
    if methods.len() > 1 {
        picture(directory, "heat-map", &report.heat_map(), &mut pictures, &mut written)?;
    }
    for (axis, panel) in axes.iter().zip(report.level_curves()) {
        picture(directory, &file_name(&axis.label), [panel].as_slice(), &mut pictures, &mut written)?;
    }
    picture(directory, "profile", [report.profile()].as_slice(), &mut pictures, &mut written)?;
    let command = command(arguments);
    let seeds: BTreeSet<&u64> = methods.iter().flat_map(|m| m.runs.keys()).collect();
    let against: Vec<&str> = arguments.opponent.iter().map(String::as_str).collect();
    let against = if against.is_empty() { String::new() } else { format!(" against {}", against.join(", ")) };
    let summary = format!(
        "{} of {} methods in {environment}{against} over {} training seeds; {} episodes per cell, the same ones for all (seed {}).",
        arguments.metric,
        methods.len(),
        seeds.len(),
        arguments.episodes,
        arguments.episode_seed
    );
    let page = Page {
        title: &format!("Robustness: {environment}"),
        summary: &summary,
        sections: &sections,
        definitions: DEFINITIONS,
        pictures: &pictures,
        command: &command,
    };
    write_whole(&directory.join("report.html"), page.html()?.as_bytes())?;
    written.push(directory.join("report.html"));
    let written: String = written.iter().map(|p| format!("{}\n", p.display())).collect();
    Ok(format!("{text}\n{written}"))
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
    words.extend(arguments.axis.iter().map(|axis| format!("--axis {}", quoted(axis))));
    words.push(format!("--episodes {} --episode-seed {} --metric {}", arguments.episodes, arguments.episode_seed, arguments.metric));
    match arguments.mode {
        Some(Mode::Greedy) => words.push("--mode greedy".to_string()),
        Some(Mode::Sample) => words.push("--mode sample".to_string()),
        None => {}
    }
    words.extend(arguments.opponent.iter().map(|opponent| format!("--opponent {}", quoted(opponent))));
    let radii: Vec<String> = arguments.lipschitz_radius.iter().map(ToString::to_string).collect();
    words.push(format!("--lipschitz-radius {}", radii.join(",")));
    words.extend(arguments.baseline.iter().map(|label| format!("--baseline {}", quoted(label))));
    if arguments.format != TableFormat::Csv {
        words.push(format!("--format {}", arguments.format.extension()));
    }
    words.extend(arguments.output.iter().map(|path| format!("--output {}", quoted(&path.display().to_string()))));
    words.join(" ")
}
