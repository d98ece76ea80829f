//! Learning curves.

use std::collections::BTreeMap;

use super::figure::{Panel, Point, Series};
use super::stats::Summary;
use super::table::{Column, FIXED, Group, RunData, environments, groups};
use crate::config::report::suggest;
use crate::failure::{Failure, Result};
use crate::run::results::Source;

/// A metric against the steps of training: a column of `eval.csv`, or any number in `metrics.jsonl`.
///
/// Runs that differ in their seeds only become one line with the mean over the runs at the steps that all of them have.
///
/// # Errors
/// [`Failure::Usage`] if no run has the metric.
pub fn panel(runs: &[RunData], metric: &str) -> Result<Panel> {
    let column = Column::find(runs, metric);
    let mut series = Vec::new();
    let mut most_runs = 0;
    for Group { label, members } in groups(runs) {
        let curves: Vec<Vec<Point>> = members
            .iter()
            .map(|run| match &column {
                Some(column) => from_evaluations(run, column),
                None => run
                    .metrics
                    .iter()
                    .filter_map(|row| Some(Point { x: row.step as f64, y: *row.values.get(metric)?, half_width: f64::INFINITY }))
                    .collect(),
            })
            .filter(|curve: &Vec<Point>| !curve.is_empty())
            .collect();
        most_runs = most_runs.max(curves.len());
        match curves.len() {
            0 => {}
            1 => series.push(Series { label, points: curves.into_iter().flatten().collect() }),
            n => series.push(Series { label: format!("{label} ({n} runs)"), points: mean_of(&curves) }),
        }
    }
    if series.is_empty() {
        return Err(unknown(runs, metric));
    }
    let note = match (&column, most_runs) {
        (_, 2..) => "mean over runs, band: 95 % interval over runs",
        (Some(column), _) if column.has_interval => "evaluation without perturbation, band: 95 % interval over episodes",
        (Some(_), _) => "evaluation without perturbation",
        (None, _) => "logged during training",
    };
    Ok(Panel {
        title: format!("Learning curve: {}", environments(runs)),
        note: note.to_string(),
        x_label: runs.first().map_or("steps", |run| run.config.step_unit()).to_string(),
        y_label: column.map_or_else(|| metric.to_string(), |column| column.label),
        series,
    })
}

fn from_evaluations(run: &RunData, column: &Column) -> Vec<Point> {
    let rows = run.evaluations.iter().filter(|r| r.source == Source::Train);
    rows.filter_map(|r| column.value(r).map(|(y, half_width)| Point { x: r.step as f64, y, half_width })).collect()
}

/// Mean and 95 % interval over curves, at the steps that all have.
fn mean_of(curves: &[Vec<Point>]) -> Vec<Point> {
    let mut at_step: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
    for point in curves.iter().flatten() {
        at_step.entry(point.x as u64).or_default().push(point.y);
    }
    let complete = at_step.into_iter().filter(|(_, values)| values.len() == curves.len());
    complete
        .filter_map(|(step, values)| {
            let summary = Summary::of(&values)?;
            Some(Point { x: step as f64, y: summary.mean, half_width: summary.half_width })
        })
        .collect()
}

fn unknown(runs: &[RunData], metric: &str) -> Failure {
    if FIXED.contains(&metric) {
        return Failure::usage(
            "the runs have no evaluations yet",
            "wait for the first one, or give --metric with a name from metrics.jsonl",
        );
    }
    let mut known = Column::names(runs);
    // Not every line has every number.
    known.extend(runs.iter().flat_map(|r| &r.metrics).flat_map(|row| row.values.keys().map(String::as_str)));
    known.sort_unstable();
    known.dedup();
    Failure::usage(format!("no run has the metric `{metric}`"), suggest(metric, &known))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plot::table::example;
    use crate::run::metrics::Row;

    fn run(name: &str, seed: u64, values: &[(u64, f64)]) -> RunData {
        let metrics = values.iter().map(|&(step, v)| Row { step, values: BTreeMap::from([("train/loss".to_string(), v)]) }).collect();
        RunData { metrics, ..example(name, seed) }
    }

    #[test]
    fn seeds_of_one_experiment_are_averaged_where_all_have_values() {
        let runs = [run("a", 0, &[(0, 1.0), (10, 2.0)]), run("a", 1, &[(0, 3.0)]), run("b", 0, &[(0, 5.0)])];
        let panel = panel(&runs, "train/loss").unwrap();
        assert_eq!(panel.series.len(), 2);
        assert_eq!(panel.series[0].points.len(), 1);
        assert_eq!(panel.series[0].points[0].y, 2.0);
        assert_eq!(panel.series[1].label, "b");
    }

    #[test]
    fn an_unknown_metric_is_answered_with_a_suggestion() {
        let text = panel(&[run("a", 0, &[(0, 1.0)])], "train/lss").unwrap_err().render(false, 100);
        assert!(text.contains("did you mean `train/loss`?"), "{text}");
    }
}
