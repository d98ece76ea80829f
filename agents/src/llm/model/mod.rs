//! The decoder: a pre-norm transformer that loads the checkpoints of Llama 2/3, Mistral, Qwen2/2.5, Qwen3, GPT-NeoX and GPT-2.
mod config;
mod config_json;
mod decoder;
mod dense;
mod forward;
mod log_prob;
mod parameters;
mod rope;
mod rows;
mod safetensors_file;
mod span;
mod weights;

pub use config::{Activation, DecoderConfig, Family, NormKind, Positions, RopeConfig, RopeScaling};
pub use decoder::{Decoder, NamedValues};
pub use dense::{DenseLayer, DenseLinear, DenseNorm, DenseWeights};
pub use forward::Steering;
pub use log_prob::{LogProbLoss, ScoreLoss, ScorePositions};
pub(crate) use parameters::{Parameter, Values};
pub use rope::rope_frequencies;
pub use span::{KeyBias, Span};
pub use weights::{Checkpoint, Head, SCORE, TakeTensor, TensorInit, TensorSpec, expected_tensors, save_checkpoint};
