//! `steadfast eval`.

use steadfast_envs::perturb::{MaliciousActionConfig, NoiseLaw, ObservationNoiseConfig};
use steadfast_envs::{ActMode, PerturbationConfig};

use super::print;
use super::train::results_table;
use crate::cli::{EvalArgs, Law, Mode};
use crate::config::load::inline;
use crate::config::validate;
use crate::experiment::build::{self, Ground};
use crate::experiment::evaluate::Evaluator;
use crate::failure::{Failure, Result};
use crate::run::checkpoint::{self, Checkpoint};
use crate::run::directory::RunDirectory;
use crate::run::results::{ResultsLog, Source};

/// Evaluates the policy of a run.
pub fn run(arguments: &EvalArgs) -> Result<()> {
    let run = RunDirectory::open(&arguments.run)?;
    let mut config = run.online_config()?;
    let (perturbations, flags): (Vec<_>, Vec<_>) = perturbations(arguments)?.into_iter().unzip();
    if let Some(episodes) = arguments.episodes {
        config.eval.episodes = episodes;
    }
    // The same checks as for a configuration file that had these perturbations.
    let mut checked = config.clone();
    checked.perturb = perturbations.clone();
    validate::validate(&checked).map_err(|misfit| {
        let path = misfit.path.join(".");
        let message = misfit.problem.message.replace(&format!("`{path}`"), &format!("`{}`", flag_of(&misfit.path, &flags)));
        Failure::usage(message, misfit.problem.help.unwrap_or_else(|| "see `steadfast eval --help`".to_string()))
    })?;
    let mode = match arguments.mode {
        Some(Mode::Greedy) => ActMode::Greedy,
        Some(Mode::Sample) => ActMode::Sample,
        None => config.eval.mode,
    };
    let checkpoint = find(&run, arguments.checkpoint)?;
    let step = checkpoint.progress.step;
    let (row, episodes, spec, found) = build::thread_pool(config.threads)?.install(|| {
        let ground = Ground::of(&config)?;
        let mut evaluator = Evaluator::new(&config, &ground, &perturbations, config.eval.episodes, mode)?;
        let spec = evaluator.spec().clone();
        let mut learner = build::learner(&config, &ground, &spec).map_err(|e| Failure::caused("cannot build the learner", e))?;
        learner
            .load_policy(&checkpoint.learner)
            .map_err(|e| Failure::caused(format!("the checkpoint of step {step} does not fit the configuration"), e))?;
        let (row, episodes) = evaluator.run(learner.as_mut(), Source::Eval, step)?;
        Ok((row, episodes, spec, learner.evaluation_metrics()))
    })?;
    ResultsLog::open(run.path(), &spec, found)?.write(&row, &episodes)?;
    print(&results_table(&[row]))
}

/// The flag that set the value at `path`; `flags` says which flag gave which perturbation.
fn flag_of(path: &[String], flags: &[&'static str]) -> String {
    let words: Vec<&str> = path.iter().map(String::as_str).collect();
    let flag = |i: &str| i.parse().ok().and_then(|i: usize| flags.get(i).copied());
    match words.as_slice() {
        ["eval", "episodes"] => "--episodes".to_string(),
        ["perturb", i, _, field] => match flag(i) {
            Some("--perturb") => format!("{field}` in `--perturb"),
            Some(_) if *field == "agents" => "--agents".to_string(),
            Some(flag) => flag.to_string(),
            None => path.join("."),
        },
        _ => path.join("."),
    }
}

/// The checkpoint of a step, or the newest complete one.
pub(super) fn find(run: &RunDirectory, step: Option<u64>) -> Result<Checkpoint> {
    let directory = run.checkpoints();
    if let Some(step) = step {
        let known = checkpoint::list(&directory);
        if !known.contains(&step) {
            let known: Vec<String> = known.iter().map(ToString::to_string).collect();
            return Err(Failure::usage(format!("there is no checkpoint of step {step}"), format!("there are: {}", known.join(", "))));
        }
        return checkpoint::load(&directory.join(checkpoint::name(step)))
            .map_err(|e| Failure::caused(format!("the checkpoint of step {step} cannot be used"), e));
    }
    let (found, passed_over) = checkpoint::newest(&directory);
    for (step, error) in &passed_over {
        tracing::warn!("checkpoint of step {step} cannot be used: {error}");
    }
    let resume = format!("continue with `steadfast train --resume {}`", run.path().display());
    found.ok_or_else(|| match passed_over.into_iter().next() {
        Some((step, error)) => {
            let message = format!("no usable checkpoint in {}, the newest is of step {step}", run.path().display());
            let help = error.remedy().map_or(resume, str::to_string);
            Failure::caused_with_help(message, error, help)
        }
        None => Failure::run_with_help(format!("no checkpoint in {}", run.path().display()), resume),
    })
}

/// The perturbations, each with the flag that asked for it.
fn perturbations(arguments: &EvalArgs) -> Result<Vec<(PerturbationConfig, &'static str)>> {
    let agents = &arguments.agents;
    let mut found = Vec::new();
    if let Some(magnitude) = arguments.observation_noise {
        let law = match arguments.noise_law {
            None | Some(Law::Gaussian) => NoiseLaw::Gaussian,
            Some(Law::Uniform) => NoiseLaw::Uniform,
            Some(Law::Sign) => NoiseLaw::Sign,
        };
        let config = ObservationNoiseConfig { magnitude, law, agents: agents.clone(), ..Default::default() };
        found.push((PerturbationConfig::ObservationNoise(config), "--observation-noise"));
    }
    if let Some(probability) = arguments.malicious_action {
        let config = MaliciousActionConfig { probability, agents: agents.clone(), ..Default::default() };
        found.push((PerturbationConfig::MaliciousAction(config), "--malicious-action"));
    }
    if found.is_empty() && !agents.is_empty() {
        return Err(Failure::usage("--agents says who is perturbed, but not how", "add --observation-noise or --malicious-action"));
    }
    for text in &arguments.perturb {
        found.push((inline("--perturb", text)?, "--perturb"));
    }
    Ok(found)
}
