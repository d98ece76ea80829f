//! Covert communication: Alice tells Bob a secret over an open channel with a shared key; Eve listens in.
//!
//! The secret g and the key are one-hot vectors of dimension 4 that name one of two landmarks. With messages c, Alice and
//! Bob get `|c_eve − g|² − |c_bob − g|²` and Eve gets `−|c_eve − g|²`; the term of an agent whose message is all zero is
//! left out. All three agents send messages, nobody moves.
//!
//! Observation of Alice (8): g, key. Bob (8): key, Alice's message. Eve (4): Alice's message.
//!
//! Metrics: `bob_correct` and `eve_correct`, steps on which the agent's strongest symbol was the secret.

use serde::{Deserialize, Serialize};

use super::scenario::{Features, Member, ParticleEnv, Scenario, Setup, place_all};
use super::world::{Body, Integrator, Physics, World};
use crate::{Result, Rng};

/// Configuration of [`SimpleCrypto`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SimpleCryptoConfig {
    /// Continuous actions instead of discrete ones.
    pub continuous_actions: bool,
    /// Order of the updates within a step.
    pub integrator: Integrator,
    /// Constants of the physics.
    pub physics: Physics,
    /// Steps of an episode, at least 1.
    pub horizon: usize,
}

impl Default for SimpleCryptoConfig {
    fn default() -> Self {
        Self { continuous_actions: false, integrator: Integrator::Pettingzoo, physics: Physics::default(), horizon: 25 }
    }
}

impl SimpleCryptoConfig {
    /// The environment.
    ///
    /// # Errors
    /// [`crate::EnvError::Config`] if a field is out of its range.
    pub fn build(&self) -> Result<SimpleCrypto> {
        let body = Body { is_movable: false, ..Body::agent(0.05, false) };
        let member = |group, observation_width| Member { group, index: 0, body, observation_width, speaks: true };
        ParticleEnv::new(
            Crypto,
            Setup {
                name: "simple_crypto",
                agents: vec![member("eve", 4), member("bob", 8), member("alice", 8)],
                landmarks: vec![Body::landmark(0.05, false); 2],
                message_width: 4,
                n_choices: 2,
                metrics: &["bob_correct", "eve_correct"],
                continuous_actions: self.continuous_actions,
                integrator: self.integrator,
                physics: self.physics.clone(),
                horizon: self.horizon,
            },
        )
    }
}

/// Covert communication. The world's choices are the landmark of the secret and the landmark of the key.
pub type SimpleCrypto = ParticleEnv<Crypto>;

/// Rules of [`SimpleCrypto`].
#[derive(Debug, Clone)]
pub struct Crypto;

const EVE: usize = 0;
const BOB: usize = 1;
const ALICE: usize = 2;

/// `|message − one-hot(symbol)|²`, or nothing if the agent is silent.
fn squared_error(message: &[f64], symbol: usize) -> Option<f64> {
    if message.iter().all(|&c| c == 0.0) {
        return None;
    }
    Some(message.iter().enumerate().map(|(i, &c)| (c - f64::from(u8::from(i == symbol))).powi(2)).sum())
}

/// True if `symbol` is the strongest part of the message.
fn names(message: &[f64], symbol: usize) -> bool {
    message.iter().enumerate().all(|(i, &c)| i == symbol || c < message[symbol])
}

fn one_hot(symbol: usize) -> [f64; 4] {
    let mut code = [0.0; 4];
    code[symbol] = 1.0;
    code
}

impl Scenario for Crypto {
    fn reset(&self, world: &mut World, rng: &mut Rng) {
        for choice in 0..2 {
            world.choices[choice] = rng.below(world.n_landmarks());
        }
        place_all(world, rng, 1.0);
    }

    fn score(&self, world: &World, rewards: &mut [f64], metrics: &mut [f64]) -> bool {
        let secret = world.choices[0];
        let eve = squared_error(world.message(EVE), secret).unwrap_or(0.0);
        let bob = squared_error(world.message(BOB), secret).unwrap_or(0.0);
        rewards[EVE] = -eve;
        rewards[BOB] = eve - bob;
        rewards[ALICE] = eve - bob;
        metrics[0] += f64::from(u8::from(names(world.message(BOB), secret)));
        metrics[1] += f64::from(u8::from(names(world.message(EVE), secret)));
        false
    }

    fn hears(&self, agent: usize) -> bool {
        agent != ALICE
    }

    #[inline]
    fn observe(&self, world: &World, agent: usize, out: &mut Features<'_>) {
        let key = one_hot(world.choices[1]);
        match agent {
            ALICE => {
                out.numbers(&one_hot(world.choices[0]));
                out.numbers(&key);
            }
            BOB => {
                out.numbers(&key);
                out.numbers(world.message(ALICE));
            }
            _ => out.numbers(world.message(ALICE)),
        }
    }
}
