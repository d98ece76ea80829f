//! A speaker that cannot move tells a listener that cannot speak which of three landmarks to go to.
//!
//! Both get minus the squared distance of the listener from the goal.
//!
//! Observation of the speaker (3): colour of the goal. The listener (11): velocity, offsets of the landmarks, message (3).
//!
//! Metric: `goal_distance` (at the last step).

use serde::{Deserialize, Serialize};

use super::scenario::{Features, Member, ParticleEnv, Scenario, Setup, place_all};
use super::world::{Body, Integrator, Physics, World};
use crate::{Result, Rng};

/// Configuration of [`SimpleSpeakerListener`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SimpleSpeakerListenerConfig {
    /// Continuous actions instead of discrete ones.
    pub continuous_actions: bool,
    /// Order of the updates within a step.
    pub integrator: Integrator,
    /// Constants of the physics.
    pub physics: Physics,
    /// Steps of an episode, at least 1.
    pub horizon: usize,
}

impl Default for SimpleSpeakerListenerConfig {
    fn default() -> Self {
        Self { continuous_actions: false, integrator: Integrator::Pettingzoo, physics: Physics::default(), horizon: 25 }
    }
}

impl SimpleSpeakerListenerConfig {
    /// The environment.
    ///
    /// # Errors
    /// [`crate::EnvError::Config`] if a field is out of its range.
    pub fn build(&self) -> Result<SimpleSpeakerListener> {
        let listener = Body::agent(0.075, false);
        let speaker = Body { is_movable: false, ..listener };
        ParticleEnv::new(
            SpeakerListener,
            Setup {
                name: "simple_speaker_listener",
                agents: vec![
                    Member { group: "speaker", index: 0, body: speaker, observation_width: 3, speaks: true },
                    Member { group: "listener", index: 0, body: listener, observation_width: 11, speaks: false },
                ],
                landmarks: vec![Body::landmark(0.04, false); 3],
                message_width: 3,
                n_choices: 1,
                metrics: &["goal_distance"],
                continuous_actions: self.continuous_actions,
                integrator: self.integrator,
                physics: self.physics.clone(),
                horizon: self.horizon,
            },
        )
    }
}

/// Speaker and listener. The world's choice is the goal landmark.
pub type SimpleSpeakerListener = ParticleEnv<SpeakerListener>;

/// Rules of [`SimpleSpeakerListener`].
#[derive(Debug, Clone)]
pub struct SpeakerListener;

/// Colours of the landmarks.
const COLOURS: [[f64; 3]; 3] = [[0.65, 0.15, 0.15], [0.15, 0.65, 0.15], [0.15, 0.15, 0.65]];

impl Scenario for SpeakerListener {
    fn reset(&self, world: &mut World, rng: &mut Rng) {
        world.choices[0] = rng.below(world.n_landmarks());
        place_all(world, rng, 1.0);
    }

    fn score(&self, world: &World, rewards: &mut [f64], metrics: &mut [f64]) -> bool {
        let squared = world.distance_squared(1, world.landmark(world.choices[0]));
        rewards.fill(-squared);
        metrics[0] = squared.sqrt();
        false
    }

    fn hears(&self, agent: usize) -> bool {
        agent == 1
    }

    #[inline]
    fn observe(&self, world: &World, agent: usize, out: &mut Features<'_>) {
        if agent == 0 {
            out.numbers(&COLOURS[world.choices[0]]);
        } else {
            out.vector(world.velocities[agent]);
            out.landmarks(world, agent);
            out.numbers(world.message(0));
        }
    }
}
