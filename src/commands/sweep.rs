//! `steadfast sweep`.

use std::path::PathBuf;

use tracing::{info, warn};

use super::{print, table, table_of, train};
use crate::cli::{SweepArgs, TrainArgs};
use crate::config::report::Problem;
use crate::config::sweep::{Cell, NormaliseConfig, Sweep, SweepConfig, Word, cells, read};
use crate::experiment::sweep::directory::SweepDirectory;
use crate::experiment::sweep::outcome::{Row, STEP, columns, csv};
use crate::experiment::sweep::program::{Program, mixture};
use crate::experiment::sweep::{analysis, execute, picture};
use crate::failure::{Failure, Result};
use crate::plot::figure::Drawing;
use crate::plot::save_both;
use crate::plot::stats::{Summary, bootstrap, plus_minus};
use crate::run::log::write_whole;
use crate::terminal::CellLine;

/// Trains what is not finished yet, and reports.
pub fn run(arguments: &SweepArgs) -> Result<()> {
    if !arguments.axis.is_empty() {
        return super::robustness::run(arguments);
    }
    if let Some(table) = arguments.sweep.iter().find(|path| super::robustness::is_table(path)) {
        if arguments.report_only {
            return super::robustness::report(arguments);
        }
        return Err(Failure::usage(format!("{table} is a table, nothing that can be trained"), "--report-only reports what it holds"));
    }
    for (option, is_given) in
        [("--baseline", arguments.baseline.is_some()), ("--metric", arguments.metric.is_some()), ("--format", arguments.format.is_some())]
    {
        if is_given {
            let help = "a sweep that trains says in its file what is compared: [compare] and metrics";
            return Err(Failure::usage(format!("{option} goes with --axis, or with tables and --report-only"), help));
        }
    }
    let [name] = arguments.sweep.as_slice() else {
        let message = format!("one sweep at a time, got {}", arguments.sweep.join(", "));
        return Err(Failure::usage(message, "to evaluate trained runs under perturbations add --axis observation_noise=0.1,0.2"));
    };
    let results = std::path::Path::new(name).join("results.csv");
    if arguments.report_only && results.is_file() && !std::path::Path::new(name).join("sweep.toml").exists() {
        let message = format!("{name} is no sweep that trains");
        return Err(Failure::usage(message, format!("its cells are reported by steadfast sweep {} --report-only", results.display())));
    }
    let sweep = read(name)?;
    let cells = cells(&sweep)?;
    picture::check(&sweep.config, &cells)?;
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
        return print(&report(&sweep, &directory, &cells, &rows)?);
    }
    let base = sweep.base()?;
    let _lock = directory.claim()?;
    directory.check(&cells)?;
    directory.describe(&sweep, &base)?;
    let (rows, failures) = train_all(&sweep, &directory, &cells, jobs(arguments))?;
    let answer = report(&sweep, &directory, &cells, &rows);
    if failures.is_empty() {
        return print(&answer?);
    }
    let list: String = failures.iter().map(|(cell, reason)| format!("\n{cell}: {reason}")).collect();
    let message = format!("{} of {} cells failed:{list}", failures.len(), cells.len());
    let table = directory.file("table.txt");
    Err(match answer {
        Ok(_) => {
            Failure::run_with_help(message, format!("the same command tries them again; the finished cells are in {}", table.display()))
        }
        Err(failure) => failure.during("there is no report of the finished cells").during(&message),
    })
}

/// `steadfast sweep-cell`: trains a cell to its end, but not past the end of the sweep.
pub fn cell(run: PathBuf) -> Result<()> {
    execute::end_with_parent();
    train::run(&TrainArgs { resume: Some(run), ..Default::default() })
}

/// Cells at once.
pub(super) fn jobs(arguments: &SweepArgs) -> usize {
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

/// Names of columns that follow from others. That no row has one is no mistake of the file.
fn derived(config: &SweepConfig) -> Vec<String> {
    let interpolated = config.interpolate.iter().flat_map(|i| i.columns().map(|(name, _)| name));
    interpolated.chain(config.normalise.as_ref().map(NormaliseConfig::column)).collect()
}

/// The outcomes of the cells, in their order; nothing for those that are not finished.
fn finished(directory: &SweepDirectory, cells: &[Cell]) -> Result<Vec<Option<Row>>> {
    let rows: Vec<Option<Row>> = cells.iter().map(|cell| Row::read(&directory.cell(cell), cell)).collect::<Result<_>>()?;
    let makers: Vec<&[Program]> = rows.iter().flatten().map(|row| row.makers.as_slice()).collect();
    if let Some(mixture) = mixture(&makers, &Program::own()) {
        warn!("{mixture}\nTheir numbers may differ; remove directories of cells to run them again");
    }
    Ok(rows)
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
            let known = outcomes(&sweep.config, cells, &rows);
            write_whole(&directory.file("results.csv"), &csv(&axes(&sweep.config), &known))?;
            // A wrong name is best noticed now, but another cell may have the column.
            let mut missing = missing_columns(&sweep.config, &known);
            missing.retain(|word| !derived(&sweep.config).contains(word.get_ref()));
            if std::mem::take(&mut is_first) && !missing.is_empty() {
                info!("not in the finished cells so far: {}", in_words(&missing));
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
fn outcomes(config: &SweepConfig, cells: &[Cell], rows: &[Option<Row>]) -> Vec<Row> {
    let mut rows: Vec<Row> = rows.iter().flatten().cloned().collect();
    analysis::interpolate(config, &mut rows);
    if let Some(normalise) = &config.normalise {
        analysis::normalise(config, normalise, cells, &mut rows);
    }
    rows
}

/// Writes tables and pictures; returns what is printed. A column that no cell has is a mistake once all cells are finished;
/// before that it is left out.
fn report(sweep: &Sweep, directory: &SweepDirectory, cells: &[Cell], rows: &[Option<Row>]) -> Result<String> {
    let config = &sweep.config;
    let is_complete = rows.iter().all(Option::is_some);
    let mut rows = outcomes(config, cells, rows);
    let axes = axes(config);
    let results = directory.file("results.csv");
    write_whole(&results, &csv(&axes, &rows))?;
    let missing = missing_columns(config, &rows);
    // A reference that did not learn anything gives no normalised column, and a value may never be reached.
    let derived = derived(config);
    if let Some(word) = missing.iter().find(|word| is_complete && !derived.contains(word.get_ref())) {
        return Err(sweep.mistake(word.span(), Problem::unknown("column", word.get_ref(), &columns(&rows))));
    }
    if !missing.is_empty() {
        warn!("no finished cell has these columns, which are left out: {}", in_words(&missing));
    }
    let mut written = vec![results];
    if let Some(select) = &config.select {
        let selected = analysis::select(config, select, &rows);
        written.push(directory.file("selected.csv"));
        write_whole(&directory.file("selected.csv"), &csv(&axes, &selected))?;
        rows.extend(selected);
    }
    let shown = SweepConfig {
        metrics: config.metrics.iter().filter(|m| !missing.iter().any(|word| word.get_ref() == m.get_ref())).cloned().collect(),
        ..config.clone()
    };
    let text = summary_table(&shown, &rows);
    write_whole(&directory.file("table.txt"), text.as_bytes())?;
    for figure in picture::figures(config) {
        draw(directory, &figure.name, &picture::figure(config, &figure, &rows), &mut written)?;
    }
    for path in &config.path {
        draw(directory, &path.name, &picture::path(config, path, &rows), &mut written)?;
    }
    let written: String = written.iter().map(|p| format!("{}\n", p.display())).collect();
    Ok(format!("{text}\n{written}"))
}

/// Draws a picture in both formats and notes the files.
fn draw<D: Drawing>(directory: &SweepDirectory, name: &Word, drawing: &D, written: &mut Vec<PathBuf>) -> Result<()> {
    written.extend(save_both(drawing, &directory.file("plots"), name.get_ref())?);
    Ok(())
}

/// The columns that the sweep names and no row has, each once; none if there are no rows.
fn missing_columns<'a>(config: &'a SweepConfig, rows: &[Row]) -> Vec<&'a Word> {
    let known = columns(rows);
    // Results have the columns of the last evaluation, which are those of all, but for the step.
    let paths = config.path.iter().flat_map(|p| [&p.x, &p.y]);
    let of_evaluations = paths.chain(config.interpolate.iter().flat_map(|i| [&i.column, &i.along])).filter(|word| word.get_ref() != STEP);
    let named = (config.metrics.iter())
        .chain(config.figure.iter().flat_map(|f| &f.metrics))
        .chain(config.select.iter().map(|s| &s.by))
        .chain(config.normalise.iter().flat_map(|n| [&n.metric, &n.zero]))
        .chain(of_evaluations);
    let mut missing: Vec<&Word> = Vec::new();
    for word in named {
        if !rows.is_empty() && !known.contains(&word.get_ref().as_str()) && !missing.iter().any(|m| m.get_ref() == word.get_ref()) {
            missing.push(word);
        }
    }
    missing
}

fn in_words(columns: &[&Word]) -> String {
    columns.iter().map(|word| word.get_ref().as_str()).collect::<Vec<_>>().join(", ")
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
                cells.push(plus_minus(group.summary(metric.get_ref())));
                if minus.is_some() {
                    let other = analysis::counterpart(config, &groups, group);
                    cells.push(other.map_or_else(|| plus_minus(None), |other| difference(&group.differences(other, metric.get_ref()))));
                }
            }
            cells
        })
        .collect();
    let mut text = table_of(left, &header, &lines);
    text.push_str("\nMean over seeds ± half width of its 95 % t interval");
    if minus.is_some() {
        text.push_str("; differences are paired by seed,\nfrom five seeds on with their 95 % bootstrap interval in brackets");
    }
    text.push_str(".\n");
    let normalised = config.normalise.as_ref().map(NormaliseConfig::column).filter(|c| config.metrics.iter().any(|m| m.get_ref() == c));
    if let Some(column) = normalised {
        text.push_str(&format!("Intervals of {column} take the reference's mean as given.\n"));
    }
    if let Some(select) = &config.select {
        text.push_str(&format!("Selected: the setting with the best {} of each seed; selected.csv says which.\n", select.by.get_ref()));
    }
    text
}

/// The mean of differences with both of its intervals.
fn difference(values: &[f64]) -> String {
    let text = plus_minus(Summary::of(values));
    match bootstrap(values) {
        Some((low, high)) => format!("{text} [{low:.3}, {high:.3}]"),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_has_both_intervals_from_five_seeds_on() {
        assert_eq!(difference(&[]), "-");
        assert_eq!(difference(&[1.0]), "1.000");
        assert_eq!(difference(&[1.0, 3.0]), "2.000 ± 12.706");
        let text = difference(&[1.0, 2.0, 3.0, 4.0, 5.0]);
        assert!(text.starts_with("3.000 ± 1.963 [1.") && text.ends_with(']'), "{text}");
    }
}
