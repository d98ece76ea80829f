//! Where preferences come from: rollouts, files, and what corrupts their labels.

pub mod noise;

pub use noise::{LabelReport, NoiseConfig, ReturnScale, UnlabelledPair};
