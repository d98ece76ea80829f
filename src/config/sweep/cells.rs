//! The cells of a sweep: every combination of labels and seeds, resolved.

use std::collections::{BTreeMap, BTreeSet};

use tracing::warn;

use super::{Sweep, SweepConfig, ValueConfig, Word, placeholder, slug};
use crate::config::load::{self, Mistake};
use crate::config::report::Problem;
use crate::config::source::Source;
use crate::config::{Experiment, render};
use crate::failure::{Failure, Result};

/// Stands for all labels of an axis that a cell ignores.
pub const ANY: &str = "any";

/// More cells than this are a mistake.
const MAX_CELLS: usize = 100_000;

/// One run of a sweep.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    /// Name of its directory, unique in the sweep.
    pub name: String,
    /// One label per axis, or [`ANY`].
    pub labels: Vec<String>,
    /// Seed.
    pub seed: u64,
    /// Resolved settings.
    pub config: Experiment,
}

/// Resolves and checks every cell. The last axis changes faster than those before it, the seed fastest of all.
///
/// # Errors
/// [`Failure::Usage`] that shows the first mistake in the sweep file, or in the experiment that it varies.
pub fn cells(sweep: &Sweep) -> Result<Vec<Cell>> {
    let config = &sweep.config;
    let base = sweep.base()?;
    let seeds = config.seeds.get_ref();
    let n = config.axis.iter().map(|a| a.values.entries.len()).try_fold(seeds.len(), usize::checked_mul);
    if n.is_none_or(|n| n > MAX_CELLS) {
        return Err(Failure::usage(format!("the sweep has more than {MAX_CELLS} cells"), "use fewer values or seeds"));
    }
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    let mut names: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for combination in combinations(config) {
        let labels: Vec<&str> = combination.iter().map(|chosen| chosen.map_or(ANY, |(label, _)| label.get_ref().as_str())).collect();
        if !seen.insert(labels.clone()) || config.is_skipped(&labels) {
            continue;
        }
        for &seed in seeds {
            let name = cell_name(&labels, seed);
            let labels: Vec<String> = labels.iter().map(ToString::to_string).collect();
            if let Some(other) = names.insert(name.to_lowercase(), labels.clone()) {
                let message = format!("the labels {other:?} and {labels:?} would share the directory `{name}`");
                return Err(Failure::usage(message, "rename one of the labels"));
            }
            let changes = Changes { config, combination: &combination, seed };
            let resolved = changes.resolve(sweep, &base)?;
            found.push(Cell { name, labels, seed, config: resolved });
        }
    }
    if found.is_empty() {
        return Err(Failure::usage("the `[[skip]]` rules leave no cell", "remove one of them"));
    }
    warn_of_equal_cells(&found);
    Ok(found)
}

/// A value of an axis with its label; nothing if the axis is ignored.
type Chosen<'a> = Option<&'a (Word, ValueConfig)>;

/// The product of the axes.
fn combinations<'a>(config: &'a SweepConfig) -> Vec<Vec<Chosen<'a>>> {
    let mut found: Vec<Vec<Chosen<'a>>> = vec![Vec::new()];
    for axis in &config.axis {
        let longer = |begin: &Vec<Chosen<'a>>| {
            let begin = begin.clone();
            axis.values.entries.iter().map(move |entry| begin.iter().copied().chain([Some(entry)]).collect()).collect::<Vec<_>>()
        };
        found = found.iter().flat_map(longer).collect();
    }
    for combination in &mut found {
        let ignored: Vec<&str> =
            combination.iter().flatten().flat_map(|(_, value)| &value.ignores).map(|axis| axis.get_ref().as_str()).collect();
        for (axis, chosen) in config.axis.iter().zip(combination.iter_mut()) {
            if ignored.contains(&axis.name.get_ref().as_str()) {
                *chosen = None;
            }
        }
    }
    found
}

impl SweepConfig {
    /// Whether a `[[skip]]` rule leaves out a combination of labels.
    pub fn is_skipped(&self, labels: &[&str]) -> bool {
        let holds = |(axis, listed): &(Word, Vec<Word>)| {
            let label = self.axis(axis.get_ref()).map(|(i, _)| labels[i]);
            listed.iter().any(|l| Some(l.get_ref().as_str()) == label)
        };
        self.skip.iter().any(|rule| rule.entries.iter().all(holds))
    }
}

fn cell_name(labels: &[&str], seed: u64) -> String {
    let mut name = String::new();
    for label in labels {
        name.push_str(&slug(label));
        name.push_str("__");
    }
    format!("{name}seed{seed}")
}

/// Where the changes of a cell come from.
struct Changes<'a> {
    config: &'a SweepConfig,
    combination: &'a [Chosen<'a>],
    seed: u64,
}

impl Changes<'_> {
    fn resolve(&self, sweep: &Sweep, base: &Source) -> Result<Experiment> {
        // Cells are run side by side, so each has one thread unless the file says otherwise.
        let mut texts = vec!["threads=1".to_string()];
        let mut words = vec![(None, None)];
        let slugs: Vec<String> = self.labels().into_iter().map(slug).collect();
        let filled = |word: &Word| {
            let value = |name: &str| placeholder::value(self.config, &slugs, self.seed, name);
            placeholder::fill(word.get_ref(), value).expect("placeholders are checked when the sweep is read")
        };
        for word in &self.config.set {
            texts.push(filled(word));
            words.push((Some(word), None));
        }
        for (axis, chosen) in self.config.axis.iter().zip(self.combination) {
            for (label, value) in chosen.iter() {
                for word in &value.set {
                    texts.push(filled(word));
                    words.push((Some(word), Some((axis.name.get_ref(), label.get_ref()))));
                }
            }
        }
        texts.push(format!("seed={}", self.seed));
        words.push((None, None));
        // The place in a text that was filled in is not its place in the file.
        let place = |word: &Word, index: usize, span| if texts[index] == *word.get_ref() { span } else { 0..word.get_ref().len() };
        load::resolve(&base.shown, &base.text, &texts).map_err(|mistake| match mistake {
            Mistake::InFile(error) => {
                let cell = cell_name(&self.labels(), self.seed);
                Failure::Usage((*error).into()).during(&format!("the experiment does not fit in cell `{cell}`"))
            }
            Mistake::InChange { index, span, problem } => match words[index] {
                (Some(word), Some((axis, label))) => {
                    let message = format!("axis `{axis}`, label `{label}`: {}", problem.message);
                    sweep.mistake_in(word, place(word, index, span), Problem { message, ..problem })
                }
                (Some(word), None) => sweep.mistake_in(word, place(word, index, span), problem),
                (None, _) => sweep.mistake(self.config.seeds.span(), problem),
            },
        })
    }

    fn labels(&self) -> Vec<&str> {
        self.combination.iter().map(|chosen| chosen.map_or(ANY, |(label, _)| label.get_ref().as_str())).collect()
    }
}

/// Two labels that lead to the same run are hardly meant.
fn warn_of_equal_cells(cells: &[Cell]) {
    let mut seen: BTreeMap<String, &str> = BTreeMap::new();
    for cell in cells {
        if let Some(other) = seen.insert(render::resolved(&cell.config), &cell.name) {
            warn!("{} and {other} are the same run", cell.name);
            return;
        }
    }
}
