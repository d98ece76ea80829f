//! Pictures of a sweep, from its outcomes.

use std::collections::BTreeMap;

use super::analysis::{self, belongs, fits};
use super::outcome::Row;
use crate::config::sweep::{ANY, Cell, FigureConfig, SweepConfig, Word};
use crate::failure::{Failure, Result};
use crate::plot::figure::checked_size;
use crate::plot::sweep::{CategoryFigure, CategoryPanel};

/// The pictures that a sweep asks for: one of its first two axes if it names none.
pub fn figures(config: &SweepConfig) -> Vec<FigureConfig> {
    if !config.figure.is_empty() {
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
    let present = |axis: usize| {
        let labels = config.labels(&config.axis[axis]).into_iter();
        let labels: Vec<String> = labels.filter(|l| rows.iter().any(|r| r.labels[axis] == *l)).collect();
        if labels.is_empty() { vec![ANY.to_string()] } else { labels }
    };
    let categories = present(x);
    let series = match series_axis {
        None => Vec::new(),
        Some(axis) if figure.only.is_empty() => present(axis),
        Some(_) => figure.only.iter().map(|label| label.get_ref().clone()).collect(),
    };
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
            let settings: Vec<String> = (config.axis.iter().zip(&fixed).enumerate())
                .filter(|(i, _)| *i != x && Some(*i) != series_axis)
                .map(|(_, (axis, label))| format!("{} = {label}", axis.name))
                .collect();
            if !is_empty {
                panels.push(CategoryPanel { title: settings.join(", "), y_label: in_words(metric.get_ref()), values });
            }
        }
    }
    let mut note = seeds_in_words(&panels);
    if let Some(select) = config.select.as_ref().filter(|_| series.iter().any(|s| config.is_selected(s))) {
        note.push_str(&format!("; selected: best {} of each seed", in_words(select.by.get_ref())));
    }
    CategoryFigure {
        title: figure.title.clone(),
        note,
        x_label: in_words(figure.x.get_ref()),
        categories,
        // A single series needs no legend entry of another name than the quantity's.
        series: if series_axis.is_some() { series } else { vec!["all".to_string()] },
        panels,
    }
}

fn of_label<'a>(rows: &[&'a Row], axis: usize, label: &str) -> Vec<&'a Row> {
    rows.iter().filter(|r| fits(&r.labels[axis], label)).copied().collect()
}

/// What a marker is, by the numbers of seeds behind those that are drawn.
fn seeds_in_words(panels: &[CategoryPanel]) -> String {
    let counts = || panels.iter().flat_map(|p| &p.values).flatten().map(Vec::len).filter(|&n| n > 0);
    let seeds = match (counts().min().unwrap_or(0), counts().max().unwrap_or(0)) {
        (_, 0) => return "nothing is finished".to_string(),
        (1, 1) => return "one seed".to_string(),
        (low, high) if low == high => format!("{high} seeds"),
        (low, high) => format!("{low} to {high} seeds"),
    };
    format!("mean over {seeds}, bars: 95 % t interval, dots: seeds")
}

/// Makes sure that the pictures can be drawn when all cells are finished.
///
/// # Errors
/// [`Failure::Usage`] naming a picture that would be too large.
pub fn check(config: &SweepConfig, cells: &[Cell]) -> Result<()> {
    let metrics = config.metrics.iter().chain(config.figure.iter().flat_map(|f| &f.metrics));
    let names = metrics.chain(config.select.iter().map(|s| &s.by));
    let values: BTreeMap<String, f64> = names.map(|name| (name.get_ref().clone(), 0.0)).collect();
    // The size does not depend on the number of seeds.
    let of_first_seed = cells.iter().filter(|c| config.seeds.get_ref().first() == Some(&c.seed));
    let row = |c: &Cell| Row { labels: c.labels.clone(), seed: c.seed, makers: Vec::new(), selected: None, values: values.clone() };
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

fn in_words(name: &str) -> String {
    name.replace('_', " ")
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
            makers: Vec::new(),
            selected: None,
            values: BTreeMap::from([("x".to_string(), x)]),
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
