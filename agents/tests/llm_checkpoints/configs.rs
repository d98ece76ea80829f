//! Configurations in the spellings of published checkpoints, and values that are refused.

use serde_json::{Value, json};
use steadfast_agents::llm::model::{Activation, DecoderConfig, NormKind, Positions, RopeConfig, RopeScaling, Span};

fn read(config: &Value) -> DecoderConfig {
    DecoderConfig::from_json(&config.to_string(), "config.json").expect("the configuration is supported")
}

fn rope(config: &DecoderConfig) -> RopeConfig {
    match config.positions {
        Positions::Rope(rope) => rope,
        Positions::Learned => panic!("the family has rotary positions"),
    }
}

fn llama() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 4096,
        "intermediate_size": 14336, "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "max_position_embeddings": 131072, "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "vocab_size": 128256,
        "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "torch_dtype": "bfloat16", "pretraining_tp": 1,
        "rope_scaling": {
            "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
            "rope_type": "llama3"
        }
    })
}

#[test]
fn llama_in_both_spellings_is_the_same() {
    let mut config = llama();
    let old = read(&config);
    assert_eq!((old.n_kv_heads, old.head_dim, old.tie_embeddings, old.qkv_bias), (8, 128, false, false));
    assert_eq!(old.eos_token_ids, [128001, 128008, 128009]);
    let scaling = RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_positions: 8192 };
    assert_eq!(rope(&old), RopeConfig { theta: 500_000.0, rotary_dim: 128, scaling });
    let mut parameters = config["rope_scaling"].take();
    parameters["rope_theta"] = config["rope_theta"].take();
    config["rope_parameters"] = parameters;
    assert_eq!(read(&config), old);
}

#[test]
fn keys_that_old_files_lack_have_the_values_of_their_time() {
    // Llama 2 before grouped queries; ids and ties as its class has them.
    let llama2 = read(&json!({
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32,
        "num_hidden_layers": 32, "vocab_size": 32000, "max_length": 4096, "pad_token_id": -1
    }));
    assert_eq!((llama2.n_kv_heads, llama2.max_positions, llama2.norm_eps), (32, 2048, 1e-6));
    assert_eq!((llama2.bos_token_id, llama2.eos_token_ids.as_slice(), llama2.pad_token_id), (Some(1), [2].as_slice(), None));
    assert_eq!(rope(&llama2), RopeConfig { theta: 10_000.0, rotary_dim: 128, scaling: RopeScaling::None });
    let gpt2 = read(&json!({
        "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "bos_token_id": 50256, "eos_token_id": 50256,
        "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12,
        "n_positions": 1024, "resid_pdrop": 0.1, "summary_type": "cls_index", "vocab_size": 50257,
        "task_specific_params": { "text-generation": { "do_sample": true, "max_length": 50 } }
    }));
    assert_eq!((gpt2.intermediate_size, gpt2.tie_embeddings, gpt2.activation), (3072, true, Activation::GeluTanh));
    assert_eq!((gpt2.positions, gpt2.norm, gpt2.max_positions), (Positions::Learned, NormKind::Layer, 1024));
    let pythia = read(&json!({
        "architectures": ["GPTNeoXForCausalLM"], "bos_token_id": 0, "eos_token_id": 0, "hidden_act": "gelu", "hidden_size": 512,
        "initializer_range": 0.02, "intermediate_size": 2048, "layer_norm_eps": 1e-05, "max_position_embeddings": 2048,
        "model_type": "gpt_neox", "num_attention_heads": 8, "num_hidden_layers": 6, "rotary_emb_base": 10000,
        "rotary_pct": 0.25, "tie_word_embeddings": false, "torch_dtype": "float16", "use_parallel_residual": true,
        "vocab_size": 50304
    }));
    assert_eq!((rope(&pythia).rotary_dim, pythia.parallel_residual, pythia.qkv_bias, pythia.is_gated), (16, true, true, false));
    let qwen3 = json!({
        "model_type": "qwen3", "hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 8, "num_hidden_layers": 28,
        "intermediate_size": 3072, "vocab_size": 151936
    });
    assert_eq!((read(&qwen3).head_dim, read(&qwen3).qk_norm), (128, true));
}

#[test]
fn windows_are_used_as_each_family_says() {
    let mut mistral = json!({
        "model_type": "mistral", "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 3,
        "intermediate_size": 96, "vocab_size": 100, "sliding_window": 4096
    });
    assert_eq!(read(&mistral).spans, [Span::Sliding(4096); 3]);
    mistral["sliding_window"] = Value::Null;
    assert_eq!(read(&mistral).spans, [Span::Full; 3]);
    // Published Qwen2.5 files name a window and do not use it.
    let mut qwen = mistral.clone();
    for (key, value) in [("model_type", json!("qwen2")), ("sliding_window", json!(32)), ("max_window_layers", json!(2))] {
        qwen[key] = value;
    }
    assert_eq!(read(&qwen).spans, [Span::Full; 3]);
    qwen["use_sliding_window"] = json!(true);
    assert_eq!(read(&qwen).spans, [Span::Full, Span::Full, Span::Sliding(32)]);
    qwen["layer_types"] = json!(["sliding_attention", "full_attention", "full_attention"]);
    assert_eq!(read(&qwen).spans, [Span::Sliding(32), Span::Full, Span::Full]);
    qwen["use_sliding_window"] = json!(false);
    let error = DecoderConfig::from_json(&qwen.to_string(), "config.json").expect_err("it contradicts itself").to_string();
    assert!(error.contains("`layer_types` gives layer 0 a window"), "{error}");
}

#[test]
fn what_is_not_supported_is_named() {
    let cases: [(&str, Value, &str); 21] = [
        ("model_type", json!("gemma3"), "`model_type` `gemma3` is not supported; supported: llama, mistral"),
        ("model_type", Value::Null, "`model_type` is missing; supported: llama"),
        ("quantization_config", json!({ "bits": 4 }), "`quantization_config` is given: quantised weights"),
        ("num_local_experts", json!(8), "`num_local_experts` is given: mixtures of experts"),
        ("hidden_act", json!("quick_gelu"), "`hidden_act` `quick_gelu` is not supported; supported: silu, gelu"),
        ("hidden_size", json!(0), "`hidden_size` must be a whole number from 1"),
        ("hidden_size", json!(-4), "`hidden_size` must be a whole number from 1"),
        ("hidden_size", Value::Null, "`hidden_size` is missing"),
        ("hidden_size", json!(4097), "`num_attention_heads` (32) must divide the hidden size (4097)"),
        ("num_hidden_layers", json!(1_000_000_000_000_u64), "`num_hidden_layers` must be a whole number from 1 to 4096"),
        ("num_key_value_heads", json!(5), "`num_key_value_heads` (5) must divide `num_attention_heads` (32)"),
        ("head_dim", json!(7), "7 of the 7 coordinates of a head cannot be rotated"),
        ("vocab_size", json!("many"), "`vocab_size` must be a whole number from 1 to 1073741824, got \"many\""),
        ("eos_token_id", json!([1, "</s>"]), "`eos_token_id` must be a token id"),
        ("rms_norm_eps", json!(-1.0), "`rms_norm_eps` must be above 0, got -1"),
        ("partial_rotary_factor", json!(0.5), "`partial_rotary_factor` 0.5 is not supported for `llama`"),
        ("rope_theta", json!(0.5), "`rope_theta` must be above 1"),
        ("rope_scaling", json!({ "type": "longrope" }), "`rope_scaling.type` `longrope` is not supported; supported: default, linear"),
        (
            "rope_scaling",
            json!({ "rope_type": "llama3", "low_freq_factor": 4, "high_freq_factor": 1 }),
            "`rope_scaling.low_freq_factor` (4)",
        ),
        ("rope_scaling", json!({ "rope_type": "linear" }), "`rope_scaling.factor` is missing"),
        ("rope_scaling", json!({ "full_attention": {} }), "`rope_scaling.full_attention` differs by kind of layer"),
    ];
    for (key, value, expected) in cases {
        let mut config = llama();
        config[key] = value;
        let error = DecoderConfig::from_json(&config.to_string(), "here/config.json").expect_err(key).to_string();
        assert!(error.starts_with("here/config.json: ") && error.contains(expected), "{key}: {error}");
    }
    let gpt2 = json!({ "model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 9 });
    for (key, value) in [("scale_attn_weights", false), ("scale_attn_by_inverse_layer_idx", true), ("add_cross_attention", true)] {
        let mut config = gpt2.clone();
        config[key] = json!(value);
        let error = DecoderConfig::from_json(&config.to_string(), "config.json").expect_err(key).to_string();
        assert!(error.contains(&format!("`{key}` is {value}, which is not supported")), "{error}");
    }
}

#[test]
fn shapes_that_no_class_has_are_not_written() {
    let mut config = read(&llama());
    config.spans[3] = Span::Block(64);
    assert!(config.to_json(false).expect_err("blocks are ours").to_string().contains("block spans cannot be written"));
    config.spans[3] = Span::Sliding(64);
    assert!(config.to_json(false).expect_err("Llama has no windows").to_string().contains("sliding windows in these layers"));
    config.spans[3] = Span::Full;
    config.qk_norm = true;
    assert!(config.to_json(false).expect_err("Llama has no head norms").to_string().contains("for the family `llama`"));
}
