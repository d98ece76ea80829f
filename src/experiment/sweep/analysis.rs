//! What follows from the outcomes: values where another column has a given value, a column relative to a reference, the best setting of each family, means over seeds,
//! and differences between runs of equal seeds.

use std::collections::BTreeMap;

use super::outcome::Row;
use crate::config::sweep::{ANY, Best, Cell, NormaliseConfig, SELECTED, SelectConfig, SweepConfig, families};
use crate::plot::stats::Summary;

/// Whether two labels of one axis can stand for each other.
pub fn fits(a: &str, b: &str) -> bool {
    a == b || a == ANY || b == ANY
}

/// Whether the labels of a row are those of a combination.
pub fn belongs(own: &[String], labels: &[&str]) -> bool {
    own.iter().zip(labels).all(|(a, b)| fits(a, b))
}

/// Adds the normalised column to `rows`. A row gets none until all of its reference's cells are finished and have both
/// numbers: a mean over some of them would be another scale.
pub fn normalise(config: &SweepConfig, normalise: &NormaliseConfig, cells: &[Cell], rows: &mut [Row]) {
    let Some((axis, _)) = config.axis(normalise.axis.get_ref()) else { return };
    let (metric, zero, reference) = (normalise.metric.get_ref(), normalise.zero.get_ref(), normalise.value.get_ref());
    let mut added = Vec::new();
    for (i, row) in rows.iter().enumerate() {
        let Some(value) = row.values.get(metric) else { continue };
        let mut labels: Vec<&str> = row.labels.iter().map(String::as_str).collect();
        labels[axis] = reference;
        let is_reference =
            |own: &[String], seed: u64| own[axis] == *reference && belongs(own, &labels) && (!normalise.by_seed || seed == row.seed);
        let n = cells.iter().filter(|c| is_reference(&c.labels, c.seed)).count();
        let finished = rows.iter().filter(|r| is_reference(&r.labels, r.seed));
        let (low, high): (Vec<f64>, Vec<f64>) = finished.filter_map(|r| Some((*r.values.get(zero)?, *r.values.get(metric)?))).unzip();
        if low.len() < n {
            continue;
        }
        if let (Some(low), Some(high)) = (Summary::of(&low), Summary::of(&high)) {
            let fraction = (value - low.mean) / (high.mean - low.mean);
            if fraction.is_finite() {
                added.push((i, fraction));
            }
        }
    }
    let column = normalise.column();
    for (i, value) in added {
        rows[i].values.insert(column.clone(), value);
    }
}

/// Adds the columns of `[[interpolate]]` to the rows that reach the values.
pub fn interpolate(config: &SweepConfig, rows: &mut [Row]) {
    for wanted in &config.interpolate {
        let (column, along) = (wanted.column.get_ref(), wanted.along.get_ref());
        for row in rows.iter_mut() {
            let path: Vec<(f64, f64)> = row.evaluations.iter().filter_map(|e| Some((e.value(along)?, e.value(column)?))).collect();
            row.values.extend(wanted.columns().filter_map(|(name, at)| Some((name, at_first_crossing(&path, at)?))));
        }
    }
}

/// The second number where the first one is `at` for the first time, on straight lines between the points.
fn at_first_crossing(path: &[(f64, f64)], at: f64) -> Option<f64> {
    let (first, _) = path.first()?;
    // The first point that is not on the side where the path began.
    let end = path.iter().position(|(x, _)| if *first < at { *x >= at } else { *x <= at })?;
    let (x, y) = path[end];
    if x == at || end == 0 {
        return Some(y);
    }
    let (before_x, before_y) = path[end - 1];
    Some(before_y + (at - before_x) / (x - before_x) * (y - before_y))
}

/// One row per family, seed and combination of the other labels: the outcomes of the setting with the best `by`. Families
/// of which a setting is missing are left out, because the choice would not be the one that was asked for.
pub fn select(config: &SweepConfig, select: &SelectConfig, rows: &[Row]) -> Vec<Row> {
    let Some((axis, axis_config)) = config.axis(select.axis.get_ref()) else { return Vec::new() };
    let families = families(axis_config);
    let mut groups: Vec<(Vec<String>, u64, Vec<&Row>)> = Vec::new();
    for row in rows {
        let Some((family, _)) = families.iter().find(|(_, members)| members.contains(&row.labels[axis].as_str())) else { continue };
        let mut labels = row.labels.clone();
        labels[axis] = format!("{family} {SELECTED}");
        match groups.iter_mut().find(|(l, seed, _)| *l == labels && *seed == row.seed) {
            Some((_, _, members)) => members.push(row),
            None => groups.push((labels, row.seed, vec![row])),
        }
    }
    let mut found = Vec::new();
    for (labels, seed, members) in groups {
        let expected = families.iter().find(|(family, _)| labels[axis] == format!("{family} {SELECTED}")).map_or(0, |(_, m)| m.len());
        let skipped = skipped_members(config, axis, &labels, &families);
        let candidates: Vec<(f64, &Row)> = members.iter().filter_map(|row| Some((*row.values.get(select.by.get_ref())?, *row))).collect();
        if candidates.len() + skipped < expected {
            continue;
        }
        let is_better = |new: f64, old: f64| match select.best {
            Best::Highest => new > old,
            Best::Lowest => new < old,
        };
        let mut best: Option<(f64, &Row)> = None;
        for candidate in candidates {
            // Of equal ones the first in the file.
            if best.is_none_or(|old| is_better(candidate.0, old.0)) {
                best = Some(candidate);
            }
        }
        if let Some((_, row)) = best {
            found.push(Row { labels, seed, selected: Some(row.labels[axis].clone()), ..row.clone() });
        }
    }
    found
}

/// How many members of a family the `[[skip]]` rules leave out in this combination.
fn skipped_members(config: &SweepConfig, axis: usize, labels: &[String], families: &[(&str, Vec<&str>)]) -> usize {
    let Some((_, members)) = families.iter().find(|(family, _)| labels[axis] == format!("{family} {SELECTED}")) else { return 0 };
    let is_skipped = |member: &&&str| {
        let mut labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        labels[axis] = member;
        config.is_skipped(&labels)
    };
    members.iter().filter(is_skipped).count()
}

/// Runs that differ in their seeds only.
#[derive(Debug, Clone, PartialEq)]
pub struct Group<'a> {
    /// One label per axis.
    pub labels: Vec<&'a str>,
    /// One row per seed.
    pub rows: Vec<&'a Row>,
}

/// Groups of rows with equal labels, ordered by the labels in the order of the file; selected settings behind the others.
pub fn groups<'a>(config: &SweepConfig, rows: &'a [Row]) -> Vec<Group<'a>> {
    let orders: Vec<Vec<String>> = config.axis.iter().map(|axis| config.labels(axis)).collect();
    let mut found: BTreeMap<Vec<usize>, Group<'a>> = BTreeMap::new();
    for row in rows {
        let place = |(order, label): (&Vec<String>, &String)| order.iter().position(|l| l == label).unwrap_or(usize::MAX);
        let key = orders.iter().zip(&row.labels).map(place).collect();
        let labels = row.labels.iter().map(String::as_str).collect();
        found.entry(key).or_insert_with(|| Group { labels, rows: Vec::new() }).rows.push(row);
    }
    found.into_values().collect()
}

impl Group<'_> {
    /// Mean over seeds of a column with its 95 % interval.
    pub fn summary(&self, column: &str) -> Option<Summary> {
        Summary::of(&self.rows.iter().filter_map(|r| r.values.get(column).copied()).collect::<Vec<_>>())
    }

    /// Differences to `other` over the common seeds.
    pub fn differences(&self, other: &Group<'_>, column: &str) -> Vec<f64> {
        let of_seed = |row: &&Row| {
            let twin = other.rows.iter().find(|r| r.seed == row.seed)?;
            Some(row.values.get(column)? - twin.values.get(column)?)
        };
        self.rows.iter().filter_map(of_seed).collect()
    }
}

/// The group that `group` is compared with; nothing if it is that group itself, or if several fit.
pub fn counterpart<'a, 'b>(config: &SweepConfig, groups: &'a [Group<'b>], group: &Group<'b>) -> Option<&'a Group<'b>> {
    let compare = config.compare.as_ref()?;
    let (axis, _) = config.axis(compare.axis.get_ref())?;
    let to = compare.to.get_ref().as_str();
    if group.labels[axis] == to {
        return None;
    }
    let is_counterpart = |other: &&Group<'_>| {
        other
            .labels
            .iter()
            .zip(&group.labels)
            .enumerate()
            .all(|(i, (theirs, own))| if i == axis { *theirs == to } else { fits(theirs, own) })
    };
    let mut found = groups.iter().filter(is_counterpart);
    let first = found.next()?;
    found.next().is_none().then_some(first)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::outcome::Evaluation;
    use super::*;
    use crate::config::sweep::{Sweep, cells, parse};

    const SWEEP: &str = r#"
        name = "by-hand"
        base = "cartpole-ppo"
        seeds = [1, 2]
        compare = { axis = "method", to = "plain" }
        select = { axis = "method", by = "validation" }
        normalise = { axis = "method", value = "best" }
        [[axis]]
        name = "noise"
        values = { none = [], much = [] }
        [[axis]]
        name = "method"
        [axis.values]
        plain = []
        "r 0.5" = []
        "r 0.3" = []
        best = { set = [], ignores = ["noise"] }
    "#;

    fn sweep(text: &str) -> Sweep {
        parse("test", text, Path::new("")).unwrap_or_else(|e| panic!("{}", e.render(false, 100)))
    }

    fn row(noise: &str, method: &str, seed: u64, values: &[(&str, f64)]) -> Row {
        let values = values.iter().map(|(name, value)| ((*name).to_string(), *value)).collect();
        Row { labels: vec![noise.to_string(), method.to_string()], seed, values, ..Row::default() }
    }

    fn normalised(sweep: &Sweep, rows: &mut [Row]) -> Vec<Option<f64>> {
        let cells = cells(sweep).unwrap_or_else(|e| panic!("{}", e.render(false, 100)));
        normalise(&sweep.config, sweep.config.normalise.as_ref().unwrap(), &cells, rows);
        rows.iter().map(|r| r.values.get("return_agent_mean_normalised").copied()).collect()
    }

    fn returns(first: f64, last: f64) -> [(&'static str, f64); 2] {
        [("return_first", first), ("return_agent_mean", last)]
    }

    #[test]
    fn returns_are_normalised_by_the_reference_of_all_seeds() {
        let sweep = sweep(SWEEP);
        let mut rows = vec![
            row("none", "plain", 1, &returns(-99.0, 20.0)),
            row("much", "plain", 2, &returns(0.0, -10.0)),
            row("any", "best", 1, &returns(10.0, 40.0)),
            row("any", "best", 2, &returns(30.0, 60.0)),
            row("none", "r 0.3", 1, &[("length", 7.0)]),
        ];
        let found = normalised(&sweep, &mut rows);
        // Random is (10 + 30) / 2 = 20 and the reference (40 + 60) / 2 = 50.
        assert_eq!(found, [Some(0.0), Some(-1.0), Some(20.0 / 30.0), Some(40.0 / 30.0), None]);

        // Without one of its numbers, or a seed, the reference would be another one.
        rows.iter_mut().for_each(|r| r.values.retain(|name, _| name != "return_agent_mean_normalised"));
        let zero = rows[3].values.remove("return_first").unwrap();
        assert_eq!(normalised(&sweep, &mut rows), [None; 5]);
        rows[3].values.insert("return_first".to_string(), zero);
        let reference = rows.remove(3);
        assert_eq!(normalised(&sweep, &mut rows), [None; 4]);
        rows.push(reference);
        assert_eq!(normalised(&sweep, &mut rows)[0], Some(0.0));
    }

    #[test]
    fn returns_are_normalised_seed_by_seed_if_asked() {
        let sweep = sweep(&SWEEP.replace("value = \"best\"", "value = \"best\", by_seed = true"));
        let mut rows = vec![
            row("none", "plain", 1, &returns(0.0, 25.0)),
            row("none", "plain", 2, &returns(0.0, 60.0)),
            row("any", "best", 1, &returns(10.0, 40.0)),
            row("none", "r 0.3", 1, &returns(0.0, 10.0)),
        ];
        let found = normalised(&sweep, &mut rows);
        // The reference of seed 2 is not finished.
        assert_eq!(found, [Some(0.5), None, Some(1.0), Some(0.0)]);
    }

    #[test]
    fn the_reference_has_the_same_other_labels() {
        let text = SWEEP.replace("best = { set = [], ignores = [\"noise\"] }", "best = []").replace("[1, 2]", "[1]");
        let sweep = sweep(&text);
        let mut rows = vec![
            row("none", "plain", 1, &returns(0.0, 5.0)),
            row("much", "plain", 1, &returns(0.0, 5.0)),
            row("none", "best", 1, &returns(0.0, 10.0)),
            row("much", "best", 1, &returns(0.0, 20.0)),
        ];
        assert_eq!(normalised(&sweep, &mut rows), [0.5, 0.25, 1.0, 1.0].map(Some));
    }

    #[test]
    fn the_best_setting_is_selected_for_each_seed_and_noise() {
        let config = sweep(SWEEP).config;
        let by = |noise, method, seed, validation, test| row(noise, method, seed, &[("validation", validation), ("test", test)]);
        let rows = vec![
            by("none", "r 0.5", 1, 0.7, 1.0),
            by("none", "r 0.3", 1, 0.8, 2.0),
            by("none", "r 0.5", 2, 0.9, 3.0),
            by("none", "r 0.3", 2, 0.9, 4.0),
            // A setting of this family is not finished, so there is nothing to choose from.
            by("much", "r 0.5", 1, 0.9, 5.0),
            by("none", "plain", 1, 1.0, 6.0),
        ];
        let selected = select(&config, config.select.as_ref().unwrap(), &rows);
        let found: Vec<_> = selected.iter().map(|r| (r.labels.join(" "), r.seed, r.selected.as_deref(), r.values["test"])).collect();
        let label = "none r selected".to_string();
        assert_eq!(found, [(label.clone(), 1, Some("r 0.3"), 2.0), (label, 2, Some("r 0.5"), 3.0)]);

        let lowest = sweep(&SWEEP.replace("by = \"validation\"", "by = \"validation\", best = \"lowest\"")).config;
        let selected = select(&lowest, lowest.select.as_ref().unwrap(), &rows);
        assert_eq!(selected[0].selected.as_deref(), Some("r 0.5"));

        // What a rule leaves out is not waited for.
        let skipping = sweep(&format!("{SWEEP}\n[[skip]]\nnoise = [\"much\"]\nmethod = [\"r 0.3\"]\n")).config;
        let selected = select(&skipping, skipping.select.as_ref().unwrap(), &rows);
        assert_eq!(selected.iter().find(|r| r.labels[0] == "much").unwrap().selected.as_deref(), Some("r 0.5"));
    }

    #[test]
    fn values_are_interpolated_at_the_first_crossing() {
        let path = [(0.0, 1.0), (1.0, 3.0), (3.0, 7.0), (2.0, 0.0), (4.0, 2.0)];
        for (at, expected) in [
            (0.0, Some(1.0)),
            (0.25, Some(1.5)),
            (1.0, Some(3.0)),
            // Between the second and the third point, not on the way back.
            (2.0, Some(5.0)),
            (3.5, Some(1.5)),
            (4.0, Some(2.0)),
            (4.5, None),
            (-0.5, None),
        ] {
            assert_eq!(at_first_crossing(&path, at), expected, "{at}");
        }
        // Downwards, and along a path that stands still first.
        assert_eq!(at_first_crossing(&[(2.0, 0.0), (2.0, 1.0), (0.0, 3.0)], 1.0), Some(2.0));
        assert_eq!(at_first_crossing(&[], 1.0), None);
        assert_eq!(at_first_crossing(&[(1.0, 4.0)], 1.0), Some(4.0));
    }

    #[test]
    fn interpolated_columns_are_blank_where_the_value_is_never_reached() {
        let text = format!("{SWEEP}\n[[interpolate]]\ncolumn = \"gold\"\nalong = \"kl\"\nat = [0.5, 2]\n");
        let config = sweep(&text).config;
        let with = |points: &[(f64, f64)]| {
            let evaluation = |(i, (kl, gold)): (usize, &(f64, f64))| Evaluation {
                step: i as u64,
                values: [("kl".to_string(), *kl), ("gold".to_string(), *gold)].into(),
            };
            Row { evaluations: points.iter().enumerate().map(evaluation).collect(), ..row("none", "plain", 1, &[]) }
        };
        // What is no number is passed over.
        let mut rows = [with(&[(0.0, 1.0), (f64::NAN, 9.0), (1.0, 2.0)]), with(&[(0.0, 0.0), (4.0, 4.0)])];
        interpolate(&config, &mut rows);
        let of = |row: &Row, name: &str| row.values.get(name).copied();
        assert_eq!(of(&rows[0], "gold_at_kl_0.5"), Some(1.5));
        assert_eq!(of(&rows[0], "gold_at_kl_2"), None);
        assert_eq!(of(&rows[1], "gold_at_kl_0.5"), Some(0.5));
        assert_eq!(of(&rows[1], "gold_at_kl_2"), Some(2.0));
    }

    #[test]
    fn differences_are_paired_by_seed() {
        let config = sweep(SWEEP).config;
        let value = |noise, method, seed, x| row(noise, method, seed, &[("x", x)]);
        let rows = vec![
            value("none", "r 0.3", 1, 11.0),
            value("none", "r 0.3", 2, 23.0),
            value("none", "r 0.3", 9, 500.0),
            value("any", "best", 1, 7.0),
            value("none", "plain", 2, 20.0),
            value("none", "plain", 1, 10.0),
            value("much", "plain", 1, 0.0),
        ];
        let groups = groups(&config, &rows);
        let labels: Vec<String> = groups.iter().map(|g| g.labels.join(" ")).collect();
        assert_eq!(labels, ["none plain", "none r 0.3", "much plain", "any best"]);
        let other = counterpart(&config, &groups, &groups[1]).unwrap();
        assert_eq!(other.labels, ["none", "plain"]);
        let difference = Summary::of(&groups[1].differences(other, "x")).unwrap();
        // Differences 1 and 3: mean 2, standard error 1, and the quantile of one degree of freedom is 12.706.
        assert_eq!((difference.n, difference.mean), (2, 2.0));
        assert!((difference.half_width - 12.706).abs() < 1e-3);
        assert_eq!(counterpart(&config, &groups, &groups[0]), None);
        // There are two `plain` groups for what ignores the noise.
        assert_eq!(counterpart(&config, &groups, &groups[3]), None);
    }
}
