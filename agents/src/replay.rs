//! Memory of past transitions, from which off-policy learners draw their minibatches.
//!
//! Every slot has a ring of rows in the order in which they happened. A row holds one time step of all agents; the observation
//! after it is that of the next row. Where an episode ended, a row with its last observation alone stands between the last step
//! and the first of the next episode. So each observation is kept once, and returns over several steps need nothing else.
//!
//! Sources: Lin 1992 for experience replay; Sutton and Barto 2018, chapter 7, for returns over `n` steps.

use serde::{Deserialize, Serialize};
use steadfast_envs::{EnvSpec, Rng, RolloutBatch};

use crate::ranges::Ranges;
use crate::{AgentError, StateDict};

/// Names of the saved arrays of a learner's memory begin with this.
pub const PREFIX: &str = "replay.";

/// Settings of the memory and of the minibatches drawn from it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReplayConfig {
    /// Steps of all slots together that are kept, at least 4 per slot.
    pub capacity: usize,
    /// Steps in memory before the first gradient step.
    pub learning_starts: usize,
    /// Joint transitions (all agents at one time) per gradient step, at least 1.
    pub batch_size: usize,
    /// Steps of a transition, 1 to 1000; fewer where the episode ends.
    pub n_step: usize,
    /// Whether the time limit counts as the end of the task, after which there is no value, as in EPyMARL. Otherwise the value goes on as
    /// if there were no limit.
    pub time_limit_ends: bool,
}

impl Default for ReplayConfig {
    fn default() -> Self {
        Self { capacity: 100_000, learning_starts: 1000, batch_size: 256, n_step: 1, time_limit_ends: false }
    }
}

impl ReplayConfig {
    /// Checks the ranges given with the fields.
    ///
    /// # Errors
    /// [`AgentError::Config`] for the first field out of its range.
    pub fn validate(&self) -> Result<(), AgentError> {
        let mut ranges = Ranges::default();
        ranges.count("replay.capacity", self.capacity, 1 << 30);
        ranges.count("replay.batch_size", self.batch_size, 1 << 24);
        ranges.count("replay.n_step", self.n_step, 1000);
        ranges.finish()
    }
}

/// What a row stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Row {
    /// A step after which the episode went on.
    Step = 0,
    /// The step that ended the task.
    Terminated = 1,
    /// The step at the time limit.
    Truncated = 2,
    /// Not a step: the last observation of an episode.
    End = 3,
    /// Not a step yet: the newest observation.
    Newest = 4,
}

impl Row {
    fn from_word(word: u64) -> Option<Self> {
        [Self::Step, Self::Terminated, Self::Truncated, Self::End, Self::Newest].into_iter().find(|row| *row as u64 == word)
    }
}

/// A minibatch of joint transitions over one or more steps.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Transitions {
    /// Number of joint transitions.
    pub rows: usize,
    /// `[row, agent, observation_width]`.
    pub observations: Vec<f32>,
    /// `[row, state_dim]`.
    pub states: Vec<f32>,
    /// `[row, agent]`; empty unless actions are discrete.
    pub discrete_actions: Vec<u32>,
    /// `[row, agent, action_width]`; empty unless actions are continuous.
    pub continuous_actions: Vec<f32>,
    /// `[row, agent]`: discounted sum of the rewards on the way.
    pub rewards: Vec<f32>,
    /// `[row]`: what rewards of 1 would have added up to on the way.
    pub weights: Vec<f32>,
    /// `[row, agent, observation_width]`: at the end of the way.
    pub next_observations: Vec<f32>,
    /// `[row, state_dim]`.
    pub next_states: Vec<f32>,
    /// `[row]`: what the value at the end of the way counts, `discount^steps`; 0 if the task ended.
    pub bootstrap: Vec<f32>,
}

impl Transitions {
    fn clear(&mut self) {
        self.rows = 0;
        self.discrete_actions.clear();
        for values in [
            &mut self.observations,
            &mut self.states,
            &mut self.continuous_actions,
            &mut self.rewards,
            &mut self.weights,
            &mut self.next_observations,
            &mut self.next_states,
            &mut self.bootstrap,
        ] {
            values.clear();
        }
    }
}

/// One ring of rows.
#[derive(Debug, Clone, Default, PartialEq)]
struct Ring {
    observations: Vec<f32>,
    states: Vec<f32>,
    discrete_actions: Vec<u32>,
    continuous_actions: Vec<f32>,
    rewards: Vec<f32>,
    rows: Vec<Row>,
    /// Row of the newest observation.
    newest: usize,
    /// Rows behind it that hold something.
    filled: usize,
}

/// The transitions of some slots.
#[derive(Debug, Clone, PartialEq)]
pub struct Replay {
    rings: Vec<Ring>,
    /// Rows per ring.
    capacity: usize,
    n_agents: usize,
    /// Numbers per row: observations of all agents, state, continuous actions of all agents.
    observation: usize,
    state: usize,
    action: usize,
    is_discrete: bool,
}

impl Replay {
    /// An empty memory of `n_slots` slots. `with_state` as in [`steadfast_envs::RolloutOptions`].
    ///
    /// # Errors
    /// [`AgentError::Config`] if there is no room for two steps of each slot, or never for as many as learning starts with.
    pub fn new(spec: &EnvSpec, n_slots: usize, config: &ReplayConfig, with_state: bool) -> Result<Self, AgentError> {
        let ReplayConfig { capacity, learning_starts, .. } = *config;
        // The newest observation and the end of an episode need rows besides the steps.
        let rows = capacity / n_slots.max(1);
        if rows < 4 {
            return Err(AgentError::Config {
                field: "replay.capacity".into(),
                expected: format!("at least 4 for each of the {n_slots} slots"),
                got: capacity.to_string(),
            });
        }
        let most = n_slots * (rows - 1);
        if learning_starts > most {
            let expected = format!("at most {most}, which is what a capacity of {capacity} holds in {n_slots} slots");
            let field = "replay.learning_starts".to_string();
            return Err(AgentError::Config { field, expected, got: learning_starts.to_string() });
        }
        let n_agents = spec.n_agents();
        let is_discrete = spec.has_discrete_actions();
        let action = if spec.has_continuous_actions() { n_agents * spec.action_width() } else { 0 };
        let (observation, state) = (n_agents * spec.observation_width(), if with_state { spec.state_dim } else { 0 });
        let ring = |_| Ring {
            observations: vec![0.0; rows * observation],
            states: vec![0.0; rows * state],
            discrete_actions: vec![0; if is_discrete { rows * n_agents } else { 0 }],
            continuous_actions: vec![0.0; rows * action],
            rewards: vec![0.0; rows * n_agents],
            rows: vec![Row::End; rows],
            newest: 0,
            filled: 0,
        };
        Ok(Self { rings: (0..n_slots).map(ring).collect(), capacity: rows, n_agents, observation, state, action, is_discrete })
    }

    /// Steps that can be drawn, at most; ends of episodes count as well.
    pub fn len(&self) -> usize {
        self.rings.iter().map(|ring| ring.filled).sum()
    }

    /// True if nothing can be drawn.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds the steps of a batch; the oldest ones make room. Batches must follow each other as they were collected.
    ///
    /// # Panics
    /// If the batch is of another shape than the specification given to [`Replay::new`].
    pub fn extend(&mut self, batch: &RolloutBatch) {
        assert!(batch.n_slots == self.rings.len() && batch.n_agents == self.n_agents, "the batch has the shape of the memory");
        let (capacity, agents, observation, state, action) = (self.capacity, self.n_agents, self.observation, self.state, self.action);
        let is_discrete = self.is_discrete;
        let mut end = 0;
        for time in 0..=batch.n_steps {
            for (slot, ring) in self.rings.iter_mut().enumerate() {
                let place = time * batch.n_slots + slot;
                ring.put(ring.newest, &batch.observations, &batch.states, place, observation, state);
                if time == batch.n_steps {
                    ring.rows[ring.newest] = Row::Newest;
                    continue;
                }
                let row = ring.newest;
                if is_discrete {
                    let from = &batch.discrete_actions[place * agents..(place + 1) * agents];
                    ring.discrete_actions[row * agents..(row + 1) * agents].copy_from_slice(from);
                }
                let from = &batch.continuous_actions[place * action..(place + 1) * action];
                ring.continuous_actions[row * action..(row + 1) * action].copy_from_slice(from);
                ring.rewards[row * agents..(row + 1) * agents].copy_from_slice(&batch.rewards[place * agents..(place + 1) * agents]);
                ring.rows[row] = match (batch.terminated[place], batch.truncated[place]) {
                    (true, _) => Row::Terminated,
                    (false, true) => Row::Truncated,
                    (false, false) => Row::Step,
                };
                ring.advance(capacity);
                // Ends are listed in the order of time and slot.
                if batch.ends.get(end) == Some(&(time, slot)) {
                    ring.put(ring.newest, &batch.final_observations, &batch.final_states, end, observation, state);
                    ring.rows[ring.newest] = Row::End;
                    ring.advance(capacity);
                    end += 1;
                }
            }
        }
    }

    /// Draws a minibatch of transitions over several steps, uniformly and with replacement. Where an episode ends earlier, so does the way.
    ///
    /// # Panics
    /// If there is nothing to draw from.
    pub fn sample(&self, config: &ReplayConfig, discount: f32, rng: &mut Rng, out: &mut Transitions) {
        assert!(!self.is_empty(), "nothing to draw from");
        out.clear();
        while out.rows < config.batch_size {
            let ring = &self.rings[rng.below(self.rings.len())];
            if ring.filled == 0 {
                continue;
            }
            let first = (ring.newest + self.capacity - ring.filled + rng.below(ring.filled)) % self.capacity;
            if ring.rows[first] != Row::End {
                self.walk(ring, first, config, discount, out);
            }
        }
    }

    /// Adds the way of at most as many steps as configured that begins at row `first`.
    fn walk(&self, ring: &Ring, first: usize, config: &ReplayConfig, discount: f32, out: &mut Transitions) {
        let agents = self.n_agents;
        let begin = out.rewards.len();
        out.rewards.resize(begin + agents, 0.0);
        let (mut row, mut factor, mut weight) = (first, 1.0, 0.0);
        for _ in 0..config.n_step {
            if ring.rows[row] == Row::Newest {
                break;
            }
            for (sum, reward) in out.rewards[begin..].iter_mut().zip(&ring.rewards[row * agents..(row + 1) * agents]) {
                *sum += factor * reward;
            }
            weight += factor;
            factor *= discount;
            let kind = ring.rows[row];
            row = (row + 1) % self.capacity;
            match kind {
                Row::Terminated => {
                    factor = 0.0;
                    break;
                }
                Row::Truncated => {
                    factor = if config.time_limit_ends { 0.0 } else { factor };
                    break;
                }
                _ => {}
            }
        }
        let of =
            |values: &[f32], row: usize, width: usize, to: &mut Vec<f32>| to.extend_from_slice(&values[row * width..(row + 1) * width]);
        of(&ring.observations, first, self.observation, &mut out.observations);
        of(&ring.observations, row, self.observation, &mut out.next_observations);
        of(&ring.states, first, self.state, &mut out.states);
        of(&ring.states, row, self.state, &mut out.next_states);
        of(&ring.continuous_actions, first, self.action, &mut out.continuous_actions);
        if self.is_discrete {
            out.discrete_actions.extend_from_slice(&ring.discrete_actions[first * agents..(first + 1) * agents]);
        }
        out.weights.push(weight);
        out.bootstrap.push(factor);
        out.rows += 1;
    }

    /// Saves what can still be drawn, under names that begin with `prefix`.
    pub fn save(&self, prefix: &str, state: &mut StateDict) {
        let (mut words, mut kept) = (Vec::new(), Ring::default());
        for ring in &self.rings {
            words.push(ring.filled as u64);
            // The newest observation has no action and no reward yet; its row is saved like the others.
            for i in 0..=ring.filled {
                let row = (ring.newest + self.capacity - ring.filled + i) % self.capacity;
                let of = |values: &[f32], width: usize, to: &mut Vec<f32>| to.extend_from_slice(&values[row * width..(row + 1) * width]);
                of(&ring.observations, self.observation, &mut kept.observations);
                of(&ring.states, self.state, &mut kept.states);
                of(&ring.continuous_actions, self.action, &mut kept.continuous_actions);
                of(&ring.rewards, self.n_agents, &mut kept.rewards);
                if self.is_discrete {
                    kept.discrete_actions.extend_from_slice(&ring.discrete_actions[row * self.n_agents..(row + 1) * self.n_agents]);
                }
                kept.rows.push(ring.rows[row]);
            }
        }
        let n = kept.rows.len();
        state.put_u64(format!("{prefix}filled"), &words);
        state.put_f32(format!("{prefix}observations"), &[n, self.observation], &kept.observations);
        state.put_f32(format!("{prefix}states"), &[n, self.state], &kept.states);
        state.put_f32(format!("{prefix}continuous_actions"), &[n, self.action], &kept.continuous_actions);
        state.put_f32(format!("{prefix}rewards"), &[n, self.n_agents], &kept.rewards);
        state.put_u64(format!("{prefix}discrete_actions"), &kept.discrete_actions.iter().map(|a| u64::from(*a)).collect::<Vec<_>>());
        state.put_u64(format!("{prefix}rows"), &kept.rows.iter().map(|row| *row as u64).collect::<Vec<_>>());
    }

    /// Restores what [`Replay::save`] saved, into a memory of the same shape.
    ///
    /// # Errors
    /// [`AgentError::State`] naming the array that does not fit.
    pub fn load(&mut self, prefix: &str, state: &StateDict) -> Result<(), AgentError> {
        let unfit = |name: &str, reason: String| AgentError::State { tensor: format!("{prefix}{name}"), reason };
        let filled = state.u64(&format!("{prefix}filled"))?;
        if filled.len() != self.rings.len() {
            return Err(unfit("filled", format!("expected {} slots, got {}", self.rings.len(), filled.len())));
        }
        if let Some(rows) = filled.iter().find(|rows| **rows >= self.capacity as u64) {
            return Err(unfit("filled", format!("{rows} rows do not fit into {}", self.capacity)));
        }
        let n: usize = filled.iter().map(|rows| *rows as usize + 1).sum();
        let observations = state.f32(&format!("{prefix}observations"), n * self.observation)?;
        let states = state.f32(&format!("{prefix}states"), n * self.state)?;
        let continuous = state.f32(&format!("{prefix}continuous_actions"), n * self.action)?;
        let rewards = state.f32(&format!("{prefix}rewards"), n * self.n_agents)?;
        let discrete = state.u64(&format!("{prefix}discrete_actions"))?;
        let rows = state.u64(&format!("{prefix}rows"))?;
        let expected = if self.is_discrete { n * self.n_agents } else { 0 };
        for (name, length, expected) in [("discrete_actions", discrete.len(), expected), ("rows", rows.len(), n)] {
            if length != expected {
                return Err(unfit(name, format!("expected {expected} values, got {length}")));
            }
        }
        let kind = |word: &u64| Row::from_word(*word).ok_or_else(|| unfit("rows", format!("{word} is not a kind of row")));
        let rows: Vec<Row> = rows.iter().map(kind).collect::<Result<_, _>>()?;
        let index = |word: &u64| u32::try_from(*word).map_err(|_| unfit("discrete_actions", format!("{word} is not an action")));
        let discrete: Vec<u32> = discrete.iter().map(index).collect::<Result<_, _>>()?;
        let mut begin = 0;
        for (ring, filled) in self.rings.iter_mut().zip(filled) {
            ring.filled = *filled as usize;
            ring.newest = ring.filled;
            let count = ring.filled + 1;
            let of = |values: &[f32], width: usize, to: &mut [f32]| {
                to[..count * width].copy_from_slice(&values[begin * width..(begin + count) * width]);
            };
            of(observations, self.observation, &mut ring.observations);
            of(states, self.state, &mut ring.states);
            of(continuous, self.action, &mut ring.continuous_actions);
            of(rewards, self.n_agents, &mut ring.rewards);
            if self.is_discrete {
                let (agents, from) = (self.n_agents, &discrete);
                ring.discrete_actions[..count * agents].copy_from_slice(&from[begin * agents..(begin + count) * agents]);
            }
            ring.rows[..count].copy_from_slice(&rows[begin..begin + count]);
            begin += count;
        }
        Ok(())
    }
}

impl Ring {
    /// Writes observation and state number `place` of the arrays into a row.
    fn put(&mut self, row: usize, observations: &[f32], states: &[f32], place: usize, observation: usize, state: usize) {
        let from = &observations[place * observation..(place + 1) * observation];
        self.observations[row * observation..(row + 1) * observation].copy_from_slice(from);
        let from = &states[place * state..(place + 1) * state];
        self.states[row * state..(row + 1) * state].copy_from_slice(from);
    }

    fn advance(&mut self, capacity: usize) {
        self.newest = (self.newest + 1) % capacity;
        self.filled = (self.filled + 1).min(capacity - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use steadfast_envs::Environment;
    use steadfast_envs::testing::IdentityConfig;

    const DISCOUNT: f32 = 0.5;

    fn capacity(capacity: usize) -> ReplayConfig {
        ReplayConfig { capacity, learning_starts: 0, ..ReplayConfig::default() }
    }

    fn spec() -> EnvSpec {
        IdentityConfig { symbols: 1, horizon: 4, ..IdentityConfig::default() }.build().unwrap().spec().clone()
    }

    /// One slot whose observation counts up in the whole run, by 100 from one episode to the next; reward and action follow it.
    /// Episodes have four steps, the second one is terminated, the others are cut by the time limit.
    fn batch(first_step: usize, n_steps: usize) -> RolloutBatch {
        let observation = |step: usize| (step / 4 * 100 + step % 4) as f32;
        let steps = first_step..first_step + n_steps;
        let is_last = |step: usize| step % 4 == 3;
        let ends: Vec<usize> = steps.clone().filter(|s| is_last(*s)).collect();
        RolloutBatch {
            n_steps,
            n_slots: 1,
            n_agents: 1,
            observation_width: 1,
            observations: (first_step..=first_step + n_steps).map(observation).collect(),
            discrete_actions: steps.clone().map(|s| (s % 2) as u32).collect(),
            rewards: steps.clone().map(|s| observation(s) + 0.5).collect(),
            terminated: steps.clone().map(|s| is_last(s) && s / 4 == 1).collect(),
            truncated: steps.map(|s| is_last(s) && s / 4 != 1).collect(),
            ends: ends.iter().map(|s| (s - first_step, 0)).collect(),
            final_observations: ends.iter().map(|s| observation(*s) + 1.0).collect(),
            ..RolloutBatch::default()
        }
    }

    /// All different transitions that many draws bring, by their first observation.
    fn drawn(replay: &Replay, n_step: usize, time_limit_ends: bool) -> Vec<(f32, u32, f32, f32, f32)> {
        let (mut rng, mut out) = (Rng::from_seed(1), Transitions::default());
        let config = ReplayConfig { batch_size: 4000, n_step, time_limit_ends, ..ReplayConfig::default() };
        replay.sample(&config, DISCOUNT, &mut rng, &mut out);
        assert_eq!(out.rows, 4000);
        let mut found: Vec<_> = (0..out.rows)
            .map(|i| (out.observations[i], out.discrete_actions[i], out.rewards[i], out.next_observations[i], out.bootstrap[i]))
            .collect();
        found.sort_by(|a, b| a.0.total_cmp(&b.0));
        found.dedup();
        found
    }

    #[test]
    fn transitions_are_those_that_happened() {
        let mut replay = Replay::new(&spec(), 1, &capacity(100), false).unwrap();
        for first in [0, 3, 6] {
            replay.extend(&batch(first, 3));
        }
        // Nine steps: the first episode cut, the second terminated, one step of the third.
        let expected = [
            (0.0, 0, 0.5, 1.0, DISCOUNT),
            (1.0, 1, 1.5, 2.0, DISCOUNT),
            (2.0, 0, 2.5, 3.0, DISCOUNT),
            (3.0, 1, 3.5, 4.0, DISCOUNT),
            (100.0, 0, 100.5, 101.0, DISCOUNT),
            (101.0, 1, 101.5, 102.0, DISCOUNT),
            (102.0, 0, 102.5, 103.0, DISCOUNT),
            (103.0, 1, 103.5, 104.0, 0.0),
            (200.0, 0, 200.5, 201.0, DISCOUNT),
        ];
        assert_eq!(drawn(&replay, 1, false), expected);
    }

    #[test]
    fn several_steps_stop_where_the_episode_or_the_memory_does() {
        let mut replay = Replay::new(&spec(), 1, &capacity(100), false).unwrap();
        replay.extend(&batch(0, 9));
        let found = drawn(&replay, 3, false);
        let three = |a: f32| a + 0.5 + DISCOUNT * (a + 1.5) + DISCOUNT * DISCOUNT * (a + 2.5);
        assert!(found.contains(&(0.0, 0, three(0.0), 3.0, 0.125)));
        assert!(found.contains(&(1.0, 1, three(1.0), 4.0, 0.125)));
        // The time limit after two steps, the end of the task after one, the newest observation after one.
        assert!(found.contains(&(2.0, 0, 2.5 + DISCOUNT * 3.5, 4.0, 0.25)));
        assert!(found.contains(&(103.0, 1, 103.5, 104.0, 0.0)));
        assert!(found.contains(&(200.0, 0, 200.5, 201.0, 0.5)));
        assert_eq!(found.len(), 9);
        // As if the limit were the end of the task.
        let found = drawn(&replay, 3, true);
        assert!(found.contains(&(2.0, 0, 2.5 + DISCOUNT * 3.5, 4.0, 0.0)) && found.contains(&(1.0, 1, three(1.0), 4.0, 0.0)));
        assert!(found.contains(&(0.0, 0, three(0.0), 3.0, 0.125)));
    }

    #[test]
    fn weights_are_the_sums_of_rewards_of_one() {
        let mut replay = Replay::new(&spec(), 1, &capacity(100), false).unwrap();
        let steps = batch(0, 9);
        replay.extend(&RolloutBatch { rewards: vec![1.0; steps.rewards.len()], ..steps });
        let (mut rng, mut out) = (Rng::from_seed(1), Transitions::default());
        for n_step in [1, 3] {
            replay.sample(&ReplayConfig { n_step, ..ReplayConfig::default() }, DISCOUNT, &mut rng, &mut out);
            assert_eq!(out.weights, out.rewards);
        }
        // One, two and three steps are among them.
        assert!([1.0, 1.5, 1.75].iter().all(|weight| out.weights.contains(weight)), "{:?}", out.weights);
    }

    #[test]
    fn the_oldest_steps_make_room() {
        // Ten rows hold the newest observation and nine more: of the last two episodes with their ends, all but one.
        let mut replay = Replay::new(&spec(), 1, &capacity(10), false).unwrap();
        for first in (0..40).step_by(5) {
            replay.extend(&batch(first, 5));
        }
        let firsts: Vec<f32> = drawn(&replay, 1, false).iter().map(|t| t.0).collect();
        assert_eq!(firsts, [801.0, 802.0, 803.0, 900.0, 901.0, 902.0, 903.0]);
        assert_eq!(replay.len(), 9);
    }

    #[test]
    fn a_restored_memory_draws_the_same() {
        for steps in [0, 3, 7, 40] {
            let mut replay = Replay::new(&spec(), 1, &capacity(10), false).unwrap();
            (0..steps).for_each(|first| replay.extend(&batch(first, 1)));
            let mut state = StateDict::default();
            replay.save(PREFIX, &mut state);
            let mut other = Replay::new(&spec(), 1, &capacity(10), false).unwrap();
            other.load(PREFIX, &state).unwrap();
            for first in steps..steps + 3 {
                replay.extend(&batch(first, 1));
                other.extend(&batch(first, 1));
                let draw = |replay: &Replay| {
                    let mut out = Transitions::default();
                    let config = ReplayConfig { batch_size: 50, n_step: 2, ..ReplayConfig::default() };
                    replay.sample(&config, DISCOUNT, &mut Rng::from_seed(3), &mut out);
                    out
                };
                assert_eq!(draw(&replay), draw(&other), "after {first} steps");
            }
            let mut smaller = Replay::new(&spec(), 1, &capacity(5), false).unwrap();
            assert_eq!(smaller.load(PREFIX, &state).is_err(), steps >= 5, "{steps}");
        }
    }

    #[test]
    fn too_small_a_memory_is_refused() {
        let error = Replay::new(&spec(), 8, &capacity(31), false).unwrap_err();
        assert!(error.to_string().contains("`replay.capacity` must be at least 4 for each of the 8 slots"), "{error}");
        // Of 100 rows the eight slots have 12 each, one of them for the newest observation.
        let late = ReplayConfig { learning_starts: 89, ..capacity(100) };
        let error = Replay::new(&spec(), 8, &late, false).unwrap_err();
        assert!(error.to_string().contains("`replay.learning_starts` must be at most 88"), "{error}");
    }
}
