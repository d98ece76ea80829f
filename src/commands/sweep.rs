//! `steadfast sweep`.

use std::path::PathBuf;

use tracing::{info, warn};

use super::{print, table, table_of, train};
use crate::cli::{SweepArgs, TrainArgs};
use crate::config::report::Problem;
use crate::config::sweep::{Cell, Sweep, SweepConfig, Word, cells, read};
use crate::experiment::sweep::directory::SweepDirectory;
use crate::experiment::sweep::outcome::{Row, columns, csv};
use crate::experiment::sweep::{analysis, execute, picture};
use crate::failure::{Failure, Result};
use crate::plot::save;
use crate::plot::stats::Summary;
use crate::run::log::write_whole;
use crate::terminal::CellLine;

/// Trains what is not finished yet, and reports.
pub fn run(arguments: &SweepArgs) -> Result<()> {
    let sweep = read(&arguments.sweep)?;
    let cells = cells(&sweep)?;
    let directory = SweepDirectory::at(arguments.output.clone().unwrap_or_else(|| sweep.output.clone()));
    if arguments.dry_run {
        directory.check(&cells)?;
        return list(&directory, &cells);
    }
    if arguments.report_only {
        if !directory.file("cells").is_dir() {
            let help = "run the sweep without --report-only first";
            return Err(Failure::usage(format!("{} is no directory of a sweep", directory.path().display()), help));
        }
        let _lock = directory.claim()?;
        directory.check(&cells)?;
        let rows = finished(&directory, &cells)?;
        let n = rows.iter().flatten().count();
        if n < cells.len() {
            warn!("{n} of {} cells are finished, the others are left out", cells.len());
        }
        return print(&report(&sweep, &directory, &rows)?);
    }
    let _lock = directory.claim()?;
    directory.check(&cells)?;
    directory.describe(&sweep)?;
    let (rows, failures) = train_all(&sweep, &directory, &cells, jobs(arguments))?;
    let answer = report(&sweep, &directory, &rows)?;
    if failures.is_empty() {
        return print(&answer);
    }
    let list: String = failures.iter().map(|(cell, reason)| format!("\n{cell}: {reason}")).collect();
    Err(Failure::run_with_help(
        format!("{} of {} cells failed:{list}", failures.len(), cells.len()),
        format!("the same command tries them again; the finished cells are in {}", directory.file("table.txt").display()),
    ))
}

/// `steadfast sweep-cell`: trains a cell to its end, but not past the end of the sweep.
pub fn cell(run: PathBuf) -> Result<()> {
    execute::end_with_parent();
    train::run(&TrainArgs { resume: Some(run), ..Default::default() })
}

fn jobs(arguments: &SweepArgs) -> usize {
    arguments.jobs.map_or_else(|| std::thread::available_parallelism().map_or(1, usize::from), usize::from)
}

fn list(directory: &SweepDirectory, cells: &[Cell]) -> Result<()> {
    let state = |cell: &Cell| {
        let run = directory.cell(cell);
        match (run.is_finished(), run.file("config.toml").is_file()) {
            (true, _) => "finished",
            (false, true) => "begun",
            (false, false) => "new",
        }
    };
    let rows: Vec<Vec<String>> = cells.iter().map(|c| vec![c.name.clone(), state(c).to_string()]).collect();
    print(&format!("{}\n{} cells, all valid\n", table(&["cell", "state"], &rows), cells.len()))
}

/// The outcomes of the cells, in their order; nothing for those that are not finished.
fn finished(directory: &SweepDirectory, cells: &[Cell]) -> Result<Vec<Option<Row>>> {
    cells.iter().map(|cell| Row::read(&directory.cell(cell), cell)).collect()
}

/// A cell that failed, and why.
type CellFailure = (String, String);

fn train_all(sweep: &Sweep, directory: &SweepDirectory, cells: &[Cell], jobs: usize) -> Result<(Vec<Option<Row>>, Vec<CellFailure>)> {
    let mut rows = finished(directory, cells)?;
    let pending: Vec<&Cell> = cells.iter().zip(&rows).filter(|(_, row)| row.is_none()).map(|(cell, _)| cell).collect();
    let done = cells.len() - pending.len();
    if !pending.is_empty() {
        info!(sweep = %directory.path().display(), cells = cells.len(), finished = done, jobs, "sweeping; the same command continues a stopped sweep");
    }
    let mut line = CellLine::new(cells.len(), done);
    let mut failures = Vec::new();
    let mut is_first = true;
    execute::run(directory, &pending, jobs, |cell, outcome| {
        let word = if outcome.is_ok() { "finished" } else { "failed" };
        if let Err(reason) = outcome {
            warn!(cell = cell.name, "{reason}");
            failures.push((cell.name.clone(), reason));
        } else if let Some(index) = cells.iter().position(|c| c.name == cell.name) {
            rows[index] = Row::read(&directory.cell(cell), cell)?;
            let known = outcomes(&sweep.config, &rows);
            write_whole(&directory.file("results.csv"), &csv(&axes(&sweep.config), &known))?;
            // Better to learn of a wrong name now than after the last cell.
            if std::mem::take(&mut is_first)
                && let Err(failure) = check_columns(sweep, &known)
            {
                warn!("the sweep goes on, but its report will fail until this is corrected:\n{}", failure.render(false, 100));
            }
        }
        line.advance(&cell.name, word);
        Ok(())
    })?;
    line.finish();
    failures.sort();
    Ok((rows, failures))
}

fn axes(config: &SweepConfig) -> Vec<&str> {
    config.axis.iter().map(|a| a.name.get_ref().as_str()).collect()
}

/// The rows of finished cells with all columns.
fn outcomes(config: &SweepConfig, rows: &[Option<Row>]) -> Vec<Row> {
    let mut rows: Vec<Row> = rows.iter().flatten().cloned().collect();
    if let Some(normalise) = &config.normalise {
        analysis::normalise(config, normalise, &mut rows);
    }
    rows
}

/// Writes tables and pictures; returns what is printed.
fn report(sweep: &Sweep, directory: &SweepDirectory, rows: &[Option<Row>]) -> Result<String> {
    let config = &sweep.config;
    let mut rows = outcomes(config, rows);
    let axes = axes(config);
    let results = directory.file("results.csv");
    write_whole(&results, &csv(&axes, &rows))?;
    check_columns(sweep, &rows)?;
    let mut written = vec![results];
    if let Some(select) = &config.select {
        let selected = analysis::select(config, select, &rows);
        written.push(directory.file("selected.csv"));
        write_whole(&directory.file("selected.csv"), &csv(&axes, &selected))?;
        rows.extend(selected);
    }
    let text = summary_table(config, &rows);
    write_whole(&directory.file("table.txt"), text.as_bytes())?;
    for figure in picture::figures(config) {
        let drawn = picture::figure(config, &figure, &rows);
        for extension in ["svg", "png"] {
            let path = directory.file("plots").join(format!("{}.{extension}", figure.name.get_ref()));
            save(&drawn, &path)?;
            written.push(path);
        }
    }
    let written: String = written.iter().map(|p| format!("{}\n", p.display())).collect();
    Ok(format!("{text}\n{written}"))
}

/// Makes sure that every column that the sweep names exists once there are results.
fn check_columns(sweep: &Sweep, rows: &[Row]) -> Result<()> {
    let config = &sweep.config;
    let known = columns(rows);
    let derived = config.normalise.as_ref().map(|n| n.column());
    let named = (config.metrics.iter())
        .chain(config.figure.iter().flat_map(|f| &f.metrics))
        .chain(config.select.iter().map(|s| &s.by))
        .chain(config.normalise.iter().flat_map(|n| [&n.metric, &n.zero]));
    let is_missing = |word: &&Word| !known.contains(&word.get_ref().as_str()) && derived.as_ref() != Some(word.get_ref());
    match named.into_iter().find(is_missing) {
        Some(word) if !rows.is_empty() => Err(sweep.mistake(word.span(), Problem::unknown("column", word.get_ref(), &known))),
        _ => Ok(()),
    }
}

/// Means over seeds with 95 % intervals, and differences to what is compared with.
fn summary_table(config: &SweepConfig, rows: &[Row]) -> String {
    let groups = analysis::groups(config, rows);
    let minus = config.compare.as_ref().map(|c| format!("minus {}", c.to.get_ref()));
    let mut header = axes(config);
    let left = header.len();
    header.push("seeds");
    for metric in &config.metrics {
        header.push(metric.get_ref());
        header.extend(minus.as_deref());
    }
    let lines: Vec<Vec<String>> = groups
        .iter()
        .map(|group| {
            let mut cells: Vec<String> = group.labels.iter().map(ToString::to_string).collect();
            cells.push(group.rows.len().to_string());
            for metric in &config.metrics {
                cells.push(interval(group.summary(metric.get_ref())));
                if minus.is_some() {
                    let other = analysis::counterpart(config, &groups, group);
                    cells.push(interval(other.and_then(|other| group.difference(other, metric.get_ref()))));
                }
            }
            cells
        })
        .collect();
    let mut text = table_of(left, &header, &lines);
    text.push_str("\nMean over seeds ± half width of its 95 % t interval");
    text.push_str(if minus.is_some() { "; differences are paired by seed.\n" } else { ".\n" });
    if let Some(select) = &config.select {
        text.push_str(&format!("Selected: the setting with the best {} of each seed; selected.csv says which.\n", select.by.get_ref()));
    }
    text
}

fn interval(summary: Option<Summary>) -> String {
    match summary {
        None => "-".to_string(),
        Some(s) if s.half_width.is_finite() => format!("{:.3} ± {:.3}", s.mean, s.half_width),
        Some(s) => format!("{:.3}", s.mean),
    }
}
