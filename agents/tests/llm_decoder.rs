//! The decoder against plain operations of candle, finite differences and itself.
#![cfg(feature = "llm")]
#![allow(clippy::unwrap_used, clippy::type_complexity)]

mod llm_models;

use candle_core::Tensor;
use llm_models::{FAMILIES, model, shaken};
use steadfast_agents::AgentError;
use steadfast_agents::llm::model::{Decoder, Family, KeyBias, ScorePositions, Span, Steering};
use steadfast_agents::llm::{AdamW, AdamWConfig, TokenSequence, TokenStatistics};
use steadfast_envs::SeedTree;

/// Sequences of different lengths, one longer than a block of the attention.
fn sequences() -> Vec<TokenSequence> {
    let mut rng = SeedTree::new(5).rng();
    [(3, 4), (1, 9), (60, 31), (7, 1)]
        .into_iter()
        .map(|(prompt, completion)| {
            let tokens = (0..prompt + completion).map(|_| rng.below(37) as u32).collect();
            TokenSequence { tokens, prompt_len: prompt }
        })
        .collect()
}

fn largest(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |m, v| m.max(v.abs()))
}

fn assert_close(name: &str, a: &[f32], b: &[f32], tolerance: f32) {
    assert_eq!(a.len(), b.len(), "{name}");
    let scale = largest(b).max(1e-6);
    let worst = a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
    assert!(worst <= tolerance * scale, "{name}: deviation {worst}, largest value {scale}");
}

/// Slopes that differ from token to token.
fn slopes(group: usize, statistics: &[TokenStatistics], out: &mut [Vec<f32>]) -> Result<(), AgentError> {
    for (s, (statistics, out)) in statistics.iter().zip(out).enumerate() {
        for (t, (l, out)) in statistics.log_probs.iter().zip(out).enumerate() {
            *out = 0.3 - 0.1 * l + 0.05 * ((group + 2 * s + 3 * t) % 7) as f32;
        }
    }
    Ok(())
}

fn gradients(decoder: &mut Decoder, sequences: &[TokenSequence], temperature: f32) -> Vec<(String, Vec<f32>)> {
    decoder.clear_gradients();
    let groups: Vec<Vec<&TokenSequence>> = sequences.chunks(2).map(|pair| pair.iter().collect()).collect();
    decoder.accumulate_log_probs(&groups, temperature, &mut slopes).unwrap();
    decoder.gradients().unwrap()
}

#[test]
fn fused_operations_equal_plain_ones_in_value_and_gradient() {
    for family in FAMILIES {
        let mut decoder = model(family);
        let sequences = sequences();
        let references: Vec<&TokenSequence> = sequences.iter().collect();
        let fused = (decoder.log_probs(&references, 0.7).unwrap(), gradients(&mut decoder, &sequences, 0.7));
        decoder.use_plain_operations(true);
        let plain = (decoder.log_probs(&references, 0.7).unwrap(), gradients(&mut decoder, &sequences, 0.7));
        for (a, b) in fused.0.iter().zip(&plain.0) {
            assert_close(&format!("{family:?} log-probabilities"), &a.log_probs, &b.log_probs, 2e-6);
            assert_close(&format!("{family:?} entropies"), &a.entropies, &b.entropies, 5e-6);
            // A single logit may be small by cancellation; all are of the size of the largest ones.
            assert!(a.mean_logits.iter().zip(&b.mean_logits).all(|(a, b)| (a - b).abs() < 5e-5), "{family:?} logits");
            assert_eq!(a.is_most_likely, b.is_most_likely);
        }
        for ((name, a), (_, b)) in fused.1.iter().zip(&plain.1) {
            assert!(largest(a) > 0.0, "{family:?}: `{name}` has no gradient");
            assert_close(&format!("{family:?} `{name}`"), a, b, 2e-5);
        }
    }
}

/// Σ over completions of a fixed function of the log-probabilities whose slope is that of `slopes` at the present point.
fn linear_loss(decoder: &Decoder, sequences: &[TokenSequence], weights: &[Vec<f32>]) -> f64 {
    let found = decoder.log_probs(&sequences.iter().collect::<Vec<_>>(), 0.7).unwrap();
    found.iter().zip(weights).flat_map(|(s, w)| s.log_probs.iter().zip(w)).map(|(&l, &w)| f64::from(l) * f64::from(w)).sum()
}

#[test]
fn gradients_are_those_of_finite_differences() {
    for family in FAMILIES {
        let mut decoder = model(family);
        let sequences = sequences();
        let mut weights = Vec::new();
        decoder.clear_gradients();
        let groups: Vec<Vec<&TokenSequence>> = sequences.chunks(2).map(|pair| pair.iter().collect()).collect();
        let mut loss = |g: usize, s: &[TokenStatistics], out: &mut [Vec<f32>]| {
            slopes(g, s, out)?;
            weights.extend(out.iter().cloned());
            Ok(())
        };
        decoder.accumulate_log_probs(&groups, 0.7, &mut loss).unwrap();
        let gradients = decoder.gradients().unwrap();
        let mut rng = SeedTree::new(8).rng();
        for ((name, _, values), (_, gradient)) in decoder.parameters().unwrap().into_iter().zip(&gradients) {
            // Along a random direction, so that rounding in single entries does not matter.
            let direction: Vec<f32> = values.iter().map(|_| rng.normal_f32()).collect();
            let expected: f64 = gradient.iter().zip(&direction).map(|(g, d)| f64::from(*g) * f64::from(*d)).sum();
            let mut at = |step: f32| {
                let moved: Vec<f32> = values.iter().zip(&direction).map(|(v, d)| v + step * d).collect();
                decoder.set_parameter(&name, &moved).unwrap();
                linear_loss(&decoder, &sequences, &weights)
            };
            // Richardson: the error of the central difference falls with the fourth power.
            let step = 2e-3_f32;
            let (wide, narrow) = ((at(2.0 * step) - at(-2.0 * step)) / 4.0, (at(step) - at(-step)) / 2.0);
            let found = (4.0 * narrow - wide) / 3.0 / f64::from(step);
            decoder.set_parameter(&name, &values).unwrap();
            let scale = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt().max(0.1);
            assert!((found - expected).abs() < 2e-2 * scale, "{family:?} `{name}`: {found}, not {expected} (norm {scale})");
        }
    }
}

#[test]
fn what_stands_beside_a_sequence_changes_nothing() {
    for family in FAMILIES {
        let decoder = model(family);
        let sequences = sequences();
        let together = decoder.log_probs(&sequences.iter().collect::<Vec<_>>(), 1.0).unwrap();
        for (sequence, joint) in sequences.iter().zip(&together) {
            let alone = decoder.log_probs(&[sequence], 1.0).unwrap().remove(0);
            assert_close("log-probabilities", &joint.log_probs, &alone.log_probs, 2e-6);
        }
        // The prompt's own predictions are no part of the completion: logits at all positions say the same.
        let logits = decoder.logits(&sequences[0].tokens).unwrap().to_vec2::<f32>().unwrap();
        for (t, (&token, l)) in sequences[0].completion().iter().zip(&together[0].log_probs).enumerate() {
            let row = &logits[sequences[0].prompt_len + t - 1];
            let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f32 = row.iter().map(|z| (z - top).exp()).sum();
            assert!((row[token as usize] - top - sum.ln() - l).abs() < 2e-5);
            let mean = row.iter().sum::<f32>() / row.len() as f32;
            assert!((mean - together[0].mean_logits[t]).abs() < 2e-5);
        }
    }
}

#[test]
fn gradients_of_parts_add_up_to_those_of_the_whole() {
    let mut decoder = model(Family::Llama);
    let sequences = sequences();
    let ones = |_: usize, s: &[TokenStatistics], out: &mut [Vec<f32>]| {
        out.iter_mut().zip(s).for_each(|(out, s)| out.iter_mut().zip(&s.log_probs).for_each(|(o, l)| *o = 1.0 + l));
        Ok(())
    };
    let whole: Vec<Vec<&TokenSequence>> = sequences.iter().map(|s| vec![s]).collect();
    decoder.accumulate_log_probs(&whole, 1.0, &mut { ones }).unwrap();
    let expected = decoder.gradients().unwrap();
    decoder.clear_gradients();
    for sequence in &sequences {
        decoder.accumulate_log_probs(&[vec![sequence]], 1.0, &mut { ones }).unwrap();
    }
    for ((name, a), (_, b)) in decoder.gradients().unwrap().iter().zip(&expected) {
        assert_close(name, a, b, 1e-5);
    }
}

#[test]
fn a_frozen_copy_says_the_same_and_has_no_gradient() {
    let decoder = model(Family::Qwen2);
    let mut frozen = decoder.duplicate().unwrap();
    let sequences = sequences();
    let all: Vec<&TokenSequence> = sequences.iter().collect();
    assert_eq!(frozen.log_probs(&all, 1.0).unwrap(), decoder.log_probs(&all, 1.0).unwrap());
    assert!(gradients(&mut frozen, &sequences, 1.0).iter().all(|(_, g)| g.is_empty()));
    let mut optimizer = AdamW::new(&AdamWConfig::default(), &frozen).unwrap();
    assert_eq!(optimizer.step(&mut frozen, 1e-2).unwrap(), 0.0);
    assert_eq!(frozen.parameters().unwrap(), decoder.parameters().unwrap());
}

#[test]
fn threads_do_not_change_a_bit() {
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| gradients(&mut model(Family::Qwen3), &sequences(), 1.0))
    };
    assert_eq!(run(1), run(2));
}

#[test]
fn steering_is_what_it_says() {
    for family in FAMILIES {
        let mut decoder = model(family);
        let tokens = &sequences()[2].tokens;
        let marks: Vec<bool> = (0..tokens.len()).map(|i| i % 5 == 1).collect();
        let bias = KeyBias { is_marked: marks, per_head: vec![vec![0.0, 1.5, -2.0, 0.5], vec![1.0, 0.0, 3.0, -1.0]] };
        for spans in [None, Some(vec![Span::Block(16), Span::Sliding(70)])] {
            let steering = Steering { spans, key_bias: Some(bias.clone()) };
            let values = |x: Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            decoder.use_plain_operations(false);
            let fused = values(decoder.logits_steered(tokens, &steering).unwrap());
            let without = values(decoder.logits(tokens).unwrap());
            decoder.use_plain_operations(true);
            assert_close("steered logits", &fused, &values(decoder.logits_steered(tokens, &steering).unwrap()), 5e-6);
            assert!(fused.iter().zip(&without).any(|(a, b)| (a - b).abs() > 1e-2), "steering must change something");
        }
    }
}

#[test]
fn scores_are_linear_in_the_hidden_state_and_have_gradients() {
    for family in FAMILIES {
        let mut decoder = shaken(model(family).with_scalar_head(SeedTree::new(4)).unwrap());
        let sequences = sequences();
        let groups: Vec<Vec<&TokenSequence>> = sequences.chunks(2).map(|pair| pair.iter().collect()).collect();
        for positions in [ScorePositions::Last, ScorePositions::BeforeCompletion] {
            let mut run = |is_plain: bool| {
                decoder.use_plain_operations(is_plain);
                decoder.clear_gradients();
                let mut seen = Vec::new();
                let mut loss = |_: usize, scores: &[Vec<f32>], slopes: &mut [Vec<f32>]| {
                    seen.extend(scores.iter().cloned());
                    slopes.iter_mut().zip(scores).for_each(|(s, x)| s.iter_mut().zip(x).for_each(|(s, x)| *s = x + 0.5));
                    Ok(())
                };
                decoder.accumulate_scores(&groups, positions, &mut loss).unwrap();
                let direct = decoder.scores(&sequences.iter().collect::<Vec<_>>(), positions).unwrap();
                assert_close("scores", &seen.concat(), &direct.concat(), 1e-5);
                (seen.concat(), decoder.gradients().unwrap())
            };
            let (fused, plain) = (run(false), run(true));
            assert_close("scores", &fused.0, &plain.0, 1e-5);
            for ((name, a), (_, b)) in fused.1.iter().zip(&plain.1) {
                assert!(largest(a) > 0.0, "{family:?}: `{name}` has no gradient");
                assert_close(&format!("{family:?} `{name}`"), a, b, 2e-5);
            }
        }
    }
}

#[test]
fn adamw_follows_its_formula_and_its_state_goes_on_exactly() {
    let sequences = sequences();
    let config = AdamWConfig { weight_decay: 0.1, max_grad_norm: 0.5, ..AdamWConfig::default() };
    let mut decoder = model(Family::Llama);
    let mut optimizer = AdamW::new(&config, &decoder).unwrap();
    let mut expected: Vec<(String, Vec<usize>, Vec<f64>, Vec<f64>, Vec<f64>)> = decoder
        .parameters()
        .unwrap()
        .into_iter()
        .map(|(name, shape, v)| (name, shape, v.iter().map(|&x| f64::from(x)).collect(), vec![0.0; v.len()], vec![0.0; v.len()]))
        .collect();
    for step in 1..=3 {
        let gradients = gradients(&mut decoder, &sequences, 1.0);
        let norm = gradients.iter().flat_map(|(_, g)| g).map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
        let scale = (0.5 / norm).min(1.0);
        assert!((optimizer.step(&mut decoder, 1e-2).unwrap() / norm - 1.0).abs() < 1e-5);
        for ((_, shape, value, m, v), (_, g)) in expected.iter_mut().zip(&gradients) {
            for i in 0..value.len() {
                let g = f64::from(g[i]) * scale;
                m[i] = 0.9 * m[i] + 0.1 * g;
                v[i] = 0.999 * v[i] + 0.001 * g * g;
                let (m, v) = (m[i] / (1.0 - 0.9_f64.powi(step)), v[i] / (1.0 - 0.999_f64.powi(step)));
                let decay = if shape.len() > 1 { 0.1 } else { 0.0 };
                value[i] -= 1e-2 * (m / (v.sqrt() + 1e-8) + decay * value[i]);
            }
        }
        for ((name, _, value), (_, _, expected, ..)) in decoder.parameters().unwrap().iter().zip(&mut expected) {
            let rounded: Vec<f32> = expected.iter().map(|&x| x as f32).collect();
            assert_close(name, value, &rounded, 2e-5);
            // Where a gradient is near zero its sign decides; go on from the same point.
            expected.iter_mut().zip(value).for_each(|(e, &v)| *e = f64::from(v));
        }
    }
    let mut state = steadfast_agents::StateDict::default();
    optimizer.save_state("optimizer.", &mut state).unwrap();
    let mut again = decoder.trainable_copy().unwrap();
    let mut resumed = AdamW::new(&config, &again).unwrap();
    resumed.load_state("optimizer.", &state).unwrap();
    for _ in 0..2 {
        gradients(&mut decoder, &sequences, 1.0);
        gradients(&mut again, &sequences, 1.0);
        assert_eq!(optimizer.step(&mut decoder, 1e-2).unwrap(), resumed.step(&mut again, 1e-2).unwrap());
    }
    assert_eq!(decoder.parameters().unwrap(), again.parameters().unwrap());
    // A gradient that is not finite is named, and nothing has changed.
    let before = decoder.parameters().unwrap();
    let mut bad = |_: usize, _: &[TokenStatistics], out: &mut [Vec<f32>]| {
        out[0][0] = f32::NAN;
        Ok(())
    };
    decoder.accumulate_log_probs(&[vec![&sequences[0]]], 1.0, &mut bad).unwrap();
    let error = optimizer.step(&mut decoder, 1e-2).unwrap_err();
    assert!(error.to_string().contains("gradient of `"), "{error}");
    assert_eq!(decoder.parameters().unwrap(), before);
}

#[test]
fn sequences_that_do_not_fit_are_named() {
    let decoder = model(Family::Llama);
    let message = |sequence: TokenSequence| decoder.log_probs(&[&sequences()[0], &sequence], 1.0).unwrap_err().to_string();
    assert!(message(TokenSequence::new(&[1, 2], &[])).contains("sequence 1"));
    assert!(message(TokenSequence::new(&[1, 2], &[99])).contains("token 99"));
    assert!(message(TokenSequence::new(&[1; 200], &[1])).contains("160 positions"));
}

/// The products of candle and of our operations are those of one crate, whose AVX-512 kernels our manifest turns on.
#[test]
fn gemm_is_shared_with_candle() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let lock: toml::Table = std::fs::read_to_string(format!("{root}/Cargo.lock")).unwrap().parse().unwrap();
    let needs = |package: &str| -> Vec<String> {
        let packages = lock["package"].as_array().unwrap();
        let package = packages.iter().find(|p| p["name"].as_str() == Some(package)).unwrap();
        let names = package["dependencies"].as_array().unwrap().iter().map(|d| d.as_str().unwrap().to_string());
        names.filter(|d| d == "gemm" || d.starts_with("gemm ")).collect()
    };
    assert_eq!(needs("candle-core").len(), 1);
    assert_eq!(needs("candle-core"), needs("steadfast-agents"));
    let manifest: toml::Table = std::fs::read_to_string(format!("{root}/Cargo.toml")).unwrap().parse().unwrap();
    let features = manifest["workspace"]["dependencies"]["gemm"]["features"].as_array().unwrap();
    assert!(features.iter().any(|f| f.as_str() == Some("x86-v4")));
}
