//! Pictures of a sweep, from its outcomes.

use super::analysis::belongs;
use super::outcome::Row;
use crate::config::sweep::{ANY, FigureConfig, SweepConfig, Word};
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
            let values_of = |category: &String, series: Option<&String>| {
                let mut labels: Vec<&str> = fixed.iter().map(String::as_str).collect();
                labels[x] = category;
                if let (Some(axis), Some(series)) = (series_axis, series) {
                    labels[axis] = series;
                }
                rows.iter().filter(|r| belongs(r, &labels)).filter_map(|r| r.values.get(metric.get_ref()).copied()).collect()
            };
            let one = |s: Option<&String>| categories.iter().map(|c| values_of(c, s)).collect();
            let values: Vec<Vec<Vec<f64>>> = match series_axis {
                Some(_) => series.iter().map(|s| one(Some(s))).collect(),
                None => vec![one(None)],
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
    let mut note = match config.seeds.get_ref().len() {
        1 => "one seed".to_string(),
        n => format!("mean over {n} seeds, bars: 95 % t interval, dots: seeds"),
    };
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
