//! `steadfast train`, and `steadfast` alone.

use std::path::Path;

use tracing::info;

use super::plot::both_formats;
use super::{print, split_arguments, table};
use crate::cli::{PlotKind, TrainArgs};
use crate::config::{ExperimentConfig, load};
use crate::experiment::online;
use crate::failure::{Failure, Result};
use crate::plot::table::RunData;
use crate::plot::{curve, robustness};
use crate::run::FORMAT_VERSION;
use crate::run::directory::RunDirectory;
use crate::run::log::write_whole;
use crate::run::results::EvalRow;

/// Trains a new run, several, or continues one.
pub fn run(arguments: &TrainArgs) -> Result<()> {
    if let Some(path) = &arguments.resume {
        return resume(path);
    }
    let (name, overrides) = split_arguments(&arguments.arguments);
    if arguments.seeds.is_empty() {
        return fresh(&load::named(name, overrides)?.config, arguments.output.as_deref());
    }
    // All configurations are checked before the first run starts.
    let mut configs = Vec::new();
    for seed in &arguments.seeds {
        let overrides: Vec<String> = overrides.iter().cloned().chain([format!("seed={seed}")]).collect();
        configs.push(load::named(name, &overrides)?.config);
    }
    configs.iter().try_for_each(|config| fresh(config, None))
}

fn fresh(config: &ExperimentConfig, output: Option<&Path>) -> Result<()> {
    let (run, taken) = RunDirectory::create(config, output)?;
    if let Some(newest) = taken.last() {
        let advice = if newest.is_finished() { "" } else { ", which is not finished and can be continued with --resume" };
        info!("{} exists{advice}; this run goes to {}", newest.path().display(), run.path().display());
    }
    info!(
        run = %run.path().display(),
        env = config.env.name(),
        agent = config.agent.name(),
        regularizer = config.regularizer.as_ref().map_or("none", |r| r.name()),
        seed = config.seed,
        "training"
    );
    let rows = online::train(&run, config, false)?;
    conclude(&run, config, &rows)
}

fn resume(path: &Path) -> Result<()> {
    let run = RunDirectory::open(path)?;
    if run.is_finished() {
        return print(&format!("{} is finished, there is nothing to resume\n", path.display()));
    }
    let config = run.config()?;
    let rows = online::train(&run, &config, true)?;
    conclude(&run, &config, &rows)
}

/// Pictures, the summary that marks the run as finished, and the table.
fn conclude(run: &RunDirectory, config: &ExperimentConfig, rows: &[EvalRow]) -> Result<()> {
    let data = [RunData::read(run.path())?];
    let mut pictures = both_formats(&[curve::panel(&data, "return_agent_mean")?], run.path(), PlotKind::Learning)?;
    if !config.robustness.is_empty() {
        pictures.extend(both_formats(&robustness::panels(&data, "return_agent_mean")?, run.path(), PlotKind::Robustness)?);
    }
    let summary = serde_json::json!({ "format_version": FORMAT_VERSION, "evaluations": rows });
    let text = serde_json::to_string_pretty(&summary).map_err(|e| Failure::caused("cannot write summary.json", e))?;
    write_whole(&run.file("summary.json"), format!("{text}\n").as_bytes())?;
    let mut answer = results_table(rows);
    answer.push('\n');
    for picture in pictures {
        answer.push_str(&format!("{}\n", picture.display()));
    }
    print(&answer)
}

/// Evaluations with both conventions of return, each as mean ± half width of the 95 % interval.
pub fn results_table(rows: &[EvalRow]) -> String {
    let interval = |mean: f64, half_width: f64| format!("{mean:.3} ± {half_width:.3}");
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|r| {
            let level = if r.perturbation == "none" { "-".to_string() } else { r.level.to_string() };
            vec![
                r.perturbation.clone(),
                level,
                interval(r.return_agent_mean, r.return_agent_mean_ci95),
                interval(r.return_team_sum, r.return_team_sum_ci95),
                format!("{:.1}", r.length),
                r.episodes.to_string(),
            ]
        })
        .collect();
    table(&["perturbation", "level", "return, mean over agents", "return, sum over agents", "length", "episodes"], &rows)
}
