//! Generation against the train path: what was drawn has the log-probability that training computes, whatever stands
//! beside a row.
#![cfg(feature = "llm")]
#![allow(clippy::unwrap_used)]

mod llm_models;

use llm_models::{FAMILIES, model};
use steadfast_agents::llm::model::{Decoder, Family, KeyBias, Steering};
use steadfast_agents::llm::{Completion, Finish, GenerationConfig, Generator, TokenSequence};
use steadfast_envs::{Rng, SeedTree};

const END: u32 = 2;

fn prompts() -> Vec<Vec<u32>> {
    let mut rng = SeedTree::new(21).rng();
    let mut prompts: Vec<Vec<u32>> = [5, 1, 70, 9].into_iter().map(|n| (0..n).map(|_| 3 + rng.below(34) as u32).collect()).collect();
    // Neighbours that share their prompt.
    prompts.insert(1, prompts[0].clone());
    prompts.insert(1, prompts[0].clone());
    prompts
}

fn settings() -> GenerationConfig {
    GenerationConfig { max_new_tokens: 24, temperature: 0.8, ..GenerationConfig::default() }
}

fn rngs(n: usize) -> Vec<Rng> {
    (0..n as u64).map(|i| SeedTree::new(5).index(i).rng()).collect()
}

fn generate(decoder: &Decoder, prompts: &[Vec<u32>], config: &GenerationConfig, rngs: &mut [Rng]) -> Vec<Completion> {
    let rows: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    Generator::new(decoder).unwrap().generate(&rows, config, &[END], &[], rngs).unwrap()
}

#[test]
fn drawn_tokens_have_the_log_probabilities_of_training() {
    for family in FAMILIES {
        let decoder = model(family);
        let prompts = prompts();
        for config in [settings(), GenerationConfig { top_k: 7, top_p: 0.9, repetition_penalty: 1.3, ..settings() }] {
            let completions = generate(&decoder, &prompts, &config, &mut rngs(prompts.len()));
            let sequences: Vec<TokenSequence> = prompts.iter().zip(&completions).map(|(p, c)| TokenSequence::new(p, &c.tokens)).collect();
            let trained = decoder.log_probs(&sequences.iter().collect::<Vec<_>>(), 0.8).unwrap();
            for (drawn, trained) in completions.iter().zip(&trained) {
                assert_eq!(drawn.log_probs.len(), trained.log_probs.len());
                for (a, b) in drawn.log_probs.iter().zip(&trained.log_probs) {
                    assert!((a - b).abs() <= 1e-5, "{family:?}: {a} drawn, {b} in training");
                }
            }
        }
    }
}

#[test]
fn greedy_tokens_are_the_most_likely_ones() {
    for family in FAMILIES {
        let decoder = model(family);
        let prompts = prompts();
        let config = GenerationConfig { greedy: true, ..settings() };
        let completions = generate(&decoder, &prompts, &config, &mut rngs(prompts.len()));
        assert_eq!(completions[0], completions[1]);
        let sequences: Vec<TokenSequence> = prompts.iter().zip(&completions).map(|(p, c)| TokenSequence::new(p, &c.tokens)).collect();
        for found in decoder.log_probs(&sequences.iter().collect::<Vec<_>>(), 0.8).unwrap() {
            assert!(found.is_most_likely.iter().all(|&most| most), "{family:?}");
        }
    }
}

#[test]
fn rows_do_not_depend_on_their_neighbours_or_on_threads() {
    for family in FAMILIES {
        let decoder = model(family);
        let prompts = prompts();
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| generate(&decoder, &prompts, &settings(), &mut rngs(prompts.len())))
        };
        let together = run(1);
        assert_eq!(together, run(2), "{family:?}");
        for (i, prompt) in prompts.iter().enumerate() {
            let alone = generate(&decoder, std::slice::from_ref(prompt), &settings(), &mut rngs(prompts.len())[i..=i]);
            assert_eq!(together[i], alone[0], "{family:?}, row {i}");
        }
        // Equal prompts with generators of their own go their own ways.
        assert_ne!(together[0].tokens, together[1].tokens, "{family:?}");
    }
}

#[test]
fn completions_end_where_they_should() {
    let decoder = model(Family::Llama);
    let prompts = prompts();
    let config = GenerationConfig { max_new_tokens: 200, temperature: 1.5, ..settings() };
    let context = decoder.config().max_positions;
    for (prompt, completion) in prompts.iter().zip(generate(&decoder, &prompts, &config, &mut rngs(prompts.len()))) {
        let ends = completion.tokens.iter().position(|&t| t == END);
        match completion.finish {
            Finish::EndOfSequence => assert_eq!(ends, Some(completion.tokens.len() - 1)),
            Finish::Length => {
                assert!(ends.is_none() && (completion.tokens.len() == 200 || prompt.len() + completion.tokens.len() == context))
            }
            Finish::StopSequence => panic!("there is no stop sequence"),
        }
    }
    // A stop sequence ends a row with its own last token.
    let free = generate(&decoder, &prompts[..1], &GenerationConfig { max_new_tokens: 12, ..settings() }, &mut rngs(1)).remove(0);
    let stop = free.tokens[4..6].to_vec();
    let first = free.tokens.windows(2).position(|w| w == stop).unwrap();
    let rows: Vec<&[u32]> = prompts[..1].iter().map(Vec::as_slice).collect();
    let mut generator = Generator::new(&decoder).unwrap();
    let stopped = generator.generate(&rows, &settings(), &[], &[vec![99], stop], &mut rngs(1)).unwrap().remove(0);
    assert_eq!((stopped.finish, &stopped.tokens[..]), (Finish::StopSequence, &free.tokens[..first + 2]));
}

#[test]
fn a_key_bias_steers_generation_as_it_steers_training() {
    for family in FAMILIES {
        let decoder = model(family);
        let prompts = prompts();
        let heads = vec![vec![0.0, 2.5, -2.0, 1.5], vec![1.0, 0.0, 3.0, -1.0]];
        let biases: Vec<KeyBias> =
            prompts.iter().map(|p| KeyBias { is_marked: (0..p.len()).map(|i| i % 3 == 0).collect(), per_head: heads.clone() }).collect();
        let rows: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
        let mut streamed = vec![Vec::new(); rows.len()];
        let mut on_token = |row: usize, token: u32| streamed[row].push(token);
        let mut generator = Generator::new(&decoder).unwrap();
        let completions =
            generator.generate_with(&rows, &settings(), &[END], &[], &mut rngs(rows.len()), Some(&biases), &mut on_token).unwrap();
        for (i, (prompt, completion)) in prompts.iter().zip(&completions).enumerate() {
            assert_eq!(streamed[i], completion.tokens);
            let sequence = TokenSequence::new(prompt, &completion.tokens);
            let mut is_marked = biases[i].is_marked.clone();
            is_marked.resize(sequence.tokens.len(), false);
            let steering = Steering { spans: None, key_bias: Some(KeyBias { is_marked, per_head: heads.clone() }) };
            let trained = decoder.log_probs_steered(&[&sequence], 0.8, &steering).unwrap().remove(0);
            assert!(trained.log_probs.iter().zip(&completion.log_probs).all(|(a, b)| (a - b).abs() <= 1e-5), "{family:?}");
        }
    }
}

#[test]
fn candles_operations_draw_the_same() {
    for family in FAMILIES {
        let decoder = model(family);
        let prompts = prompts();
        let rows: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
        let heads = vec![vec![0.0, 2.5, -2.0, 1.5], vec![1.0, 0.0, 3.0, -1.0]];
        let biases: Vec<KeyBias> =
            prompts.iter().map(|p| KeyBias { is_marked: (0..p.len()).map(|i| i % 3 == 0).collect(), per_head: heads.clone() }).collect();
        for (config, biases) in [(settings(), None), (GenerationConfig { greedy: true, ..settings() }, Some(&biases[..]))] {
            let run = |mut generator: Generator| {
                generator.generate_with(&rows, &config, &[END], &[], &mut rngs(rows.len()), biases, &mut |_, _| {}).unwrap()
            };
            let packed = run(Generator::new(&decoder).unwrap());
            let plain = run(Generator::with_plain_operations(&decoder).unwrap());
            for (packed, plain) in packed.iter().zip(&plain) {
                assert_eq!((&packed.tokens, packed.finish), (&plain.tokens, plain.finish), "{family:?}");
                assert!(packed.log_probs.iter().zip(&plain.log_probs).all(|(a, b)| (a - b).abs() <= 1e-5), "{family:?}");
            }
        }
    }
}

#[test]
fn prompts_that_do_not_fit_are_named() {
    let decoder = model(Family::Llama);
    let mut generator = Generator::new(&decoder).unwrap();
    let mut message = |prompt: &[u32]| generator.generate(&[&[3], prompt], &settings(), &[END], &[], &mut rngs(2)).unwrap_err().to_string();
    assert!(message(&[]).contains("prompt 1"));
    assert!(message(&[1; 160]).contains("160 positions"));
    assert!(message(&[77]).contains("token 77"));
    let scalar = decoder.with_scalar_head(SeedTree::new(0)).unwrap();
    assert!(Generator::new(&scalar).err().unwrap().to_string().contains("cannot generate"));
    let mut broken = model(Family::Llama);
    let n = 37 * 24;
    broken.set_parameter("lm_head.weight", &vec![f32::NAN; n]).unwrap();
    let error = Generator::new(&broken).unwrap().generate(&[&[3]], &settings(), &[END], &[], &mut rngs(1)).unwrap_err();
    assert!(error.to_string().contains("prompt 0: the logit of token 0 is NaN"), "{error}");
}
