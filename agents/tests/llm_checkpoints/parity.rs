//! The decoder on the tape against what `transformers` computed.

use candle_core::Device;
use steadfast_agents::llm::model::{Decoder, Head, ScorePositions};
use steadfast_agents::llm::sequence::TokenSequence;

use super::{CAUSAL, REWARD, dense, expected, folder, load};

#[test]
fn logits_of_the_decoder_agree_with_transformers() {
    for name in CAUSAL {
        let decoder = Decoder::load(&folder(name), &Device::Cpu).expect("the checkpoint loads");
        assert!(!decoder.has_scalar_head(), "{name}");
        let expected = expected(name);
        for (tokens, expected) in expected.sequences.iter().zip(&expected.logits) {
            let logits = decoder.logits(tokens).and_then(|tensor| Ok(tensor.to_vec2::<f32>()?)).expect("the text fits");
            assert_eq!((logits.len(), logits[0].len()), (expected.len(), expected[0].len()), "{name}");
            for (got, expected) in logits.iter().flatten().zip(expected.iter().flatten()) {
                assert!((f64::from(*got) - expected).abs() < 1e-4, "{name}: {got} {expected}");
            }
        }
    }
}

#[test]
fn scores_of_the_decoder_agree_with_transformers() {
    for name in REWARD {
        let decoder = Decoder::load(&folder(name), &Device::Cpu).expect("the checkpoint loads");
        assert!(decoder.has_scalar_head(), "{name}");
        let expected = expected(name);
        let sequences: Vec<_> = expected.sequences.iter().map(|tokens| TokenSequence::new(&tokens[..4], &tokens[4..])).collect();
        let scores = decoder.scores(&sequences.iter().collect::<Vec<_>>(), ScorePositions::Last).expect("the texts fit");
        for (score, expected) in scores.iter().zip(&expected.scores) {
            assert!((f64::from(score[0]) - expected).abs() < 1e-4, "{name}: {score:?} {expected}");
        }
    }
}

#[test]
fn a_saved_decoder_loads_with_equal_bits() {
    for name in CAUSAL.into_iter().chain(REWARD) {
        let decoder = Decoder::load(&folder(name), &Device::Cpu).expect("the checkpoint loads");
        let written = tempfile::tempdir().expect("a temporary folder");
        decoder.save(written.path()).expect("it is written");
        let again = Decoder::load(written.path(), &Device::Cpu).expect("it loads");
        assert_eq!((again.config(), again.has_scalar_head()), (decoder.config(), decoder.has_scalar_head()), "{name}");
        assert!(decoder.parameters().expect("they are read") == again.parameters().expect("they are read"), "{name}");
    }
}

#[test]
fn dense_weights_are_those_of_the_checkpoint() {
    for name in CAUSAL {
        let decoder = Decoder::load(&folder(name), &Device::Cpu).expect("the checkpoint loads");
        let (config, tensors, _) = load(&folder(name), Head::LanguageModel).expect("the checkpoint loads");
        assert!(decoder.dense().expect("they are read") == dense(&config, &tensors), "{name}");
    }
}
