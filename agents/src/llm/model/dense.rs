//! A decoder's weights as plain arrays in one layout for all families.

/// Scale and shift of a norm, `[hidden]`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DenseNorm {
    pub weight: Vec<f32>,
    pub bias: Option<Vec<f32>>,
}

/// `y = W x + b`, `W` row-major `[output, input]`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DenseLinear {
    pub weight: Vec<f32>,
    pub bias: Option<Vec<f32>>,
}

/// One block. Rows of `q`, `k`, `v` are ordered by head, then coordinate.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DenseLayer {
    pub attention_norm: DenseNorm,
    pub mlp_norm: DenseNorm,
    pub q: DenseLinear,
    pub k: DenseLinear,
    pub v: DenseLinear,
    pub o: DenseLinear,
    /// `[head_dim]`.
    pub q_norm: Option<Vec<f32>>,
    /// `[head_dim]`.
    pub k_norm: Option<Vec<f32>>,
    pub gate: Option<DenseLinear>,
    pub up: DenseLinear,
    pub down: DenseLinear,
}

/// All weights in `f32`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DenseWeights {
    /// `[vocab, hidden]`.
    pub embedding: Vec<f32>,
    /// `[max_positions, hidden]` of learned positions.
    pub positions: Option<Vec<f32>>,
    pub layers: Vec<DenseLayer>,
    pub final_norm: DenseNorm,
    /// `[vocab, hidden]`; none if tied to the embedding.
    pub head: Option<Vec<f32>>,
}
