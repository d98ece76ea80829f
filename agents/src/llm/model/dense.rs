//! A decoder's weights as plain arrays in one layout for all families.
//!
//! GPT-NeoX writes queries, keys and values as one matrix whose rows are ordered by head, then by kind; GPT-2 as one whose
//! columns are ordered by kind, and all its projections are `[input, output]`. Both are taken apart here.

use super::weights::{Names, expected_tensors};
use super::{DecoderConfig, Family, NormKind, Positions};
use crate::AgentError;

/// Scale and shift of a norm, `[hidden]`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DenseNorm {
    /// Scale.
    pub weight: Vec<f32>,
    /// Shift, of layer norms only.
    pub bias: Option<Vec<f32>>,
}

/// `y = W x + b`, `W` row-major `[output, input]`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DenseLinear {
    /// `[output, input]`.
    pub weight: Vec<f32>,
    /// `[output]`.
    pub bias: Option<Vec<f32>>,
}

/// One block. Rows of `q`, `k`, `v` are ordered by head, then coordinate.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DenseLayer {
    /// Before attention.
    pub attention_norm: DenseNorm,
    /// Before the feed-forward part.
    pub mlp_norm: DenseNorm,
    /// Queries, `[n_heads * head_dim, hidden]`.
    pub q: DenseLinear,
    /// Keys, `[n_kv_heads * head_dim, hidden]`.
    pub k: DenseLinear,
    /// Values, as keys.
    pub v: DenseLinear,
    /// Output of attention, `[hidden, n_heads * head_dim]`.
    pub o: DenseLinear,
    /// `[head_dim]`.
    pub q_norm: Option<Vec<f32>>,
    /// `[head_dim]`.
    pub k_norm: Option<Vec<f32>>,
    /// `[intermediate, hidden]`, of gated feed-forward parts.
    pub gate: Option<DenseLinear>,
    /// `[intermediate, hidden]`.
    pub up: DenseLinear,
    /// `[hidden, intermediate]`.
    pub down: DenseLinear,
}

/// All weights in `f32`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DenseWeights {
    /// `[vocab, hidden]`.
    pub embedding: Vec<f32>,
    /// `[max_positions, hidden]` of learned positions.
    pub positions: Option<Vec<f32>>,
    /// Blocks, first to last.
    pub layers: Vec<DenseLayer>,
    /// Before the head.
    pub final_norm: DenseNorm,
    /// `[vocab, hidden]`; none if tied to the embedding.
    pub head: Option<Vec<f32>>,
}

/// Gives the values of a tensor by its name.
type Lookup<'a> = dyn FnMut(&str) -> Result<Vec<f32>, AgentError> + 'a;

impl DenseWeights {
    /// Takes the weights of a model with a language-model head from tensors under the names and in the shapes of
    /// [`expected_tensors`].
    ///
    /// # Errors
    /// [`AgentError::Shape`] if `get` gives another number of values than a tensor has; or what `get` says.
    pub fn from_named(config: &DecoderConfig, get: &mut Lookup<'_>) -> Result<Self, AgentError> {
        let mut sizes: std::collections::HashMap<String, Vec<usize>> =
            expected_tensors(config, false).into_iter().map(|spec| (spec.name, spec.shape)).collect();
        let mut checked = |name: &str| {
            let values = get(name)?;
            // A name that is not expected is a mistake of this file, which the check shows as an empty shape.
            let expected = sizes.remove(name).unwrap_or_default();
            if values.len() != expected.iter().product::<usize>() {
                return Err(AgentError::Shape { op: format!("tensor `{name}`"), expected, got: vec![values.len()] });
            }
            Ok(values)
        };
        let names = Names::of(config.family);
        let embedding = checked(&names.embedding())?;
        let positions = match config.positions {
            Positions::Learned => Some(checked(&format!("{}{}.weight", names.backbone, names.positions))?),
            Positions::Rope(_) => None,
        };
        let layers = (0..config.n_layers)
            .map(|layer| {
                let prefix = names.layer(layer);
                match config.family {
                    Family::Gpt2 => gpt2_layer(config, &prefix, &mut checked),
                    Family::GptNeox => gpt_neox_layer(config, &prefix, &mut checked),
                    _ => llama_layer(config, &prefix, &mut checked),
                }
            })
            .collect::<Result<_, _>>()?;
        let final_norm = norm(config, &format!("{}{}", names.backbone, names.final_norm), &mut checked)?;
        let head = if config.tie_embeddings { None } else { Some(checked(names.head)?) };
        Ok(Self { embedding, positions, layers, final_norm, head })
    }
}

fn norm(config: &DecoderConfig, name: &str, get: &mut Lookup<'_>) -> Result<DenseNorm, AgentError> {
    let weight = get(&format!("{name}.weight"))?;
    let bias = if config.norm == NormKind::Layer { Some(get(&format!("{name}.bias"))?) } else { None };
    Ok(DenseNorm { weight, bias })
}

fn linear(name: &str, has_bias: bool, get: &mut Lookup<'_>) -> Result<DenseLinear, AgentError> {
    let weight = get(&format!("{name}.weight"))?;
    let bias = if has_bias { Some(get(&format!("{name}.bias"))?) } else { None };
    Ok(DenseLinear { weight, bias })
}

fn llama_layer(config: &DecoderConfig, prefix: &str, get: &mut Lookup<'_>) -> Result<DenseLayer, AgentError> {
    let head_norms = if config.qk_norm {
        let q_norm = get(&format!("{prefix}.self_attn.q_norm.weight"))?;
        (Some(q_norm), Some(get(&format!("{prefix}.self_attn.k_norm.weight"))?))
    } else {
        (None, None)
    };
    Ok(DenseLayer {
        attention_norm: norm(config, &format!("{prefix}.input_layernorm"), get)?,
        mlp_norm: norm(config, &format!("{prefix}.post_attention_layernorm"), get)?,
        q: linear(&format!("{prefix}.self_attn.q_proj"), config.qkv_bias, get)?,
        k: linear(&format!("{prefix}.self_attn.k_proj"), config.qkv_bias, get)?,
        v: linear(&format!("{prefix}.self_attn.v_proj"), config.qkv_bias, get)?,
        o: linear(&format!("{prefix}.self_attn.o_proj"), config.output_bias, get)?,
        q_norm: head_norms.0,
        k_norm: head_norms.1,
        gate: Some(linear(&format!("{prefix}.mlp.gate_proj"), config.mlp_bias, get)?),
        up: linear(&format!("{prefix}.mlp.up_proj"), config.mlp_bias, get)?,
        down: linear(&format!("{prefix}.mlp.down_proj"), config.mlp_bias, get)?,
    })
}

fn gpt_neox_layer(config: &DecoderConfig, prefix: &str, get: &mut Lookup<'_>) -> Result<DenseLayer, AgentError> {
    let fused = linear(&format!("{prefix}.attention.query_key_value"), config.qkv_bias, get)?;
    let part = |kind: usize| DenseLinear {
        weight: part_of_heads(&fused.weight, kind, config.head_dim * config.hidden_size),
        bias: fused.bias.as_ref().map(|bias| part_of_heads(bias, kind, config.head_dim)),
    };
    let (q, k, v) = (part(0), part(1), part(2));
    Ok(DenseLayer {
        attention_norm: norm(config, &format!("{prefix}.input_layernorm"), get)?,
        mlp_norm: norm(config, &format!("{prefix}.post_attention_layernorm"), get)?,
        q,
        k,
        v,
        o: linear(&format!("{prefix}.attention.dense"), config.output_bias, get)?,
        q_norm: None,
        k_norm: None,
        gate: None,
        up: linear(&format!("{prefix}.mlp.dense_h_to_4h"), config.mlp_bias, get)?,
        down: linear(&format!("{prefix}.mlp.dense_4h_to_h"), config.mlp_bias, get)?,
    })
}

/// `[head, kind, size] -> [head, size]` for one of three kinds.
fn part_of_heads(fused: &[f32], kind: usize, size: usize) -> Vec<f32> {
    fused.chunks_exact(size).skip(kind).step_by(3).flatten().copied().collect()
}

fn gpt2_layer(config: &DecoderConfig, prefix: &str, get: &mut Lookup<'_>) -> Result<DenseLayer, AgentError> {
    let hidden = config.hidden_size;
    let mut transposed_linear = |name: &str, output: usize, has_bias: bool| {
        let DenseLinear { weight, bias } = linear(&format!("{prefix}.{name}"), has_bias, get)?;
        Ok::<_, AgentError>(DenseLinear { weight: transposed(&weight, output), bias })
    };
    let fused = transposed_linear("attn.c_attn", 3 * hidden, config.qkv_bias)?;
    let o = transposed_linear("attn.c_proj", hidden, config.output_bias)?;
    let up = transposed_linear("mlp.c_fc", config.intermediate_size, config.mlp_bias)?;
    let down = transposed_linear("mlp.c_proj", hidden, config.mlp_bias)?;
    let part = |kind: usize| DenseLinear {
        weight: fused.weight[kind * hidden * hidden..][..hidden * hidden].to_vec(),
        bias: fused.bias.as_ref().map(|bias| bias[kind * hidden..][..hidden].to_vec()),
    };
    let (q, k, v) = (part(0), part(1), part(2));
    let attention_norm = norm(config, &format!("{prefix}.ln_1"), get)?;
    let mlp_norm = norm(config, &format!("{prefix}.ln_2"), get)?;
    Ok(DenseLayer { attention_norm, mlp_norm, q, k, v, o, q_norm: None, k_norm: None, gate: None, up, down })
}

/// `[row, column] -> [column, row]`.
fn transposed(matrix: &[f32], n_columns: usize) -> Vec<f32> {
    let n_rows = matrix.len() / n_columns;
    let mut result = vec![0.0; matrix.len()];
    for (row, values) in matrix.chunks_exact(n_columns).enumerate() {
        for (column, value) in values.iter().enumerate() {
            result[column * n_rows + row] = *value;
        }
    }
    result
}
