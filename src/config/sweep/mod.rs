//! What a sweep is: a TOML file that says which settings of an experiment are varied, and how the outcome is shown.
//!
//! Every combination of one value per axis and of a seed is a cell: an ordinary run. All cells are resolved and checked
//! before the first one is trained.
//!
//! In every change, `{seed}` stands for the cell's seed and `{AXIS}` for its label of that axis as directories are named with
//! it ([`slug`]; [`ANY`] if the cell ignores the axis). So a sweep over policies can name what another sweep trained, whose
//! cells are the run directories `sweeps/NAME/cells/LABEL__...__seedSEED`, one label per axis in the order of the file:
//! `reward_model.path=sweeps/rewards/cells/{noise}__{loss}__seed{seed}`. `{{name}}` is the text `{name}`; braces around
//! anything but letters, digits and `_` stay as they are.

mod cells;
mod check;
mod label;
mod ordered;
mod placeholder;
mod read;
mod render;

pub use cells::{ANY, Cell, cells};
pub use label::{SELECTED, families, slug};
#[cfg(test)]
pub use read::parse;
pub use read::{Sweep, read};

use serde::Deserialize;
use toml::Spanned;

use crate::run::results::DEFAULT_METRIC;
use ordered::Ordered;

/// A text with its place in the file.
pub type Word = Spanned<String>;

/// A sweep.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SweepConfig {
    /// Name of the sweep: letters, digits, `.`, `_` and `-`. The sweep is written to `sweeps/NAME`.
    pub name: Word,
    /// The experiment that is varied: a recipe, or an experiment file relative to the sweep file.
    pub base: Word,
    /// Seeds; every combination is run once per seed.
    pub seeds: Spanned<Vec<u64>>,
    /// Changes for every cell, each as `key.path=value`; `{seed}` and `{AXIS}` are filled in. `threads` is 1 if it is not set here.
    #[serde(default)]
    pub set: Vec<Word>,
    /// Columns of `results.csv` that the table and the pictures show.
    #[serde(default = "default_metrics")]
    pub metrics: Vec<Word>,
    /// What is varied, each `[[axis]]`.
    pub axis: Vec<AxisConfig>,
    /// Combinations that are left out: lists of labels by axis, each `[[skip]]`.
    #[serde(default)]
    pub skip: Vec<Ordered<Vec<Word>>>,
    /// What the others are compared with, pair by pair of equal seeds.
    pub compare: Option<CompareConfig>,
    /// Choice of the best setting of each family.
    pub select: Option<SelectConfig>,
    /// A column that is expressed as a fraction of a reference.
    pub normalise: Option<NormaliseConfig>,
    /// Pictures, each `[[figure]]`; one of the first two axes if there is none.
    #[serde(default)]
    pub figure: Vec<FigureConfig>,
    /// Pictures of one column of `eval.csv` against another, each `[[path]]`.
    #[serde(default)]
    pub path: Vec<PathConfig>,
    /// Columns of `results.csv` that are values at given values of another column, each `[[interpolate]]`.
    #[serde(default)]
    pub interpolate: Vec<InterpolateConfig>,
}

fn default_metrics() -> Vec<Word> {
    vec![Word::new(0..0, DEFAULT_METRIC.to_string())]
}

/// Something that is varied.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AxisConfig {
    /// Name of the axis and of its column in `results.csv`: letters, digits and `_`.
    pub name: Word,
    /// Changes by label, in the order of the file: `label = ["key.path=value", ...]`, or
    /// `label = { set = [...], ignores = ["AXIS"] }` if the value makes the labels of other axes irrelevant.
    pub values: Ordered<ValueConfig>,
}

impl AxisConfig {
    /// Labels in the order of the file.
    pub fn labels(&self) -> impl Iterator<Item = &str> + Clone {
        self.values.entries.iter().map(|(label, _)| label.get_ref().as_str())
    }

    /// Whether there is such a label.
    pub fn has(&self, label: &str) -> bool {
        self.labels().any(|l| l == label)
    }
}

/// One value of an axis.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ValueConfig {
    /// Changes, each as `key.path=value`; `{seed}` and `{AXIS}` are filled in.
    pub set: Vec<Word>,
    /// Axes that this value is not crossed with: it is run once, and counts for all of their labels.
    pub ignores: Vec<Word>,
}

/// What the others are compared with.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CompareConfig {
    /// The axis along which is compared.
    pub axis: Word,
    /// The label that all others are compared with.
    pub to: Word,
}

/// Choice of the best setting of each family, seed by seed. Labels are of one family if they agree up to the first space;
/// the family of `r3m 0.3` and `r3m 0.5` gets rows with the label `r3m selected`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SelectConfig {
    /// The axis whose labels are settings.
    pub axis: Word,
    /// The column by which is chosen. To be honest it must not be the one that is reported.
    pub by: Word,
    /// Whether a high or a low value is good.
    #[serde(default)]
    pub best: Best,
}

/// Which value is the best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Best {
    /// The highest.
    #[default]
    Highest,
    /// The lowest.
    Lowest,
}

/// Adds the column `METRIC_normalised` = (metric - zero) / (reference - zero), where `zero` and `reference` are means over
/// the runs with the label `value` and otherwise the same labels.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NormaliseConfig {
    /// The axis of the reference.
    pub axis: Word,
    /// The label of the reference, which becomes 1.
    pub value: Word,
    /// The column.
    #[serde(default = "default_metric")]
    pub metric: Word,
    /// The column of the reference's runs that becomes 0.
    #[serde(default = "default_zero")]
    pub zero: Word,
    /// Whether each run is divided by the reference's run of the same seed instead of the mean over its seeds.
    #[serde(default)]
    pub by_seed: bool,
}

fn default_metric() -> Word {
    Word::new(0..0, DEFAULT_METRIC.to_string())
}

fn default_zero() -> Word {
    Word::new(0..0, "return_first".to_string())
}

impl NormaliseConfig {
    /// Name of the column that is added.
    pub fn column(&self) -> String {
        format!("{}_normalised", self.metric.get_ref())
    }
}

/// A picture: categories along the horizontal axis, one series per label of another axis, the mean over seeds with its
/// 95 % interval. Further axes become panels.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FigureConfig {
    /// Name of the files in `plots/`, without extension: letters, digits, `.`, `_` and `-`.
    pub name: Word,
    /// Text above the panels; empty for none.
    #[serde(default)]
    pub title: String,
    /// Columns of `results.csv`, one panel each; those of the sweep if empty.
    #[serde(default)]
    pub metrics: Vec<Word>,
    /// The axis whose labels are the categories.
    pub x: Word,
    /// The axis whose labels are the series; a single series if absent.
    pub series: Option<Word>,
    /// The labels of `series` that are drawn, in this order; all if empty.
    #[serde(default)]
    pub only: Vec<Word>,
}

/// A picture of two columns of `eval.csv`, one against the other: each series is the path of its evaluations during training,
/// the mean over seeds at each step. Other axes become panels.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PathConfig {
    /// Name of the files in `plots/`, as that of a `[[figure]]`.
    pub name: Word,
    /// Text above the panels; empty for none.
    #[serde(default)]
    pub title: String,
    /// Horizontal column of `eval.csv`, such as `metric_kl`; or `step`.
    pub x: Word,
    /// Vertical column of `eval.csv`, such as `metric_gold_reward`.
    pub y: Word,
    /// The axis whose labels are the series; a single series if absent.
    pub series: Option<Word>,
    /// The labels of `series` that are drawn, in this order; all if empty.
    #[serde(default)]
    pub only: Vec<Word>,
}

/// Adds the columns `COLUMN_at_ALONG_VALUE`: along the evaluations of each run during training, `column` where `along` first
/// reaches the value, by linear interpolation; blank for a run that never does.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InterpolateConfig {
    /// Column of `eval.csv`.
    pub column: Word,
    /// Another one, such as `metric_kl`; or `step`.
    pub along: Word,
    /// Values of `along`.
    pub at: Spanned<Vec<f64>>,
}

impl InterpolateConfig {
    /// Names of the columns that are added, with the values of `along`.
    pub fn columns(&self) -> impl Iterator<Item = (String, f64)> + '_ {
        self.at.get_ref().iter().map(|at| (format!("{}_at_{}_{at}", self.column.get_ref(), self.along.get_ref()), *at))
    }
}

impl SweepConfig {
    /// The axis of this name and its index.
    pub fn axis(&self, name: &str) -> Option<(usize, &AxisConfig)> {
        self.axis.iter().enumerate().find(|(_, axis)| axis.name.get_ref() == name)
    }

    /// Labels of an axis in the order of the file, then those of selected settings.
    pub fn labels(&self, axis: &AxisConfig) -> Vec<String> {
        let mut labels: Vec<String> = axis.labels().map(str::to_string).collect();
        if self.select.as_ref().is_some_and(|s| s.axis.get_ref() == axis.name.get_ref()) {
            labels.extend(families(axis).into_iter().map(|(family, _)| format!("{family} {SELECTED}")));
        }
        labels
    }

    /// Whether a label is that of a selected setting.
    pub fn is_selected(&self, label: &str) -> bool {
        let axis = self.select.as_ref().and_then(|s| self.axis(s.axis.get_ref()));
        axis.is_some_and(|(_, axis)| !axis.has(label) && self.labels(axis).iter().any(|l| l == label))
    }
}
