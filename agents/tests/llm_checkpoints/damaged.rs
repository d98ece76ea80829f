//! Folders with one thing wrong: each is an error that names the file and the tensor or key.

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};
use steadfast_agents::llm::model::{Checkpoint, DecoderConfig, Head};
use tempfile::TempDir;

use super::{folder, load};

/// A copy of a golden checkpoint.
fn copy(name: &str) -> TempDir {
    let copy = tempfile::tempdir().expect("a temporary folder");
    for entry in fs::read_dir(folder(name)).expect("the golden folder is there") {
        let entry = entry.expect("an entry");
        fs::copy(entry.path(), copy.path().join(entry.file_name())).expect("it is copied");
    }
    copy
}

fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&fs::read(path).expect("it is there")).expect("it is JSON");
    change(&mut value);
    fs::write(path, value.to_string()).expect("it is written");
}

fn error(folder: &Path) -> String {
    load(folder, Head::LanguageModel).expect_err("it must be refused").to_string()
}

/// Rewrites a safetensors file with changed header and the same tensors.
fn edit_header(path: &Path, change: impl FnOnce(&mut serde_json::Map<String, Value>, &mut Vec<u8>)) {
    let bytes = fs::read(path).expect("it is there");
    let n = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let mut header = serde_json::from_slice(&bytes[8..8 + n]).expect("the header is JSON");
    let mut data = bytes[8 + n..].to_vec();
    change(&mut header, &mut data);
    let header = Value::Object(header).to_string();
    fs::write(path, [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()).expect("it is written");
}

#[test]
fn folders_without_a_usable_model_say_what_is_missing() {
    let empty = tempfile::tempdir().expect("a temporary folder");
    assert!(error(empty.path()).contains("config.json: cannot be opened"));
    assert!(error(&empty.path().join("nowhere")).contains("nowhere: is not a folder"));
    let copied = copy("qwen3");
    fs::remove_file(copied.path().join("model.safetensors")).expect("it is there");
    assert!(error(copied.path()).contains("has neither `model.safetensors`"));
    fs::write(copied.path().join("pytorch_model.bin"), "").expect("it is written");
    assert!(error(copied.path()).contains("`pytorch_model.bin` only"));
    fs::write(copied.path().join("adapter_config.json"), "").expect("it is written");
    assert!(error(copied.path()).contains("holds an adapter without its base model"));
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let copied = copy("qwen3");
    let file = copied.path().join("model.safetensors");
    edit(&copied.path().join("config.json"), |config| config["intermediate_size"] = json!(41));
    let text = error(copied.path());
    assert!(
        text.contains(
            "model.safetensors: tensor `model.layers.0.mlp.down_proj.weight` has shape [32, 40], but `config.json` asks for [32, 41]"
        ),
        "{text}"
    );

    let copied_file = copy("qwen3");
    edit(&copied_file.path().join("config.json"), |config| config["num_hidden_layers"] = json!(1));
    edit(&copied_file.path().join("config.json"), |config| config["layer_types"] = json!(["full_attention"]));
    let (_, _, unused) = load(copied_file.path(), Head::LanguageModel).expect("more tensors than needed are no error");
    assert!(unused.len() == 11 && unused[0] == "model.layers.1.input_layernorm.weight", "{unused:?}");

    edit(&copied.path().join("config.json"), |config| {
        config["intermediate_size"] = json!(40);
        config["num_hidden_layers"] = json!(3);
        config["layer_types"] = Value::Null;
    });
    let text = error(copied.path());
    assert!(text.contains("has no tensor `model.layers.2.input_layernorm.weight` and 10 more"), "{text}");

    edit(&copied.path().join("config.json"), |config| config["num_hidden_layers"] = json!(2));
    edit_header(&file, |header, _| header["model.norm.weight"]["dtype"] = json!("I16"));
    let text = error(copied.path());
    assert!(text.contains("tensor `model.norm.weight` has type I16; supported: F32, F16, BF16"), "{text}");

    edit_header(&file, |header, _| {
        let norm = header.remove("model.norm.weight").expect("it is there");
        header.insert("elsewhere".into(), norm);
    });
    assert!(error(copied.path()).contains("has no tensor `model.norm.weight`, which `config.json` asks for"));
}

#[test]
fn a_tied_head_is_checked_if_it_is_written_along() {
    let copied = copy("qwen3");
    edit(&copied.path().join("config.json"), |config| config["tie_word_embeddings"] = json!(true));
    let text = error(copied.path());
    assert!(text.contains("tensor `lm_head.weight` differs from `model.embed_tokens.weight`"), "{text}");
    // The same numbers twice are the usual case.
    edit_header(&copied.path().join("model.safetensors"), |header, data| {
        let offsets = |name: &str| {
            let offsets: [usize; 2] = serde_json::from_value(header[name]["data_offsets"].clone()).expect("two offsets");
            offsets[0]..offsets[1]
        };
        let (head, embedding) = (offsets("lm_head.weight"), offsets("model.embed_tokens.weight"));
        data.copy_within(embedding, head.start);
    });
    load(copied.path(), Head::LanguageModel).expect("an equal head is no contradiction");
    let untied = copy("llama_tied_biased");
    edit(&untied.path().join("config.json"), |config| config["tie_word_embeddings"] = json!(false));
    let text = error(untied.path());
    assert!(text.contains("has no tensor `lm_head.weight`") && text.contains("set `tie_word_embeddings`"), "{text}");
}

#[test]
fn names_with_and_without_the_prefix_together_are_refused() {
    let copied = copy("gpt2");
    edit_header(&copied.path().join("model.safetensors"), |header, data| {
        let start = data.len();
        header.insert("transformer.ln_f.bias".into(), json!({ "dtype": "F32", "shape": [32], "data_offsets": [start, start + 128] }));
        data.resize(start + 128, 0);
    });
    let text = error(copied.path());
    assert!(text.contains("has the same tensor as `transformer.ln_f.bias` and as `ln_f.bias`"), "{text}");
}

#[test]
fn shards_are_checked_against_the_index() {
    let shard = "model-00002-of-00003.safetensors";
    let copied = copy("llama");
    fs::remove_file(copied.path().join(shard)).expect("it is there");
    let text = error(copied.path());
    assert!(text.contains(&format!("{shard}: cannot be opened (model.safetensors.index.json: tensor `model.")), "{text}");

    let copied = copy("llama");
    edit(&copied.path().join("model.safetensors.index.json"), |index| {
        index["weight_map"]["model.norm.weight"] = json!("model-00001-of-00003.safetensors");
    });
    let text = error(copied.path());
    assert!(text.contains("places tensor `model.norm.weight` in") && text.contains("which does not hold it"), "{text}");

    let copied = copy("llama");
    fs::copy(copied.path().join(shard), copied.path().join("again.safetensors")).expect("it is copied");
    edit(&copied.path().join("model.safetensors.index.json"), |index| index["weight_map"]["another"] = json!("again.safetensors"));
    let text = error(copied.path());
    assert!(text.contains("is also in") && text.contains("again.safetensors"), "{text}");

    for text in ["", "[]", "{}", r#"{"weight_map":{}}"#, r#"{"weight_map":{"a":1}}"#] {
        fs::write(copied.path().join("model.safetensors.index.json"), text).expect("it is written");
        let text = error(copied.path());
        assert!(text.contains("model.safetensors.index.json: "), "{text}");
    }
}

#[test]
fn no_path_of_an_index_leaves_the_folder() {
    let outside = tempfile::tempdir().expect("a temporary folder");
    let secret = outside.path().join("secret.safetensors");
    fs::copy(folder("qwen3").join("model.safetensors"), &secret).expect("it is copied");
    let names = [secret.to_str().expect("UTF-8"), "../secret.safetensors", "a/../../secret.safetensors", "./../x", "", "..", "..\\x"];
    for name in names {
        let copied = copy("llama");
        edit(&copied.path().join("model.safetensors.index.json"), |index| index["weight_map"]["model.norm.weight"] = json!(name));
        let text = error(copied.path());
        assert!(text.contains("tensor `model.norm.weight`: the file") && text.contains("does not lie in the folder"), "{name}: {text}");
    }
}

#[cfg(unix)]
#[test]
fn links_stay_in_the_folder_or_lead_to_the_blobs_of_the_cache() {
    use std::os::unix::fs::symlink;
    let cache = tempfile::tempdir().expect("a temporary folder");
    let (snapshot, blobs) = (cache.path().join("snapshots/0a1b"), cache.path().join("blobs"));
    fs::create_dir_all(&snapshot).expect("it is made");
    fs::create_dir_all(&blobs).expect("it is made");
    for name in ["config.json", "model.safetensors"] {
        fs::copy(folder("qwen3").join(name), blobs.join(name)).expect("it is copied");
        symlink(format!("../../blobs/{name}"), snapshot.join(name)).expect("it is linked");
    }
    load(&snapshot, Head::LanguageModel).expect("a snapshot of the cache loads");
    let elsewhere = cache.path().join("elsewhere");
    fs::create_dir_all(&elsewhere).expect("it is made");
    fs::copy(folder("qwen3").join("config.json"), elsewhere.join("config.json")).expect("it is copied");
    symlink("../blobs/model.safetensors", elsewhere.join("model.safetensors")).expect("it is linked");
    let text = error(&elsewhere);
    assert!(text.contains("elsewhere/model.safetensors: is a link that leaves the folder"), "{text}");
}

#[test]
fn cut_or_foreign_files_are_named() {
    let copied = copy("qwen3");
    let path = copied.path().join("model.safetensors");
    let whole = fs::read(&path).expect("it is there");
    for cut in [0, 7, 8, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..cut]).expect("it is written");
        let text = error(copied.path());
        assert!(text.contains("model.safetensors: "), "{cut}: {text}");
    }
    fs::write(&path, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n").expect("it is written");
    let text = error(copied.path());
    assert!(text.contains("is a Git LFS pointer"), "{text}");
}

#[test]
fn numbers_that_are_not_finite_are_named() {
    let copied = copy("qwen3");
    edit_header(&copied.path().join("model.safetensors"), |header, data| {
        let start = header["model.norm.weight"]["data_offsets"][0].as_u64().expect("an offset") as usize;
        data[start + 6..start + 8].copy_from_slice(&0x7fc0_u16.to_le_bytes());
    });
    let text = error(copied.path());
    assert!(text.contains("tensor `model.norm.weight` holds NaN at position 3"), "{text}");
}

#[test]
fn classifiers_with_several_outputs_are_no_reward_models() {
    let copied = copy("gpt2_reward");
    edit(&copied.path().join("config.json"), |config| config["id2label"] = json!({ "0": "a", "1": "b" }));
    edit_header(&copied.path().join("model.safetensors"), |header, _| header["score.weight"]["shape"] = json!([2, 16]));
    let text = load(copied.path(), Head::Scalar).expect_err("it must be refused").to_string();
    assert!(text.contains("tensor `score.weight` has shape [2, 16]: only classifiers with one output"), "{text}");
}

#[test]
fn end_of_sequence_ids_of_generation_count() {
    let copied = copy("qwen3");
    fs::write(copied.path().join("generation_config.json"), r#"{"eos_token_id": [3, 7]}"#).expect("it is written");
    assert_eq!(Checkpoint::open(copied.path()).expect("it opens").config().eos_token_ids, [3, 7]);
    fs::write(copied.path().join("generation_config.json"), r#"{"eos_token_id": "end"}"#).expect("it is written");
    let text = Checkpoint::open(copied.path()).expect_err("it must be refused").to_string();
    assert!(text.contains("generation_config.json: `eos_token_id` must be a token id"), "{text}");
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0..70_i64).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-z_]{0,12}".prop_map(Value::from),
        proptest::sample::select(&["llama", "yarn", "llama3", "linear", "dynamic", "silu", "sliding_attention"]).prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::hash_map("factor|rope_type|type|low_freq_factor|mscale", inner, 0..4).prop_map(|map| json!(map)),
        ]
    })
}

proptest! {
    #[test]
    fn no_configuration_is_a_panic(text in ".{0,200}") {
        let _ = DecoderConfig::from_json(&text, "config.json");
    }

    /// One key of a good configuration replaced by anything; what is accepted can be written and read again.
    #[test]
    fn accepted_configurations_are_written_and_read_again(which in any::<prop::sample::Index>(), key in any::<prop::sample::Index>(), value in any_json()) {
        let name = super::CAUSAL[which.index(super::CAUSAL.len())];
        let mut config: Value = serde_json::from_slice(&fs::read(folder(name).join("config.json")).expect("it is there")).expect("it is JSON");
        let keys: Vec<String> = config.as_object().expect("an object").keys().cloned().collect();
        config[&keys[key.index(keys.len())]] = value;
        if let Ok(parsed) = DecoderConfig::from_json(&config.to_string(), "config.json") {
            let written = parsed.to_json(false).expect("what was read can be written");
            prop_assert_eq!(DecoderConfig::from_json(&written, "config.json").expect("what was written can be read"), parsed);
        }
    }

    /// A flipped bit or a cut anywhere is an error or a model of the same shape, never a panic.
    #[test]
    fn damaged_files_are_never_a_panic(at in any::<prop::sample::Index>(), bit in 0..8_u8, cut in any::<bool>(), file in 0..2_usize) {
        let copied = copy("llama");
        let path = copied.path().join(["model-00001-of-00003.safetensors", "model.safetensors.index.json"][file]);
        let mut bytes = fs::read(&path).expect("it is there");
        // Half of the damage falls into the header.
        let at = at.index(bytes.len().min(2000));
        bytes[at] ^= 1 << bit;
        if cut {
            bytes.truncate(at);
        }
        fs::write(&path, bytes).expect("it is written");
        let _ = load(copied.path(), Head::LanguageModel);
    }
}
