//! One agent walks to one landmark: a sanity check for learners.
//!
//! Reward: minus the squared distance. Observation (4): velocity, offset of the landmark.
//!
//! Metric: `goal_distance` (at the last step).

use serde::{Deserialize, Serialize};

use super::scenario::{Features, Member, ParticleEnv, Scenario, Setup, place_all};
use super::world::{Body, Integrator, Physics, World};
use crate::{Result, Rng};

/// Configuration of [`Simple`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SimpleConfig {
    /// Continuous actions instead of discrete ones.
    pub continuous_actions: bool,
    /// Order of the updates within a step.
    pub integrator: Integrator,
    /// Constants of the physics.
    pub physics: Physics,
    /// Steps of an episode, at least 1.
    pub horizon: usize,
}

impl Default for SimpleConfig {
    fn default() -> Self {
        Self { continuous_actions: false, integrator: Integrator::Pettingzoo, physics: Physics::default(), horizon: 25 }
    }
}

impl SimpleConfig {
    /// The environment.
    ///
    /// # Errors
    /// [`crate::EnvError::Config`] if a field is out of its range.
    pub fn build(&self) -> Result<Simple> {
        ParticleEnv::new(
            Walk,
            Setup {
                name: "simple",
                agents: vec![Member { group: "agent", index: 0, body: Body::agent(0.05, false), observation_width: 4, speaks: false }],
                landmarks: vec![Body::landmark(0.05, false)],
                message_width: 0,
                n_choices: 0,
                metrics: &["goal_distance"],
                continuous_actions: self.continuous_actions,
                integrator: self.integrator,
                physics: self.physics.clone(),
                horizon: self.horizon,
            },
        )
    }
}

/// One agent, one landmark.
pub type Simple = ParticleEnv<Walk>;

/// Rules of [`Simple`].
#[derive(Debug, Clone)]
pub struct Walk;

impl Scenario for Walk {
    fn reset(&self, world: &mut World, rng: &mut Rng) {
        place_all(world, rng, 1.0);
    }

    fn score(&self, world: &World, rewards: &mut [f64], metrics: &mut [f64]) -> bool {
        let squared = world.distance_squared(0, 1);
        rewards[0] = -squared;
        metrics[0] = squared.sqrt();
        false
    }

    #[inline]
    fn observe(&self, world: &World, agent: usize, out: &mut Features<'_>) {
        out.vector(world.velocities[agent]);
        out.landmarks(world, agent);
    }
}
