//! Checks of a sweep that need no experiment.

use std::collections::BTreeMap;
use std::ops::Range;

use super::{ANY, AxisConfig, SELECTED, SweepConfig, Word, families, slug};
use crate::config::overrides::Override;
use crate::config::report::{Problem, suggest};

type Mistake = (Range<usize>, Problem);

/// Names of columns that an axis must not have.
const COLUMNS: [&str; 8] = ["seed", "commit", "selected", "length", "terminated", "return_first", "return_agent_mean", "return_team_sum"];

/// The first mistake.
pub fn check(config: &SweepConfig) -> Result<(), Mistake> {
    file_name(&config.name, "name")?;
    let seeds = config.seeds.get_ref();
    let at_seeds = |message: &str| Err((config.seeds.span(), Problem::new(message, "here").help("write `seeds = [1, 2, 3]`")));
    if seeds.is_empty() {
        return at_seeds("`seeds` must hold at least one seed");
    }
    if let Some(seed) = seeds.iter().enumerate().find(|(i, s)| seeds[..*i].contains(s)).map(|(_, s)| s) {
        return at_seeds(&format!("`seeds` holds {seed} twice"));
    }
    config.set.iter().try_for_each(change)?;
    if config.axis.is_empty() {
        return Err((0..0, Problem::new("a sweep needs at least one `[[axis]]`", "here")));
    }
    for (i, axis) in config.axis.iter().enumerate() {
        check_axis(config, i, axis)?;
    }
    for rule in &config.skip {
        for (name, labels) in &rule.entries {
            let axis = axis_of(config, name)?;
            let known: Vec<&str> = axis.labels().collect();
            labels.iter().try_for_each(|label| label_of(&known, axis, label))?;
        }
        if rule.entries.is_empty() {
            return Err((0..0, Problem::new("a `[[skip]]` without labels would leave out everything", "here")));
        }
    }
    if let Some(select) = &config.select {
        let axis = axis_of(config, &select.axis)?;
        check_families(axis, &select.axis)?;
    }
    // A selected setting can be compared with, but no reference: it is chosen after normalising.
    let shown = |axis: &AxisConfig, label: &Word| {
        let labels = config.labels(axis);
        label_of(&labels.iter().map(String::as_str).collect::<Vec<_>>(), axis, label)
    };
    if let Some(compare) = &config.compare {
        shown(axis_of(config, &compare.axis)?, &compare.to)?;
    }
    if let Some(normalise) = &config.normalise {
        let axis = axis_of(config, &normalise.axis)?;
        label_of(&axis.labels().collect::<Vec<_>>(), axis, &normalise.value)?;
    }
    let drawn_series = |series: Option<&Word>, only: &[Word]| match series {
        Some(series) => {
            let axis = axis_of(config, series)?;
            only.iter().try_for_each(|label| shown(axis, label))
        }
        None => only
            .first()
            .map_or(Ok(()), |only| Err((only.span(), Problem::new("`only` names labels of `series`, which is absent", "of which axis?")))),
    };
    let mut names: Vec<&Word> = Vec::new();
    for name in config.figure.iter().map(|f| &f.name).chain(config.path.iter().map(|p| &p.name)) {
        file_name(name, "name")?;
        if names.iter().any(|other| other.get_ref() == name.get_ref()) {
            return Err((name.span(), Problem::new(format!("two figures are called `{name}`"), "again")));
        }
        names.push(name);
    }
    for figure in &config.figure {
        axis_of(config, &figure.x)?;
        drawn_series(figure.series.as_ref(), &figure.only)?;
        if let Some(series) = figure.series.as_ref().filter(|series| **series == figure.x) {
            return Err((series.span(), Problem::new("`x` and `series` must be different axes", "the same as `x`")));
        }
    }
    config.path.iter().try_for_each(|path| drawn_series(path.series.as_ref(), &path.only))?;
    interpolated(config)
}

/// Values of interpolation must be numbers, and each column must be new.
fn interpolated(config: &SweepConfig) -> Result<(), Mistake> {
    let mut names: Vec<String> = Vec::new();
    for interpolate in &config.interpolate {
        let at = || interpolate.at.span();
        if interpolate.at.get_ref().is_empty() {
            return Err((at(), Problem::new("`at` must hold at least one value", "here").help("write `at = [1, 2, 5]`")));
        }
        if interpolate.at.get_ref().iter().any(|value| !value.is_finite()) {
            return Err((at(), Problem::new("`at` must hold finite numbers", "here")));
        }
        for (name, _) in interpolate.columns() {
            if names.contains(&name) {
                return Err((at(), Problem::new(format!("the column `{name}` would be added twice"), "again")));
            }
            names.push(name);
        }
    }
    Ok(())
}

fn check_axis(config: &SweepConfig, index: usize, axis: &AxisConfig) -> Result<(), Mistake> {
    let name = axis.name.get_ref();
    let is_plain = name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if !is_plain {
        return Err((
            axis.name.span(),
            Problem::new("the name of an axis must be a letter, then letters, digits and `_`", "not such a name"),
        ));
    }
    if COLUMNS.contains(&name.as_str()) || ["reward_", "metric_"].iter().any(|prefix| name.starts_with(prefix)) {
        let problem = Problem::new(format!("`{name}` is the name of another column of results.csv"), "taken");
        return Err((axis.name.span(), problem.help("choose another name for the axis")));
    }
    if config.axis[..index].iter().any(|a| a.name == axis.name) {
        return Err((axis.name.span(), Problem::new(format!("two axes are called `{name}`"), "again")));
    }
    if axis.values.entries.is_empty() {
        return Err((axis.name.span(), Problem::new(format!("axis `{name}` has no values"), "this one")));
    }
    let mut slugs: BTreeMap<String, &str> = BTreeMap::new();
    for (label, value) in &axis.values.entries {
        let slug = slug(label.get_ref()).to_lowercase();
        if slug.is_empty() || label.get_ref().len() > 60 || label.get_ref().chars().any(char::is_control) {
            return Err((label.span(), Problem::new("a label must have a letter or digit and at most 60 bytes", "this label")));
        }
        if slug == ANY {
            let problem = Problem::new(format!("`{ANY}` stands for all labels of an axis"), "not a label of its own");
            return Err((label.span(), problem.help("choose another label")));
        }
        if let Some(other) = slugs.insert(slug, label.get_ref()) {
            let message = format!("the labels `{other}` and `{label}` would give the same directory names");
            return Err((
                label.span(),
                Problem::new(message, "too similar").help("labels must differ in their letters, digits, `.`, `-` or `+`"),
            ));
        }
        value.set.iter().try_for_each(change)?;
        for ignored in &value.ignores {
            let other = axis_of(config, ignored)?;
            if other.name == axis.name {
                return Err((ignored.span(), Problem::new("a value cannot ignore its own axis", "its own axis")));
            }
            if let Some((label, _)) = other.values.entries.iter().find(|(_, v)| !v.ignores.is_empty()) {
                let message = format!("axis `{}` cannot be ignored: its label `{label}` ignores an axis itself", other.name);
                return Err((ignored.span(), Problem::new(message, "this axis")));
            }
        }
    }
    Ok(())
}

fn check_families(axis: &AxisConfig, place: &Word) -> Result<(), Mistake> {
    let found = families(axis);
    if found.is_empty() {
        let message = format!("axis `{}` has no settings to choose from", axis.name);
        let help = "labels that agree up to the first space are settings of one family, as `r3m 0.3` and `r3m 0.5`";
        return Err((place.span(), Problem::new(message, "no family of two labels").help(help)));
    }
    for (family, members) in found {
        let value = |label: &str| axis.values.entries.iter().find(|(l, _)| l.get_ref() == label);
        let ignored = |label: &str| value(label).map(|(_, v)| v.ignores.iter().map(|w| w.get_ref().clone()).collect::<Vec<_>>());
        for &member in &members {
            let span = value(member).map_or_else(|| place.span(), |(l, _)| l.span());
            if member == format!("{family} {SELECTED}") {
                return Err((span, Problem::new(format!("`{member}` is the label of the selected setting"), "choose another label")));
            }
            if ignored(member) != ignored(members[0]) {
                let message = format!("`{}` and `{member}` are settings of one family, but ignore different axes", members[0]);
                return Err((span, Problem::new(message, "must ignore the same axes")));
            }
        }
    }
    Ok(())
}

fn file_name(word: &Word, key: &str) -> Result<(), Mistake> {
    let name = word.get_ref();
    let is_plain = name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)) && !name.starts_with(['.', '-']);
    if name.is_empty() || name.len() > 100 || !is_plain {
        return Err((word.span(), Problem::new(format!("`{key}` must be 1 to 100 letters, digits, `.`, `_` or `-`"), "here")));
    }
    Ok(())
}

/// A change must have the form of one, and leave the seed alone.
fn change(word: &Word) -> Result<(), Mistake> {
    let parsed = Override::parse(word.get_ref()).map_err(|problem| (word.span(), problem))?;
    if parsed.path == ["seed"] {
        return Err((word.span(), Problem::new("the seeds of a sweep are those in `seeds`", "sets the seed")));
    }
    Ok(())
}

fn axis_of<'a>(config: &'a SweepConfig, name: &Word) -> Result<&'a AxisConfig, Mistake> {
    let known: Vec<&str> = config.axis.iter().map(|a| a.name.get_ref().as_str()).collect();
    config.axis(name.get_ref()).map(|(_, axis)| axis).ok_or_else(|| (name.span(), Problem::unknown("axis", name.get_ref(), &known)))
}

fn label_of(labels: &[&str], axis: &AxisConfig, label: &Word) -> Result<(), Mistake> {
    if labels.contains(&label.get_ref().as_str()) {
        return Ok(());
    }
    let problem = Problem::new(format!("axis `{}` has no label `{label}`", axis.name), "no such label");
    Err((label.span(), problem.help(suggest(label.get_ref(), labels))))
}
