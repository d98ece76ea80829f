//! The shape of a decoder, as `config.json` of a checkpoint gives it.
//!
//! Reading and writing that file is in `config_json`; the frequencies of rotary positions are in `rope`.

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
    Linear {
        /// Divisor, above 0.
        factor: f64,
    },
    /// Llama 3.1: long wavelengths divided by a factor, short ones kept, a ramp between.
    Llama3 {
        /// Divisor of the low frequencies, above 0.
        factor: f64,
        /// Wavelengths above `original_max_positions / low_freq_factor` are scaled wholly.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_positions / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Positions of the first training.
        original_max_positions: usize,
    },
    /// YaRN, as Qwen2.5 and Qwen3 use it (Peng et al. 2023, arXiv 2309.00071).
    Yarn {
        /// Growth of the context, above 0.
        factor: f64,
        /// Rotations over the original context above which a frequency is kept.
        beta_fast: f64,
        /// Rotations over the original context below which a frequency is divided by `factor`.
        beta_slow: f64,
        /// Positions of the first training.
        original_max_positions: usize,
        /// Multiplies cosines and sines; none means `0.1 ln(factor) + 1`.
        attention_factor: Option<f64>,
        /// Rounds the borders of the ramp outwards to whole coordinates (the usual form).
        truncate: bool,
    },
    /// The base grows with the length of the text beyond the trained context. Within `original_max_positions` it is plain.
    Dynamic {
        /// Growth of the context, at least 1.
        factor: f64,
        /// Trained positions.
        original_max_positions: usize,
    },
}

/// Rotary position embedding (rotate-half layout).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies, above 1.
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

/// The shape of a decoder. [`DecoderConfig::from_json`] reads it from a checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// Family: names of the weights, and the class that reads them elsewhere.
    pub family: Family,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Blocks.
    pub n_layers: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Heads of keys and values; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Coordinates of a head; `n_heads * head_dim` need not be `hidden_size`.
    pub head_dim: usize,
    /// Width of the feed-forward part.
    pub intermediate_size: usize,
    /// Longest text in tokens.
    pub max_positions: usize,
    /// Kind of all norms of the residual stream.
    pub norm: NormKind,
    /// Added to the variance in all norms.
    pub norm_eps: f64,
    /// How positions enter.
    pub positions: Positions,
    /// Activation of the feed-forward part.
    pub activation: Activation,
    /// Gated feed-forward (SwiGLU with `Silu`): down(act(gate(x)) * up(x)); else down(act(up(x))).
    pub is_gated: bool,
    /// The head is the embedding.
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
    /// Beginning of a text.
    pub bos_token_id: Option<u32>,
    /// Any of these ends a text.
    pub eos_token_ids: Vec<u32>,
    /// Fills up rows of a batch elsewhere; here nothing is padded.
    pub pad_token_id: Option<u32>,
    /// Deviation of fresh weights.
    pub initializer_range: f64,
}

impl DecoderConfig {
    /// A Llama of this shape without biases, with a head of its own (untied), rotary positions of base 10,000, as many heads of
    /// keys as of queries and no special tokens; `hidden_size` is a multiple of `n_heads`.
    pub fn llama(
        vocab_size: usize,
        hidden_size: usize,
        n_layers: usize,
        n_heads: usize,
        intermediate_size: usize,
        max_positions: usize,
    ) -> Self {
        let head_dim = hidden_size / n_heads;
        Self {
            family: Family::Llama,
            vocab_size,
            hidden_size,
            n_layers,
            n_heads,
            n_kv_heads: n_heads,
            head_dim,
            intermediate_size,
            max_positions,
            norm: NormKind::Rms,
            norm_eps: 1e-6,
            positions: Positions::Rope(RopeConfig { theta: 10_000.0, rotary_dim: head_dim, scaling: RopeScaling::None }),
            activation: Activation::Silu,
            is_gated: true,
            tie_embeddings: false,
            qkv_bias: false,
            output_bias: false,
            mlp_bias: false,
            qk_norm: false,
            parallel_residual: false,
            spans: vec![Span::Full; n_layers],
            bos_token_id: None,
            eos_token_ids: Vec::new(),
            pad_token_id: None,
            initializer_range: 0.02,
        }
    }
}
