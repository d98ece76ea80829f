//! What the particle environments share: actions, buffers, the time limit and snapshots around a [`Scenario`].

use super::world::{Body, Integrator, Physics, Vec2, World};
use crate::environment::invalid_index;
use crate::range::require;
use crate::{Actions, AgentSpec, EnvError, EnvSpec, Environment, Result, Rng, SnapshotReader, SnapshotWriter, Space, StepOut};

/// Movements of a discrete action: none, −x, +x, −y, +y.
const MOVES: [Vec2; 5] = [[0.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]];

/// Rules of one task: where things start, what agents see and what they are paid for.
pub trait Scenario: Send {
    /// Places the bodies and draws the choices of an episode. Agents are already at rest and silent.
    fn reset(&self, world: &mut World, rng: &mut Rng);

    /// Writes the rewards `[agent]` after a step and updates the metrics, which start an episode at 0. Returns true if
    /// the task is done.
    fn score(&self, world: &World, rewards: &mut [f64], metrics: &mut [f64]) -> bool;

    /// Computes what the observations of several agents share. Called before the agents of a world are observed one by one.
    fn survey(&self, world: &World) {
        let _ = world;
    }

    /// True if the last numbers that `agent` sees are the message of another agent.
    fn hears(&self, agent: usize) -> bool {
        let _ = agent;
        false
    }

    /// Writes what `agent` sees, after [`Scenario::survey`] of the same world.
    fn observe(&self, world: &World, agent: usize, out: &mut Features<'_>);
}

/// One agent's part of an observation buffer, filled from the front.
#[derive(Debug)]
pub struct Features<'a> {
    out: &'a mut [f32],
    at: usize,
}

impl Features<'_> {
    /// Appends a number.
    #[inline]
    pub fn number(&mut self, value: f64) {
        self.out[self.at] = value as f32;
        self.at += 1;
    }

    /// Appends a vector.
    #[inline]
    pub fn vector(&mut self, value: Vec2) {
        let pair = &mut self.out[self.at..self.at + 2];
        pair[0] = value[0] as f32;
        pair[1] = value[1] as f32;
        self.at += 2;
    }

    /// Appends several numbers.
    #[inline]
    pub fn numbers(&mut self, values: &[f64]) {
        for &value in values {
            self.number(value);
        }
    }

    /// Appends the offsets of all landmarks from `agent`.
    #[inline]
    pub fn landmarks(&mut self, world: &World, agent: usize) {
        for landmark in 0..world.n_landmarks() {
            self.vector(world.offset(agent, world.landmark(landmark)));
        }
    }

    /// Appends the offsets of all other agents from `agent`.
    #[inline]
    pub fn others(&mut self, world: &World, agent: usize) {
        for other in 0..world.n_agents() {
            if other != agent {
                self.vector(world.offset(agent, other));
            }
        }
    }
}

/// An agent of a scenario, for [`ParticleEnv::new`].
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub group: &'static str,
    /// Number within the group.
    pub index: usize,
    pub body: Body,
    pub observation_width: usize,
    pub speaks: bool,
}

/// What a configuration says about its world.
#[derive(Debug)]
pub(crate) struct Setup {
    pub name: &'static str,
    pub agents: Vec<Member>,
    pub landmarks: Vec<Body>,
    pub message_width: usize,
    pub n_choices: usize,
    pub metrics: &'static [&'static str],
    pub continuous_actions: bool,
    pub integrator: Integrator,
    pub physics: Physics,
    pub horizon: usize,
}

/// How an agent's action is read.
#[derive(Debug, Clone, Copy)]
struct ActionLayout {
    /// Choices of a discrete action, numbers of a continuous one.
    size: usize,
    speaks: bool,
    is_movable: bool,
    acceleration: f64,
}

/// A particle environment: a [`World`] under the rules of a [`Scenario`].
///
/// Actions. Discrete: none, −x, +x, −y, +y; an agent that moves and speaks has `5 · symbol + move`, a speaker that stays
/// has `symbol`. Continuous: five numbers in `[0, 1]`, of which the first is not used and the others push toward −x, +x,
/// −y, +y; then the numbers of the message. Numbers outside `[0, 1]` count as the nearest limit, as in the reference.
///
/// The global state is the observations of all agents, one after the other, without padding.
#[derive(Debug)]
pub struct ParticleEnv<S> {
    scenario: S,
    world: World,
    spec: EnvSpec,
    layouts: Vec<ActionLayout>,
    observation_widths: Vec<usize>,
    observation_width: usize,
    action_width: usize,
    rewards: Vec<f64>,
    metrics: Vec<f64>,
    steps: usize,
}

impl<S: Scenario> ParticleEnv<S> {
    pub(crate) fn new(scenario: S, setup: Setup) -> Result<Self> {
        setup.physics.validate(setup.name)?;
        require(setup.name, "horizon", setup.horizon, 1, u32::MAX as usize)?;
        let mut agents = Vec::with_capacity(setup.agents.len());
        let mut layouts = Vec::with_capacity(setup.agents.len());
        for member in &setup.agents {
            let moves = if member.body.is_movable { MOVES.len() } else { 0 };
            let symbols = if member.speaks { setup.message_width } else { 0 };
            let (size, action) = if setup.continuous_actions {
                (moves + symbols, Space::interval(moves + symbols, 0.0, 1.0))
            } else {
                let n = moves.max(1) * symbols.max(1);
                (n, Space::Discrete { n })
            };
            agents.push(AgentSpec {
                name: format!("{}_{}", member.group, member.index),
                group: member.group.to_string(),
                observation: Space::unbounded(member.observation_width),
                action,
            });
            layouts.push(ActionLayout {
                size,
                speaks: member.speaks,
                is_movable: member.body.is_movable,
                acceleration: member.body.acceleration,
            });
        }
        let observation_widths: Vec<usize> = setup.agents.iter().map(|a| a.observation_width).collect();
        let n_agents = agents.len();
        let spec = EnvSpec {
            name: setup.name.to_string(),
            agents,
            state_dim: observation_widths.iter().sum(),
            horizon: setup.horizon,
            step_seconds: setup.physics.step_seconds,
            episode_metrics: setup.metrics.iter().map(|m| (*m).to_string()).collect(),
        };
        let bodies = setup.agents.iter().map(|a| a.body).chain(setup.landmarks).collect();
        let world = World::new(setup.physics, setup.integrator, n_agents, bodies, setup.message_width, setup.n_choices);
        Ok(Self {
            scenario,
            world,
            layouts,
            observation_width: spec.observation_width(),
            action_width: spec.action_width(),
            observation_widths,
            rewards: vec![0.0; n_agents],
            metrics: vec![0.0; setup.metrics.len()],
            steps: 0,
            spec,
        })
    }

    /// The bodies as they are now.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// The bodies, to place them by hand after a reset: tests and hand-made episodes. Choices must stay valid indices.
    pub fn world_mut(&mut self) -> &mut World {
        &mut self.world
    }

    /// Rewards of the last step before they were rounded to single precision, `[agent]`; zeros after a reset.
    pub fn rewards_f64(&self) -> &[f64] {
        &self.rewards
    }

    /// Writes the observations of the world as it is now, `[agent, observation_width]`.
    pub fn observe(&self, observations: &mut [f32]) {
        self.scenario.survey(&self.world);
        for (agent, row) in observations.chunks_exact_mut(self.observation_width).enumerate() {
            let mut features = Features { out: row, at: 0 };
            self.scenario.observe(&self.world, agent, &mut features);
            debug_assert_eq!(features.at, self.observation_widths[agent], "an observation is as wide as its space");
            let written = features.at;
            row[written..].fill(0.0);
        }
    }

    fn set_discrete(&mut self, actions: &[u32]) -> Result<()> {
        for (agent, (layout, &action)) in self.layouts.iter().zip(actions).enumerate() {
            if action as usize >= layout.size {
                return Err(invalid_index(&self.spec.name, agent, layout.size, action));
            }
        }
        let (message_width, factor) = (self.world.message_width(), self.world.force_factor());
        for (agent, (layout, &action)) in self.layouts.iter().zip(actions).enumerate() {
            let mut symbol = action as usize;
            if layout.is_movable {
                let direction = MOVES[symbol % MOVES.len()];
                symbol /= MOVES.len();
                let force = factor * layout.acceleration;
                self.world.forces[agent] = [direction[0] * force, direction[1] * force];
            }
            if layout.speaks {
                let message = &mut self.world.messages[agent * message_width..(agent + 1) * message_width];
                message.fill(0.0);
                message[symbol] = 1.0;
            }
        }
        Ok(())
    }

    fn set_continuous(&mut self, actions: &[f32]) -> Result<()> {
        let (message_width, factor) = (self.world.message_width(), self.world.force_factor());
        for (agent, (layout, row)) in self.layouts.iter().zip(actions.chunks_exact(self.action_width)).enumerate() {
            if let Some(bad) = row[..layout.size].iter().find(|a| !a.is_finite()) {
                let expected = "finite numbers".to_string();
                return Err(EnvError::Action { env: self.spec.name.clone(), agent, expected, got: bad.to_string() });
            }
        }
        for (agent, (layout, row)) in self.layouts.iter().zip(actions.chunks_exact(self.action_width)).enumerate() {
            let mut own = &row[..layout.size];
            if layout.is_movable {
                let a = |i: usize| own[i].clamp(0.0, 1.0);
                // The reference subtracts in single precision.
                let (x, y) = (f64::from(a(2) - a(1)), f64::from(a(4) - a(3)));
                let force = factor * layout.acceleration;
                self.world.forces[agent] = [x * force, y * force];
                own = &own[MOVES.len()..];
            }
            if layout.speaks {
                let message = &mut self.world.messages[agent * message_width..(agent + 1) * message_width];
                for (symbol, &value) in message.iter_mut().zip(own) {
                    *symbol = f64::from(value.clamp(0.0, 1.0));
                }
            }
        }
        Ok(())
    }
}

impl<S: Scenario> Environment for ParticleEnv<S> {
    fn spec(&self) -> &EnvSpec {
        &self.spec
    }

    fn reset(&mut self, seed: u64, observations: &mut [f32]) {
        let mut rng = Rng::from_seed(seed);
        self.world.rest();
        self.scenario.reset(&mut self.world, &mut rng);
        self.rewards.fill(0.0);
        self.metrics.fill(0.0);
        self.steps = 0;
        self.observe(observations);
    }

    fn step(&mut self, actions: Actions<'_>, out: &mut StepOut<'_>) -> Result<()> {
        if self.spec.has_discrete_actions() {
            let actions = actions.discrete(&self.spec.name)?;
            self.set_discrete(actions)?;
        } else {
            let actions = actions.continuous(&self.spec.name)?;
            self.set_continuous(actions)?;
        }
        self.world.advance();
        self.steps += 1;
        out.terminated = self.scenario.score(&self.world, &mut self.rewards, &mut self.metrics);
        out.truncated = self.steps >= self.spec.horizon;
        for (rounded, &reward) in out.rewards.iter_mut().zip(&self.rewards) {
            *rounded = reward as f32;
        }
        self.observe(out.observations);
        Ok(())
    }

    fn state(&self, out: &mut [f32]) {
        self.scenario.survey(&self.world);
        let mut start = 0;
        for (agent, &width) in self.observation_widths.iter().enumerate() {
            self.scenario.observe(&self.world, agent, &mut Features { out: &mut out[start..start + width], at: 0 });
            start += width;
        }
    }

    fn episode_metrics(&self, out: &mut [f64]) {
        out.copy_from_slice(&self.metrics);
    }

    fn constants(&self) -> &'static [&'static str] {
        World::CONSTANTS
    }

    fn scale_constant(&mut self, index: usize, factor: f64) {
        self.world.scale_constant(index, factor);
    }

    fn message_features(&self, agent: usize) -> std::ops::Range<usize> {
        let width = self.observation_widths[agent];
        if self.scenario.hears(agent) { width - self.world.message_width()..width } else { 0..0 }
    }

    fn snapshot(&self, out: &mut SnapshotWriter) {
        self.world.snapshot(out);
        out.f64s(&self.rewards);
        out.f64s(&self.metrics);
        out.u64(self.steps as u64);
    }

    fn restore(&mut self, input: &mut SnapshotReader<'_>) -> Result<()> {
        self.world.restore(input)?;
        input.f64s(&mut self.rewards)?;
        input.f64s(&mut self.metrics)?;
        self.steps = input.u64()? as usize;
        Ok(())
    }
}

/// Places body `body` uniformly in the square of half-width `half_width`.
#[inline]
pub(crate) fn place(world: &mut World, rng: &mut Rng, body: usize, half_width: f64) {
    let x = rng.uniform(-half_width, half_width);
    let y = rng.uniform(-half_width, half_width);
    world.positions[body] = [x, y];
}

/// Places all bodies uniformly: agents in the square of half-width 1, landmarks in that of `landmark_half_width`.
#[inline]
pub(crate) fn place_all(world: &mut World, rng: &mut Rng, landmark_half_width: f64) {
    for agent in 0..world.n_agents() {
        place(world, rng, agent, 1.0);
    }
    for landmark in 0..world.n_landmarks() {
        place(world, rng, world.landmark(landmark), landmark_half_width);
    }
}
