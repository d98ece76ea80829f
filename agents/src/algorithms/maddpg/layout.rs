//! How joint observations and actions lie in the inputs of critics, and what adversaries do there: M3DDPG's step and ERNIE-A.

use steadfast_envs::{EnvSpec, Space};

use super::{Minibatch, MinimaxConfig, Room, Side, Sums};
use crate::AgentError;
use crate::nn::Mlp;
use crate::regularizers::action::{ActionRegularizerConfig, JointValues};
use crate::team::SharedInput;

/// Where things lie in the critics' inputs: all observations, all actions, the agent's index.
pub(super) struct Layout {
    /// First number of each agent's observation.
    pub(super) observations: Vec<usize>,
    /// Numbers of all observations.
    pub(super) observation: usize,
    /// First number of each agent's action, counted from the first action.
    pub(super) actions: Vec<usize>,
    /// Numbers of each agent's action: choices, or coordinates.
    pub(super) widths: Vec<usize>,
    /// Numbers of all actions.
    pub(super) action: usize,
    /// Group and member of each agent.
    pub(super) membership: Vec<(usize, usize)>,
    /// The environment's group of each agent.
    pub(super) team: Vec<usize>,
    pub(super) is_discrete: bool,
}

impl Layout {
    pub(super) fn new(spec: &EnvSpec, shared: &[(String, Vec<usize>)], teams: &[Vec<usize>]) -> Result<Self, AgentError> {
        let n = spec.n_agents();
        let mut layout = Self {
            observations: Vec::new(),
            observation: 0,
            actions: Vec::new(),
            widths: Vec::new(),
            action: 0,
            membership: vec![(0, 0); n],
            team: vec![0; n],
            is_discrete: spec.has_discrete_actions(),
        };
        for agent in &spec.agents {
            let width = match &agent.action {
                Space::Discrete { n } => *n,
                other => other.width(),
            };
            layout.observations.push(layout.observation);
            layout.observation += agent.observation.width();
            layout.actions.push(layout.action);
            layout.widths.push(width);
            layout.action += width;
        }
        for (g, (_, agents)) in shared.iter().enumerate() {
            agents.iter().enumerate().for_each(|(member, &agent)| layout.membership[agent] = (g, member));
        }
        for (t, agents) in teams.iter().enumerate() {
            agents.iter().for_each(|&agent| layout.team[agent] = t);
        }
        Ok(layout)
    }

    /// Puts the observations among a group's network inputs `[row, member, input]` to their places in `joint` `[row, all observations]`.
    pub(super) fn join_observations(&self, input: &SharedInput, inputs: &[f32], joint: &mut [f32]) {
        let n = input.observation;
        for (i, from) in inputs.chunks_exact(input.width()).enumerate() {
            let agent = input.agents[i % input.members()];
            let to = i / input.members() * self.observation + self.observations[agent];
            joint[to..to + n].copy_from_slice(&from[..n]);
        }
    }

    /// Inputs of a group's critic `[row, member, input]` for joint observations and actions.
    pub(super) fn critic_rows(&self, input: &SharedInput, observations: &[f32], actions: &[f32], out: &mut Vec<f32>) {
        out.clear();
        for (observation, action) in observations.chunks_exact(self.observation).zip(actions.chunks_exact(self.action)) {
            for member in 0..input.members() {
                self.push_row(input, observation, action, member, out);
            }
        }
    }

    /// Where a row of a critic's inputs has the row's own action.
    pub(super) fn own_action(&self, input: &SharedInput, row: usize) -> std::ops::Range<usize> {
        let own = input.agents[row % input.members()];
        let first = self.observation + self.actions[own];
        first..first + self.widths[own]
    }

    pub(super) fn push_row(&self, input: &SharedInput, observation: &[f32], action: &[f32], member: usize, out: &mut Vec<f32>) {
        out.extend_from_slice(observation);
        out.extend_from_slice(action);
        out.extend((0..input.index).map(|i| if i == member { 1.0 } else { 0.0 }));
    }

    /// Moves, in the critic's inputs `room.rows`, the actions of all agents but the row's own by a step against the row's value.
    pub(super) fn oppose(&self, input: &SharedInput, critic: &Mlp, config: &MinimaxConfig, samples: usize, room: &mut Room) {
        let width = critic.input();
        critic.forward_train(&room.rows, samples, &mut room.trace);
        room.d_rows.resize(samples * width, 0.0);
        room.values.clear();
        room.values.resize(samples, 1.0);
        critic.backward(&mut room.trace, &room.values, None, Some(&mut room.d_rows));
        for (i, (row, slope)) in room.rows.chunks_exact_mut(width).zip(room.d_rows.chunks_exact(width)).enumerate() {
            let own = input.agents[i % input.members()];
            for agent in (0..self.widths.len()).filter(|&agent| agent != own) {
                let length = if self.team[agent] == self.team[own] { config.teammates } else { config.opponents } as f32;
                let at = self.observation + self.actions[agent]..self.observation + self.actions[agent] + self.widths[agent];
                let norm = slope[at.clone()].iter().map(|s| s * s).sum::<f32>().sqrt();
                if norm > 0.0 {
                    row[at.clone()].iter_mut().zip(&slope[at]).for_each(|(a, s)| *a -= length * s / norm);
                }
            }
        }
    }

    /// Adds the penalty on the change of the values of agent `member` of a group when other agents act otherwise, with its gradient.
    /// `clean` `[row]` are the values at the actions taken, at which the critic's last forward pass was.
    pub(super) fn resist(
        &self,
        input: &SharedInput,
        critic: &mut Side,
        m: &Minibatch,
        member: usize,
        config: &ActionRegularizerConfig,
        weight: f64,
        clean: &[f32],
        room: &mut Room,
        sums: &mut Sums,
    ) {
        let own = input.agents[member];
        let mut attack = std::mem::take(&mut room.attack);
        if self.is_discrete {
            let mut choices = self.widths.clone();
            choices[own] = 0;
            let mut values = CriticValues { layout: self, input, critic: &critic.net, m, member, room };
            attack.search(config, &mut values, &choices, &m.chosen, clean);
            sums.action.add(&m.chosen, &attack.worst, &attack.change);
            let places: Vec<u32> = (0..m.rows as u32).collect();
            values.gather(&places, &attack.worst);
        } else {
            attack.change.clear();
            attack.change.resize(m.rows, 0.0);
            let changed = self.push_actions(input, &critic.net, m, member, config, clean, room, &mut attack.change);
            sums.action.add_moved(changed, &attack.change);
        }
        // d (Q − Q')² = 2 (Q − Q') (dQ − dQ')
        critic.net.forward_train(&room.rows, m.rows, &mut room.trace);
        let scale = 2.0 * (weight / m.rows as f64) as f32;
        room.values.clear();
        for (row, change) in attack.change.iter().enumerate() {
            critic.d_output[row * input.members() + member] += scale * change;
            room.values.push(-scale * change);
        }
        critic.net.backward(&mut room.trace, &room.values, Some(&mut critic.gradient), None);
        room.attack = attack;
    }

    /// Finds continuous actions of the other agents that change the values of agent `member` most, within the balls; leaves critic
    /// inputs with them in `room.rows` and the changes `[row]`. Returns the mean number of agents whose actions moved.
    fn push_actions(
        &self,
        input: &SharedInput,
        critic: &Mlp,
        m: &Minibatch,
        member: usize,
        config: &ActionRegularizerConfig,
        clean: &[f32],
        room: &mut Room,
        change: &mut [f32],
    ) -> f64 {
        let (own, width, radius) = (input.agents[member], critic.input(), config.radius as f32);
        let step = if config.steps <= 1 { radius } else { 2.0 * radius / config.steps as f32 };
        let mut start = Vec::new();
        for (observation, action) in m.observations.chunks_exact(self.observation).zip(m.actions.chunks_exact(self.action)) {
            self.push_row(input, observation, action, member, &mut start);
        }
        let mut best = start.clone();
        let sides: &[f32] = if config.only_harmful { &[-1.0] } else { &[-1.0, 1.0] };
        for &side in sides {
            let mut rows = start.clone();
            let mut turned: Vec<usize> = Vec::new();
            room.d_rows.resize(m.rows * width, 0.0);
            for k in 0..config.steps {
                critic.forward_train(&rows, m.rows, &mut room.trace);
                room.values.clear();
                room.values.resize(m.rows, side);
                critic.backward(&mut room.trace, &room.values, None, Some(&mut room.d_rows));
                if k == 0 {
                    // The agents with the steepest slopes are turned.
                    for slope in room.d_rows.chunks_exact(width) {
                        turned.extend(self.steepest(slope, own, config.agents));
                    }
                }
                let per_row = turned.len() / m.rows.max(1);
                for (i, (row, slope)) in rows.chunks_exact_mut(width).zip(room.d_rows.chunks_exact(width)).enumerate() {
                    for &agent in &turned[i * per_row..(i + 1) * per_row] {
                        let at = self.observation + self.actions[agent]..self.observation + self.actions[agent] + self.widths[agent];
                        push(&mut row[at.clone()], &slope[at.clone()], &start[i * width..][at], step, radius);
                    }
                }
            }
            room.values.resize(m.rows, 0.0);
            critic.forward(&rows, m.rows, &mut room.values, &mut room.workspace);
            for row in 0..m.rows {
                let found = clean[row] - room.values[row];
                let is_worse = if config.only_harmful { found > change[row] } else { found.abs() > change[row].abs() };
                if is_worse {
                    change[row] = found;
                    best[row * width..(row + 1) * width].copy_from_slice(&rows[row * width..(row + 1) * width]);
                }
            }
        }
        let moved = |i: usize, agent: usize| {
            let at = i * width + self.observation + self.actions[agent];
            best[at..at + self.widths[agent]] != start[at..at + self.widths[agent]]
        };
        let total: usize = (0..m.rows).map(|i| (0..self.widths.len()).filter(|&agent| moved(i, agent)).count()).sum();
        room.rows = best;
        total as f64 / m.rows.max(1) as f64
    }

    /// The agents other than `own` on whose actions a critic's input slope is steepest, at most `n`.
    fn steepest(&self, slope: &[f32], own: usize, n: usize) -> Vec<usize> {
        let steepness = |agent: usize| {
            let at = self.observation + self.actions[agent];
            slope[at..at + self.widths[agent]].iter().map(|s| s * s).sum::<f32>()
        };
        let mut others: Vec<usize> = (0..self.widths.len()).filter(|&agent| agent != own).collect();
        others.sort_by(|a, b| steepness(*b).total_cmp(&steepness(*a)));
        others.truncate(n);
        others
    }
}

/// Moves an action along a slope by `step`, into the ball of `radius` around `centre` and into the box from -1 to 1.
fn push(action: &mut [f32], slope: &[f32], centre: &[f32], step: f32, radius: f32) {
    let norm = slope.iter().map(|s| s * s).sum::<f32>().sqrt();
    if norm == 0.0 {
        return;
    }
    action.iter_mut().zip(slope).for_each(|(a, s)| *a += step * s / norm);
    let distance = action.iter().zip(centre).map(|(a, c)| (a - c) * (a - c)).sum::<f32>().sqrt();
    let factor = if distance > radius { radius / distance } else { 1.0 };
    action.iter_mut().zip(centre).for_each(|(a, c)| *a = (c + factor * (*a - c)).clamp(-1.0, 1.0));
}

/// An agent's value as a function of the others' discrete actions.
struct CriticValues<'a> {
    layout: &'a Layout,
    input: &'a SharedInput,
    critic: &'a Mlp,
    m: &'a Minibatch,
    member: usize,
    room: &'a mut Room,
}

impl CriticValues<'_> {
    /// Critic inputs for joint actions `[n, agent]` at samples `places`, into `room.rows`.
    fn gather(&mut self, places: &[u32], actions: &[u32]) {
        let Self { layout, input, m, member, room, .. } = self;
        room.rows.clear();
        let mut joint = vec![0.0; layout.action];
        for (&place, actions) in places.iter().zip(actions.chunks_exact(layout.widths.len())) {
            joint.fill(0.0);
            actions.iter().zip(&layout.actions).for_each(|(action, first)| joint[first + *action as usize] = 1.0);
            let observation = &m.observations[place as usize * layout.observation..][..layout.observation];
            layout.push_row(input, observation, &joint, *member, &mut room.rows);
        }
    }
}

impl JointValues for CriticValues<'_> {
    fn values(&mut self, places: &[u32], actions: &[u32], out: &mut Vec<f32>) {
        self.gather(places, actions);
        out.resize(places.len(), 0.0);
        self.critic.forward(&self.room.rows, places.len(), out, &mut self.room.workspace);
    }

    fn changes(&mut self, actions: &[u32], out: &mut Vec<f32>) -> usize {
        let places: Vec<u32> = (0..self.m.rows as u32).collect();
        self.gather(&places, actions);
        let Self { layout, critic, m, room, .. } = self;
        let width = critic.input();
        critic.forward_train(&room.rows, m.rows, &mut room.trace);
        room.d_rows.resize(m.rows * width, 0.0);
        critic.backward(&mut room.trace, &vec![1.0; m.rows], None, Some(&mut room.d_rows));
        let widest = layout.widths.iter().copied().max().unwrap_or(0);
        out.clear();
        for (slope, actions) in room.d_rows.chunks_exact(width).zip(actions.chunks_exact(layout.widths.len())) {
            for (agent, &taken) in actions.iter().enumerate() {
                let of = &slope[layout.observation + layout.actions[agent]..][..layout.widths[agent]];
                out.extend((0..widest).map(|c| of.get(c).map_or(0.0, |s| s - of[taken as usize])));
            }
        }
        widest
    }
}
