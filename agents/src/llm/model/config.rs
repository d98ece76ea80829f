//! The shape of a decoder, as `config.json` of a checkpoint gives it.

use super::Span;

/// Families of checkpoints, which differ in weight names and in parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// Llama 2 and 3.
    Llama,
    /// Mistral.
    Mistral,
    /// Qwen2 and Qwen2.5.
    Qwen2,
    /// Qwen3.
    Qwen3,
    /// GPT-NeoX (Pythia).
    GptNeox,
    /// GPT-2.
    Gpt2,
}

/// Normalisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// Root mean square, scale only.
    Rms,
    /// Mean and variance, scale and shift.
    Layer,
}

/// Activation of the feed-forward part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x σ(x).
    Silu,
    /// x Φ(x), exact.
    Gelu,
    /// The tanh approximation of GELU.
    GeluTanh,
    /// max(x, 0).
    Relu,
}

/// Scaling of rotary frequencies beyond the trained context.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// None.
    None,
    /// All frequencies divided by a factor.
    Linear { factor: f64 },
    /// Llama 3.1.
    Llama3 { factor: f64, low_freq_factor: f64, high_freq_factor: f64, original_max_positions: usize },
    /// YaRN, as Qwen2.5 and Qwen3 use it.
    Yarn { factor: f64, beta_fast: f64, beta_slow: f64, original_max_positions: usize, attention_factor: Option<f64> },
    /// Base grows with the length beyond the trained context.
    Dynamic { factor: f64 },
}

/// Rotary position embedding (rotate-half layout).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// Leading coordinates of a head that are rotated, even; the rest pass.
    pub rotary_dim: usize,
    /// Scaling.
    pub scaling: RopeScaling,
}

/// How positions enter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Positions {
    /// Rotations of queries and keys.
    Rope(RopeConfig),
    /// Learned vectors added to the embeddings.
    Learned,
}

/// The shape of a decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    pub family: Family,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub n_layers: usize,
    pub n_heads: usize,
    pub n_kv_heads: usize,
    pub head_dim: usize,
    pub intermediate_size: usize,
    pub max_positions: usize,
    pub norm: NormKind,
    pub norm_eps: f64,
    pub positions: Positions,
    pub activation: Activation,
    /// Gated feed-forward (SwiGLU with `Silu`): down(act(gate(x)) * up(x)); else down(act(up(x))).
    pub is_gated: bool,
    pub tie_embeddings: bool,
    /// Bias of query, key and value projections.
    pub qkv_bias: bool,
    /// Bias of the attention's output projection.
    pub output_bias: bool,
    /// Bias of the feed-forward projections.
    pub mlp_bias: bool,
    /// RMS norm of each head of queries and keys before rotation (Qwen3).
    pub qk_norm: bool,
    /// Attention and feed-forward both read the block's input (GPT-NeoX).
    pub parallel_residual: bool,
    /// One per layer.
    pub spans: Vec<Span>,
    pub bos_token_id: Option<u32>,
    pub eos_token_ids: Vec<u32>,
    pub pad_token_id: Option<u32>,
    /// Deviation of fresh weights.
    pub initializer_range: f64,
}
