//! ERNIE-A: a joint value that changes little when a few agents act otherwise.
//!
//! ```text
//! R(s, a) = max over a' with at most `agents` actions changed of ( Q(s, a) − Q(s, a') )²
//! ```
//!
//! is added, times its weight, to the loss of the value. The maximum is sought among all neighbours (`exact`), one change after the
//! other (`greedy`), or by the slope of the value alone (`gradient`). Its actions count as constants.
//!
//! Source: Bukharin et al. 2023 (arXiv 2310.10810), its extension to malicious actions. Departure: `only_harmful`, with which only changes
//! that lower the value count.
//!
//! Logged: `ernie_action/weight`, `ernie_action/penalty` (mean of R before the weight), `ernie_action/changed` (mean number of
//! changed actions).

use serde::{Deserialize, Serialize};

use crate::AgentError;
use crate::learner::Metrics;
use crate::ranges::Ranges;
use crate::schedule::warmth;

/// How the worst actions are sought.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActionSearch {
    /// All neighbours are tried, of which there may be at most 4096.
    Exact,
    /// The single worst change is kept, then the next one.
    Greedy,
    /// The changes that the slope of the value at the actions taken says are worst: one evaluation.
    Gradient,
}

/// Settings of ERNIE-A. Written in a configuration as `[action_regularizer]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ActionRegularizerConfig {
    /// Weight of the penalty, at least 0. With 0 the run equals the unregularised one bit for bit.
    pub weight: f64,
    /// Fraction of the run over which the weight grows linearly from 0, 0 to 1.
    pub warmup_fraction: f64,
    /// Most agents whose actions are changed, at least 1.
    pub agents: usize,
    /// How their actions are sought: `exact`, `greedy` or `gradient`.
    pub search: ActionSearch,
    /// Whether only changes count that lower the value.
    pub only_harmful: bool,
    /// Continuous actions: how far the action of an agent is moved, in half widths of its box, at least 0. Their search always follows
    /// the slope.
    pub radius: f64,
    /// Continuous actions: ascent steps, 1 to 1000.
    pub steps: usize,
}

impl Default for ActionRegularizerConfig {
    fn default() -> Self {
        Self { weight: 0.1, warmup_fraction: 0.1, agents: 1, search: ActionSearch::Greedy, only_harmful: false, radius: 0.1, steps: 1 }
    }
}

/// Most neighbours of an exact search.
const MAX_NEIGHBOURS: usize = 4096;
/// Neighbours that are evaluated together, so that those of a large minibatch need no large memory.
const CANDIDATES_AT_ONCE: usize = 1 << 15;

impl ActionRegularizerConfig {
    /// Checks the ranges given with the fields.
    ///
    /// # Errors
    /// [`AgentError::Config`] for the first field out of its range.
    pub fn validate(&self) -> Result<(), AgentError> {
        let mut ranges = Ranges::default();
        ranges.not_negative("weight", self.weight);
        ranges.fraction("warmup_fraction", self.warmup_fraction);
        ranges.count("agents", self.agents, usize::MAX);
        ranges.not_negative("radius", self.radius);
        ranges.count("steps", self.steps, 1000);
        ranges.finish()
    }

    /// Checks that it fits a team whose members have this many actions; 0 for one whose action is not changed.
    ///
    /// # Errors
    /// [`AgentError::Config`] if an exact search would have too many neighbours.
    pub fn fits(&self, choices: &[usize]) -> Result<(), AgentError> {
        if self.search != ActionSearch::Exact {
            return Ok(());
        }
        // Neighbours with exactly k changes, member by member.
        let mut counts = vec![1.0_f64];
        for &n in choices {
            counts.push(0.0);
            for k in (1..counts.len()).rev() {
                counts[k] += counts[k - 1] * n.saturating_sub(1) as f64;
            }
        }
        let neighbours: f64 = counts.iter().skip(1).take(self.agents).sum();
        if neighbours > MAX_NEIGHBOURS as f64 {
            let expected = format!("\"greedy\" or \"gradient\": `exact` would try {neighbours} neighbours, more than {MAX_NEIGHBOURS}");
            return Err(AgentError::Config { field: "action_regularizer.search".into(), expected, got: "\"exact\"".into() });
        }
        Ok(())
    }

    /// Weight at a point of the run, `progress` from 0 to 1.
    pub fn weight(&self, progress: f64) -> f64 {
        self.weight * warmth(progress, self.warmup_fraction)
    }
}

/// Values of joint actions, as the search asks for them.
pub(crate) trait JointValues {
    /// Values of joint actions `[n, member]`, each at sample `places[n]`, into `out`.
    fn values(&mut self, places: &[u32], actions: &[u32], out: &mut Vec<f32>);

    /// What the slope at the joint actions `[rows, member]` of all samples says of changing member `m` to choice `c`:
    /// `[rows, member, stride]`, into `out`. Returns the stride, at least the most choices of a member.
    fn changes(&mut self, actions: &[u32], out: &mut Vec<f32>) -> usize;
}

/// Sums over the minibatches of an update.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct ActionSums {
    penalties: f64,
    penalty: f64,
    changed: f64,
}

impl ActionSums {
    /// Takes in the penalties of one minibatch.
    pub(crate) fn add(&mut self, actions: &[u32], worst: &[u32], changes: &[f32]) {
        let changed = actions.iter().zip(worst).filter(|(a, b)| a != b).count();
        self.add_moved(changed as f64 / changes.len() as f64, changes);
    }

    /// Takes in the penalties of one minibatch, in which so many agents acted otherwise on average.
    pub(crate) fn add_moved(&mut self, changed: f64, changes: &[f32]) {
        self.penalties += 1.0;
        self.penalty += changes.iter().map(|c| f64::from(c * c)).sum::<f64>() / changes.len() as f64;
        self.changed += changed;
    }

    /// Logs the means.
    pub(crate) fn log(&self, weight: f64, metrics: &mut Metrics) {
        metrics.push("ernie_action/weight", weight);
        if self.penalties > 0.0 {
            metrics.push("ernie_action/penalty", self.penalty / self.penalties);
            metrics.push("ernie_action/changed", self.changed / self.penalties);
        }
    }
}

/// The search for the worst actions, with its room.
#[derive(Debug, Default)]
pub(crate) struct ActionAttack {
    places: Vec<u32>,
    candidates: Vec<u32>,
    values: Vec<f32>,
    /// The worst joint actions found, `[rows, member]`.
    pub(crate) worst: Vec<u32>,
    /// `[rows]`: `Q(s, a) − Q(s, a')` at them.
    pub(crate) change: Vec<f32>,
    slopes: Vec<f32>,
    order: Vec<(f32, usize, u32)>,
}

impl ActionAttack {
    /// Finds the worst neighbours of the joint actions `[rows, member]` with values `clean` `[rows]`. `choices` `[member]` are the numbers
    /// of actions; 0 for a member whose action is not changed.
    pub(crate) fn search(
        &mut self,
        config: &ActionRegularizerConfig,
        values: &mut dyn JointValues,
        choices: &[usize],
        actions: &[u32],
        clean: &[f32],
    ) {
        let (rows, members) = (clean.len(), choices.len());
        self.worst.clear();
        self.worst.extend_from_slice(actions);
        self.change.clear();
        self.change.resize(rows, 0.0);
        match config.search {
            ActionSearch::Exact => {
                self.places.clear();
                self.candidates.clear();
                for row in 0..rows {
                    let mut joint = actions[row * members..(row + 1) * members].to_vec();
                    neighbours(&mut joint, choices, 0, config.agents, &mut |joint| {
                        self.places.push(row as u32);
                        self.candidates.extend_from_slice(joint);
                    });
                    if self.places.len() >= CANDIDATES_AT_ONCE || row + 1 == rows {
                        self.keep_worst(config, values, clean, members);
                        self.places.clear();
                        self.candidates.clear();
                    }
                }
            }
            ActionSearch::Greedy => {
                for _ in 0..config.agents.min(members) {
                    self.places.clear();
                    self.candidates.clear();
                    for row in 0..rows {
                        let at = row * members..(row + 1) * members;
                        let (taken, now) = (&actions[at.clone()], &self.worst[at]);
                        for member in (0..members).filter(|&m| now[m] == taken[m]) {
                            for choice in (0..choices[member] as u32).filter(|&c| c != taken[member]) {
                                self.places.push(row as u32);
                                let begin = self.candidates.len();
                                self.candidates.extend_from_slice(now);
                                self.candidates[begin + member] = choice;
                            }
                        }
                    }
                    self.keep_worst(config, values, clean, members);
                }
            }
            ActionSearch::Gradient => {
                self.follow_slopes(config, values, choices, actions);
                self.places.clear();
                self.places.extend(0..rows as u32);
                values.values(&self.places, &self.worst, &mut self.values);
                for (row, value) in self.values.iter().enumerate() {
                    let change = clean[row] - value;
                    if config.only_harmful && change <= 0.0 {
                        // The slope was wrong: nothing changes.
                        let at = row * members..(row + 1) * members;
                        self.worst[at.clone()].copy_from_slice(&actions[at]);
                    } else {
                        self.change[row] = change;
                    }
                }
            }
        }
    }

    /// Evaluates the candidates and keeps for each row the worst one, if it is worse than what was found before.
    fn keep_worst(&mut self, config: &ActionRegularizerConfig, values: &mut dyn JointValues, clean: &[f32], members: usize) {
        values.values(&self.places, &self.candidates, &mut self.values);
        for (i, (&place, value)) in self.places.iter().zip(&self.values).enumerate() {
            let row = place as usize;
            let change = clean[row] - value;
            if badness(config, change) > badness(config, self.change[row]) {
                self.change[row] = change;
                self.worst[row * members..(row + 1) * members].copy_from_slice(&self.candidates[i * members..(i + 1) * members]);
            }
        }
    }

    /// Takes for each row the changes with the greatest effects by the slope, one per member.
    fn follow_slopes(&mut self, config: &ActionRegularizerConfig, values: &mut dyn JointValues, choices: &[usize], actions: &[u32]) {
        let members = choices.len();
        let stride = values.changes(actions, &mut self.slopes);
        // All changes must push to the same side, or they would undo each other: the better of the two sides is taken.
        for (row, taken) in actions.chunks_exact(members).enumerate() {
            let mut best = 0.0;
            for side in [-1.0, 1.0] {
                if config.only_harmful && side > 0.0 {
                    continue;
                }
                self.order.clear();
                for member in 0..members {
                    let of = |c: u32| side * self.slopes[(row * members + member) * stride + c as usize];
                    let other = (0..choices[member] as u32).filter(|&c| c != taken[member]);
                    if let Some(choice) = other.max_by(|a, b| of(*a).total_cmp(&of(*b)))
                        && of(choice) > 0.0
                    {
                        self.order.push((of(choice), member, choice));
                    }
                }
                self.order.sort_by(|a, b| b.0.total_cmp(&a.0));
                self.order.truncate(config.agents);
                let effect: f32 = self.order.iter().map(|o| o.0).sum();
                if effect > best {
                    best = effect;
                    let worst = &mut self.worst[row * members..(row + 1) * members];
                    worst.copy_from_slice(taken);
                    self.order.iter().for_each(|&(_, member, choice)| worst[member] = choice);
                }
            }
        }
    }
}

/// How bad a fall of the value is.
fn badness(config: &ActionRegularizerConfig, change: f32) -> f32 {
    if config.only_harmful { change.max(0.0) } else { change.abs() }
}

/// Calls `visit` with all joint actions that differ from `joint` in at least one and at most `left` members from `first` on.
fn neighbours(joint: &mut [u32], choices: &[usize], first: usize, left: usize, visit: &mut dyn FnMut(&[u32])) {
    if left == 0 {
        return;
    }
    for member in first..joint.len() {
        let taken = joint[member];
        for choice in (0..choices[member] as u32).filter(|&c| c != taken) {
            joint[member] = choice;
            visit(joint);
            neighbours(joint, choices, member + 1, left - 1, visit);
        }
        joint[member] = taken;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use steadfast_envs::Rng;

    /// The second member has more actions than the others and is not changed.
    const CHOICES: [usize; 4] = [3, 0, 2, 4];

    /// Any function of place and joint action: a table of random numbers, or a sum of one number per member.
    struct Table {
        values: Vec<f32>,
        is_sum: bool,
        n_asked: usize,
    }

    impl Table {
        fn new(seed: u64, is_sum: bool) -> Self {
            let mut rng = Rng::from_seed(seed);
            Self { values: (0..10 * 625).map(|_| rng.normal_f32()).collect(), is_sum, n_asked: 0 }
        }

        fn value(&self, place: u32, joint: &[u32]) -> f32 {
            if self.is_sum {
                return joint.iter().enumerate().map(|(m, a)| self.part(place as usize, m, *a)).sum();
            }
            let index = joint.iter().fold(0, |index, a| index * 5 + *a as usize);
            self.values[place as usize * 625 + index]
        }

        fn part(&self, place: usize, member: usize, action: u32) -> f32 {
            self.values[place * 625 + member * 5 + action as usize]
        }
    }

    impl JointValues for Table {
        fn values(&mut self, places: &[u32], actions: &[u32], out: &mut Vec<f32>) {
            self.n_asked += places.len();
            out.clear();
            out.extend(places.iter().zip(actions.chunks_exact(CHOICES.len())).map(|(p, a)| self.value(*p, a)));
        }

        fn changes(&mut self, actions: &[u32], out: &mut Vec<f32>) -> usize {
            out.clear();
            for (place, joint) in actions.chunks_exact(CHOICES.len()).enumerate() {
                for (m, a) in joint.iter().enumerate() {
                    out.extend((0..5).map(|c| self.part(place, m, c.min(4)) - self.part(place, m, (*a).min(4))));
                }
            }
            5
        }
    }

    fn run(config: &ActionRegularizerConfig, table: &mut Table) -> (Vec<u32>, ActionAttack) {
        let actions = [2, 7, 1, 3, 0, 7, 0, 0, 1, 7, 1, 2];
        let mut clean = Vec::new();
        table.values(&[0, 1, 2], &actions, &mut clean);
        let mut attack = ActionAttack::default();
        attack.search(config, table, &CHOICES, &actions, &clean);
        (actions.to_vec(), attack)
    }

    fn config(search: ActionSearch, agents: usize, only_harmful: bool) -> ActionRegularizerConfig {
        ActionRegularizerConfig { search, agents, only_harmful, ..ActionRegularizerConfig::default() }
    }

    #[test]
    fn greedy_equals_exact_with_one_change_and_never_beats_it() {
        let mut fell_short = 0;
        for seed in 0..40 {
            for (agents, only_harmful) in [(1, false), (1, true), (2, false), (3, true)] {
                let of = |search| run(&config(search, agents, only_harmful), &mut Table::new(seed, false)).1;
                let (exact, greedy, slope) = (of(ActionSearch::Exact), of(ActionSearch::Greedy), of(ActionSearch::Gradient));
                for row in 0..3 {
                    assert!(greedy.change[row].abs() <= exact.change[row].abs() && slope.change[row].abs() <= exact.change[row].abs());
                    fell_short += usize::from(greedy.change[row] != exact.change[row]);
                    assert!(!only_harmful || exact.change[row] >= 0.0 && slope.change[row] >= 0.0);
                }
                if agents == 1 {
                    assert_eq!((&exact.worst, &exact.change), (&greedy.worst, &greedy.change));
                }
            }
        }
        assert!(fell_short > 0, "two changes at once must sometimes be worse than one after the other");
    }

    #[test]
    fn all_searches_agree_where_members_add_up() {
        for seed in 0..20 {
            for (agents, only_harmful) in [(1, false), (2, false), (2, true), (3, true)] {
                let of = |search| run(&config(search, agents, only_harmful), &mut Table::new(seed, true)).1;
                let (exact, slope) = (of(ActionSearch::Exact), of(ActionSearch::Gradient));
                for row in 0..3 {
                    assert!((exact.change[row] - slope.change[row]).abs() < 1e-5, "{seed} {agents} {only_harmful}");
                }
            }
        }
    }

    #[test]
    fn at_most_the_allowed_agents_change_and_only_those_who_may() {
        for search in [ActionSearch::Exact, ActionSearch::Greedy, ActionSearch::Gradient] {
            for agents in 1..=4 {
                let (actions, attack) = run(&config(search, agents, false), &mut Table::new(5, false));
                for (before, after) in actions.chunks_exact(4).zip(attack.worst.chunks_exact(4)) {
                    let changed = before.iter().zip(after).filter(|(a, b)| a != b).count();
                    assert!((1..=agents.min(3)).contains(&changed), "{search:?} {agents}: {before:?} {after:?}");
                    assert_eq!(before[1], after[1]);
                    assert!(after.iter().zip(CHOICES).all(|(a, n)| n == 0 || (*a as usize) < n));
                }
            }
        }
    }

    #[test]
    fn an_exact_search_tries_each_neighbour_once_and_not_too_many() {
        let mut table = Table::new(1, false);
        run(&config(ActionSearch::Exact, 2, false), &mut table);
        // Single changes 2 + 1 + 3, pairs 2 · 1 + 2 · 3 + 1 · 3, for three samples that were also asked for themselves.
        assert_eq!(table.n_asked, 3 * (1 + 6 + 11));
        assert!(config(ActionSearch::Exact, 2, false).fits(&CHOICES).is_ok());
        let error = config(ActionSearch::Exact, 3, false).fits(&[20, 20, 20]).unwrap_err();
        assert!(error.to_string().contains("8000 neighbours") || error.to_string().contains("7999 neighbours"), "{error}");
    }
}
