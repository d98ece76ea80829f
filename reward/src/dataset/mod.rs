//! Where preferences come from: rollouts, files, and what corrupts their labels.

pub mod noise;
pub mod segments;

pub use noise::{LabelReport, NoiseConfig, ReturnScale, UnlabelledPair};
pub use segments::{CollectedSegments, SegmentSampler, collect_segments};
