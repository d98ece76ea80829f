//! Tokenizers, chat templates and encoded rows against `transformers` and TRL, and what happens to files that make no sense.
#![cfg(feature = "llm")]
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use serde_json::Value;
use steadfast_agents::llm::{ChatTemplate, EncodeConfig, EncodeReport, Encoder, TextInput, TokenSequence, Tokenizer};
use steadfast_envs::text::Message;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/llm_text")
}

/// A file of `tests/golden/generate/llm_text.py`.
fn read(name: &str) -> String {
    std::fs::read_to_string(folder().join(name)).unwrap()
}

fn cases() -> Value {
    serde_json::from_str(&read("cases.json")).unwrap()
}

fn load(name: &str) -> Tokenizer {
    Tokenizer::load(&folder().join(name)).unwrap()
}

fn messages(value: &Value) -> Vec<Message> {
    serde_json::from_value(value.clone()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn templates_render_as_transformers_renders_them() {
    let (cases, plain) = (cases(), load("bytes"));
    let mut n_refused = 0;
    for case in cases["rendered"].as_array().unwrap() {
        let name = case["template"].as_str().unwrap();
        let tokenizer = plain.with_chat_template(&read(&format!("{name}.jinja"))).unwrap();
        let conversation = messages(&cases["conversations"][case["conversation"].as_u64().unwrap() as usize]);
        let rendered = tokenizer.render_chat(&conversation, case["add_generation_prompt"].as_bool().unwrap());
        let place = format!("{name}, conversation {}", case["conversation"]);
        if let Some(theirs) = case["error"].as_str() {
            let ours = rendered.unwrap_err().to_string();
            assert!(ours.contains(theirs) && ours.contains("chat_template.jinja, line"), "{place}: {ours}");
            n_refused += 1;
            continue;
        }
        let rendered = rendered.unwrap_or_else(|error| panic!("{place}: {error}"));
        assert_eq!(rendered, case["text"].as_str().unwrap(), "{place}");
        assert_eq!(tokenizer.encode(&rendered, false).unwrap(), ids(&case["ids"]), "{place}");
    }
    assert_eq!(n_refused, 6);
}

#[test]
fn texts_become_the_tokens_of_transformers_and_back() {
    let (cases, tokenizer) = (cases(), load("bytes"));
    for case in cases["plain"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let tokens = tokenizer.encode(text, true).unwrap();
        assert_eq!(tokens, ids(&case["ids"]), "{text:?}");
        assert_eq!(tokenizer.encode(text, false).unwrap(), ids(&case["bare"]), "{text:?}");
        assert_eq!(tokenizer.decode(&tokens, false).unwrap(), case["decoded"].as_str().unwrap());
        assert_eq!(tokenizer.decode(&tokens, true).unwrap(), case["skipped"].as_str().unwrap());
    }
    let words = load("words");
    for case in cases["words"].as_array().unwrap() {
        assert_eq!(words.encode(case["text"].as_str().unwrap(), true).unwrap(), ids(&case["ids"]));
    }
    // A second end of sequence comes from `generation_config.json`.
    assert_eq!(tokenizer.end_of_sequence(), [1, 7]);
}

#[test]
fn rows_are_encoded_as_trl_encodes_them() {
    let (cases, plain) = (cases(), load("bytes"));
    for case in cases["rows"].as_array().unwrap() {
        let (prompt, completion) = (&case["prompt"], &case["completion"]);
        let tokenizer = match case["template"].as_str() {
            Some(name) => plain.with_chat_template(&read(&format!("{name}.jinja"))).unwrap(),
            None => plain.clone(),
        };
        let encoder = Encoder::new(&tokenizer, &EncodeConfig::default()).unwrap();
        let mut report = EncodeReport::default();
        let lists = [prompt, completion].map(|side| if side.is_array() { messages(side) } else { Vec::new() });
        let inputs = [prompt, completion].into_iter().zip(&lists);
        let inputs: Vec<_> = inputs.map(|(side, list)| side.as_str().map_or(TextInput::Messages(list), TextInput::Plain)).collect();
        let sequence = encoder.completion(inputs[0], inputs[1], "row", &mut report).unwrap().unwrap();
        assert_eq!(sequence.prompt(), ids(&case["prompt_ids"]), "{case}");
        let is_prefix = case["is_prefix"].as_bool().unwrap();
        assert_eq!(report.boundary_mismatches, u64::from(!is_prefix), "{case}");
        if is_prefix {
            let prompt_len = case["prompt_len"].as_u64().unwrap() as usize;
            assert_eq!(sequence, TokenSequence { tokens: ids(&case["ids"]), prompt_len }, "{case}");
        } else {
            let bare = tokenizer.encode(completion.as_str().unwrap(), false).unwrap();
            assert_eq!(sequence.completion(), [&*bare, &[1]].concat(), "{case}");
        }
    }
}

#[test]
fn a_tokenizer_survives_being_saved() {
    let scratch = std::env::temp_dir().join(format!("steadfast-llm-text-{}", std::process::id()));
    let tokenizer = load("bytes").with_chat_template(&read("llama3.jinja")).unwrap();
    tokenizer.save(&scratch).unwrap();
    let loaded = Tokenizer::load(&scratch).unwrap();
    std::fs::remove_dir_all(&scratch).unwrap();
    assert_eq!((loaded.digest(), loaded.vocab_size()), (tokenizer.digest(), tokenizer.vocab_size()));
    let chat = [Message { role: "user".to_string(), content: "hé".to_string() }];
    assert_eq!(loaded.render_chat(&chat, true).unwrap(), tokenizer.render_chat(&chat, true).unwrap());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn damaged_tokenizers_are_read_or_refused(
        file in 0..3_usize,
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4),
        is_cut in any::<bool>(),
    ) {
        let names = ["tokenizer.json", "tokenizer_config.json", "generation_config.json"];
        let folder = folder().join(if file == 2 { "bytes" } else { "words" });
        let mut files: Vec<(String, Vec<u8>)> = Vec::new();
        for name in names {
            if let Ok(bytes) = std::fs::read(folder.join(name)) {
                files.push((name.to_string(), bytes));
            }
        }
        let bytes = &mut files[file].1;
        for (at, byte) in &changes {
            let at = at.index(bytes.len());
            bytes[at] = *byte;
        }
        if is_cut {
            bytes.truncate(changes[0].0.index(bytes.len()));
        }
        if let Ok(tokenizer) = Tokenizer::from_files("m", files)
            && let Ok(tokens) = tokenizer.encode("red is </s> a é", true)
        {
            let _ = tokenizer.decode(&tokens, true);
        }
    }

    #[test]
    fn any_bytes_in_any_file_are_refused_or_read(name in 0..4_usize, bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
        let name = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json"][name];
        let mut files = vec![(name.to_string(), bytes)];
        if name != "tokenizer.json" {
            files.push(("tokenizer.json".to_string(), std::fs::read(folder().join("words/tokenizer.json")).unwrap()));
        }
        let _ = Tokenizer::from_files("m", files);
    }

    #[test]
    fn damaged_templates_render_or_fail(
        name in 0..5_usize,
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), "[ -~\n]"), 1..4),
    ) {
        let mut source: Vec<char> = read(["chatml.jinja", "llama3.jinja", "mistral.jinja", "zephyr.jinja", "oddities.jinja"][name]).chars().collect();
        for (at, text) in &changes {
            let at = at.index(source.len());
            source[at] = text.chars().next().unwrap();
        }
        let source: String = source.into_iter().collect();
        if let Ok(template) = ChatTemplate::new("t", &source) {
            let chat = [Message { role: "user".to_string(), content: "a".to_string() }];
            let _ = template.render(&chat, &Default::default());
        }
    }

    #[test]
    fn tokens_of_a_row_spell_its_text(prompt in "[a-zé ]{1,12}", completion in "[a-z 日\n]{0,12}[a-z]") {
        let tokenizer = load("bytes");
        let encoder = Encoder::new(&tokenizer, &EncodeConfig::default()).unwrap();
        let mut report = EncodeReport::default();
        let sequence = encoder.completion(TextInput::Plain(&prompt), TextInput::Plain(&completion), "row", &mut report).unwrap().unwrap();
        prop_assert_eq!(tokenizer.decode(&sequence.tokens, true).unwrap(), format!("{prompt}{completion}"));
        prop_assert_eq!(tokenizer.decode(sequence.completion(), true).unwrap(), completion);
        prop_assert_eq!(sequence.tokens.iter().filter(|&&token| token == 0 || token == 1).count(), 2);
    }
}
