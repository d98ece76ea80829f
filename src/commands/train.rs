//! `steadfast train`, and `steadfast` alone.

use std::collections::BTreeSet;
use std::path::Path;

use tracing::info;

use super::plot::both_formats;
use super::{print, split_arguments, table};
use crate::cli::{PlotKind, TrainArgs};
use crate::config::{Experiment, load};
#[cfg(feature = "llm")]
use crate::experiment::language::offline;
use crate::experiment::online;
use crate::failure::{Failure, Result};
use crate::plot::table::RunData;
use crate::plot::{curve, robustness};
use crate::run::FORMAT_VERSION;
use crate::run::directory::RunDirectory;
use crate::run::log::write_whole;
use crate::run::results::{DEFAULT_METRIC, EvalRow};
use crate::run::reward;

/// Trains a new run, several, or continues one.
pub fn run(arguments: &TrainArgs) -> Result<()> {
    if let Some(path) = &arguments.resume {
        return resume(path);
    }
    let (name, overrides) = split_arguments(&arguments.arguments)?;
    if arguments.seeds.is_empty() {
        return fresh(&load::named(name, &overrides)?.config, arguments.output.as_deref());
    }
    if overrides.iter().any(|o| o.split('=').next().is_some_and(|key| key.trim() == "seed")) {
        return Err(Failure::usage("both `seed=` and --seeds say which seeds to train", "give one of them"));
    }
    if let Some((i, seed)) = arguments.seeds.iter().enumerate().find(|(i, seed)| arguments.seeds[..*i].contains(seed)) {
        return Err(Failure::usage(format!("--seeds names {seed} again in position {}", i + 1), "give every seed once"));
    }
    // All configurations are checked before the first run starts.
    let mut configs = Vec::new();
    for seed in &arguments.seeds {
        let overrides: Vec<String> = overrides.iter().cloned().chain([format!("seed={seed}")]).collect();
        configs.push(load::named(name, &overrides)?.config);
    }
    configs.iter().try_for_each(|config| fresh(config, None))
}

fn fresh(config: &Experiment, output: Option<&Path>) -> Result<()> {
    let (run, taken) = RunDirectory::create(config, output)?;
    if let Some(newest) = taken.last() {
        let advice = if newest.is_finished() { "" } else { ", which is not finished and can be continued with --resume" };
        info!("{} exists{advice}; this run goes to {}", newest.path().display(), run.path().display());
    }
    match config {
        Experiment::Online(c) => info!(
            run = %run.path().display(),
            env = c.env.name(),
            agent = c.agent.name(),
            regularizer = c.regularizer.as_ref().map_or("none", |r| r.name()),
            seed = c.seed,
            "training"
        ),
        #[cfg(feature = "llm")]
        Experiment::Offline(c) => info!(
            run = %run.path().display(),
            data = c.data.name(),
            objective = c.objective.name(),
            model = c.model.name(),
            seed = c.seed,
            "training"
        ),
    }
    train(&run, config, false)
}

fn train(run: &RunDirectory, config: &Experiment, resume: bool) -> Result<()> {
    match config {
        Experiment::Online(c) => {
            let rows = online::train(run, c, resume)?;
            conclude(run, !c.robustness.is_empty(), &rows)
        }
        #[cfg(feature = "llm")]
        Experiment::Offline(c) => conclude_offline(run, offline::train(run, c, resume)?),
    }
}

fn resume(path: &Path) -> Result<()> {
    let run = RunDirectory::open(path)?;
    if run.is_finished() {
        return print(&format!("{} is finished, there is nothing to resume\n", path.display()));
    }
    let config = run.config()?;
    train(&run, &config, true)
}

/// Pictures, the summary that marks the run as finished, and the table.
fn conclude(run: &RunDirectory, has_robustness: bool, rows: &[EvalRow]) -> Result<()> {
    let data = [RunData::read(run.path())?];
    let mut pictures = both_formats(&[curve::panel(&data, DEFAULT_METRIC)?], run.path(), PlotKind::Learning, DEFAULT_METRIC)?;
    if has_robustness {
        let panels = robustness::panels(&data, DEFAULT_METRIC)?;
        pictures.extend(both_formats(&panels, run.path(), PlotKind::Robustness, DEFAULT_METRIC)?);
    }
    let mut summary = serde_json::json!({ "format_version": FORMAT_VERSION, "evaluations": rows });
    let fits = reward::read(run.path())?;
    if let Some(last) = fits.last() {
        summary["reward"] = serde_json::to_value(last).map_err(|e| Failure::caused("cannot write summary.json", e))?;
    }
    let text = serde_json::to_string_pretty(&summary).map_err(|e| Failure::caused("cannot write summary.json", e))?;
    write_whole(&run.file("summary.json"), format!("{text}\n").as_bytes())?;
    // They served to measure and to resume; what was learned from stays.
    let path = run.file(reward::TEST_PAIRS);
    if path.exists() {
        std::fs::remove_file(&path).map_err(|e| Failure::file("remove", &path, e))?;
    }
    let mut answer = results_table(rows);
    answer.push('\n');
    for picture in pictures {
        answer.push_str(&format!("{}\n", picture.display()));
    }
    print(&answer)
}

/// Pictures of what the run was about, the summary that marks it as finished, and the numbers of the last evaluation.
#[cfg(feature = "llm")]
fn conclude_offline(run: &RunDirectory, finished: offline::Finished) -> Result<()> {
    let data = [RunData::read(run.path())?];
    let known = finished.evaluation.iter().flat_map(|row| row.metrics.keys().map(String::as_str));
    let known: BTreeSet<&str> = known.chain(data[0].metrics.iter().flat_map(|row| row.values.keys().map(String::as_str))).collect();
    let mut pictures = Vec::new();
    for metric in ["metric_gold_reward", "metric_true_accuracy", "metric_kl", "metric_loss", "train/loss"] {
        if known.contains(metric) {
            let name = metric.replace('/', "_");
            pictures.extend(both_formats(&[curve::panel(&data, metric)?], run.path(), PlotKind::Learning, &name)?);
        }
    }
    let mut summary = serde_json::json!({ "format_version": FORMAT_VERSION, "evaluations": finished.evaluation });
    for (name, part) in finished.parts {
        summary[name] = part;
    }
    let text = serde_json::to_string_pretty(&summary).map_err(|e| Failure::caused("cannot write summary.json", e))?;
    write_whole(&run.file("summary.json"), format!("{text}\n").as_bytes())?;
    let rows: Vec<Vec<String>> = finished
        .evaluation
        .iter()
        .flat_map(|row| &row.metrics)
        .map(|(name, value)| vec![name.trim_start_matches("metric_").to_string(), format!("{value:.4}")])
        .collect();
    let mut answer = table(&["last evaluation", "value"], &rows);
    answer.push_str(&format!("\n{}\n", run.file(crate::run::model::MODEL).display()));
    for picture in pictures {
        answer.push_str(&format!("{}\n", picture.display()));
    }
    print(&answer)
}

/// Evaluations with both conventions of return, each as mean ± half width of the 95 % interval, and with the world's own
/// conventions.
pub fn results_table(rows: &[EvalRow]) -> String {
    let interval = |mean: f64, half_width: f64| format!("{mean:.3} ± {half_width:.3}");
    let own: BTreeSet<&str> = rows.iter().flat_map(|r| r.metrics.keys()).filter_map(|k| own_return(k)).collect();
    let mut header = vec!["perturbation", "level", "return, mean over agents", "return, sum over agents"];
    header.extend(&own);
    header.extend(["length", "episodes"]);
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|r| {
            let levels: Vec<String> = r.levels().iter().map(ToString::to_string).collect();
            let mut cells = vec![
                r.perturbation.clone(),
                if levels.is_empty() { "-".to_string() } else { levels.join("+") },
                interval(r.return_agent_mean, r.return_agent_mean_ci95),
                interval(r.return_team_sum, r.return_team_sum_ci95),
            ];
            let of_column = |name: &str| r.metrics.iter().find(|(k, _)| own_return(k) == Some(name)).map(|(_, v)| *v);
            cells.extend(own.iter().map(|name| of_column(name).map_or_else(|| "-".to_string(), |v| format!("{v:.3}"))));
            cells.extend([format!("{:.1}", r.length), r.episodes.to_string()]);
            cells
        })
        .collect();
    table(&header, &rows)
}

/// `return_NAME` if a column of `eval.csv` is a return by a convention of the world's own.
fn own_return(column: &str) -> Option<&str> {
    column.strip_prefix("metric_").filter(|name| name.starts_with("return_"))
}
