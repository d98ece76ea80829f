//! Keep away: an adversary pushes the good agent off its goal, which it must guess.
//!
//! The good agent gets `−d(agent, goal)`, the adversary `d(agent, goal) − d(adversary, goal)`.
//!
//! Observation of the good agent (19): velocity, offset of the goal, colour of the goal, offsets of the two landmarks,
//! their colours, offset of the adversary. The adversary (8): velocity, offsets of the landmarks, offset of the agent.
//! Colours are three numbers: landmark i is 0.1 with 0.9 at place i + 1; the agent shows 0.25 with 0.75 at the place of
//! its goal.
//!
//! Metrics at the last step: `agent_distance` and `adversary_distance`, to the goal.

use serde::{Deserialize, Serialize};

use super::scenario::{Features, Member, ParticleEnv, Scenario, Setup, place_all};
use super::world::{Body, Integrator, Physics, World};
use crate::{Result, Rng};

/// Configuration of [`SimplePush`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SimplePushConfig {
    /// Continuous actions instead of discrete ones.
    pub continuous_actions: bool,
    /// Order of the updates within a step.
    pub integrator: Integrator,
    /// Constants of the physics.
    pub physics: Physics,
    /// Steps of an episode, at least 1.
    pub horizon: usize,
}

impl Default for SimplePushConfig {
    fn default() -> Self {
        Self { continuous_actions: false, integrator: Integrator::Pettingzoo, physics: Physics::default(), horizon: 25 }
    }
}

impl SimplePushConfig {
    /// The environment.
    ///
    /// # Errors
    /// [`crate::EnvError::Config`] if a field is out of its range.
    pub fn build(&self) -> Result<SimplePush> {
        let body = Body::agent(0.05, true);
        ParticleEnv::new(
            Push,
            Setup {
                name: "simple_push",
                agents: vec![
                    Member { group: "adversary", index: 0, body, observation_width: 8, speaks: false },
                    Member { group: "agent", index: 0, body, observation_width: 19, speaks: false },
                ],
                landmarks: vec![Body::landmark(0.05, false); 2],
                message_width: 0,
                n_choices: 1,
                metrics: &["agent_distance", "adversary_distance"],
                continuous_actions: self.continuous_actions,
                integrator: self.integrator,
                physics: self.physics.clone(),
                horizon: self.horizon,
            },
        )
    }
}

/// Keep away. The world's choice is the goal landmark.
pub type SimplePush = ParticleEnv<Push>;

/// Rules of [`SimplePush`].
#[derive(Debug, Clone)]
pub struct Push;

/// Three channels at `base`, one of them raised by `lift`.
fn colour(base: f64, lift: f64, channel: usize) -> [f64; 3] {
    let mut colour = [base; 3];
    colour[channel] += lift;
    colour
}

impl Scenario for Push {
    fn reset(&self, world: &mut World, rng: &mut Rng) {
        world.choices[0] = rng.below(world.n_landmarks());
        place_all(world, rng, 1.0);
    }

    fn score(&self, world: &World, rewards: &mut [f64], metrics: &mut [f64]) -> bool {
        let goal = world.landmark(world.choices[0]);
        let (adversary, agent) = (world.distance(0, goal), world.distance(1, goal));
        rewards[0] = agent - adversary;
        rewards[1] = -agent;
        metrics[0] = agent;
        metrics[1] = adversary;
        false
    }

    #[inline]
    fn observe(&self, world: &World, agent: usize, out: &mut Features<'_>) {
        let is_good = agent == 1;
        out.vector(world.velocities[agent]);
        if is_good {
            let goal = world.choices[0];
            out.vector(world.offset(agent, world.landmark(goal)));
            out.numbers(&colour(0.25, 0.5, goal + 1));
        }
        out.landmarks(world, agent);
        if is_good {
            for landmark in 0..world.n_landmarks() {
                out.numbers(&colour(0.1, 0.8, landmark + 1));
            }
        }
        out.others(world, agent);
    }
}
