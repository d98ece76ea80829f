//! Where preferences, completions and prompts come from: rollouts, files, and what corrupts their labels.

mod column;
mod draft;
#[cfg(feature = "llm")]
pub mod encode;
pub mod jsonl;
pub mod noise;
mod parquet;
mod prompt;
pub mod reader;
pub mod report;
pub mod row;
pub mod segments;
pub mod writer;

#[cfg(feature = "llm")]
pub use encode::{encode_completions, encode_pairs, encode_prompts};
pub use jsonl::Lines;
pub use noise::{LabelReport, NoiseConfig, ReturnScale, UnlabelledPair};
pub use reader::{Format, PreferenceFile, ReadOptions};
pub use report::{ReadReport, Tally};
pub use row::{Entry, Kind, Row, RowKind};
pub use segments::{CollectedSegments, SegmentSampler, collect_segments};
pub use writer::{JsonlWriter, PreferenceWriter, write_jsonl_row};
