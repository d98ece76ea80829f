//! Pictures of a sweep, from its outcomes.

use std::collections::BTreeMap;

use super::analysis::{self, belongs, fits};
use super::outcome::{Evaluation, Row};
use crate::config::sweep::{ANY, Cell, FigureConfig, PathConfig, SweepConfig, Word};
use crate::failure::{Failure, Result};
use crate::plot::figure::checked_size;
use crate::plot::path::{PathFigure, PathPanel};
use crate::plot::sweep::{CategoryFigure, CategoryPanel};

/// The pictures of categories that a sweep asks for: one of its first two axes if it names no picture at all.
pub fn figures(config: &SweepConfig) -> Vec<FigureConfig> {
    if !config.figure.is_empty() || !config.path.is_empty() {
        return config.figure.clone();
    }
    let word = |text: &str| Word::new(0..0, text.to_string());
    let axis = |i: usize| config.axis.get(i).map(|a| word(a.name.get_ref()));
    let figure =
        |x| FigureConfig { name: word("outcome"), title: String::new(), metrics: Vec::new(), x, series: axis(1), only: Vec::new() };
    axis(0).map(figure).into_iter().collect()
}

/// Fills a picture with the outcomes.
pub fn figure(config: &SweepConfig, figure: &FigureConfig, rows: &[Row]) -> CategoryFigure {
    let index = |name: &Word| config.axis(name.get_ref()).map(|(i, _)| i);
    let x = index(&figure.x).expect("the axes of figures are checked when the sweep is read");
    let series_axis = figure.series.as_ref().and_then(index);
    let present = |axis: usize| present(config, rows, axis);
    let categories = present(x);
    let series = series_labels(series_axis, &figure.only, &present);
    let mut panels = Vec::new();
    let metrics = if figure.metrics.is_empty() { &config.metrics } else { &figure.metrics };
    for metric in metrics {
        for fixed in combinations(config, &present, &[Some(x), series_axis]) {
            let labels: Vec<&str> = fixed.iter().map(String::as_str).collect();
            let of_panel: Vec<&Row> = rows.iter().filter(|r| belongs(&r.labels, &labels)).collect();
            let value = |r: &Row| r.values.get(metric.get_ref()).copied();
            let by_category = |rows: Vec<&Row>| -> Vec<Vec<f64>> {
                categories.iter().map(|c| of_label(&rows, x, c).into_iter().filter_map(value).collect()).collect()
            };
            let values: Vec<Vec<Vec<f64>>> = match series_axis {
                Some(axis) => series.iter().map(|s| by_category(of_label(&of_panel, axis, s))).collect(),
                None => vec![by_category(of_panel)],
            };
            let is_empty = values.iter().flatten().all(|v: &Vec<f64>| v.is_empty());
            if !is_empty {
                let title = settings_in_words(config, &fixed, &[Some(x), series_axis]);
                panels.push(CategoryPanel { title, y_label: in_words(metric.get_ref()), values });
            }
        }
    }
    let counts = panels.iter().flat_map(|p| &p.values).flatten().map(Vec::len);
    CategoryFigure {
        title: figure.title.clone(),
        note: note(config, &series, counts, "dots"),
        x_label: in_words(figure.x.get_ref()),
        categories,
        // A single series needs no legend entry of another name than the quantity's.
        series: if series_axis.is_some() { series } else { vec!["all".to_string()] },
        panels,
    }
}

/// Fills a picture of paths with the evaluations during training. A path has the steps at which all of its seeds have both
/// numbers: a mean over other seeds at each of its points would leap.
pub fn path(config: &SweepConfig, path: &PathConfig, rows: &[Row]) -> PathFigure {
    let series_axis = path.series.as_ref().and_then(|name| config.axis(name.get_ref())).map(|(i, _)| i);
    let present = |axis: usize| present(config, rows, axis);
    let series = series_labels(series_axis, &path.only, &present);
    let mut panels = Vec::new();
    for fixed in combinations(config, &present, &[series_axis]) {
        let labels: Vec<&str> = fixed.iter().map(String::as_str).collect();
        let of_panel: Vec<&Row> = rows.iter().filter(|r| belongs(&r.labels, &labels)).collect();
        let seeds: Vec<Vec<Vec<(f64, f64)>>> = match series_axis {
            Some(axis) => series.iter().map(|s| paths_of(path, &of_label(&of_panel, axis, s))).collect(),
            None => vec![paths_of(path, &of_panel)],
        };
        if seeds.iter().flatten().any(|path| !path.is_empty()) {
            panels.push(PathPanel { title: settings_in_words(config, &fixed, &[series_axis]), seeds });
        }
    }
    let counts = panels.iter().flat_map(|p| &p.seeds).map(Vec::len);
    PathFigure {
        title: path.title.clone(),
        note: note(config, &series, counts, "thin lines"),
        x_label: in_words(path.x.get_ref()),
        y_label: in_words(path.y.get_ref()),
        series: if series_axis.is_some() { series } else { vec!["all".to_string()] },
        panels,
    }
}

/// The two columns along training, one path per row that has them; points of the same place are of the same step.
fn paths_of(path: &PathConfig, rows: &[&Row]) -> Vec<Vec<(f64, f64)>> {
    let of_row = |row: &&Row| -> BTreeMap<u64, (f64, f64)> {
        let point = |e: &Evaluation| Some((e.step, (e.value(path.x.get_ref())?, e.value(path.y.get_ref())?)));
        row.evaluations.iter().filter_map(point).collect()
    };
    let mut found: Vec<BTreeMap<u64, (f64, f64)>> = rows.iter().map(of_row).filter(|points| !points.is_empty()).collect();
    let common: Vec<u64> = match found.first() {
        Some(first) => first.keys().copied().filter(|step| found.iter().all(|points| points.contains_key(step))).collect(),
        None => Vec::new(),
    };
    found.iter_mut().for_each(|points| points.retain(|step, _| common.contains(step)));
    found.into_iter().map(|points| points.into_values().collect()).collect()
}

/// Labels of an axis that some row has.
fn present(config: &SweepConfig, rows: &[Row], axis: usize) -> Vec<String> {
    let labels = config.labels(&config.axis[axis]).into_iter();
    let labels: Vec<String> = labels.filter(|l| rows.iter().any(|r| r.labels[axis] == *l)).collect();
    if labels.is_empty() { vec![ANY.to_string()] } else { labels }
}

/// Names of the series: those of `only`, else all that are there; none without an axis.
fn series_labels(axis: Option<usize>, only: &[Word], present: &dyn Fn(usize) -> Vec<String>) -> Vec<String> {
    match axis {
        None => Vec::new(),
        Some(axis) if only.is_empty() => present(axis),
        Some(_) => only.iter().map(|label| label.get_ref().clone()).collect(),
    }
}

/// The labels of a panel, without those of the axes in `free`.
fn settings_in_words(config: &SweepConfig, fixed: &[String], free: &[Option<usize>]) -> String {
    let settings = config.axis.iter().zip(fixed).enumerate().filter(|(i, _)| !free.contains(&Some(*i)));
    settings.map(|(_, (axis, label))| format!("{} = {label}", axis.name)).collect::<Vec<_>>().join(", ")
}

/// What the marks of a picture are. `counts` are the numbers of seeds behind them, `single` is what shows a single seed.
fn note(config: &SweepConfig, series: &[String], counts: impl Iterator<Item = usize> + Clone, single: &str) -> String {
    let mut note = seeds_in_words(counts, single);
    if let Some(select) = config.select.as_ref().filter(|_| series.iter().any(|s| config.is_selected(s))) {
        note.push_str(&format!("; selected: best {} of each seed", in_words(select.by.get_ref())));
    }
    note
}

fn of_label<'a>(rows: &[&'a Row], axis: usize, label: &str) -> Vec<&'a Row> {
    rows.iter().filter(|r| fits(&r.labels[axis], label)).copied().collect()
}

/// What a marker is, by the numbers of seeds behind those that are drawn.
fn seeds_in_words(counts: impl Iterator<Item = usize> + Clone, single: &str) -> String {
    let counts = counts.filter(|&n| n > 0);
    let seeds = match (counts.clone().min().unwrap_or(0), counts.max().unwrap_or(0)) {
        (_, 0) => return "nothing is finished".to_string(),
        (1, 1) => return "one seed".to_string(),
        (low, high) if low == high => format!("{high} seeds"),
        (low, high) => format!("{low} to {high} seeds"),
    };
    format!("mean over {seeds}, bars: 95 % t interval, {single}: seeds")
}

/// Makes sure that the pictures can be drawn when all cells are finished.
///
/// # Errors
/// [`Failure::Usage`] naming a picture that would be too large.
pub fn check(config: &SweepConfig, cells: &[Cell]) -> Result<()> {
    let metrics = config.metrics.iter().chain(config.figure.iter().flat_map(|f| &f.metrics));
    let names = metrics.chain(config.select.iter().map(|s| &s.by)).chain(config.path.iter().flat_map(|p| [&p.x, &p.y]));
    let values: BTreeMap<String, f64> = names.map(|name| (name.get_ref().clone(), 0.0)).collect();
    // The size does not depend on the number of seeds.
    let of_first_seed = cells.iter().filter(|c| config.seeds.get_ref().first() == Some(&c.seed));
    let row = |c: &Cell| Row {
        labels: c.labels.clone(),
        seed: c.seed,
        values: values.clone(),
        evaluations: vec![Evaluation { step: 0, values: values.clone() }],
        ..Row::default()
    };
    let mut rows: Vec<Row> = of_first_seed.map(row).collect();
    if let Some(select) = &config.select {
        rows.extend(analysis::select(config, select, &rows));
    }
    for wanted in figures(config) {
        checked_size(&figure(config, &wanted, &rows)).map_err(|reason| {
            let help = "draw fewer labels, with `only` in its `[[figure]]`, or give another axis to `x`";
            Failure::usage(format!("the picture `{}` cannot be drawn: {reason}", wanted.name), help)
        })?;
    }
    for wanted in &config.path {
        checked_size(&path(config, wanted, &rows)).map_err(|reason| {
            let help = "draw fewer labels, with `only` in its `[[path]]`, or make another axis its `series`";
            Failure::usage(format!("the picture `{}` cannot be drawn: {reason}", wanted.name), help)
        })?;
    }
    Ok(())
}

/// Every combination of labels of the axes that are not in `free`; those have [`ANY`].
fn combinations(config: &SweepConfig, present: &dyn Fn(usize) -> Vec<String>, free: &[Option<usize>]) -> Vec<Vec<String>> {
    let mut found: Vec<Vec<String>> = vec![Vec::new()];
    for axis in 0..config.axis.len() {
        let labels = if free.contains(&Some(axis)) { vec![ANY.to_string()] } else { present(axis) };
        let longer = |begin: &Vec<String>| labels.iter().map(|l| [begin.as_slice(), std::slice::from_ref(l)].concat()).collect::<Vec<_>>();
        found = found.iter().flat_map(longer).collect();
    }
    found
}

/// A column's or an axis's name for readers.
fn in_words(name: &str) -> String {
    name.trim_start_matches("metric_").replace('_', " ")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::sweep::{Sweep, cells, parse};

    fn sweep(text: &str) -> Sweep {
        parse("test", text, Path::new("")).unwrap_or_else(|e| panic!("{}", e.render(false, 100)))
    }

    const SWEEP: &str = r#"
        name = "by-hand"
        base = "cartpole-ppo"
        seeds = [1, 2, 3]
        metrics = ["x", "y"]
        [[axis]]
        name = "noise"
        values = { none = [], much = [] }
        [[axis]]
        name = "method"
        values = { plain = [], best = { ignores = ["noise"] } }
    "#;

    #[test]
    fn markers_hold_the_values_of_their_labels_and_the_note_counts_them() {
        let config = sweep(SWEEP).config;
        let row = |noise: &str, method: &str, seed: u64, x: f64| Row {
            labels: vec![noise.to_string(), method.to_string()],
            seed,
            values: BTreeMap::from([("x".to_string(), x)]),
            ..Row::default()
        };
        let mut rows = vec![row("none", "plain", 1, 1.0), row("much", "plain", 1, 2.0), row("any", "best", 1, 3.0)];
        let drawn = |rows: &[Row]| figure(&config, &figures(&config)[0], rows);
        assert_eq!(drawn(&rows).note, "one seed");
        rows.push(row("none", "plain", 2, 4.0));
        assert_eq!(drawn(&rows).note, "mean over 1 to 2 seeds, bars: 95 % t interval, dots: seeds");
        rows.extend([row("much", "plain", 3, 5.0), row("any", "best", 3, 6.0)]);
        let whole = drawn(&rows);
        assert_eq!(whole.note, "mean over 2 seeds, bars: 95 % t interval, dots: seeds");
        assert_eq!((whole.categories, whole.series), (vec!["none".into(), "much".into()], vec!["plain".into(), "best".into()]));
        // No row has the column `y`.
        assert_eq!(whole.panels.len(), 1);
        let best = vec![vec![3.0, 6.0]; 2];
        assert_eq!(whole.panels[0].values, [vec![vec![1.0, 4.0], vec![2.0, 5.0]], best]);
        assert_eq!(drawn(&[]).note, "nothing is finished");
    }

    #[test]
    fn a_path_has_the_steps_that_all_of_its_seeds_have() {
        let text = format!("{SWEEP}\n[[path]]\nname = \"p\"\nx = \"kl\"\ny = \"gold\"\nseries = \"method\"\n");
        let config = sweep(&text).config;
        assert!(figures(&config).is_empty(), "a path takes the place of the picture that no one asked for");
        let row = |noise: &str, method: &str, seed: u64, points: &[(u64, f64)]| Row {
            labels: vec![noise.to_string(), method.to_string()],
            seed,
            evaluations: (points.iter())
                .map(|&(step, kl)| Evaluation { step, values: [("kl".to_string(), kl), ("gold".to_string(), 10.0 * kl)].into() })
                .collect(),
            ..Row::default()
        };
        let rows = [
            row("none", "plain", 1, &[(0, 0.0), (5, 1.0), (10, 2.0)]),
            row("none", "plain", 2, &[(0, 0.5), (5, f64::NAN), (10, 3.0), (15, 4.0)]),
            row("much", "plain", 1, &[(0, 0.0)]),
            row("any", "best", 1, &[(0, 0.0), (5, 7.0)]),
        ];
        let drawn = path(&config, &config.path[0], &rows);
        assert_eq!((drawn.x_label.as_str(), drawn.series), ("kl", vec!["plain".to_string(), "best".to_string()]));
        assert_eq!(drawn.note, "mean over 1 to 2 seeds, bars: 95 % t interval, thin lines: seeds");
        let titles: Vec<&str> = drawn.panels.iter().map(|p| p.title.as_str()).collect();
        assert_eq!(titles, ["noise = none", "noise = much"]);
        let best = vec![vec![(0.0, 0.0), (7.0, 70.0)]];
        assert_eq!(drawn.panels[0].seeds, [vec![vec![(0.0, 0.0), (2.0, 20.0)], vec![(0.5, 5.0), (3.0, 30.0)]], best.clone()]);
        assert_eq!(drawn.panels[1].seeds, [vec![vec![(0.0, 0.0)]], best]);
        // Without series every axis makes panels.
        let single = PathConfig { series: None, ..config.path[0].clone() };
        let drawn = path(&config, &single, &rows);
        assert_eq!((drawn.series, drawn.panels.len()), (vec!["all".to_string()], 4));
    }

    #[test]
    fn too_many_panels_are_refused_before_training() {
        let values = |n: usize| (0..n).map(|i| format!("a{i} = []")).collect::<Vec<_>>().join(", ");
        let text = |n: usize| format!("{SWEEP}\n[[axis]]\nname = \"third\"\nvalues = {{ {} }}\n", values(n)).replace("[1, 2, 3]", "[1]");
        let few = sweep(&text(2));
        check(&few.config, &cells(&few).unwrap()).unwrap();
        let many = sweep(&text(60));
        let message = check(&many.config, &cells(&many).unwrap()).unwrap_err().render(false, 100);
        assert!(message.contains("the picture `outcome` cannot be drawn") && message.contains("pixels large"), "{message}");
    }
}
