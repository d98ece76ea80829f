//! Cooperative navigation: N agents cover N landmarks without bumping into each other.
//!
//! With `local` the number of other agents that agent n overlaps, negated, and
//! `global = −Σ_landmark min_agent distance`, the reward is `local_ratio · local + (1 − local_ratio) · global`.
//!
//! Observation of an agent, 6N numbers: velocity, position, offsets of the landmarks, offsets of the others, and two
//! zeros for each other agent (they are silent).
//!
//! Metrics: `collisions` (overlapping pairs, summed over steps), `occupied_landmarks` (at the last step, landmarks with
//! an agent closer than 0.1), `landmark_distance` (at the last step, `−global`), and the return of the episode in the two
//! conventions that tables use, whatever the agents are rewarded with: `return_mpe2` (mean over agents of the reward of
//! `mpe2` with its default `local_ratio` of 0.5) and `return_shared_sum` (per agent, the reward of the original release
//! under [`SpreadReward::SharedSum`]; EPyMARL's published figures are of this kind).

use serde::{Deserialize, Serialize};

use super::scenario::{Features, Member, ParticleEnv, Scenario, Setup, place_all};
use super::world::{Body, Integrator, Physics, World};
use crate::range::{require, require_share};
use crate::{Result, Rng};

/// Distance below which a landmark counts as occupied.
const OCCUPIED: f64 = 0.1;

/// How the parts of the reward are put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SpreadReward {
    /// `local_ratio · local + (1 − local_ratio) · global`, as in `mpe2`.
    #[default]
    LocalRatio,
    /// Every agent gets the sum over agents of `global − 1 − overlaps`: the original release, where an agent also
    /// collides with itself. `local_ratio` plays no part.
    SharedSum,
}

/// Configuration of [`SimpleSpread`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SimpleSpreadConfig {
    /// Number of agents and of landmarks, 1 to 1000.
    pub n_agents: usize,
    /// Weight of an agent's own collisions against the shared distance, 0 to 1.
    pub local_ratio: f64,
    /// How the parts of the reward are put together.
    pub reward: SpreadReward,
    /// End the episode as soon as every landmark is occupied.
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

impl Default for SimpleSpreadConfig {
    fn default() -> Self {
        Self {
            n_agents: 3,
            local_ratio: 0.5,
            reward: SpreadReward::LocalRatio,
            terminate_on_success: false,
            continuous_actions: false,
            integrator: Integrator::Pettingzoo,
            physics: Physics::default(),
            horizon: 25,
        }
    }
}

impl SimpleSpreadConfig {
    /// The environment.
    ///
    /// # Errors
    /// [`crate::EnvError::Config`] if a field is out of its range.
    pub fn build(&self) -> Result<SimpleSpread> {
        let name = "simple_spread";
        require(name, "n_agents", self.n_agents, 1, 1000)?;
        require_share(name, "local_ratio", self.local_ratio)?;
        let agents = (0..self.n_agents)
            .map(|index| Member {
                group: "agent",
                index,
                body: Body::agent(0.15, true),
                observation_width: 6 * self.n_agents,
                speaks: false,
            })
            .collect();
        let rules = Spread { local_ratio: self.local_ratio, reward: self.reward, ends_on_success: self.terminate_on_success };
        ParticleEnv::new(
            rules,
            Setup {
                name,
                agents,
                landmarks: vec![Body::landmark(0.05, false); self.n_agents],
                message_width: 2,
                n_choices: 0,
                metrics: &["collisions", "occupied_landmarks", "landmark_distance", "return_mpe2", "return_shared_sum"],
                continuous_actions: self.continuous_actions,
                integrator: self.integrator,
                physics: self.physics.clone(),
                horizon: self.horizon,
            },
        )
    }
}

/// Cooperative navigation.
pub type SimpleSpread = ParticleEnv<Spread>;

/// Rules of [`SimpleSpread`].
#[derive(Debug, Clone)]
pub struct Spread {
    local_ratio: f64,
    reward: SpreadReward,
    ends_on_success: bool,
}

impl Scenario for Spread {
    fn reset(&self, world: &mut World, rng: &mut Rng) {
        place_all(world, rng, 1.0);
    }

    fn score(&self, world: &World, rewards: &mut [f64], metrics: &mut [f64]) -> bool {
        let n = world.n_agents();
        rewards.fill(0.0);
        let mut collisions = 0.0;
        for a in 0..n {
            for b in a + 1..n {
                if world.touches(a, b) {
                    rewards[a] -= 1.0;
                    rewards[b] -= 1.0;
                    collisions += 1.0;
                }
            }
        }
        let (mut distance, mut occupied) = (0.0, 0);
        for landmark in n..2 * n {
            let nearest = (0..n).map(|agent| world.distance_squared(agent, landmark)).fold(f64::INFINITY, f64::min).sqrt();
            distance += nearest;
            occupied += usize::from(nearest < OCCUPIED);
        }
        let shared_sum = -(n as f64) * (distance + 1.0) - 2.0 * collisions;
        match self.reward {
            SpreadReward::LocalRatio => {
                for reward in rewards.iter_mut() {
                    *reward = -distance * (1.0 - self.local_ratio) + *reward * self.local_ratio;
                }
            }
            SpreadReward::SharedSum => rewards.fill(shared_sum),
        }
        metrics[0] += collisions;
        metrics[1] = occupied as f64;
        metrics[2] = distance;
        metrics[3] -= 0.5 * distance + 0.5 * 2.0 * collisions / n as f64;
        metrics[4] += shared_sum;
        self.ends_on_success && occupied == n
    }

    #[inline]
    fn observe(&self, world: &World, agent: usize, out: &mut Features<'_>) {
        out.vector(world.velocities[agent]);
        out.vector(world.positions[agent]);
        out.landmarks(world, agent);
        out.others(world, agent);
        for _ in 1..world.n_agents() {
            out.vector([0.0, 0.0]);
        }
    }
}
