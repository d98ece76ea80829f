//! Predator and prey: slow adversaries chase faster agents around obstacles.
//!
//! Adversaries all get +10 for every overlapping (adversary, prey) pair. Prey gets −10 per overlapping adversary and
//! pays for leaving the arena ([`super::arena::boundary_penalty`]).
//!
//! Observation: velocity, position, offsets of the obstacles, offsets of the others, velocities of the *other* prey.
//!
//! Metrics: `captures` (overlapping pairs, summed over steps), `captured_steps` (steps with at least one).

use serde::{Deserialize, Serialize};

use super::arena::boundary_penalty;
use super::scenario::{Features, Member, ParticleEnv, Scenario, Setup, place_all};
use super::world::{Body, Integrator, Physics, World};
use crate::range::require;
use crate::{EnvError, Result, Rng};

/// Configuration of [`SimpleTag`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SimpleTagConfig {
    /// Number of prey, 1 to 1000.
    pub n_good: usize,
    /// Number of adversaries, 1 to 1000.
    pub n_adversaries: usize,
    /// Number of obstacles, 0 to 1000.
    pub n_obstacles: usize,
    /// Factor on the prey's strength and speed limit, above 0. The reference's curriculum uses 0.5, 0.75 and 1.
    pub prey_speed_factor: f64,
    /// End the episode as soon as every prey overlaps an adversary.
    pub terminate_on_success: bool,
    /// Continuous actions instead of discrete ones.
    pub continuous_actions: bool,
    /// Order of the updates within a step.
    pub integrator: Integrator,
    /// Constants of the physics.
    pub physics: Physics,
    /// Steps of an episode, at least 1.
    pub horizon: usize,
}

impl Default for SimpleTagConfig {
    fn default() -> Self {
        Self {
            n_good: 1,
            n_adversaries: 3,
            n_obstacles: 2,
            prey_speed_factor: 1.0,
            terminate_on_success: false,
            continuous_actions: false,
            integrator: Integrator::Pettingzoo,
            physics: Physics::default(),
            horizon: 25,
        }
    }
}

impl SimpleTagConfig {
    /// The environment.
    ///
    /// # Errors
    /// [`EnvError::Config`] if a field is out of its range.
    pub fn build(&self) -> Result<SimpleTag> {
        let name = "simple_tag";
        require(name, "n_good", self.n_good, 1, 1000)?;
        require(name, "n_adversaries", self.n_adversaries, 1, 1000)?;
        require(name, "n_obstacles", self.n_obstacles, 0, 1000)?;
        let factor = self.prey_speed_factor;
        if !(factor.is_finite() && factor > 0.0) {
            return Err(EnvError::Config {
                env: name.to_string(),
                field: "prey_speed_factor",
                expected: "a number above 0".to_string(),
                got: factor.to_string(),
            });
        }
        let common = 4 + 2 * self.n_obstacles + 2 * (self.n_good + self.n_adversaries - 1);
        let adversary = Body { acceleration: 3.0, max_speed: 1.0, ..Body::agent(0.075, true) };
        let prey = Body { acceleration: 4.0 * factor, max_speed: 1.3 * factor, ..Body::agent(0.05, true) };
        let adversaries = (0..self.n_adversaries).map(|index| Member {
            group: "adversary",
            index,
            body: adversary,
            observation_width: common + 2 * self.n_good,
            speaks: false,
        });
        let good = (0..self.n_good).map(|index| Member {
            group: "agent",
            index,
            body: prey,
            observation_width: common + 2 * (self.n_good - 1),
            speaks: false,
        });
        ParticleEnv::new(
            Tag { n_adversaries: self.n_adversaries, ends_on_success: self.terminate_on_success },
            Setup {
                name,
                agents: adversaries.chain(good).collect(),
                landmarks: vec![Body::landmark(0.2, true); self.n_obstacles],
                message_width: 0,
                n_choices: 0,
                metrics: &["captures", "captured_steps"],
                continuous_actions: self.continuous_actions,
                integrator: self.integrator,
                physics: self.physics.clone(),
                horizon: self.horizon,
            },
        )
    }
}

/// Predator and prey.
pub type SimpleTag = ParticleEnv<Tag>;

/// Rules of [`SimpleTag`].
#[derive(Debug, Clone)]
pub struct Tag {
    n_adversaries: usize,
    ends_on_success: bool,
}

impl Scenario for Tag {
    fn reset(&self, world: &mut World, rng: &mut Rng) {
        place_all(world, rng, 0.9);
    }

    fn score(&self, world: &World, rewards: &mut [f64], metrics: &mut [f64]) -> bool {
        let (mut captures, mut all_caught) = (0, true);
        for prey in self.n_adversaries..world.n_agents() {
            let touching = (0..self.n_adversaries).filter(|&adversary| world.touches(prey, adversary)).count();
            rewards[prey] = -10.0 * touching as f64 - boundary_penalty(world.positions[prey]);
            captures += touching;
            all_caught &= touching > 0;
        }
        rewards[..self.n_adversaries].fill(10.0 * captures as f64);
        metrics[0] += captures as f64;
        metrics[1] += f64::from(u8::from(captures > 0));
        self.ends_on_success && all_caught
    }

    #[inline]
    fn observe(&self, world: &World, agent: usize, out: &mut Features<'_>) {
        out.vector(world.velocities[agent]);
        out.vector(world.positions[agent]);
        out.landmarks(world, agent);
        out.others(world, agent);
        for prey in self.n_adversaries..world.n_agents() {
            if prey != agent {
                out.vector(world.velocities[prey]);
            }
        }
    }
}
