//! Collecting experience: a vector of environments, a policy, and the arrays between them and a learner.

mod policy;

pub use policy::{ActMode, ActionBatch, ActionsMut, ObservationBatch, Policy};
