//! Tables of finished cells, put together: what several machines evaluated, or what somebody else did, reported without the policies.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::axis::{Scale, axis_of};
use super::cell::{Cell, Key, LIPSCHITZ, Row, Score, parse_table};
use super::report::Method;
use crate::failure::{Failure, Result};

/// What the tables have together.
#[derive(Debug, Clone, PartialEq)]
pub struct Pooled {
    /// Methods in the order in which the tables name them first.
    pub methods: Vec<Method>,
    /// Axes in the order in which the tables name them first.
    pub scales: Vec<Scale>,
    /// All cells, each once.
    pub cells: Vec<Cell>,
    /// Radii over which Lipschitz constants are bounded.
    pub radii: Vec<f64>,
    /// Seed of the episodes.
    pub seed: u64,
    /// Episodes per cell.
    pub episodes: usize,
    /// Who plays which of the other agents; empty if all follow the run's policy.
    pub opponents: String,
}

/// Tables are rounded now and then: two that agree in so many digits tell the same.
const SAME: f64 = 1e-6;

/// Reads `results.csv` of robustness sweeps and puts them together.
///
/// # Errors
/// [`Failure::Run`] naming the file and the line if a table cannot be read; [`Failure::Usage`] if tables do not belong together:
/// other episodes or opponents, another world's random policy, two policies, methods or seeds under one name, two runs of a seed, a
/// cell with two results.
pub fn read(paths: &[PathBuf]) -> Result<Pooled> {
    let mut rows = Vec::new();
    for path in paths {
        let text = std::fs::read(path).map_err(|e| Failure::file("read", path, e))?;
        let table = parse_table(path, &text)?;
        if table.is_empty() {
            return Err(Failure::usage(format!("{} has no cells", path.display()), TABLE));
        }
        rows.extend(table.into_iter().map(|row| (path.as_path(), row)));
    }
    pool(rows)
}

/// What is read here.
const TABLE: &str = "give results.csv of a robustness sweep";
/// What tables must have in common.
const TOGETHER: &str = "tables can be put together if the same episodes were played in the same world";

fn pool(rows: Vec<(&Path, Row)>) -> Result<Pooled> {
    let Some((first_path, first)) = rows.first().map(|(path, row)| (*path, row.cell.key.clone())) else {
        return Err(Failure::usage("there are no cells", TABLE));
    };
    let mut pooled = Pooled {
        methods: Vec::new(),
        scales: Vec::new(),
        cells: Vec::new(),
        radii: Vec::new(),
        seed: first.seed,
        episodes: first.episodes,
        opponents: first.opponents.clone(),
    };
    let mut known: BTreeMap<Key, (usize, &Path)> = BTreeMap::new();
    let mut policies: BTreeMap<String, (String, &Path)> = BTreeMap::new();
    for (path, row) in rows {
        let Row { method, run_seed, mut cell } = row;
        cell.key.level = finite(&cell, path)?.to_string();
        let key = &cell.key;
        let both = |earlier: &Path| match earlier == path {
            true => format!("lines of {}", path.display()),
            false => format!("{} and {}", earlier.display(), path.display()),
        };
        if (key.seed, key.episodes) != (first.seed, first.episodes) {
            let words = |k: &Key| format!("{} episodes of seed {}", k.episodes, k.seed);
            return Err(Failure::usage(format!("{} are of {} and of {}", both(first_path), words(&first), words(key)), TOGETHER));
        }
        if key.opponents != first.opponents {
            return Err(Failure::usage(format!("{} were played against other opponents", both(first_path)), TOGETHER));
        }
        // Of random actions the checksum is that of the world.
        let policy = format!("{} after {} steps, {}", key.policy, key.step, key.mode);
        let (known_policy, earlier) = policies.entry(key.run.clone()).or_insert_with(|| (policy.clone(), path));
        if *known_policy != policy {
            let what = if key.is_uniform() { "were made in other worlds" } else { "have two policies of one name" };
            return Err(Failure::usage(format!("{} {what}: {}, {known_policy} and {policy}", both(earlier), key.run), TOGETHER));
        }
        if !key.is_uniform() {
            let lacks = |what: &str| format!("{} has no {what} for {}", path.display(), key.run);
            let label = method.filter(|label| !label.is_empty()).ok_or_else(|| {
                Failure::usage(lacks("`method`"), "give results.csv; cells.csv does not say which method a run belongs to")
            })?;
            let seed = run_seed.ok_or_else(|| Failure::usage(lacks("`run_seed`"), TABLE))?;
            join(&mut pooled.methods, label, seed, &key.run).map_err(|what| {
                Failure::usage(
                    format!("{} {what}", path.display()),
                    "a run has one name in all tables, one method and one seed, and a seed one run",
                )
            })?;
        }
        match known.get(key) {
            Some(&(place, earlier)) => {
                let kept = &mut pooled.cells[place];
                if let Some(name) = difference(kept, &cell) {
                    let what = format!("{} disagree on `{name}` of {} under {} {}", both(earlier), key.run, key.axis, key.level);
                    return Err(Failure::usage(what, TOGETHER));
                }
                // One may have what the other lacks.
                let Cell { mut scores, mut numbers, .. } = cell;
                scores.append(&mut kept.scores);
                numbers.append(&mut kept.numbers);
                (kept.scores, kept.numbers) = (scores, numbers);
            }
            None => {
                known.insert(key.clone(), (pooled.cells.len(), path));
                pooled.cells.push(cell);
            }
        }
    }
    (pooled.scales, pooled.radii) = scales(&pooled.cells);
    if pooled.methods.is_empty() || pooled.scales.is_empty() {
        return Err(Failure::usage(format!("{} has no trained policies under perturbations", first_path.display()), TABLE));
    }
    Ok(pooled)
}

/// The level of a cell whose numbers can all be drawn.
fn finite(cell: &Cell, path: &Path) -> Result<f64> {
    let refuse = |what: String| {
        let what = format!("{}: {what} of {} under {} is not a finite number", path.display(), cell.key.run, cell.key.axis);
        Failure::usage(what, "leave the line out")
    };
    let infinite = cell.scores.iter().find(|(_, score)| !score.mean.is_finite() || !score.worst_decile.is_finite());
    match cell.key.level.parse::<f64>() {
        Ok(level) if level.is_finite() => infinite.map_or(Ok(level), |(name, _)| Err(refuse(format!("`{name}`")))),
        _ => Err(refuse(format!("the level `{}`", cell.key.level))),
    }
}

/// Axes and radii of cells, in the order of their first.
fn scales(cells: &[Cell]) -> (Vec<Scale>, Vec<f64>) {
    let mut axes: Vec<(&str, Vec<String>, Vec<f64>, bool)> = Vec::new();
    let mut radii: Vec<f64> = Vec::new();
    for cell in cells {
        let level: f64 = cell.key.level.parse().unwrap_or(0.0);
        match cell.key.axis.as_str() {
            "none" => {}
            LIPSCHITZ if radii.contains(&level) => {}
            LIPSCHITZ => radii.push(level),
            own => {
                let label = axis_of(own);
                let at = axes.iter().position(|(known, ..)| *known == label).unwrap_or(axes.len());
                if at == axes.len() {
                    axes.push((label, Vec::new(), Vec::new(), false));
                }
                let (_, variants, levels, has_recovery) = &mut axes[at];
                if !variants.iter().any(|known| known == own) {
                    variants.push(own.to_string());
                }
                levels.push(level);
                *has_recovery |= cell.numbers.keys().any(|name| name.starts_with("recovery_"));
            }
        }
    }
    radii.sort_by(f64::total_cmp);
    (axes.into_iter().map(|(label, variants, levels, is)| Scale::of_cells(label, variants, levels, is)).collect(), radii)
}

/// Adds a run to its method. A run must have one method and one seed, and a seed of a method one run.
fn join(methods: &mut Vec<Method>, label: String, seed: u64, run: &str) -> std::result::Result<(), String> {
    let of_run = |method: &Method| method.runs.iter().find(|(_, known)| *known == run).map(|(seed, _)| (method.label.clone(), *seed));
    if let Some((other, earlier)) = methods.iter().find_map(of_run) {
        return match (other == label, earlier == seed) {
            (true, true) => Ok(()),
            (false, _) => Err(format!("counts {run} to `{label}`, another line to `{other}`")),
            (true, false) => Err(format!("has seed {seed} for {run}, another line {earlier}")),
        };
    }
    let at = methods.iter().position(|method| method.label == label).unwrap_or(methods.len());
    if at == methods.len() {
        methods.push(Method { label, runs: BTreeMap::new() });
    }
    let Method { label, runs } = &mut methods[at];
    match runs.insert(seed, run.to_string()) {
        None => Ok(()),
        Some(known) => Err(format!("has {run} and {known} with seed {seed} of `{label}`")),
    }
}

/// The first number in which two results of a cell differ.
fn difference(one: &Cell, other: &Cell) -> Option<String> {
    let is_same = |a: f64, b: f64| a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= SAME * a.abs().max(b.abs());
    let same_score = |a: &Score, b: &Score| is_same(a.mean, b.mean) && is_same(a.worst_decile, b.worst_decile);
    let score = one.scores.iter().find(|(name, a)| other.scores.get(*name).is_some_and(|b| !same_score(a, b)));
    let number = one.numbers.iter().find(|(name, a)| other.numbers.get(*name).is_some_and(|b| !is_same(**a, *b)));
    score.map(|(name, _)| name.clone()).or_else(|| number.map(|(name, _)| name.clone()))
}

#[cfg(test)]
mod tests {
    use super::super::cell::{self, table};
    use super::*;

    /// Runs `LABEL-SEED` without perturbation and under three others.
    fn cells(label: &str, seeds: &[u64]) -> Vec<Cell> {
        let mut cells = vec![Cell { key: Key::uniform(7, 3, 20, String::new()), ..Cell::example("", "none", 0.0, -9.0) }];
        for seed in seeds {
            let run = format!("{label}-{seed}");
            let mut burst = Cell::example(&run, "observation_noise(schedule={ burst = { start = 5 } })", 0.5, 2.0);
            burst.numbers.insert("recovery_agent_mean".to_string(), 3.0);
            let mut bound = Cell::example(&run, LIPSCHITZ, 0.1, 0.0);
            (bound.scores, bound.numbers) = (BTreeMap::new(), [("lipschitz_lower".to_string(), 1.5)].into());
            let searched = ["worst_agent:a", "worst_agent:b"].map(|axis| Cell::example(&run, axis, 1.0, *seed as f64));
            cells.extend([Cell::example(&run, "none", 0.0, 5.0), Cell::example(&run, "observation_bias", 0.2, 4.0), burst, bound]);
            cells.extend(searched);
        }
        cells
    }

    /// The cells as a table that was written and read.
    fn rows(cells: &[Cell]) -> Vec<(&'static Path, Row)> {
        let owner = |key: &Key| match key.run.rsplit_once('-') {
            Some(("plain", seed)) => ("plain", seed.parse().ok()),
            Some((_, seed)) => ("robust", seed.parse().ok()),
            None => (cell::UNIFORM, None),
        };
        let text = table(cells, owner).csv();
        parse_table(Path::new("results.csv"), &text).unwrap().into_iter().map(|row| (Path::new("results.csv"), row)).collect()
    }

    #[test]
    fn tables_of_two_machines_are_one() {
        let (one, other) = (cells("plain", &[1, 2]), [cells("plain", &[2, 3]), cells("robust", &[1])].concat());
        let pooled = pool([rows(&one), rows(&other)].concat()).unwrap();
        let runs = |label: &str, seeds: &[u64]| Method {
            label: label.to_string(),
            runs: seeds.iter().map(|seed| (*seed, format!("{label}-{seed}"))).collect(),
        };
        assert_eq!(pooled.methods, [runs("plain", &[1, 2, 3]), runs("robust", &[1])]);
        // The random policy once, and six cells of each run.
        assert_eq!((pooled.cells.len(), pooled.radii.as_slice(), pooled.episodes, pooled.seed), (1 + 4 * 6, [0.1].as_slice(), 20, 3));
        let scales: Vec<(&str, &[f64], usize, bool)> =
            pooled.scales.iter().map(|s| (s.label.as_str(), s.levels.as_slice(), s.variants.len(), s.has_recovery)).collect();
        let burst = "observation_noise(schedule={ burst = { start = 5 } })";
        let expected: [(&str, &[f64], usize, bool); 3] =
            [("observation_bias", &[0.0, 0.2], 1, false), (burst, &[0.0, 0.5], 1, true), ("worst_agent", &[0.0, 1.0], 2, false)];
        assert_eq!(scales, expected);
        assert_eq!(pooled.cells[..one.len()], one);
    }

    #[test]
    fn what_one_table_lacks_the_other_adds() {
        let low = cells("plain", &[1]);
        let mut high = low.clone();
        for cell in &mut high {
            cell.scores = [("s".to_string(), Score { mean: 1.0, worst_decile: 0.5 })].into();
        }
        let mut lean = low.clone();
        lean.iter_mut().for_each(|cell| cell.numbers.clear());
        for both in [[&high, &lean], [&lean, &high]] {
            let pooled = pool(both.iter().flat_map(|cells| rows(cells)).collect()).unwrap();
            assert!(pooled.cells.iter().all(|cell| cell.scores.contains_key("s")), "{:?}", pooled.cells);
            assert!(pooled.scales[1].has_recovery && pooled.cells.iter().any(|cell| cell.numbers.contains_key("lipschitz_lower")));
        }
    }

    #[test]
    fn what_does_not_belong_together_is_refused() {
        let one = cells("plain", &[1]);
        let refused = |change: &dyn Fn(&mut Cell)| {
            let mut other = cells("plain", &[1]);
            other.iter_mut().for_each(change);
            pool([rows(&one), rows(&other)].concat()).unwrap_err().render(false, 400)
        };
        assert!(refused(&|c| c.key.seed = 4).contains("20 episodes of seed 4"));
        assert!(refused(&|c| c.key.opponents = "a=0".to_string()).contains("other opponents"));
        assert!(refused(&|c| c.key.policy = "world-00000008".to_string()).contains("other worlds"));
        let is_own = |c: &Cell| !c.key.is_uniform();
        assert!(refused(&|c| c.key.step += u64::from(is_own(c))).contains("two policies of one name"));
        let higher = |by: f64| move |c: &mut Cell| c.scores.values_mut().for_each(|score| score.mean += by);
        assert!(refused(&higher(0.1)).contains("disagree on `r`"));
        // Rounding is no disagreement.
        let mut rounded = cells("plain", &[1]);
        rounded.iter_mut().for_each(higher(1e-9));
        assert_eq!(pool([rows(&one), rows(&rounded)].concat()).unwrap().cells, one);
        // A run has one method and one seed, also where its cells are known.
        let mut renamed = rows(&one);
        renamed.iter_mut().for_each(|(_, row)| row.method = Some("other".to_string()));
        assert!(pool([rows(&one), renamed].concat()).unwrap_err().render(false, 400).contains("another line to `plain`"));
        let mut reseeded = rows(&one);
        reseeded.iter_mut().for_each(|(_, row)| row.run_seed = Some(7));
        assert!(pool([rows(&one), reseeded].concat()).unwrap_err().render(false, 400).contains("has seed 7 for plain-1, another line 1"));
        for level in ["inf", "NaN", "much"] {
            let mut odd = rows(&one);
            odd.last_mut().unwrap().1.cell.key.level = level.to_string();
            assert!(pool(odd).unwrap_err().render(false, 400).contains(&format!("the level `{level}`")));
        }
        assert!(refused(&higher(f64::INFINITY)).contains("`r` of uniform random policy"));
        // The files that disagree are named, not the first one.
        let mut third = rows(&cells("robust", &[1]));
        third.iter_mut().for_each(|(path, row)| {
            *path = Path::new("third.csv");
            row.cell.key.step += u64::from(is_own(&row.cell));
        });
        let mut second = rows(&cells("robust", &[1]));
        second.iter_mut().for_each(|(path, _)| *path = Path::new("second.csv"));
        let message = pool([rows(&one), second, third].concat()).unwrap_err().render(false, 400);
        assert!(message.contains("second.csv and third.csv have two policies"), "{message}");
        // A seed of a method has one run.
        let mut moved = cells("plain", &[1]);
        moved.iter_mut().filter(|c| is_own(c)).for_each(|c| c.key.run = "elsewhere/plain-1".to_string());
        let mut twice = rows(&moved);
        twice.iter_mut().for_each(|(_, row)| row.method = Some("plain".to_string()));
        assert!(pool([rows(&one), twice].concat()).unwrap_err().render(false, 400).contains("with seed 1 of `plain`"));
        // Logs do not say whose a run is.
        let mut log = rows(&one);
        log.iter_mut().for_each(|(_, row)| row.method = None);
        assert!(pool(log).unwrap_err().render(false, 400).contains("results.csv"));
    }
}
