//! Return against the strength of a perturbation.

use std::collections::BTreeMap;

use super::figure::{Panel, Point, Series};
use super::stats::Summary;
use super::table::{COLUMNS, RunData, by_name, environments};
use crate::failure::{Failure, Result};
use crate::run::results::{EvalRow, Source};

/// One panel per perturbation that the runs were evaluated under, with one line per experiment.
///
/// # Errors
/// [`Failure::Usage`] if the metric is unknown or no run was evaluated under a perturbation.
pub fn panels(runs: &[RunData], metric: &str) -> Result<Vec<Panel>> {
    let Some((_, label, value)) = COLUMNS.iter().find(|(name, ..)| *name == metric) else {
        let known: Vec<&str> = COLUMNS.iter().map(|(name, ..)| *name).collect();
        return Err(Failure::usage(
            format!("`{metric}` cannot be drawn against a perturbation"),
            crate::config::report::suggest(metric, &known),
        ));
    };
    let mut axes: Vec<(String, String)> = Vec::new();
    for row in runs.iter().flat_map(sweep_rows) {
        let axis = (row.perturbation.clone(), row.settings.clone());
        if row.perturbation != "none" && !axes.contains(&axis) {
            axes.push(axis);
        }
    }
    if axes.is_empty() {
        return Err(Failure::usage(
            "no run was evaluated under a perturbation",
            "add `[[robustness]]` to the configuration, or use `steadfast eval RUN --observation-noise 0.1`",
        ));
    }
    Ok(axes
        .iter()
        .map(|(perturbation, settings)| {
            let mut most_runs = 0;
            let series = by_name(runs)
                .into_iter()
                .filter_map(|(name, members)| {
                    let curves: Vec<BTreeMap<u64, (f64, f64)>> =
                        members.iter().map(|run| levels(run, perturbation, settings, *value)).filter(|curve| !curve.is_empty()).collect();
                    most_runs = most_runs.max(curves.len());
                    let label = if curves.len() > 1 { format!("{name} ({} runs)", curves.len()) } else { name.to_string() };
                    (!curves.is_empty()).then(|| Series { label, points: points(&curves) })
                })
                .collect();
            Panel {
                title: format!("Robustness: {}", environments(runs)),
                note: match most_runs {
                    2.. => "mean over runs, band: 95 % interval over runs".to_string(),
                    _ => "same episodes at every level, band: 95 % interval over episodes".to_string(),
                },
                x_label: axis_label(perturbation, settings),
                y_label: (*label).to_string(),
                series,
            }
        })
        .collect())
}

fn sweep_rows(run: &RunData) -> impl Iterator<Item = &EvalRow> {
    run.evaluations.iter().filter(|r| r.source != Source::Train)
}

/// Value and half width by level. Levels are keyed by their bits, whose order is that of numbers from 0 on; of several
/// evaluations of one level the last counts.
fn levels(run: &RunData, perturbation: &str, settings: &str, value: fn(&EvalRow) -> (f64, f64)) -> BTreeMap<u64, (f64, f64)> {
    let rows = sweep_rows(run).filter(|r| r.perturbation == perturbation && r.settings == settings);
    rows.map(|r| (r.level.max(0.0).to_bits(), value(r))).collect()
}

fn points(curves: &[BTreeMap<u64, (f64, f64)>]) -> Vec<Point> {
    let mut found = Vec::new();
    for (&level, &first) in &curves[0] {
        let values: Vec<f64> = curves.iter().filter_map(|c| c.get(&level).map(|v| v.0)).collect();
        let x = f64::from_bits(level);
        match (curves.len(), Summary::of(&values)) {
            (1, _) => found.push(Point { x, y: first.0, half_width: first.1 }),
            (n, Some(s)) if s.n == n => found.push(Point { x, y: s.mean, half_width: s.half_width }),
            _ => {}
        }
    }
    found
}

fn axis_label(perturbation: &str, settings: &str) -> String {
    let inner = settings.trim_matches(['{', '}', ' ']).replace('"', "");
    let quantity = match perturbation {
        "observation_noise" => "observation noise, magnitude in units of the feature",
        "malicious_action" => "probability that an action is replaced",
        other => other,
    };
    if inner.is_empty() { quantity.to_string() } else { format!("{quantity} ({inner})") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_without_all_runs_are_left_out() {
        let at = |levels: &[(f64, f64)]| levels.iter().map(|(l, v)| (l.to_bits(), (*v, 0.1))).collect::<BTreeMap<_, _>>();
        let points = points(&[at(&[(0.0, 1.0), (0.5, 2.0)]), at(&[(0.0, 3.0)])]);
        assert_eq!(points.len(), 1);
        assert_eq!((points[0].x, points[0].y), (0.0, 2.0));
    }

    #[test]
    fn axes_are_named_with_their_law() {
        assert_eq!(
            axis_label("observation_noise", "{ law = \"gaussian\" }"),
            "observation noise, magnitude in units of the feature (law = gaussian)"
        );
    }
}
