//! Checkpoints that `transformers` wrote, read and run; damaged folders; what is written, read back.
#![cfg(feature = "llm")]

mod configs;
mod damaged;
mod generation;
mod parity;
mod reference;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use steadfast_agents::AgentError;
use steadfast_agents::llm::model::{
    Checkpoint, DecoderConfig, DenseWeights, Head, Positions, SCORE, expected_tensors, rope_frequencies, save_checkpoint,
};

const CAUSAL: [&str; 8] = ["llama", "llama_tied_biased", "mistral", "qwen2", "qwen3", "gpt_neox", "gpt_neox_serial", "gpt2"];
const REWARD: [&str; 2] = ["gpt2_reward", "qwen3_reward"];

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/llm")
}

fn folder(name: &str) -> PathBuf {
    golden().join("checkpoints").join(name)
}

#[derive(Deserialize)]
struct Header {
    tolerance: f64,
}

#[derive(Deserialize)]
struct Expected {
    header: Header,
    sequences: Vec<Vec<u32>>,
    #[serde(default)]
    logits: Vec<Vec<Vec<f64>>>,
    #[serde(default)]
    generated: Vec<Vec<u32>>,
    #[serde(default)]
    scores: Vec<f64>,
}

fn expected(name: &str) -> Expected {
    let text = std::fs::read_to_string(folder(name).join("expected.json")).expect("the golden file is there");
    serde_json::from_str(&text).expect("the golden file is whole")
}

type Tensors = HashMap<String, Vec<f32>>;

fn load(folder: &Path, head: Head) -> Result<(DecoderConfig, Tensors, Vec<String>), AgentError> {
    let checkpoint = Checkpoint::open(folder)?;
    let mut tensors = HashMap::new();
    let unused = checkpoint.load(head, &mut |spec, values| {
        tensors.insert(spec.name.clone(), values);
        Ok(())
    })?;
    Ok((checkpoint.config().clone(), tensors, unused))
}

fn dense(config: &DecoderConfig, tensors: &Tensors) -> DenseWeights {
    DenseWeights::from_named(config, &mut |name| Ok(tensors[name].clone())).expect("all tensors have their sizes")
}

#[test]
fn logits_of_all_families_agree_with_transformers() {
    for name in CAUSAL {
        let expected = expected(name);
        let (config, tensors, unused) = load(&folder(name), Head::LanguageModel).expect("the checkpoint loads");
        assert_eq!(unused, Vec::<String>::new(), "{name}");
        let weights = dense(&config, &tensors);
        assert_eq!((expected.sequences.len(), expected.logits.len(), expected.generated.len()), (2, 2, 2), "{name}");
        for (tokens, expected_logits) in expected.sequences.iter().zip(&expected.logits) {
            let logits = reference::logits(&config, &weights, tokens);
            assert_eq!((logits.len(), logits[0].len()), (expected_logits.len(), expected_logits[0].len()), "{name}");
            for (got, expected_row) in logits.iter().flatten().zip(expected_logits.iter().flatten()) {
                assert!((got - expected_row).abs() < expected.header.tolerance, "{name}: {got} {expected_row}");
            }
        }
        for (tokens, generated) in expected.sequences.iter().zip(&expected.generated) {
            let text = [tokens.as_slice(), generated].concat();
            let logits = reference::logits(&config, &weights, &text);
            for (row, token) in logits[tokens.len() - 1..].iter().zip(generated) {
                let best = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).expect("there are tokens").0;
                assert_eq!(best as u32, *token, "{name}");
            }
        }
    }
}

#[test]
fn scores_of_reward_models_agree_with_transformers() {
    for name in REWARD {
        let expected = expected(name);
        let (mut config, tensors, unused) = load(&folder(name), Head::Scalar).expect("the checkpoint loads");
        assert_eq!(unused, Vec::<String>::new(), "{name}");
        // The reference asks for no head then.
        config.tie_embeddings = true;
        let weights = dense(&config, &tensors);
        assert_eq!(expected.scores.len(), 2, "{name}");
        for (tokens, expected_score) in expected.sequences.iter().zip(&expected.scores) {
            let states = reference::hidden_states(&config, &weights, tokens);
            let last = states.last().expect("the text is not empty");
            let score: f64 = last.iter().zip(&tensors[SCORE]).map(|(x, w)| x * f64::from(*w)).sum();
            assert!((score - expected_score).abs() < expected.header.tolerance, "{name}: {score} {expected_score}");
        }
    }
}

#[test]
fn rotary_frequencies_agree_with_transformers() {
    let text = std::fs::read_to_string(golden().join("rope.json")).expect("the golden file is there");
    let all: Value = serde_json::from_str(&text).expect("the golden file is whole");
    let tolerance = all["header"]["relative_tolerance"].as_f64().expect("a number");
    for case in all["cases"].as_array().expect("a list") {
        let config = DecoderConfig::from_json(&case["config"].to_string(), "rope.json").expect("the configuration is supported");
        let Positions::Rope(rope) = config.positions else { panic!("Llama has rotary positions") };
        let (frequencies, factor) = rope_frequencies(&rope, case["length"].as_u64().expect("a length") as usize);
        let expected: Vec<f64> = case["frequencies"].as_array().expect("a list").iter().filter_map(Value::as_f64).collect();
        assert_eq!(frequencies.len(), expected.len());
        for (got, expected) in frequencies.iter().zip(expected) {
            assert!((f64::from(*got) - expected).abs() <= tolerance * expected, "{}: {got} {expected}", case["config"]);
        }
        let expected = case["attention_factor"].as_f64().expect("a number");
        assert!((f64::from(factor) - expected).abs() < 1e-6, "{}: {factor} {expected}", case["config"]);
    }
}

#[test]
fn what_is_written_reads_back_with_equal_bits() {
    for (name, head) in CAUSAL.map(|name| (name, Head::LanguageModel)).into_iter().chain(REWARD.map(|name| (name, Head::Scalar))) {
        let (config, tensors, _) = load(&folder(name), head).expect("the checkpoint loads");
        let written = tempfile::tempdir().expect("a temporary folder");
        save_checkpoint(written.path(), &config, head == Head::Scalar, &mut |name| Ok(tensors[name].clone())).expect("it is written");
        let opened = Checkpoint::open(written.path()).expect("it opens");
        assert_eq!(opened.has_scalar_head(), head == Head::Scalar, "{name}");
        let (config_again, tensors_again, unused) = load(written.path(), head).expect("it loads");
        assert_eq!((config_again, unused), (config.clone(), Vec::new()), "{name}");
        let bits = |tensors: &Tensors| -> HashMap<String, Vec<u32>> {
            tensors.iter().map(|(name, values)| (name.clone(), values.iter().map(|value| value.to_bits()).collect())).collect()
        };
        assert!(bits(&tensors) == bits(&tensors_again), "{name}");
        // The library of the format itself takes the file.
        let bytes = std::fs::read(written.path().join("model.safetensors")).expect("it is there");
        let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).expect("the header is valid");
        assert_eq!(metadata.metadata().as_ref().and_then(|pairs| pairs.get("format")).map(String::as_str), Some("pt"));
        let file = safetensors::SafeTensors::deserialize(&bytes).expect("the file is valid");
        for spec in expected_tensors(&config, head == Head::Scalar) {
            let view = file.tensor(&spec.name).expect("it is there");
            assert_eq!((view.dtype(), view.shape()), (safetensors::Dtype::F32, spec.shape.as_slice()), "{name}");
        }
        let left: Vec<_> = std::fs::read_dir(written.path()).expect("a folder").map(|entry| entry.expect("an entry").file_name()).collect();
        assert_eq!(left.len(), 2, "temporary files stay behind: {left:?}");
    }
}

#[test]
#[ignore = "writes folders for tests/golden/generate/llm_exported.py, which loads them with transformers"]
fn export() {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("llm_exported");
    for (name, head) in CAUSAL.map(|name| (name, Head::LanguageModel)).into_iter().chain(REWARD.map(|name| (name, Head::Scalar))) {
        let (config, tensors, _) = load(&folder(name), head).expect("the checkpoint loads");
        let written = out.join(name);
        save_checkpoint(&written, &config, head == Head::Scalar, &mut |name| Ok(tensors[name].clone())).expect("it is written");
        std::fs::copy(folder(name).join("expected.json"), written.join("expected.json")).expect("it is copied");
    }
    println!("written to {}", out.display());
}

#[test]
fn a_scalar_head_is_never_made_up() {
    let error = load(&folder("qwen3"), Head::Scalar).expect_err("there is no scalar head").to_string();
    assert!(error.contains("qwen3/model.safetensors: has no tensor `score.weight`: it is not a reward model"), "{error}");
    let (_, tensors, unused) = load(&folder("qwen3"), Head::FreshScalar).expect("the backbone loads");
    assert!(!tensors.contains_key(SCORE) && unused == ["lm_head.weight"], "{unused:?}");
    let error = load(&folder("llama"), Head::Scalar).expect_err("there is no scalar head").to_string();
    assert!(error.contains("model.safetensors.index.json: has no tensor `score.weight`"), "{error}");
}
