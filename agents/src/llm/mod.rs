//! Language-model policies: a decoder of our own, text in and out, generation, and training from preferences.
//!
//! Token sequences of different lengths are packed one behind the other, never padded: `[token, feature]` with the
//! borders beside it.

pub mod cache;
pub mod drawn;
pub mod encode;
pub mod encode_report;
pub mod generate;
pub mod infer;
pub mod model;
pub mod ops;
pub mod optimizer;
pub mod padded_batch;
mod pages;
pub mod policy;
pub mod policy_gradient;
mod sampling;
pub mod sequence;
pub mod sft;
pub mod template;
pub mod tokenizer;
pub mod trainer;

pub use candle_core::Device;
pub use drawn::{DRAWN_METRICS, DrawnText, drawn_metrics};
pub use encode::{ConversationLoss, EncodeConfig, Encoder, TextInput};
pub use encode_report::EncodeReport;
pub use generate::{Completion, Finish, GenerationConfig, Generator};
pub use model::{Decoder, DecoderConfig};
pub use optimizer::{AdamW, AdamWConfig};
pub use padded_batch::{PaddedBatch, PaddingSide};
pub use policy::TextPolicy;
pub use policy_gradient::{PolicyGradientConfig, TextPolicyGradient};
pub use sequence::{TokenSequence, TokenStatistics};
pub use sft::SftObjective;
pub use template::{ChatDate, ChatTemplate};
pub use tokenizer::Tokenizer;
pub use trainer::{ExampleTable, MetricSums, Objective, Trainer, TrainerConfig};
