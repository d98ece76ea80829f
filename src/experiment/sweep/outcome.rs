//! What the cells of a sweep came to: `results.csv`.

use std::collections::BTreeMap;

use super::program::Program;
use crate::config::sweep::Cell;
use crate::failure::{Failure, Result};
use crate::run::directory::RunDirectory;
use crate::run::manifest::Manifest;
use crate::run::results::{self, EvalRow, Source};

/// An evaluation during training, in the unperturbed world.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// Steps of training.
    pub step: u64,
    /// Columns of `eval.csv`.
    pub values: BTreeMap<String, f64>,
}

impl Evaluation {
    fn of(row: &EvalRow) -> Self {
        let fixed = [
            ("return_agent_mean", row.return_agent_mean),
            ("return_team_sum", row.return_team_sum),
            ("length", row.length),
            ("terminated", row.terminated),
        ];
        let fixed = fixed.into_iter().map(|(name, value)| (name.to_string(), value));
        Self { step: row.step, values: fixed.chain(row.metrics.clone()).collect() }
    }

    /// The number of a column, or the step; nothing if it is absent or not finite.
    pub fn value(&self, column: &str) -> Option<f64> {
        let value = if column == STEP { Some(self.step as f64) } else { self.values.get(column).copied() };
        value.filter(|value| value.is_finite())
    }
}

/// The column of `eval.csv` that tells how far training was.
pub const STEP: &str = "step";

/// Outcomes of a cell, or of a selected setting.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Row {
    /// One label per axis, or [`ANY`](crate::config::sweep::ANY).
    pub labels: Vec<String>,
    /// Seed.
    pub seed: u64,
    /// The programs that made it, one after the other; none if that is unknown.
    pub makers: Vec<Program>,
    /// The label that was selected, if this is the row of a family.
    pub selected: Option<String>,
    /// Numbers by the names of their columns; what is not a finite number is absent.
    pub values: BTreeMap<String, f64>,
    /// The evaluations during training, in the order of their steps.
    pub evaluations: Vec<Evaluation>,
}

impl Row {
    /// Reads the outcomes of a finished cell; nothing if it is not finished.
    ///
    /// - `return_first`: return averaged over agents in the evaluation before training;
    /// - `return_agent_mean`, `return_team_sum`, `length`, `terminated`, `metric_NAME`: the last evaluation in the
    ///   unperturbed world;
    /// - `GROUP_NAME`: every other number in `summary.json`, by its path.
    ///
    /// # Errors
    /// [`Failure::Run`] if a file of the run cannot be read.
    pub fn read(run: &RunDirectory, cell: &Cell) -> Result<Option<Self>> {
        if !run.is_finished() {
            return Ok(None);
        }
        let read = |name: &str| {
            let path = run.file(name);
            std::fs::read(&path).map_err(|e| Failure::file("read", &path, e))
        };
        let broken = |name: &str, reason: String| Failure::run(format!("cannot read {}: {reason}", run.file(name).display()));
        let mut values = BTreeMap::new();
        let evaluations = results::parse(&read(results::EVAL)?).map_err(|e| broken(results::EVAL, e))?;
        let nominal = evaluations.iter().filter(|r| r.source == Source::Train);
        let mut evaluations: Vec<Evaluation> = nominal.map(Evaluation::of).collect();
        evaluations.sort_by_key(|e| e.step);
        if let (Some(first), Some(last)) = (evaluations.first(), evaluations.last()) {
            if first.step == 0 {
                values.insert("return_first".to_string(), first.values["return_agent_mean"]);
            }
            values.extend(last.values.clone());
        }
        let summary: serde_json::Value =
            serde_json::from_slice(&read("summary.json")?).map_err(|e| broken("summary.json", e.to_string()))?;
        for (group, value) in summary.as_object().into_iter().flatten().filter(|(_, value)| value.is_object()) {
            flatten(group, value, &mut values);
        }
        values.retain(|_, value| value.is_finite());
        let makers = Manifest::read(run).map(|manifest| Program::makers(&manifest)).unwrap_or_default();
        Ok(Some(Self { labels: cell.labels.clone(), seed: cell.seed, makers, selected: None, values, evaluations }))
    }
}

impl Row {
    /// The commits that made it, joined with `+`.
    fn commit(&self) -> String {
        let mut commits: Vec<&str> = self.makers.iter().map(Program::short_commit).collect();
        commits.dedup();
        commits.join("+")
    }
}

/// Numbers in nested objects, named by their paths joined with `_`.
fn flatten(path: &str, value: &serde_json::Value, out: &mut BTreeMap<String, f64>) {
    match value {
        serde_json::Value::Object(entries) => entries.iter().for_each(|(key, inner)| flatten(&format!("{path}_{key}"), inner, out)),
        serde_json::Value::Number(number) => {
            if let Some(number) = number.as_f64() {
                out.insert(path.to_string(), number);
            }
        }
        _ => {}
    }
}

/// Names of columns: the returns first, then in the order of the alphabet.
pub fn columns(rows: &[Row]) -> Vec<&str> {
    let mut names: Vec<&str> = rows.iter().flat_map(|r| r.values.keys().map(String::as_str)).collect();
    names.sort_unstable_by_key(|name| (!name.starts_with("return_"), *name));
    names.dedup();
    names
}

/// A table with one line per row. Rows of selected settings have the column `selected`.
pub fn csv(axes: &[&str], rows: &[Row]) -> Vec<u8> {
    let columns = columns(rows);
    let is_selection = rows.iter().any(|r| r.selected.is_some());
    let mut writer = csv::Writer::from_writer(Vec::new());
    let mut write = |fields: Vec<String>| writer.write_record(fields).expect("writing to memory cannot fail");
    let words = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
    write([words(axes), words(&["seed", "commit"]), words(if is_selection { &["selected"] } else { &[] }), words(&columns)].concat());
    for row in rows {
        let mut fields = row.labels.clone();
        fields.extend([row.seed.to_string(), row.commit()]);
        fields.extend(is_selection.then(|| row.selected.clone().unwrap_or_default()));
        fields.extend(columns.iter().map(|name| row.values.get(*name).map_or_else(String::new, ToString::to_string)));
        write(fields);
    }
    writer.into_inner().expect("writing to memory cannot fail")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_named_by_their_path() {
        let value = serde_json::json!({ "a": 1, "b": { "c": 0.25, "d": "text" }, "e": [1, 2], "f": null });
        let mut out = BTreeMap::new();
        flatten("reward", &value, &mut out);
        assert_eq!(out, BTreeMap::from([("reward_a".to_string(), 1.0), ("reward_b_c".to_string(), 0.25)]));
    }

    #[test]
    fn a_table_quotes_labels_and_leaves_gaps() {
        let row = |label: &str, values: &[(&str, f64)]| Row {
            labels: vec![label.to_string()],
            seed: 3,
            values: values.iter().map(|(k, v)| ((*k).to_string(), *v)).collect(),
            ..Row::default()
        };
        let rows = [row("a,b", &[("reward_auroc", 0.5), ("return_first", -1.5)]), row("c", &[("return_first", 1e-7)])];
        let text = String::from_utf8(csv(&["noise"], &rows)).unwrap();
        assert_eq!(text, "noise,seed,commit,return_first,reward_auroc\n\"a,b\",3,,-1.5,0.5\nc,3,,0.0000001,\n");
    }
}
