//! Tiny models of all families, shared by tests.
#![allow(dead_code, clippy::unwrap_used)]

use candle_core::Device;
use steadfast_agents::llm::model::{Activation, Decoder, DecoderConfig, Family, NormKind, Positions, RopeConfig, RopeScaling, Span};
use steadfast_envs::SeedTree;

/// All of them.
pub const FAMILIES: [Family; 6] = [Family::Llama, Family::Mistral, Family::Qwen2, Family::Qwen3, Family::GptNeox, Family::Gpt2];

/// A tiny model with the parts of a family; sizes are odd on purpose.
fn tiny(family: Family) -> DecoderConfig {
    let rope = |rotary_dim| Positions::Rope(RopeConfig { theta: 10_000.0, rotary_dim, scaling: RopeScaling::None });
    let is_gpt = matches!(family, Family::GptNeox | Family::Gpt2);
    let is_grouped = matches!(family, Family::Llama | Family::Mistral | Family::Qwen2 | Family::Qwen3);
    DecoderConfig {
        family,
        vocab_size: 37,
        hidden_size: 24,
        n_layers: 2,
        n_heads: 4,
        n_kv_heads: if is_grouped { 2 } else { 4 },
        head_dim: 6,
        intermediate_size: 35,
        max_positions: 160,
        norm: if is_gpt { NormKind::Layer } else { NormKind::Rms },
        norm_eps: 1e-5,
        positions: match family {
            Family::Gpt2 => Positions::Learned,
            Family::GptNeox => rope(2),
            _ => rope(6),
        },
        activation: match family {
            Family::Gpt2 => Activation::GeluTanh,
            Family::GptNeox => Activation::Gelu,
            _ => Activation::Silu,
        },
        is_gated: !is_gpt,
        tie_embeddings: matches!(family, Family::Gpt2 | Family::Qwen2),
        qkv_bias: is_gpt || family == Family::Qwen2,
        output_bias: is_gpt,
        mlp_bias: is_gpt,
        qk_norm: family == Family::Qwen3,
        parallel_residual: family == Family::GptNeox,
        spans: if family == Family::Mistral { vec![Span::Sliding(5), Span::Full] } else { vec![Span::Full; 2] },
        bos_token_id: Some(1),
        eos_token_ids: vec![2],
        pad_token_id: Some(0),
        initializer_range: 0.3,
    }
}

/// A model whose norms and biases are not at their starting values either.
pub fn model(family: Family) -> Decoder {
    shaken(Decoder::fresh(&tiny(family), false, SeedTree::new(3), &Device::Cpu).unwrap())
}

pub fn shaken(mut decoder: Decoder) -> Decoder {
    let mut rng = SeedTree::new(11).rng();
    for (name, shape, values) in decoder.parameters().unwrap() {
        if shape.len() == 1 {
            let moved: Vec<f32> = values.iter().map(|v| v + 0.3 * rng.normal_f32()).collect();
            decoder.set_parameter(&name, &moved).unwrap();
        }
    }
    decoder
}
