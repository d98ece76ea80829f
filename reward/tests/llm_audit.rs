//! An audit of texts by transformers: wrong labels are found by models that have not seen them.
#![cfg(feature = "llm")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod llm_tiny;

use llm_tiny::{decoder, pairs};
use steadfast_agents::llm::{EncodeConfig, EncodeReport, Encoder, Tokenizer};
use steadfast_envs::SeedTree;
use steadfast_reward::audit::{AuditConfig, TokenEncoder, audit_texts};
use steadfast_reward::dataset::{PreferenceFile, PreferenceWriter, ReadOptions, Row};
use steadfast_reward::model::{TransformerReward, TransformerRewardConfig};
use steadfast_reward::{EncodedAnswer, EncodedPreference, RewardError, Text, TextCompletion, text_row};

fn tokenizer() -> Tokenizer {
    let words: Vec<String> =
        ["<pad>", "<bos>", "<eos>", "<unk>"].map(String::from).into_iter().chain((4..16).map(|i| format!("w{i}"))).collect();
    Tokenizer::from_words(&words, Some("<unk>"), Some("<bos>"), "<eos>", "<pad>").unwrap()
}

/// The rows of a file as it would be written from sampled pairs.
fn rows(n: usize) -> Vec<Row> {
    let tokenizer = tokenizer();
    let decode = |tokens: &[u32]| tokenizer.decode(tokens, false).map_err(RewardError::from);
    pairs(n, 1).iter().map(|pair| text_row(pair, &decode).unwrap()).collect()
}

fn file(folder: &std::path::Path, rows: &[Row]) -> PreferenceFile {
    let path = folder.join("pairs.jsonl");
    let mut writer = PreferenceWriter::create(&path).unwrap();
    rows.iter().for_each(|row| writer.write(row).unwrap());
    writer.finish().unwrap();
    PreferenceFile::open(&path, &ReadOptions::default()).unwrap()
}

#[test]
fn written_pairs_are_read_as_the_same_tokens() {
    let tokenizer = tokenizer();
    let encoder = Encoder::new(&tokenizer, &EncodeConfig::default()).unwrap();
    let mut report = EncodeReport::default();
    for (row, pair) in rows(20).iter().zip(pairs(20, 1)) {
        let Row::Texts(row) = row else { panic!("a row of texts") };
        let again = EncodedPreference::encode(&encoder, row, "row", &mut report).unwrap().unwrap();
        assert_eq!(again, pair);
    }
    assert_eq!((report.kept, report.truncated), (20, 0));
    let judged =
        TextCompletion { id: "a".into(), prompt: Text::Plain("w12".into()), completion: Text::Plain("w4 w5".into()), label: Some(true) };
    let answer = EncodedAnswer::encode(&encoder, &judged, "row", &mut report).unwrap().unwrap();
    assert_eq!((answer.sequence.tokens, answer.sequence.prompt_len, answer.desirable), (vec![1, 12, 4, 5, 2], 2, true));
    let error = EncodedAnswer::encode(&encoder, &TextCompletion { label: None, ..judged }, "row", &mut report).unwrap_err();
    assert!(error.to_string().contains("`label`"));
}

#[test]
fn wrong_labels_get_the_lowest_margins() {
    let (folder, tokenizer, base) = (tempfile::tempdir().unwrap(), tokenizer(), decoder(1));
    let file = file(folder.path(), &rows(300));
    let encoder = TokenEncoder::new(Encoder::new(&tokenizer, &EncodeConfig::default()).unwrap(), base.config());
    let config = AuditConfig { learning_rate: 3e-3, epochs: 4, ..AuditConfig::tokens() };
    let run = || {
        let mut model = |seed| TransformerReward::new(&base, &TransformerRewardConfig::default(), SeedTree::new(seed));
        audit_texts(&config, &file, &encoder, &mut model, &mut |_, _| {}).unwrap()
    };
    let audit = run();
    assert!(audit.detection.unwrap().auroc > 0.95, "{:?}", audit.detection);
    assert_eq!(encoder.truncated_share(), 0.0);
    let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    assert_eq!(one_thread.install(run), audit);
}

#[test]
fn rows_that_the_model_cannot_read_are_named() {
    let (folder, tokenizer, base) = (tempfile::tempdir().unwrap(), tokenizer(), decoder(1));
    let mut rows = rows(4);
    let Row::Texts(row) = &mut rows[2] else { panic!("a row of texts") };
    row.pair.chosen = Text::Plain("w4 ".repeat(40));
    let file = file(folder.path(), &rows);
    let audit = |max_tokens| {
        let encode = EncodeConfig { max_tokens, ..EncodeConfig::default() };
        let encoder = TokenEncoder::new(Encoder::new(&tokenizer, &encode).unwrap(), base.config());
        let mut model = |seed| TransformerReward::new(&base, &TransformerRewardConfig::default(), SeedTree::new(seed));
        audit_texts(&AuditConfig::tokens(), &file, &encoder, &mut model, &mut |_, _| {}).map(|_| encoder.truncated_share())
    };
    let error = audit(1024).unwrap_err().to_string();
    assert!(error.contains("pairs.jsonl:3: chosen: ") && error.contains("24 positions"), "{error}");
    assert!(audit(2).unwrap_err().to_string().contains("the prompt alone"));
    assert!((audit(20).unwrap() - 1.0 / 8.0).abs() < 1e-9);
}
