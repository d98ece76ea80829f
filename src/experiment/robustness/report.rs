//! What finished cells say: statistics per axis, what they buy against a baseline, and their pictures.

use std::collections::BTreeMap;

use super::axis::Scale;
use super::cell::{Cell, Score};
use crate::plot::aggregate::{
    area_under_curve, crossing, interquartile_mean, interval, mean, performance_profile, probability_of_improvement,
};
use crate::plot::figure::{Panel, Point, Series};
use crate::plot::heat_map::HeatMap;
use crate::plot::page::Section;
use crate::plot::stats::{Summary, bootstrap, plus_minus};

/// Runs of one experiment.
#[derive(Debug, Clone, PartialEq)]
pub struct Method {
    /// Name in tables and pictures.
    pub label: String,
    /// Run by seed.
    pub runs: BTreeMap<u64, String>,
}

/// Cells, ready to be asked.
pub struct Report<'a> {
    pub(super) methods: &'a [Method],
    pub(super) axes: &'a [Scale],
    baseline: usize,
    pub(super) metric: &'a str,
    scores: BTreeMap<(&'a str, &'a str, &'a str), Score>,
    numbers: BTreeMap<(&'a str, &'a str, &'a str), &'a BTreeMap<String, f64>>,
    /// Mean of the score under random actions, if they were played.
    pub(super) uniform: Option<f64>,
    environment: &'a str,
}

/// How the numbers are defined, for below the tables.
pub const DEFINITIONS: &str = "\
Numbers are means over training seeds ± the half width of their 95 % t interval; [low, high] is a 95 % bootstrap
interval over seeds. AUC: mean return over the range of levels by the trapezoidal rule, level 0 included.
Differences are to the baseline, paired by seed, on the same episodes. P(better): probability that a seed of the
method has a larger AUC than one of the baseline (1/2 for equal ones). IQM: mean of the middle half. Worst tenth:
mean over the tenth of the episodes with the lowest return, at the level where it is lowest. Crosses at: the first
level at which the method's mean rises above the baseline's. Nominal cost: the baseline's return without
perturbation minus the method's, in per cent of the baseline's size. Relative drop: the return without
perturbation minus that at the level, over the distance of the former from the return of uniformly random actions in
the same episodes, means over seeds: 0 is no loss, 1 is the loss of everything that was learned. Recovery: steps from
the end of a burst, or from an onset, to the first step from which on the reward per step, mean over agents and
episodes, stays close to that of the same episodes without perturbation at the same time: short of it by at most a
tenth of the largest shortfall, or by at most three standard errors of the difference. Runs that were not back at the
horizon count with all steps up to there, so that their mean is a lower bound (≥). Lipschitz constants: largest change
of the outputs of the policy network (logits or means) over the radius of the ball that observations stay in, Euclidean
lengths in the world's units, the largest over observations of the unperturbed episodes. The truth is at least what
ascent finds and at most each upper bound.";

impl<'a> Report<'a> {
    /// The cells of `methods` over `axes`, by their score `metric`.
    pub fn new(
        methods: &'a [Method],
        axes: &'a [Scale],
        baseline: usize,
        cells: &'a [Cell],
        metric: &'a str,
        environment: &'a str,
    ) -> Self {
        let key = |cell: &'a Cell| (cell.key.run.as_str(), cell.key.axis.as_str(), cell.key.level.as_str());
        let scores = cells.iter().filter_map(|cell| Some((key(cell), *cell.scores.get(metric)?))).collect();
        let numbers = cells.iter().map(|cell| (key(cell), &cell.numbers)).collect();
        let uniform = cells.iter().find(|cell| cell.key.is_uniform()).and_then(|cell| Some(cell.scores.get(metric)?.mean));
        Self { methods, axes, baseline, metric, scores, numbers, uniform, environment }
    }

    pub(super) fn score(&self, run: &str, axis: &Scale, level: f64) -> Option<Score> {
        let level_text = level.to_string();
        let at = |label: &str| self.scores.get(&(run, label, level_text.as_str())).copied();
        if level == 0.0 {
            return at("none");
        }
        // Of several variants the worst one counts, once all are known.
        let found: Vec<Score> = axis.variants.iter().map(|label| at(label)).collect::<Option<_>>()?;
        found.into_iter().min_by(|a, b| a.mean.total_cmp(&b.mean))
    }

    /// A number of the cell of a run, without variants.
    pub(super) fn number(&self, run: &str, axis: &str, level: f64, name: &str) -> Option<f64> {
        let level = level.to_string();
        self.numbers.get(&(run, axis, level.as_str()))?.get(name).copied()
    }

    /// Values at each level of an axis, of one run.
    fn curve(&self, run: &str, axis: &Scale) -> Option<Vec<f64>> {
        axis.levels.iter().map(|&level| self.score(run, axis, level).map(|s| s.mean)).collect()
    }

    /// Area under the curve of each seed.
    pub(super) fn areas(&self, method: &Method, axis: &Scale) -> BTreeMap<u64, f64> {
        let area = |run: &String| area_under_curve(&axis.levels, &self.curve(run, axis)?);
        method.runs.iter().filter_map(|(seed, run)| Some((*seed, area(run)?))).collect()
    }

    fn nominal(&self, method: &Method) -> BTreeMap<u64, f64> {
        let value = |run: &String| self.scores.get(&(run.as_str(), "none", "0")).map(|s| s.mean);
        method.runs.iter().filter_map(|(seed, run)| Some((*seed, value(run)?))).collect()
    }

    /// Mean over seeds at each level; nothing without a seed that has all levels.
    fn mean_curve(&self, method: &Method, axis: &Scale) -> Option<Vec<f64>> {
        let curves: Vec<Vec<f64>> = method.runs.values().filter_map(|run| self.curve(run, axis)).collect();
        let mean = |i: usize| curves.iter().map(|c| c[i]).sum::<f64>() / curves.len() as f64;
        (!curves.is_empty()).then(|| (0..axis.levels.len()).map(mean).collect())
    }

    /// Differences of the seeds that both have.
    fn paired(ours: &BTreeMap<u64, f64>, other: &BTreeMap<u64, f64>) -> Vec<f64> {
        ours.iter().filter_map(|(seed, value)| Some(value - other.get(seed)?)).collect()
    }

    /// The tables: those of each axis, then all axes together.
    pub fn sections(&self) -> Vec<Section> {
        let of_axis = |axis| [Some(self.axis_section(axis)), self.drop_section(axis), self.recovery_section(axis)].into_iter().flatten();
        let mut sections: Vec<Section> = self.axes.iter().flat_map(of_axis).collect();
        sections.push(self.total_section());
        sections
    }

    fn axis_section(&self, axis: &Scale) -> Section {
        let base = &self.methods[self.baseline];
        let base_areas = self.areas(base, axis);
        let mut header: Vec<String> = vec!["method".to_string(), "seeds".to_string()];
        header.extend(axis.levels.iter().map(ToString::to_string));
        header.extend(["AUC", "IQM of AUC", "worst tenth"].map(str::to_string));
        header.extend([format!("AUC minus {}", base.label), "P(better)".to_string(), "crosses at".to_string()]);
        let row = |(i, method): (usize, &Method)| {
            let areas = self.areas(method, axis);
            let values: Vec<f64> = areas.values().copied().collect();
            let mut row = vec![method.label.clone(), values.len().to_string()];
            for &level in &axis.levels {
                let at: Vec<f64> = method.runs.values().filter_map(|run| Some(self.score(run, axis, level)?.mean)).collect();
                row.push(plus_minus(Summary::of(&at)));
            }
            row.push(plus_minus(Summary::of(&values)));
            let strata = [values.clone()];
            row.push(with_interval(interquartile_mean(&strata), interval(&[&strata], |m| interquartile_mean(&m[0]))));
            let worst = |run: &String| {
                let all = axis.levels.iter().map(|&level| Some(self.score(run, axis, level)?.worst_decile));
                all.collect::<Option<Vec<f64>>>()?.into_iter().reduce(f64::min)
            };
            row.push(plus_minus(Summary::of(&method.runs.values().filter_map(worst).collect::<Vec<_>>())));
            if i == self.baseline {
                row.extend(["", "", ""].map(str::to_string));
            } else {
                let paired = Self::paired(&areas, &base_areas);
                row.push(with_interval(Summary::of(&paired).map(|s| s.mean), bootstrap(&paired)));
                let other = [base_areas.values().copied().collect::<Vec<f64>>()];
                let better = interval(&[&strata, &other], |m| probability_of_improvement(&m[0], &m[1]));
                row.push(with_interval(probability_of_improvement(&strata, &other), better));
                let curves = self.mean_curve(method, axis).zip(self.mean_curve(base, axis));
                let crosses = curves.and_then(|(own, base)| crossing(&axis.levels, &own, &base));
                row.push(crosses.map_or_else(|| "-".to_string(), |level| format!("{level:.3}")));
            }
            row
        };
        Section { title: axis.label.clone(), header, rows: self.methods.iter().enumerate().map(row).collect() }
    }

    fn total_section(&self) -> Section {
        let base = &self.methods[self.baseline];
        // A method without a seed on some axis would be compared over other axes: it has no total.
        let strata = |method: &Method| -> Vec<Vec<f64>> {
            let all: Vec<Vec<f64>> = self.axes.iter().map(|a| self.areas(method, a).into_values().collect()).collect();
            if all.iter().any(Vec::is_empty) { Vec::new() } else { all }
        };
        let (base_strata, base_nominal) = (strata(base), self.nominal(base));
        let header = ["method", "seeds", "nominal", "nominal cost %", "mean AUC", "IQM of AUC", "P(better)"].map(str::to_string);
        let row = |(i, method): (usize, &Method)| {
            let (own, nominal) = (strata(method), self.nominal(method));
            let values: Vec<f64> = nominal.values().copied().collect();
            let mut row = vec![method.label.clone(), values.len().to_string(), plus_minus(Summary::of(&values))];
            if i == self.baseline {
                row.push(String::new());
            } else {
                let size = mean(&[base_nominal.values().copied().collect()]).map_or(f64::NAN, f64::abs);
                let cost: Vec<f64> = Self::paired(&nominal, &base_nominal).iter().map(|d| -100.0 * d / size).collect();
                row.push(with_interval(Summary::of(&cost).map(|s| s.mean), bootstrap(&cost)));
            }
            row.push(with_interval(mean(&own), interval(&[&own], |m| mean(&m[0]))));
            row.push(with_interval(interquartile_mean(&own), interval(&[&own], |m| interquartile_mean(&m[0]))));
            if i == self.baseline {
                row.push(String::new());
            } else {
                let better = interval(&[&own, &base_strata], |m| probability_of_improvement(&m[0], &m[1]));
                row.push(with_interval(probability_of_improvement(&own, &base_strata), better));
            }
            row
        };
        Section { title: "all axes".to_string(), header: header.to_vec(), rows: self.methods.iter().enumerate().map(row).collect() }
    }

    /// Return against level with its band, one panel per axis.
    pub fn level_curves(&self) -> Vec<Panel> {
        let series = |axis: &Scale, method: &Method| {
            let points = axis.levels.iter().filter_map(|&level| {
                let values: Vec<f64> = method.runs.values().filter_map(|run| Some(self.score(run, axis, level)?.mean)).collect();
                Summary::of(&values).map(|s| Point { x: level, y: s.mean, half_width: s.half_width })
            });
            let n = self.areas(method, axis).len();
            let label = if n > 1 { format!("{} ({n} seeds)", method.label) } else { method.label.clone() };
            Series { label, points: points.collect() }
        };
        let panel = |axis: &Scale| Panel {
            title: format!("{}: {}", self.environment, axis.label),
            note: "mean over seeds, band: 95 % interval over seeds".to_string(),
            x_label: axis.quantity.clone(),
            y_label: self.metric.replace('_', " "),
            series: self.methods.iter().map(|method| series(axis, method)).collect(),
        };
        self.axes.iter().map(panel).collect()
    }

    /// Share of all scores above a threshold, over seeds, axes and levels.
    pub fn profile(&self) -> Panel {
        let all = |method: &Method| -> Vec<Vec<f64>> {
            let at = |axis: &Scale, level: f64| method.runs.values().filter_map(|run| Some(self.score(run, axis, level)?.mean)).collect();
            self.axes.iter().flat_map(|axis| axis.levels.iter().map(move |&level| at(axis, level))).collect()
        };
        let scores: Vec<Vec<Vec<f64>>> = self.methods.iter().map(all).collect();
        let (low, high) = scores.iter().flatten().flatten().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(*v), h.max(*v)));
        let thresholds: Vec<f64> =
            if low < high { (0..=60).map(|i| low + (high - low) * f64::from(i) / 60.0).collect() } else { vec![low] };
        let series = |(method, scores): (&Method, &Vec<Vec<f64>>)| {
            let shares = performance_profile(scores, &thresholds);
            let points = thresholds.iter().zip(shares).map(|(&x, y)| Point { x, y, half_width: f64::INFINITY });
            Series { label: method.label.clone(), points: points.collect() }
        };
        Panel {
            title: format!("{}: performance profile", self.environment),
            note: "share of all seeds, axes and levels with a return above the threshold".to_string(),
            x_label: format!("threshold of {}", self.metric.replace('_', " ")),
            y_label: "share above".to_string(),
            series: self.methods.iter().zip(&scores).map(series).collect(),
        }
    }

    /// What each method buys on each axis.
    pub fn heat_map(&self) -> HeatMap {
        let base = &self.methods[self.baseline];
        let others = || self.methods.iter().enumerate().filter(|(i, _)| *i != self.baseline).map(|(_, m)| m);
        let paired = |method: &Method| -> Vec<Vec<f64>> {
            self.axes.iter().map(|axis| Self::paired(&self.areas(method, axis), &self.areas(base, axis))).collect()
        };
        let rows: Vec<Vec<Vec<f64>>> = others().map(paired).collect();
        let is_told = |differences: &Vec<f64>| bootstrap(differences).is_some_and(|(low, high)| low > 0.0 || high < 0.0);
        HeatMap {
            title: format!("{}: AUC minus that of {}", self.environment, base.label),
            note: "mean over paired seeds; framed where the 95 % bootstrap interval leaves out 0".to_string(),
            rows: others().map(|m| m.label.clone()).collect(),
            columns: self.axes.iter().map(|a| a.label.clone()).collect(),
            values: rows.iter().map(|row| row.iter().map(|d| Summary::of(d).map(|s| s.mean)).collect()).collect(),
            marked: rows.iter().map(|row| row.iter().map(is_told).collect()).collect(),
        }
    }
}

pub(super) fn with_interval(value: Option<f64>, interval: Option<(f64, f64)>) -> String {
    match (value, interval) {
        (None, _) => "-".to_string(),
        (Some(value), None) => format!("{value:.3}"),
        (Some(value), Some((low, high))) => format!("{value:.3} [{low:.3}, {high:.3}]"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::axis::Axis;
    use super::super::cell::Key;
    use super::*;

    /// The baseline falls from 10 by 20 per level, the other starts at 9 and falls by 10; seeds differ by a constant.
    fn example() -> (Vec<Method>, Vec<Scale>, Vec<Cell>) {
        let (mut methods, mut cells) = (Vec::new(), Vec::new());
        for (label, start, slope) in [("plain", 10.0, -20.0), ("robust", 9.0, -10.0)] {
            let mut runs = BTreeMap::new();
            for seed in 0..5_u64 {
                let run = format!("{label}-{seed}");
                for level in [0.0, 0.1, 0.3] {
                    let axis = if level == 0.0 { "none" } else { "observation_noise" };
                    cells.push(Cell::example(&run, axis, level, start + seed as f64 + slope * level));
                }
                runs.insert(seed, run);
            }
            methods.push(Method { label: label.to_string(), runs });
        }
        (methods, vec![Axis::parse("observation_noise=0.1,0.3").unwrap().scale()], cells)
    }

    #[test]
    fn tables_hold_the_numbers_of_a_known_case() {
        let (methods, axes, cells) = example();
        let sections = Report::new(&methods, &axes, 0, &cells, "r", "world").sections();
        let column = |section: &Section, row: usize, name: &str| {
            section.rows[row][section.header.iter().position(|h| h.starts_with(name)).unwrap()].clone()
        };
        let axis = &sections[0];
        // Means over the seeds 0 to 4 add 2; the areas are those of lines: their values at the middle, 0.15.
        assert!(column(axis, 0, "0.1").starts_with("10.000 ± "));
        assert!(column(axis, 0, "AUC").starts_with("9.000 ± "));
        assert!(column(axis, 1, "AUC").starts_with("9.500 ± "));
        assert_eq!(column(axis, 1, "AUC minus plain"), "0.500 [0.500, 0.500]");
        assert_eq!(column(axis, 0, "worst tenth").split(' ').next().unwrap(), "4.000");
        assert_eq!(column(axis, 1, "crosses at"), "0.100");
        // Of 25 pairs of seeds the robust one is larger in those with a seed of at least the other's: 15.
        assert!(column(axis, 1, "P(better)").starts_with("0.600 ["), "{}", column(axis, 1, "P(better)"));
        let total = sections.last().unwrap();
        // 12 to 11 on average.
        assert!(column(total, 1, "nominal cost").starts_with("8.333 ["));
    }

    #[test]
    fn pictures_show_every_method() {
        let (methods, axes, cells) = example();
        let report = Report::new(&methods, &axes, 0, &cells, "r", "world");
        let curves = report.level_curves();
        assert_eq!((curves.len(), curves[0].series.len(), curves[0].series[0].points.len()), (1, 2, 3));
        let profile = report.profile();
        assert_eq!(profile.series[0].points.last().unwrap().y, 0.0);
        assert!(profile.series[1].points[0].y > profile.series[0].points[0].y);
        let map = report.heat_map();
        assert_eq!((map.rows, map.marked), (vec!["robust".to_string()], vec![vec![true]]));
        assert!((map.values[0][0].unwrap() - 0.5).abs() < 1e-12);
    }

    #[test]
    fn drops_are_measured_by_random_actions() {
        let (methods, axes, mut cells) = example();
        // Without them there is nothing to measure by.
        assert_eq!(Report::new(&methods, &axes, 0, &cells, "r", "world").sections().len(), 2);
        let score = Score { mean: 2.0, worst_decile: 0.0 };
        cells.push(Cell {
            key: Key::uniform(7, 0, 10, String::new()),
            scores: [("r".to_string(), score)].into(),
            numbers: BTreeMap::new(),
        });
        let report = Report::new(&methods, &axes, 0, &cells, "r", "world");
        let sections = report.sections();
        assert_eq!((sections[1].title.as_str(), sections[1].header.len()), ("observation_noise: relative drop", 4));
        // From 12, on average over the seeds, by 2 and 6 of the 10 above random; from 11 by 1 and 3 of 9.
        for (row, drops) in [(0, ["0.200", "0.600"]), (1, ["0.111", "0.333"])] {
            let found = &sections[1].rows[row][2..];
            assert!(found.iter().zip(drops).all(|(found, drop)| found.starts_with(&format!("{drop} ["))), "{found:?}");
        }
        let table = String::from_utf8(report.summary().csv()).unwrap();
        let line = table.lines().find(|l| l.starts_with("robust,observation_noise,0.3,5,8,")).unwrap();
        let numbers: Vec<f64> = line.split(',').skip(6).map(|n| n.parse().unwrap()).collect();
        // Starts differ by 4 between seeds, so that the drop of 3 is a third to more of what was learned.
        assert!((numbers[0] - 3.0 / 9.0).abs() < 1e-12 && numbers[1] < numbers[0] && numbers[0] < numbers[2], "{numbers:?}");
        assert!(numbers[1] >= 3.0 / 11.0 && numbers[2] <= 3.0 / 7.0, "{numbers:?}");
    }

    #[test]
    fn recovery_times_say_what_was_not_seen() {
        let (methods, _, mut cells) = example();
        let axes = [Axis::parse("{ observation_noise = { schedule = { burst = { start = 5, length = 5 } } } }=0.1,0.3").unwrap().scale()];
        for cell in cells.iter_mut().filter(|cell| cell.key.level != "0") {
            cell.key.axis = axes[0].label.clone();
            let is_late = cell.key.run == "robust-3" && cell.key.level == "0.3";
            let steps = if is_late { 15.0 } else { 2.0 };
            cell.numbers =
                [("recovery_agent_mean".to_string(), steps), ("recovery_agent_mean_is_censored".to_string(), f64::from(is_late))].into();
        }
        let report = Report::new(&methods, &axes, 0, &cells, "return_agent_mean", "world");
        let section = report.sections().into_iter().find(|s| s.title.ends_with("recovery (steps)")).unwrap();
        assert_eq!(section.rows[0][2..], ["2.000 ± 0.000", "2.000 ± 0.000"]);
        assert!(section.rows[1][3].starts_with("≥ 4.600 ± ") && section.rows[1][3].ends_with("(1 of 5 not back)"), "{:?}", section.rows[1]);
        let table = String::from_utf8(report.summary().csv()).unwrap();
        assert!(table.lines().nth(6).unwrap().contains(",4.6,") && table.lines().nth(6).unwrap().ends_with(",1"), "{table}");
        // At level 0 there is nothing to recover from.
        assert!(table.lines().nth(1).unwrap().ends_with(",,,"), "{table}");
        // Steady perturbations have no such column.
        let (_, steady, _) = example();
        assert!(!String::from_utf8(Report::new(&methods, &steady, 0, &cells, "r", "world").summary().csv()).unwrap().contains("recovery"));
    }

    #[test]
    fn missing_cells_leave_gaps() {
        let (methods, axes, mut cells) = example();
        cells.retain(|c| c.key.run != "robust-3" || c.key.level == "0");
        let sections = Report::new(&methods, &axes, 0, &cells, "r", "world").sections();
        assert_eq!(sections[0].rows[1].len(), sections[0].header.len());
        assert_eq!(sections[0].rows[1][1], "4");
        // Without perturbation alone nothing is known of the axis: no area, no crossing, no worst tenth, no total.
        cells.retain(|c| !c.key.run.starts_with("robust") || c.key.level == "0");
        let sections = Report::new(&methods, &axes, 0, &cells, "r", "world").sections();
        let row = &sections[0].rows[1];
        assert!(row[2].starts_with("11.000 ± "));
        assert_eq!([&row[1], &row[3], &row[5], &row[6], &row[7], &row[8], &row[9], &row[10]], ["0", "-", "-", "-", "-", "-", "-", "-"]);
        assert_eq!(sections[1].rows[1][4..], ["-", "-", "-"]);
        let none: Vec<Cell> = Vec::new();
        let report = Report::new(&methods, &axes, 0, &none, "r", "world");
        assert!(report.sections()[0].rows[0].contains(&"-".to_string()));
        report.profile();
        report.heat_map();
    }
}
