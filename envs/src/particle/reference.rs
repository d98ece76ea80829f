//! Reference game: each of two agents knows the landmark that the other should go to, and tells it in ten symbols.
//!
//! Agent i's own term is `−d(other agent, landmark for the other)`; its reward is
//! `local_ratio · own + (1 − local_ratio) · mean of both`.
//!
//! Observation (21): velocity, offsets of the three landmarks, colour of the other's goal (3), what the other says (10).
//!
//! Metric: `goal_distance` (mean over both agents, at the last step).

use serde::{Deserialize, Serialize};

use super::scenario::{Features, Member, ParticleEnv, Scenario, Setup, place_all};
use super::world::{Body, Integrator, Physics, World};
use crate::range::require_share;
use crate::{Result, Rng};

/// Configuration of [`SimpleReference`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SimpleReferenceConfig {
    /// Weight of an agent's own term against the mean of both, 0 to 1.
    pub local_ratio: f64,
    /// Continuous actions instead of discrete ones.
    pub continuous_actions: bool,
    /// Order of the updates within a step.
    pub integrator: Integrator,
    /// Constants of the physics.
    pub physics: Physics,
    /// Steps of an episode, at least 1.
    pub horizon: usize,
}

impl Default for SimpleReferenceConfig {
    fn default() -> Self {
        Self { local_ratio: 0.5, continuous_actions: false, integrator: Integrator::Pettingzoo, physics: Physics::default(), horizon: 25 }
    }
}

impl SimpleReferenceConfig {
    /// The environment.
    ///
    /// # Errors
    /// [`crate::EnvError::Config`] if a field is out of its range.
    pub fn build(&self) -> Result<SimpleReference> {
        let name = "simple_reference";
        require_share(name, "local_ratio", self.local_ratio)?;
        let body = Body::agent(0.05, false);
        let agents = (0..2).map(|index| Member { group: "agent", index, body, observation_width: 21, speaks: true }).collect();
        ParticleEnv::new(
            Reference { local_ratio: self.local_ratio },
            Setup {
                name,
                agents,
                landmarks: vec![Body::landmark(0.05, false); 3],
                message_width: 10,
                n_choices: 2,
                metrics: &["goal_distance"],
                continuous_actions: self.continuous_actions,
                integrator: self.integrator,
                physics: self.physics.clone(),
                horizon: self.horizon,
            },
        )
    }
}

/// Reference game. The world's choice i is the landmark that agent i knows and the other agent should go to.
pub type SimpleReference = ParticleEnv<Reference>;

/// Rules of [`SimpleReference`].
#[derive(Debug, Clone)]
pub struct Reference {
    local_ratio: f64,
}

/// Colours of the landmarks.
const COLOURS: [[f64; 3]; 3] = [[0.75, 0.25, 0.25], [0.25, 0.75, 0.25], [0.25, 0.25, 0.75]];

impl Scenario for Reference {
    fn reset(&self, world: &mut World, rng: &mut Rng) {
        for agent in 0..2 {
            world.choices[agent] = rng.below(world.n_landmarks());
        }
        place_all(world, rng, 1.0);
    }

    fn score(&self, world: &World, rewards: &mut [f64], metrics: &mut [f64]) -> bool {
        let own = |agent: usize| -world.distance(1 - agent, world.landmark(world.choices[agent]));
        let own = [own(0), own(1)];
        let mean = (own[0] + own[1]) / 2.0;
        for (reward, own) in rewards.iter_mut().zip(own) {
            *reward = mean * (1.0 - self.local_ratio) + own * self.local_ratio;
        }
        metrics[0] = -mean;
        false
    }

    fn hears(&self, agent: usize) -> bool {
        agent < 2
    }

    #[inline]
    fn observe(&self, world: &World, agent: usize, out: &mut Features<'_>) {
        out.vector(world.velocities[agent]);
        out.landmarks(world, agent);
        out.numbers(&COLOURS[world.choices[agent]]);
        out.numbers(world.message(1 - agent));
    }
}
