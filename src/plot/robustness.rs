//! Return against the strength of a perturbation.

use std::collections::{BTreeMap, BTreeSet};

use steadfast_envs::ActMode;

use super::figure::{Panel, Point, Series};
use super::stats::Summary;
use super::table::{Column, Group, RunData, environments, groups};
use crate::failure::{Failure, Result};
use crate::run::results::{EvalRow, Source};

/// How episodes were played. Values are comparable only if they agree in this.
type Episodes = (ActMode, u64, usize);

/// One panel per perturbation that the runs were evaluated under, with one line per experiment.
///
/// A run shows its newest evaluated policy, and a panel shows one way of playing episodes: that of the sweeps at the end
/// of training if there are any, else the most frequent one.
///
/// # Errors
/// [`Failure::Usage`] if the metric is unknown or no run was evaluated under a perturbation.
pub fn panels(runs: &[RunData], metric: &str) -> Result<Vec<Panel>> {
    let Some(column) = Column::find(runs, metric) else {
        return Err(Failure::usage(
            format!("`{metric}` cannot be drawn against a perturbation"),
            crate::config::report::suggest(metric, &Column::names(runs)),
        ));
    };
    let groups = groups(runs);
    for Group { label, members } in &groups {
        let steps: BTreeSet<u64> = members.iter().filter_map(|run| newest_rows(run).next()).map(|r| r.step).collect();
        if steps.len() > 1 {
            tracing::warn!("runs of {label} were evaluated after different numbers of steps: {steps:?}");
        }
    }
    let counted = || groups.iter().flat_map(|g| &g.members).flat_map(|run| newest_rows(run));
    let mut axes: Vec<(&str, &str)> = Vec::new();
    for row in counted() {
        let axis = (row.perturbation.as_str(), row.settings.as_str());
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
    let draw = |&(perturbation, settings): &(&str, &str)| {
        let is_here = |r: &EvalRow| r.perturbation == perturbation && r.settings == settings;
        let episodes = prevailing(counted().filter(|r| is_here(r)));
        let mut most_runs = 0;
        let series = groups
            .iter()
            .filter_map(|Group { label, members }| {
                let here = |run| newest_rows(run).filter(|r| is_here(r) && Some(played(r)) == episodes);
                let curves: Vec<_> = members.iter().map(|run| levels(here(run), &column)).filter(|c| !c.is_empty()).collect();
                most_runs = most_runs.max(curves.len());
                let label = if curves.len() > 1 { format!("{label} ({} runs)", curves.len()) } else { label.clone() };
                (!curves.is_empty()).then(|| Series { label, points: points(&curves) })
            })
            .collect();
        let (x_label, others) = axis_label(perturbation, settings);
        let note = match most_runs {
            2.. => "mean over runs, band: 95 % interval over runs",
            _ if column.has_interval => "same episodes at every level, band: 95 % interval over episodes",
            _ => "same episodes at every level",
        };
        Panel {
            title: format!("Robustness: {}", environments(runs)),
            note: if others.is_empty() { note.to_string() } else { shortened(&format!("{others}; {note}"), 130) },
            x_label: shortened(&x_label, 85),
            y_label: column.label.clone(),
            series,
        }
    };
    Ok(axes.iter().map(draw).collect())
}

/// Evaluations of the newest policy of a run that was evaluated outside training.
fn newest_rows(run: &RunData) -> impl Iterator<Item = &EvalRow> {
    let outside = || run.evaluations.iter().filter(|r| r.source != Source::Train);
    let newest = outside().map(|r| r.step).max();
    outside().filter(move |r| Some(r.step) == newest)
}

fn played(row: &EvalRow) -> Episodes {
    (row.mode, row.seed, row.episodes)
}

/// How most of the rows were played, those at the end of training first.
fn prevailing<'a>(rows: impl Iterator<Item = &'a EvalRow>) -> Option<Episodes> {
    let mut found: Vec<(Episodes, (usize, usize))> = Vec::new();
    for row in rows {
        let counts = (usize::from(row.source == Source::Final), 1);
        match found.iter_mut().find(|(episodes, _)| *episodes == played(row)) {
            Some((_, sums)) => *sums = (sums.0 + counts.0, sums.1 + counts.1),
            None => found.push((played(row), counts)),
        }
    }
    found.into_iter().max_by_key(|(_, counts)| *counts).map(|(episodes, _)| episodes)
}

/// A level as a key whose order is that of the numbers.
fn key(level: f64) -> i64 {
    // Both zeros become one; of negative numbers all bits but the sign are turned.
    let bits = (level + 0.0).to_bits() as i64;
    bits ^ (((bits >> 63) as u64) >> 1) as i64
}

/// The level of a key.
fn level(key: i64) -> f64 {
    f64::from_bits((key ^ (((key >> 63) as u64) >> 1) as i64) as u64)
}

/// Value and half width by level ([`key`]). Of several
/// evaluations of one level that at the end of training counts, else the last.
fn levels<'a>(rows: impl Iterator<Item = &'a EvalRow>, column: &Column) -> BTreeMap<i64, (f64, f64)> {
    let mut rows: Vec<&EvalRow> = rows.collect();
    rows.sort_by_key(|r| r.source == Source::Final);
    rows.into_iter().filter_map(|r| Some((key(r.level), column.value(r)?))).collect()
}

fn points(curves: &[BTreeMap<i64, (f64, f64)>]) -> Vec<Point> {
    let mut found = Vec::new();
    for (&at, &first) in &curves[0] {
        let values: Vec<f64> = curves.iter().filter_map(|c| c.get(&at).map(|v| v.0)).collect();
        let x = level(at);
        match (curves.len(), Summary::of(&values)) {
            (1, _) => found.push(Point { x, y: first.0, half_width: first.1 }),
            (n, Some(s)) if s.n == n => found.push(Point { x, y: s.mean, half_width: s.half_width }),
            _ => {}
        }
    }
    found
}

/// What the strength of the perturbation called `name` is; the name itself if it is not known.
pub fn quantity(name: &str) -> &str {
    match name {
        "observation_noise" => "observation noise, magnitude in units of the feature",
        "observation_bias" => "size of the offset, in units of the feature",
        "observation_dropout" => "probability that a feature is missing",
        "observation_delay" => "age of observations (steps)",
        "communication_noise" => "magnitude of the noise on messages",
        "malicious_action" => "probability that an action is replaced",
        "actuator_loss" => "share of the action that is lost",
        "dynamics" => "relative change of a physical constant",
        "reward_noise" => "magnitude of the noise on rewards",
        other => other,
    }
}

/// What the axis shows, and the perturbations that are the same at every level.
fn axis_label(perturbation: &str, settings: &str) -> (String, String) {
    let names: Vec<&str> = perturbation.split('+').collect();
    let read: Option<toml::Table> = format!("settings = {settings}").parse().ok();
    let tables: Vec<String> = match read.as_ref().and_then(|t| t.get("settings")) {
        Some(toml::Value::Array(items)) => items.iter().map(in_words).collect(),
        Some(one) => vec![in_words(one)],
        None => Vec::new(),
    };
    let with_settings = |i: usize, name: &str| match tables.get(i).map(String::as_str) {
        None | Some("") => name.to_string(),
        Some(inner) => format!("{name} ({inner})"),
    };
    let others: Vec<String> = names.iter().enumerate().skip(1).map(|(i, name)| with_settings(i, &name.replace('_', " "))).collect();
    let others = if others.is_empty() { String::new() } else { format!("together with {}", others.join(" and ")) };
    (with_settings(0, quantity(names[0])), others)
}

/// `key = value, key = value`.
fn in_words(settings: &toml::Value) -> String {
    settings.to_string().trim_matches(['{', '}', ' ']).replace('"', "")
}

/// Cut off where a panel has no more room.
fn shortened(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        None => text.to_string(),
        Some((end, _)) => format!("{}…", text[..end].trim_end()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plot::table::example;

    fn row(source: Source, step: u64, level: f64, value: f64) -> EvalRow {
        EvalRow { source, step, level, return_agent_mean: value, ..EvalRow::example() }
    }

    #[test]
    fn levels_below_zero_come_first() {
        let levels = [-2.0, -0.5, 0.0, 1e-9, 0.3, 4.0];
        assert!(levels.windows(2).all(|w| key(w[0]) < key(w[1])));
        assert_eq!(levels.map(|l| level(key(l))), levels);
        assert_eq!(key(-0.0), key(0.0));
    }

    #[test]
    fn levels_without_all_runs_are_left_out() {
        let at = |levels: &[(f64, f64)]| levels.iter().map(|(l, v)| (key(*l), (*v, 0.1))).collect::<BTreeMap<_, _>>();
        let points = points(&[at(&[(0.0, 1.0), (0.5, 2.0)]), at(&[(0.0, 3.0)])]);
        assert_eq!(points.len(), 1);
        assert_eq!((points[0].x, points[0].y), (0.0, 2.0));
    }

    #[test]
    fn evaluations_of_other_policies_and_other_episodes_are_left_out() {
        let mut run = example("a", 0);
        let sweep = row(Source::Final, 100, 0.5, 1.0);
        run.evaluations = vec![
            sweep.clone(),
            row(Source::Eval, 100, 0.5, 2.0),
            row(Source::Eval, 50, 0.6, 3.0),
            EvalRow { mode: ActMode::Sample, ..row(Source::Eval, 100, 0.7, 4.0) },
            EvalRow { seed: 9, ..row(Source::Eval, 100, 0.8, 5.0) },
            EvalRow { episodes: 7, ..row(Source::Eval, 100, 0.9, 6.0) },
            row(Source::Eval, 100, 1.0, 7.0),
        ];
        let panels = panels(&[run], "return_agent_mean").unwrap();
        let points: Vec<(f64, f64)> = panels[0].series[0].points.iter().map(|p| (p.x, p.y)).collect();
        assert_eq!(points, [(0.5, 1.0), (1.0, 7.0)]);
    }

    #[test]
    fn axes_are_named_with_their_law() {
        assert_eq!(
            axis_label("observation_noise", "{ law = \"gaussian\" }"),
            ("observation noise, magnitude in units of the feature (law = gaussian)".to_string(), String::new())
        );
        assert_eq!(
            axis_label("malicious_action+observation_noise", "[{}, { law = \"sign\", magnitude = 0.5 }]"),
            (
                "probability that an action is replaced".to_string(),
                "together with observation noise (law = sign, magnitude = 0.5)".to_string()
            )
        );
    }
}
