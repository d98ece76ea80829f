//! Physical deception: good agents cover the goal landmark without showing the adversary which one it is.
//!
//! Good agents share `d(adversary, goal) − min_good d(good, goal)`. The adversary gets `−d(adversary, goal)`, squared
//! in the original release.
//!
//! Observation of a good agent: offset of the goal, offsets of the landmarks, offsets of the others. The adversary sees
//! the same without the goal.
//!
//! Metrics at the last step: `adversary_distance` and `agent_distance` (the nearest good agent's), to the goal.

use serde::{Deserialize, Serialize};

use super::scenario::{Features, Member, ParticleEnv, Scenario, Setup, place_all};
use super::world::{Body, Integrator, Physics, World};
use crate::range::require;
use crate::{Result, Rng};

/// What the adversary pays for its distance from the goal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdversaryReward {
    /// The distance, as in `mpe2`.
    #[default]
    Distance,
    /// Its square, as in the original release.
    SquaredDistance,
}

/// Configuration of [`SimpleAdversary`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SimpleAdversaryConfig {
    /// Number of good agents and of landmarks, 1 to 1000.
    pub n_good: usize,
    /// What the adversary pays for its distance from the goal.
    pub adversary_reward: AdversaryReward,
    /// Continuous actions instead of discrete ones.
    pub continuous_actions: bool,
    /// Order of the updates within a step.
    pub integrator: Integrator,
    /// Constants of the physics.
    pub physics: Physics,
    /// Steps of an episode, at least 1.
    pub horizon: usize,
}

impl Default for SimpleAdversaryConfig {
    fn default() -> Self {
        Self {
            n_good: 2,
            adversary_reward: AdversaryReward::Distance,
            continuous_actions: false,
            integrator: Integrator::Pettingzoo,
            physics: Physics::default(),
            horizon: 25,
        }
    }
}

impl SimpleAdversaryConfig {
    /// The environment.
    ///
    /// # Errors
    /// [`crate::EnvError::Config`] if a field is out of its range.
    pub fn build(&self) -> Result<SimpleAdversary> {
        let name = "simple_adversary";
        require(name, "n_good", self.n_good, 1, 1000)?;
        let width = 4 * self.n_good;
        let body = Body::agent(0.15, false);
        let adversary = Member { group: "adversary", index: 0, body, observation_width: width, speaks: false };
        let good = (0..self.n_good).map(|index| Member { group: "agent", index, body, observation_width: width + 2, speaks: false });
        ParticleEnv::new(
            Deception { adversary_reward: self.adversary_reward },
            Setup {
                name,
                agents: std::iter::once(adversary).chain(good).collect(),
                landmarks: vec![Body::landmark(0.08, false); self.n_good],
                message_width: 0,
                n_choices: 1,
                metrics: &["adversary_distance", "agent_distance"],
                continuous_actions: self.continuous_actions,
                integrator: self.integrator,
                physics: self.physics.clone(),
                horizon: self.horizon,
            },
        )
    }
}

/// Physical deception. The world's choice is the goal landmark.
pub type SimpleAdversary = ParticleEnv<Deception>;

/// Rules of [`SimpleAdversary`].
#[derive(Debug, Clone)]
pub struct Deception {
    adversary_reward: AdversaryReward,
}

impl Scenario for Deception {
    fn reset(&self, world: &mut World, rng: &mut Rng) {
        world.choices[0] = rng.below(world.n_landmarks());
        place_all(world, rng, 1.0);
    }

    fn score(&self, world: &World, rewards: &mut [f64], metrics: &mut [f64]) -> bool {
        let goal = world.landmark(world.choices[0]);
        let adversary = world.distance(0, goal);
        let nearest = (1..world.n_agents()).map(|agent| world.distance(agent, goal)).fold(f64::INFINITY, f64::min);
        rewards.fill(adversary - nearest);
        rewards[0] = match self.adversary_reward {
            AdversaryReward::Distance => -adversary,
            AdversaryReward::SquaredDistance => -world.distance_squared(0, goal),
        };
        metrics[0] = adversary;
        metrics[1] = nearest;
        false
    }

    #[inline]
    fn observe(&self, world: &World, agent: usize, out: &mut Features<'_>) {
        if agent > 0 {
            out.vector(world.offset(agent, world.landmark(world.choices[0])));
        }
        out.landmarks(world, agent);
        out.others(world, agent);
    }
}
