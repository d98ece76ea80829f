//! Many environments of one kind, stepped together.

use super::episode::EpisodeStats;
use crate::snapshot::{SnapshotReader, SnapshotWriter};
use crate::{Actions, EnvError, EnvSpec, Environment, Result, SeedTree, Space, StepOut};

/// Fewer slots than this are not worth handing to another thread.
const MIN_SLOTS_PER_TASK: usize = 8;

/// Where [`VectorEnv::step`] writes, slot by slot.
#[derive(Debug)]
pub struct StepBuffers<'a> {
    /// `[slot, agent, observation_width]`: the next observations; after an end, the first of the new episode.
    pub observations: &'a mut [f32],
    /// `[slot, state_dim]`, or empty if the global state is not wanted.
    pub states: &'a mut [f32],
    /// `[slot, agent]`.
    pub rewards: &'a mut [f32],
    /// `[slot]`.
    pub terminated: &'a mut [bool],
    /// `[slot]`.
    pub truncated: &'a mut [bool],
}

/// One environment and the account of its running episode.
struct Slot {
    env: Box<dyn Environment>,
    episode: u64,
    length: usize,
    returns: Vec<f64>,
    ended: bool,
    // The account of the episode that ended in the last step.
    last_number: u64,
    last_length: usize,
    last_terminated: bool,
    last_returns: Vec<f64>,
    last_metrics: Vec<f64>,
    final_observations: Vec<f32>,
    final_state: Vec<f32>,
    /// Continuous actions inside their boxes, `[agent, action_width]`.
    clamped: Vec<f32>,
    error: Option<EnvError>,
}

/// Sizes of one slot's part of each array.
#[derive(Clone, Copy)]
struct Layout {
    observations: usize,
    state: usize,
    agents: usize,
    action: usize,
    n_slots: usize,
    group: usize,
}

/// A fixed number of environments with equal specifications. Episodes restart by themselves; their seeds depend on the
/// episode's number alone.
pub struct VectorEnv {
    slots: Vec<Slot>,
    spec: EnvSpec,
    seeds: SeedTree,
    /// Neighbouring slots whose episodes have the same seed.
    group: usize,
}

impl VectorEnv {
    /// Takes the environments, one per slot. Episode `e` of slot `s` is seeded by `seeds.index(e × slots + s)`.
    ///
    /// # Errors
    /// [`EnvError::Config`] if there is none or if they differ.
    pub fn new(envs: Vec<Box<dyn Environment>>, seeds: SeedTree) -> Result<Self> {
        let fail = |expected: &str, got: String| {
            Err(EnvError::Config { env: "vector".to_string(), field: "slots", expected: expected.to_string(), got })
        };
        let Some(first) = envs.first() else { return fail("at least 1", "0".to_string()) };
        let spec = first.spec().clone();
        if let Some(other) = envs.iter().find(|e| *e.spec() != spec) {
            return fail("environments with equal specifications", format!("`{}` beside `{}`", other.spec().name, spec.name));
        }
        let n_agents = spec.n_agents();
        let slots = envs
            .into_iter()
            .map(|env| Slot {
                env,
                episode: 0,
                length: 0,
                returns: vec![0.0; n_agents],
                ended: false,
                last_number: 0,
                last_length: 0,
                last_terminated: false,
                last_returns: vec![0.0; n_agents],
                last_metrics: vec![0.0; spec.episode_metrics.len()],
                final_observations: vec![0.0; n_agents * spec.observation_width()],
                final_state: vec![0.0; spec.state_dim],
                clamped: vec![0.0; if spec.has_continuous_actions() { n_agents * spec.action_width() } else { 0 }],
                error: None,
            })
            .collect();
        Ok(Self { slots, spec, seeds, group: 1 })
    }

    /// The same, with the same episode in every `group` neighbouring slots: episode `e` of slot `s` is seeded by
    /// `seeds.index((e × slots + s) / group)`. So several completions of one prompt stand side by side; a policy still
    /// draws each from its own numbers.
    ///
    /// # Errors
    /// [`EnvError::Config`] as [`VectorEnv::new`], and if the slots are not a multiple of `group`, which is at least 1.
    pub fn with_groups(envs: Vec<Box<dyn Environment>>, seeds: SeedTree, group: usize) -> Result<Self> {
        let vector = Self::new(envs, seeds)?;
        if group == 0 || !vector.n_slots().is_multiple_of(group) {
            return Err(EnvError::Config {
                env: "vector".to_string(),
                field: "slots",
                expected: format!("a multiple of the {group} slots of a group"),
                got: vector.n_slots().to_string(),
            });
        }
        Ok(Self { group, ..vector })
    }

    /// Neighbouring slots whose episodes have the same seed.
    pub fn group(&self) -> usize {
        self.group
    }

    /// The facts shared by all slots.
    pub fn spec(&self) -> &EnvSpec {
        &self.spec
    }

    /// Number of environments.
    pub fn n_slots(&self) -> usize {
        self.slots.len()
    }

    /// Number of the episode that runs in a slot.
    pub fn episode_number(&self, slot: usize) -> u64 {
        self.slots[slot].episode * self.slots.len() as u64 + slot as u64
    }

    fn layout(&self) -> Layout {
        let agents = self.spec.n_agents();
        Layout {
            observations: agents * self.spec.observation_width(),
            state: self.spec.state_dim,
            agents,
            action: agents * self.spec.action_width(),
            n_slots: self.slots.len(),
            group: self.group,
        }
    }

    /// Starts all slots at their first episode. `states` may be empty.
    pub fn reset(&mut self, observations: &mut [f32], states: &mut [f32]) {
        let layout = self.layout();
        for (i, slot) in self.slots.iter_mut().enumerate() {
            slot.episode = 0;
            slot.start(self.seeds, i, layout, &mut observations[i * layout.observations..(i + 1) * layout.observations]);
            slot.ended = false;
            if !states.is_empty() {
                slot.env.state(&mut states[i * layout.state..(i + 1) * layout.state]);
            }
        }
    }

    /// Steps all slots, on the threads of the current rayon pool. The result does not depend on their number.
    /// Continuous actions are clamped to their boxes on the way to the environment.
    ///
    /// # Errors
    /// The error of the lowest slot that failed.
    pub fn step(&mut self, actions: Actions<'_>, out: StepBuffers<'_>) -> Result<()> {
        let layout = self.layout();
        let threads = rayon::current_num_threads();
        let tasks = threads.min(self.slots.len() / MIN_SLOTS_PER_TASK).max(1);
        step_range(&mut self.slots, 0, self.seeds, layout, actions, out, tasks);
        match self.slots.iter_mut().find_map(|slot| slot.error.take()) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// The episode that ended in a slot's last step, if one did.
    pub fn ended(&self, slot: usize) -> Option<EpisodeStats<'_>> {
        let s = &self.slots[slot];
        s.ended.then_some(EpisodeStats {
            number: s.last_number,
            length: s.last_length,
            returns: &s.last_returns,
            metrics: &s.last_metrics,
            terminated: s.last_terminated,
        })
    }

    /// Observation `[agent, observation_width]` after the last step of the last ended episode of a slot.
    pub fn final_observations(&self, slot: usize) -> &[f32] {
        &self.slots[slot].final_observations
    }

    /// Global state at that time.
    pub fn final_state(&self, slot: usize) -> &[f32] {
        &self.slots[slot].final_state
    }

    /// Writes the state of every slot.
    pub fn snapshot(&self, out: &mut SnapshotWriter) {
        out.u64(self.slots.len() as u64);
        for slot in &self.slots {
            out.u64(slot.episode);
            out.u64(slot.length as u64);
            out.f64s(&slot.returns);
            slot.env.snapshot(out);
        }
    }

    /// Restores what [`VectorEnv::snapshot`] wrote.
    ///
    /// # Errors
    /// [`EnvError::Snapshot`] if it does not fit.
    pub fn restore(&mut self, input: &mut SnapshotReader<'_>) -> Result<()> {
        let n = input.u64()?;
        if n != self.slots.len() as u64 {
            return Err(EnvError::Snapshot {
                place: "vector environment".to_string(),
                reason: format!("expected {} slots, got {n}", self.slots.len()),
            });
        }
        for slot in &mut self.slots {
            slot.episode = input.u64()?;
            slot.length = input.u64()? as usize;
            input.f64s(&mut slot.returns)?;
            slot.env.restore(input)?;
            slot.ended = false;
        }
        Ok(())
    }
}

impl Slot {
    /// Continuous actions brought into the boxes of their agents; NaN stays NaN.
    fn clamp(&mut self, actions: &[f32]) {
        let spec = self.env.spec();
        let width = spec.action_width();
        for (agent, (out, action)) in self.clamped.chunks_exact_mut(width).zip(actions.chunks_exact(width)).enumerate() {
            if let Space::Box { low, high } = &spec.agents[agent].action {
                for ((o, &a), (&l, &h)) in out.iter_mut().zip(action).zip(low.iter().zip(high)) {
                    *o = a.clamp(l, h);
                }
            }
        }
    }

    fn start(&mut self, seeds: SeedTree, index: usize, layout: Layout, observations: &mut [f32]) {
        self.length = 0;
        self.returns.fill(0.0);
        observations.fill(0.0);
        let number = self.episode * layout.n_slots as u64 + index as u64;
        self.env.reset(seeds.index(number / layout.group as u64).seed(), observations);
    }
}

/// Steps a contiguous range of slots, halving it into `tasks` parallel tasks. Joins need no heap memory.
fn step_range(slots: &mut [Slot], first: usize, seeds: SeedTree, layout: Layout, actions: Actions<'_>, out: StepBuffers<'_>, tasks: usize) {
    if tasks > 1 && slots.len() > 1 {
        let half = slots.len() / 2;
        let (left, right) = slots.split_at_mut(half);
        let (o1, o2) = out.observations.split_at_mut(half * layout.observations);
        let states = if out.states.is_empty() { 0 } else { half * layout.state };
        let (s1, s2) = out.states.split_at_mut(states);
        let (r1, r2) = out.rewards.split_at_mut(half * layout.agents);
        let (t1, t2) = out.terminated.split_at_mut(half);
        let (c1, c2) = out.truncated.split_at_mut(half);
        let (a1, a2) = match actions {
            Actions::Discrete(a) => {
                let (x, y) = a.split_at(half * layout.action);
                (Actions::Discrete(x), Actions::Discrete(y))
            }
            Actions::Continuous(a) => {
                let (x, y) = a.split_at(half * layout.action);
                (Actions::Continuous(x), Actions::Continuous(y))
            }
            Actions::Tokens(rows) => {
                let (x, y) = rows.split_at(half * layout.agents);
                (Actions::Tokens(x), Actions::Tokens(y))
            }
        };
        let b1 = StepBuffers { observations: o1, states: s1, rewards: r1, terminated: t1, truncated: c1 };
        let b2 = StepBuffers { observations: o2, states: s2, rewards: r2, terminated: t2, truncated: c2 };
        rayon::join(
            || step_range(left, first, seeds, layout, a1, b1, tasks / 2),
            || step_range(right, first + half, seeds, layout, a2, b2, tasks - tasks / 2),
        );
        return;
    }
    for (i, slot) in slots.iter_mut().enumerate() {
        let observations = &mut out.observations[i * layout.observations..(i + 1) * layout.observations];
        let rewards = &mut out.rewards[i * layout.agents..(i + 1) * layout.agents];
        let mut step = StepOut { observations, rewards, terminated: false, truncated: false };
        slot.ended = false;
        // An earlier step reports one slot's error only; those of later slots must not outlive it.
        slot.error = None;
        let stepped = match actions.slot(i, layout.action) {
            actions @ (Actions::Discrete(_) | Actions::Tokens(_)) => slot.env.step(actions, &mut step),
            Actions::Continuous(a) => {
                slot.clamp(a);
                slot.env.step(Actions::Continuous(&slot.clamped), &mut step)
            }
        };
        if let Err(error) = stepped {
            slot.error = Some(error);
            continue;
        }
        let (terminated, truncated) = (step.terminated, step.truncated && !step.terminated);
        out.terminated[i] = terminated;
        out.truncated[i] = truncated;
        slot.length += 1;
        for (sum, &reward) in slot.returns.iter_mut().zip(&*rewards) {
            *sum += f64::from(reward);
        }
        if terminated || truncated {
            slot.ended = true;
            slot.last_number = slot.episode * layout.n_slots as u64 + (first + i) as u64;
            slot.last_length = slot.length;
            slot.last_terminated = terminated;
            slot.last_returns.copy_from_slice(&slot.returns);
            slot.env.episode_metrics(&mut slot.last_metrics);
            slot.final_observations.copy_from_slice(observations);
            slot.env.state(&mut slot.final_state);
            slot.episode += 1;
            slot.start(seeds, first + i, layout, observations);
        }
        if !out.states.is_empty() {
            slot.env.state(&mut out.states[i * layout.state..(i + 1) * layout.state]);
        }
    }
}
