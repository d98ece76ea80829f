//! What finished cells say of each method at each level.

use super::axis::Scale;
use super::cell::{LIPSCHITZ, LIPSCHITZ_BOUNDS, recovery_names};
use super::report::{Method, Report, with_interval};
use super::tidy::{Tidy, Values};
use crate::plot::aggregate::interval;
use crate::plot::page::Section;
use crate::plot::stats::{Summary, plus_minus};

/// An estimate and its interval, where there is one.
type Estimate = (Option<f64>, Option<(f64, f64)>);

impl Report<'_> {
    /// Values of a method's runs without perturbation and at a level, of those that have both.
    fn pairs(&self, method: &Method, axis: &Scale, level: f64) -> Vec<(f64, f64)> {
        let pair = |run: &String| Some((self.score(run, axis, 0.0)?.mean, self.score(run, axis, level)?.mean));
        method.runs.values().filter_map(pair).collect()
    }

    /// Relative drop of a method at a level; nothing if random actions were not played.
    fn relative_drop(&self, method: &Method, axis: &Scale, level: f64) -> Estimate {
        let Some(uniform) = self.uniform else { return (None, None) };
        let strata = [self.pairs(method, axis, level)];
        let of = |methods: &[Vec<Vec<(f64, f64)>>]| relative_drop(&methods[0][0], uniform);
        (relative_drop(&strata[0], uniform), interval(&[&strata], of))
    }

    /// Relative drops on an axis; nothing if random actions were not played.
    pub(super) fn drop_section(&self, axis: &Scale) -> Option<Section> {
        self.uniform?;
        let levels = || axis.levels.iter().copied().filter(|level| *level != 0.0);
        let header = ["method".to_string(), "seeds".to_string()].into_iter().chain(levels().map(|level| level.to_string()));
        let row = |method: &Method| {
            let drops = levels().map(|level| {
                let (value, interval) = self.relative_drop(method, axis, level);
                with_interval(value, interval)
            });
            [method.label.clone(), self.areas(method, axis).len().to_string()].into_iter().chain(drops).collect()
        };
        let rows = self.methods.iter().map(row).collect();
        Some(Section { title: format!("{}: relative drop", axis.label), header: header.collect(), rows })
    }

    /// Recovery times of a method's runs at a level, and how many of them are censored.
    fn recovery(&self, method: &Method, axis: &Scale, level: f64) -> (Option<Summary>, usize) {
        // Whose rewards the metric looks at; the world's own numbers are not rewards.
        let group = self.metric.strip_prefix("return_").filter(|group| *group != "team_sum");
        let [time, is_censored] = recovery_names(group.unwrap_or("agent_mean"));
        let of = |name: &str| -> Vec<f64> {
            if axis.has_recovery {
                method.runs.values().filter_map(|run| self.number(run, &axis.label, level, name)).collect()
            } else {
                Vec::new()
            }
        };
        (Summary::of(&of(&time)), of(&is_censored).iter().filter(|v| **v > 0.0).count())
    }

    /// Recovery times on an axis; nothing if there is nothing to recover from.
    pub(super) fn recovery_section(&self, axis: &Scale) -> Option<Section> {
        if !axis.has_recovery {
            return None;
        }
        let levels = || axis.levels.iter().copied().filter(|level| *level != 0.0);
        let header = ["method".to_string(), "seeds".to_string()].into_iter().chain(levels().map(|level| level.to_string()));
        let row = |method: &Method| {
            let times = levels().map(|level| match self.recovery(method, axis, level) {
                (Some(time), censored) if censored > 0 => format!("≥ {} ({censored} of {} not back)", plus_minus(Some(time)), time.n),
                (time, _) => plus_minus(time),
            });
            [method.label.clone(), self.areas(method, axis).len().to_string()].into_iter().chain(times).collect()
        };
        let rows = self.methods.iter().map(row).collect();
        Some(Section { title: format!("{}: recovery (steps)", axis.label), header: header.collect(), rows })
    }

    /// Bounds of Lipschitz constants per radius: means over the runs of each method, if one has several, and those of every run.
    pub fn lipschitz_sections(&self, radii: &[f64]) -> Vec<Section> {
        let header = |of: &str| ["method", of, "radius"].into_iter().chain(BOUNDS_IN_WORDS).map(str::to_string).collect();
        let (mut rows, mut means) = (Vec::new(), Vec::new());
        for method in self.methods {
            for &radius in radii {
                let mean = |name| {
                    let values: Vec<f64> = method.runs.values().filter_map(|run| self.number(run, LIPSCHITZ, radius, name)).collect();
                    plus_minus(Summary::of(&values))
                };
                let row = [method.label.clone(), method.runs.len().to_string(), radius.to_string()];
                means.push(row.into_iter().chain(LIPSCHITZ_BOUNDS.map(mean)).collect());
            }
        }
        for method in self.methods {
            for (seed, run) in &method.runs {
                for &radius in radii {
                    let bound = |name| self.number(run, LIPSCHITZ, radius, name).map_or_else(|| "-".to_string(), |v| format!("{v:.4}"));
                    let row = [method.label.clone(), seed.to_string(), radius.to_string()];
                    rows.push(row.into_iter().chain(LIPSCHITZ_BOUNDS.map(bound)).collect());
                }
            }
        }
        if radii.is_empty() {
            return Vec::new();
        }
        let of_runs = Section { title: "Lipschitz constants of the policies".to_string(), header: header("seed"), rows };
        let of_methods = Section { title: "Lipschitz constants: means over runs".to_string(), header: header("seeds"), rows: means };
        if self.methods.iter().any(|method| method.runs.len() > 1) { vec![of_methods, of_runs] } else { vec![of_runs] }
    }

    /// A row per method, axis and level: means over training seeds, with their intervals.
    pub fn summary(&self) -> Tidy {
        let mut rows = Vec::new();
        for axis in self.axes {
            for method in self.methods {
                rows.extend(axis.levels.iter().map(|&level| (axis, method, level)));
            }
        }
        let mean = |&(axis, method, level): &(&Scale, &Method, f64)| {
            let values: Vec<f64> = method.runs.values().filter_map(|run| Some(self.score(run, axis, level)?.mean)).collect();
            Summary::of(&values)
        };
        let means: Vec<Option<Summary>> = rows.iter().map(mean).collect();
        let drops: Vec<Estimate> = rows.iter().map(|(axis, method, level)| self.relative_drop(method, axis, *level)).collect();
        let finite = |value: f64| value.is_finite().then_some(value);
        let mut table = Tidy::default();
        table.push("method", Values::Text(rows.iter().map(|(_, method, _)| method.label.clone()).collect()));
        table.push("axis", Values::Text(rows.iter().map(|(axis, ..)| axis.label.clone()).collect()));
        table.push("level", Values::Real(rows.iter().map(|(.., level)| Some(*level)).collect()));
        table.push("seeds", Values::Whole(means.iter().map(|m| Some(m.map_or(0, |m| m.n as u64))).collect()));
        table.push("mean", Values::Real(means.iter().map(|m| Some(m.as_ref()?.mean)).collect()));
        table.push("mean_ci95", Values::Real(means.iter().map(|m| finite(m.as_ref()?.half_width)).collect()));
        table.push("relative_drop", Values::Real(drops.iter().map(|(value, _)| *value).collect()));
        table.push("relative_drop_low", Values::Real(drops.iter().map(|(_, interval)| Some(interval.as_ref()?.0)).collect()));
        table.push("relative_drop_high", Values::Real(drops.iter().map(|(_, interval)| Some(interval.as_ref()?.1)).collect()));
        if self.axes.iter().any(|axis| axis.has_recovery) {
            let times: Vec<(Option<Summary>, usize)> =
                rows.iter().map(|(axis, method, level)| self.recovery(method, axis, *level)).collect();
            table.push("recovery_steps", Values::Real(times.iter().map(|(time, _)| Some(time.as_ref()?.mean)).collect()));
            table.push("recovery_steps_ci95", Values::Real(times.iter().map(|(time, _)| finite(time.as_ref()?.half_width)).collect()));
            let censored = |(time, censored): &(Option<Summary>, usize)| time.as_ref().map(|_| *censored as u64);
            table.push("recovery_censored", Values::Whole(times.iter().map(censored).collect()));
        }
        table
    }
}

/// What [`LIPSCHITZ_BOUNDS`] are called in a report.
const BOUNDS_IN_WORDS: [&str; 4] = ["lower: ascent", "upper: linear", "upper: intervals", "upper: spectral norms"];

/// `(J₀ − J) / |J₀ − J_random|` of runs with the values `(J₀, J)`, each a mean over runs: a ratio of means, because a
/// single run that learned nothing would make a mean of ratios boundless. Nothing without runs, or if the distance is 0.
fn relative_drop(runs: &[(f64, f64)], uniform: f64) -> Option<f64> {
    let n = runs.len() as f64;
    let (nominal, perturbed) = runs.iter().fold((0.0, 0.0), |(a, b), run| (a + run.0 / n, b + run.1 / n));
    let scale = (nominal - uniform).abs();
    (!runs.is_empty() && scale > 0.0).then(|| (nominal - perturbed) / scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_drop_is_in_units_of_what_was_learned() {
        // From 10 to 6, where random actions reach 2; means over two runs.
        assert_eq!(relative_drop(&[(9.0, 7.0), (11.0, 5.0)], 2.0), Some(0.5));
        // Losing everything, losing nothing, and a policy that is worse than random.
        assert_eq!(relative_drop(&[(10.0, 2.0)], 2.0), Some(1.0));
        assert_eq!(relative_drop(&[(10.0, 10.0)], 2.0), Some(0.0));
        assert_eq!(relative_drop(&[(1.0, 0.0)], 3.0), Some(0.5));
        assert_eq!(relative_drop(&[(2.0, 0.0)], 2.0), None);
        assert_eq!(relative_drop(&[], 2.0), None);
    }
}
