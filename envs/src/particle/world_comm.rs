//! Predator and prey with food, forests to hide in, and a leader who speaks to the other adversaries.
//!
//! Good agents pay 5 per overlapping adversary, twice the boundary penalty ([`super::arena::boundary_penalty`]) and 0.05
//! per unit of distance from the nearest food, and get 2 per overlapping food. An adversary pays 0.1 per unit of distance
//! from its nearest good agent and gets 5 for every overlapping (adversary, good agent) pair.
//!
//! An agent is inside a forest if it overlaps it. Agent m is visible to agent n if they share a forest, or neither is in
//! any, or n is the leader; what is hidden reads as offset 0 and velocity 0.
//!
//! Observation: velocity, position, offsets of the landmarks (obstacles, food, forests), offsets of the others, then for
//! adversaries velocities of the good agents, own forest flags (+1 inside, −1 outside), the leader's message (4); for
//! good agents own forest flags, velocities of the other good agents.
//!
//! Metrics: `captures` (overlapping pairs, summed over steps), `meals` (overlaps with food, summed over steps).

use std::cell::Cell;

use serde::{Deserialize, Serialize};

use super::arena::boundary_penalty;
use super::scenario::{Features, Member, ParticleEnv, Scenario, Setup, place_all};
use super::world::{Body, Integrator, Physics, World};
use crate::range::require;
use crate::{Result, Rng};

/// Most forests of a world: which forests hold an agent is kept as the bits of one word.
const MAX_FORESTS: usize = 64;
/// Symbols of the leader.
const SYMBOLS: usize = 4;

/// Configuration of [`SimpleWorldComm`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SimpleWorldCommConfig {
    /// Number of good agents, 1 to 1000.
    pub n_good: usize,
    /// Number of adversaries with their leader, 1 to 1000.
    pub n_adversaries: usize,
    /// Number of obstacles, 0 to 1000.
    pub n_obstacles: usize,
    /// Number of food items, 1 to 1000.
    pub n_food: usize,
    /// Number of forests, 0 to 64.
    pub n_forests: usize,
    /// Continuous actions instead of discrete ones.
    pub continuous_actions: bool,
    /// Order of the updates within a step.
    pub integrator: Integrator,
    /// Constants of the physics.
    pub physics: Physics,
    /// Steps of an episode, at least 1.
    pub horizon: usize,
}

impl Default for SimpleWorldCommConfig {
    fn default() -> Self {
        Self {
            n_good: 2,
            n_adversaries: 4,
            n_obstacles: 1,
            n_food: 2,
            n_forests: 2,
            continuous_actions: false,
            integrator: Integrator::Pettingzoo,
            physics: Physics::default(),
            horizon: 25,
        }
    }
}

impl SimpleWorldCommConfig {
    /// The environment.
    ///
    /// # Errors
    /// [`crate::EnvError::Config`] if a field is out of its range.
    pub fn build(&self) -> Result<SimpleWorldComm> {
        let name = "simple_world_comm";
        require(name, "n_good", self.n_good, 1, 1000)?;
        require(name, "n_adversaries", self.n_adversaries, 1, 1000)?;
        require(name, "n_obstacles", self.n_obstacles, 0, 1000)?;
        require(name, "n_food", self.n_food, 1, 1000)?;
        require(name, "n_forests", self.n_forests, 0, MAX_FORESTS)?;
        let n_landmarks = self.n_obstacles + self.n_food + self.n_forests;
        let common = 4 + 2 * n_landmarks + 2 * (self.n_good + self.n_adversaries - 1) + self.n_forests;
        let adversary = Body { acceleration: 3.0, max_speed: 1.0, ..Body::agent(0.075, true) };
        let prey = Body { acceleration: 4.0, max_speed: 1.3, ..Body::agent(0.045, true) };
        let adversaries = (0..self.n_adversaries).map(|i| Member {
            group: if i == 0 { "leadadversary" } else { "adversary" },
            index: i.saturating_sub(1),
            body: adversary,
            observation_width: common + 2 * self.n_good + SYMBOLS,
            speaks: i == 0,
        });
        let good = (0..self.n_good).map(|index| Member {
            group: "agent",
            index,
            body: prey,
            observation_width: common + 2 * (self.n_good - 1),
            speaks: false,
        });
        let landmarks = std::iter::repeat_n(Body::landmark(0.2, true), self.n_obstacles)
            .chain(std::iter::repeat_n(Body::landmark(0.03, false), self.n_food))
            .chain(std::iter::repeat_n(Body::landmark(0.3, false), self.n_forests));
        let n_agents = self.n_adversaries + self.n_good;
        let first_food = n_agents + self.n_obstacles;
        ParticleEnv::new(
            WorldComm {
                n_adversaries: self.n_adversaries,
                first_food,
                first_forest: first_food + self.n_food,
                inside: vec![Cell::new(0); n_agents],
            },
            Setup {
                name,
                agents: adversaries.chain(good).collect(),
                landmarks: landmarks.collect(),
                message_width: SYMBOLS,
                n_choices: 0,
                metrics: &["captures", "meals"],
                continuous_actions: self.continuous_actions,
                integrator: self.integrator,
                physics: self.physics.clone(),
                horizon: self.horizon,
            },
        )
    }
}

/// Predator and prey with food, forests and a leader.
pub type SimpleWorldComm = ParticleEnv<WorldComm>;

/// Rules of [`SimpleWorldComm`].
#[derive(Debug, Clone)]
pub struct WorldComm {
    n_adversaries: usize,
    /// Index of the first food among the bodies.
    first_food: usize,
    /// Index of the first forest among the bodies.
    first_forest: usize,
    /// The forests around each agent at the last survey. Every observer asks for those of every other agent.
    inside: Vec<Cell<u64>>,
}

impl WorldComm {
    /// Bit f is set if `agent` is inside forest f.
    #[inline]
    fn forests_around(&self, world: &World, agent: usize) -> u64 {
        let forests = self.first_forest..world.positions.len();
        forests.enumerate().fold(0, |bits, (f, body)| bits | (u64::from(world.touches(agent, body)) << f))
    }

    /// Velocities of the good agents other than `agent`, zero where hidden.
    #[inline]
    fn good_velocities(&self, world: &World, agent: usize, inside: u64, out: &mut Features<'_>) {
        for good in self.n_adversaries..world.n_agents() {
            if good != agent {
                let is_visible = self.sees(agent, inside, good);
                out.vector(if is_visible { world.velocities[good] } else { [0.0; 2] });
            }
        }
    }

    /// True if `agent`, inside the forests `inside`, sees `other`.
    #[inline]
    fn sees(&self, agent: usize, inside: u64, other: usize) -> bool {
        let around = self.inside[other].get();
        agent == 0 || inside & around != 0 || (inside == 0 && around == 0)
    }

    #[inline]
    fn flags(&self, world: &World, inside: u64, out: &mut Features<'_>) {
        for forest in 0..world.positions.len() - self.first_forest {
            out.number(if inside >> forest & 1 == 1 { 1.0 } else { -1.0 });
        }
    }
}

impl Scenario for WorldComm {
    fn reset(&self, world: &mut World, rng: &mut Rng) {
        place_all(world, rng, 0.9);
    }

    fn score(&self, world: &World, rewards: &mut [f64], metrics: &mut [f64]) -> bool {
        let good_agents = self.n_adversaries..world.n_agents();
        let food = self.first_food..self.first_forest;
        let (mut captures, mut meals) = (0, 0);
        for good in good_agents.clone() {
            let touching = (0..self.n_adversaries).filter(|&adversary| world.touches(good, adversary)).count();
            let eaten = food.clone().filter(|&item| world.touches(good, item)).count();
            let nearest = food.clone().map(|item| world.distance(good, item)).fold(f64::INFINITY, f64::min);
            rewards[good] = -5.0 * touching as f64 - 2.0 * boundary_penalty(world.positions[good]) + 2.0 * eaten as f64 - 0.05 * nearest;
            captures += touching;
            meals += eaten;
        }
        for adversary in 0..self.n_adversaries {
            let nearest = good_agents.clone().map(|good| world.distance(adversary, good)).fold(f64::INFINITY, f64::min);
            rewards[adversary] = -0.1 * nearest + 5.0 * captures as f64;
        }
        metrics[0] += captures as f64;
        metrics[1] += meals as f64;
        false
    }

    fn survey(&self, world: &World) {
        for (agent, inside) in self.inside.iter().enumerate() {
            inside.set(self.forests_around(world, agent));
        }
    }

    fn hears(&self, agent: usize) -> bool {
        (1..self.n_adversaries).contains(&agent)
    }

    #[inline]
    fn observe(&self, world: &World, agent: usize, out: &mut Features<'_>) {
        let inside = self.inside[agent].get();
        out.vector(world.velocities[agent]);
        out.vector(world.positions[agent]);
        out.landmarks(world, agent);
        for other in 0..world.n_agents() {
            if other != agent {
                let is_visible = self.sees(agent, inside, other);
                out.vector(if is_visible { world.offset(agent, other) } else { [0.0; 2] });
            }
        }
        if agent < self.n_adversaries {
            self.good_velocities(world, agent, inside, out);
            self.flags(world, inside, out);
            out.numbers(world.message(0));
        } else {
            self.flags(world, inside, out);
            self.good_velocities(world, agent, inside, out);
        }
    }
}
