//! What follows from the outcomes: a column relative to a reference, the best setting of each family, means over seeds,
//! and differences between runs of equal seeds.

use std::collections::BTreeMap;

use super::outcome::Row;
use crate::config::sweep::{ANY, Best, NormaliseConfig, SELECTED, SelectConfig, SweepConfig, families};
use crate::plot::stats::Summary;

/// Whether two labels of one axis can stand for each other.
fn fits(a: &str, b: &str) -> bool {
    a == b || a == ANY || b == ANY
}

/// Whether a row belongs to a combination of labels.
pub fn belongs(row: &Row, labels: &[&str]) -> bool {
    row.labels.iter().zip(labels).all(|(a, b)| fits(a, b))
}

/// Adds the normalised column to `rows`. A row gets none while its reference is not finished.
pub fn normalise(config: &SweepConfig, normalise: &NormaliseConfig, rows: &mut [Row]) {
    let Some((axis, _)) = config.axis(normalise.axis.get_ref()) else { return };
    let (metric, zero, column) = (normalise.metric.get_ref(), normalise.zero.get_ref(), normalise.column());
    let mut added = Vec::new();
    for (i, row) in rows.iter().enumerate() {
        let mut labels: Vec<&str> = row.labels.iter().map(String::as_str).collect();
        labels[axis] = normalise.value.get_ref();
        let is_reference = |r: &&Row| r.labels[axis] == labels[axis] && belongs(r, &labels) && (!normalise.by_seed || r.seed == row.seed);
        let mean = |name: &str| {
            let values: Vec<f64> = rows.iter().filter(is_reference).filter_map(|r| r.values.get(name).copied()).collect();
            Summary::of(&values).map(|s| s.mean)
        };
        if let (Some(value), Some(low), Some(high)) = (row.values.get(metric), mean(zero), mean(metric)) {
            let fraction = (value - low) / (high - low);
            if fraction.is_finite() {
                added.push((i, fraction));
            }
        }
    }
    for (i, value) in added {
        rows[i].values.insert(column.clone(), value);
    }
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
            found.push(Row { labels, seed, selected: Some(row.labels[axis].clone()), values: row.values.clone() });
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

    /// Mean over the common seeds of the difference to `other` with its 95 % interval.
    pub fn difference(&self, other: &Group<'_>, column: &str) -> Option<Summary> {
        let of_seed = |row: &&Row| {
            let twin = other.rows.iter().find(|r| r.seed == row.seed)?;
            Some(row.values.get(column)? - twin.values.get(column)?)
        };
        Summary::of(&self.rows.iter().filter_map(of_seed).collect::<Vec<_>>())
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
