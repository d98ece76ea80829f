//! Particle environments: discs in the plane that navigate, chase, hide and talk.
//!
//! The nine tasks of the multi-agent particle environments (Lowe et al. 2017, arXiv 1706.02275), with the numbers of the
//! `mpe2` 1.1.1 package. [`world`] is the physics, [`scenario`] what the tasks share, and each other file one task.

pub mod adversary;
pub mod arena;
pub mod crypto;
pub mod push;
pub mod reference;
pub mod scenario;
pub mod simple;
pub mod speaker_listener;
pub mod spread;
pub mod tag;
pub mod world;
pub mod world_comm;

pub use adversary::{AdversaryReward, SimpleAdversary, SimpleAdversaryConfig};
pub use crypto::{SimpleCrypto, SimpleCryptoConfig};
pub use push::{SimplePush, SimplePushConfig};
pub use reference::{SimpleReference, SimpleReferenceConfig};
pub use scenario::{Features, ParticleEnv, Scenario};
pub use simple::{Simple, SimpleConfig};
pub use speaker_listener::{SimpleSpeakerListener, SimpleSpeakerListenerConfig};
pub use spread::{SimpleSpread, SimpleSpreadConfig, SpreadReward};
pub use tag::{SimpleTag, SimpleTagConfig};
pub use world::{Body, Integrator, Physics, Vec2, World};
pub use world_comm::{SimpleWorldComm, SimpleWorldCommConfig};
