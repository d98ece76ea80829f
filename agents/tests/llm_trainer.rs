//! Training of a tiny decoder on fixed examples: accumulation, order, resume, errors.
#![cfg(feature = "llm")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use steadfast_agents::llm::{
    AdamWConfig, Decoder, DecoderConfig, Device, MetricSums, Objective, SftObjective, TokenSequence, Trainer, TrainerConfig,
};
use steadfast_agents::schedule::{Decay, ScheduleConfig};
use steadfast_agents::{AgentError, Metrics, StateDict};
use steadfast_envs::SeedTree;

const VOCABULARY: usize = 12;

fn shape() -> DecoderConfig {
    DecoderConfig {
        n_kv_heads: 1,
        bos_token_id: Some(1),
        eos_token_ids: vec![2],
        pad_token_id: Some(0),
        initializer_range: 0.05,
        ..DecoderConfig::llama(VOCABULARY, 16, 2, 2, 24, 32)
    }
}

fn decoder(seed: u64) -> Decoder {
    Decoder::fresh(&shape(), false, SeedTree::new(seed), &Device::Cpu).unwrap()
}

/// Sequences of several lengths whose completions count upwards from the last token of the prompt.
fn sequences(n: usize) -> Vec<TokenSequence> {
    let mut rng = SeedTree::new(5).rng();
    let mut draw = || {
        let (first, length) = (3 + rng.below(5) as u32, 1 + rng.below(5) as u32);
        let completion: Vec<u32> = (1..=length).map(|i| 3 + (first - 3 + i) % 8).chain([2]).collect();
        TokenSequence::new(&[1, first], &completion)
    };
    (0..n).map(|_| draw()).collect()
}

fn config(batch_size: usize, micro_batch_size: usize) -> TrainerConfig {
    TrainerConfig { epochs: 2, batch_size, micro_batch_size, learning_rate: 3e-3, ..TrainerConfig::default() }
}

fn trainer(config: &TrainerConfig, n: usize) -> Trainer {
    let objective = SftObjective::new(sequences(n), sequences(4)).unwrap();
    Trainer::new(config, decoder(1), Box::new(objective), SeedTree::new(7)).unwrap()
}

fn bits(state: &StateDict) -> Vec<(String, Vec<u64>)> {
    use steadfast_agents::Array;
    let words = |array: &Array| match array {
        Array::F32(_, v) => v.iter().map(|x| u64::from(x.to_bits())).collect(),
        Array::F64(_, v) => v.iter().map(|x| x.to_bits()).collect(),
        Array::U64(v) => v.clone(),
    };
    state.arrays.iter().map(|(name, array)| (name.clone(), words(array))).collect()
}

#[test]
fn eight_times_one_equals_one_times_eight() {
    let (mut whole, mut parts) = (trainer(&config(8, 8), 24), trainer(&config(8, 1), 24));
    for _ in 0..4 {
        let (a, b) = (whole.step().unwrap(), parts.step().unwrap());
        for ((name, x), (other, y)) in a.values.iter().zip(&b.values) {
            assert_eq!(name, other);
            assert!((x - y).abs() <= 1e-5 * x.abs().max(1.0), "{name}: {x} and {y}");
        }
    }
    for ((name, _, x), (_, _, y)) in whole.decoder().parameters().unwrap().iter().zip(&parts.decoder().parameters().unwrap()) {
        let worst = x.iter().zip(y).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-4, "{name}: {worst}");
    }
}

#[test]
fn resumed_run_equals_uninterrupted_one_bit_for_bit() {
    let config = config(4, 2);
    let mut whole = trainer(&config, 10);
    // Ten examples in batches of four: the third of a pass has two.
    assert_eq!((whole.steps_per_epoch(), whole.n_steps()), (3, 6));
    let mut logged = Vec::new();
    for _ in 0..6 {
        logged.push(whole.step().unwrap());
    }
    for stop in [0, 2, 4] {
        let mut first = trainer(&config, 10);
        (0..stop).for_each(|_| drop(first.step().unwrap()));
        let state = first.state().unwrap();
        let mut second = trainer(&config, 10);
        second.load_state(&state).unwrap();
        assert_eq!(second.step_count(), stop);
        for step in stop..6 {
            assert_eq!(second.step().unwrap(), logged[step as usize], "step {step} after {stop}");
        }
        assert_eq!(bits(&second.state().unwrap()), bits(&whole.state().unwrap()));
    }
}

#[test]
fn each_pass_uses_every_example_once_in_an_order_of_its_own() {
    let mut trainer = trainer(&config(4, 4), 10);
    let mut passes = Vec::new();
    for epoch in 0..2 {
        let order: Vec<usize> = (0..3).flat_map(|i| trainer.batch(3 * epoch + i)).collect();
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..10).collect::<Vec<_>>());
        passes.push(order);
    }
    assert_ne!(passes[0], passes[1]);
    assert_eq!(trainer.batch(2).len(), 2);
}

#[test]
fn the_loss_is_the_mean_over_tokens_of_the_batch() {
    let mut trainer = trainer(&config(4, 3), 10);
    let (all, examples) = (sequences(10), trainer.batch(0));
    let batch: Vec<&TokenSequence> = examples.iter().map(|&i| &all[i]).collect();
    let statistics = trainer.decoder().log_probs(&batch, 1.0).unwrap();
    let log_probs: Vec<f64> = statistics.iter().flat_map(|s| &s.log_probs).map(|&x| f64::from(x)).collect();
    let expected = -log_probs.iter().sum::<f64>() / log_probs.len() as f64;
    let metrics = trainer.step().unwrap();
    assert!((metrics.get("train/loss").unwrap() - expected).abs() < 1e-5);
    assert!((metrics.get("train/perplexity").unwrap() - expected.exp()).abs() < 1e-3);
    let tokens: usize = batch.iter().map(|s| s.tokens.len()).sum();
    assert_eq!(metrics.get("train/tokens"), Some(tokens as f64));
    assert_eq!(metrics.get("train/epoch"), Some(1.0 / 3.0));
}

#[test]
fn a_rule_is_learned() {
    let config = TrainerConfig {
        epochs: 15,
        batch_size: 8,
        micro_batch_size: 8,
        learning_rate: 1e-2,
        schedule: ScheduleConfig { decay: Decay::Cosine, ..ScheduleConfig::default() },
        optimizer: AdamWConfig::default(),
    };
    let mut trainer = trainer(&config, 64);
    let before = trainer.evaluate().unwrap();
    let steps = trainer.n_steps();
    (0..steps).for_each(|_| drop(trainer.step().unwrap()));
    let after = trainer.evaluate().unwrap();
    let (before, after) = (before.get("eval/loss").unwrap(), after.get("eval/loss").unwrap());
    // Where a completion ends is random; which token comes else is not.
    assert!(before > 2.0 && after < 0.8, "{before} and {after}");
}

#[test]
fn states_of_other_runs_are_refused() {
    let state = trainer(&config(4, 4), 10).state().unwrap();
    let error = trainer(&config(5, 5), 10).load_state(&state).unwrap_err();
    assert!(matches!(&error, AgentError::State { tensor, .. } if tensor == "trainer/run"), "{error}");
    let mut without = state.clone();
    without.arrays.remove("model/model.embed_tokens.weight");
    let error = trainer(&config(4, 4), 10).load_state(&without).unwrap_err().to_string();
    assert!(error.contains("model.embed_tokens.weight"), "{error}");
}

#[test]
fn sequences_that_the_model_cannot_read_are_named_before_training() {
    let run = |bad: TokenSequence| {
        let objective = SftObjective::new(vec![sequences(1)[0].clone(), bad], vec![]).unwrap();
        Trainer::new(&config(2, 2), decoder(1), Box::new(objective), SeedTree::new(7)).unwrap().step().unwrap_err().to_string()
    };
    let error = run(TokenSequence::new(&[1], &[VOCABULARY as u32]));
    assert!(error.starts_with("training example 2: token 12 at position 1"), "{error}");
    let error = run(TokenSequence::new(&[1], &[3; 40]));
    assert!(error.starts_with("training example 2: 41 tokens, but the model has 32 positions"), "{error}");
}

/// An objective that fails at one example.
struct Failing {
    at: usize,
    seen: Vec<usize>,
}

impl Objective for Failing {
    fn n_examples(&self) -> usize {
        6
    }
    fn weight(&self, _example: usize) -> f64 {
        1.0
    }
    fn prepare(&mut self, _decoder: &Decoder) -> Result<(), AgentError> {
        Ok(())
    }
    fn begin_batch(&mut self, _decoder: &Decoder, examples: &[usize]) -> Result<(), AgentError> {
        self.seen = examples.to_vec();
        Ok(())
    }
    fn accumulate(&mut self, _: &mut Decoder, examples: &[usize], weight: f64, sums: &mut MetricSums) -> Result<(), AgentError> {
        assert_eq!(weight, self.seen.len() as f64);
        assert!(examples.iter().all(|i| self.seen.contains(i)));
        sums.add("train/loss", 0.0, examples.len() as f64);
        if examples.contains(&self.at) {
            return Err(AgentError::NonFinite { tensor: "loss".into(), value: f32::NAN, update: 0, position: self.at });
        }
        Ok(())
    }
    fn evaluate(&mut self, _decoder: &Decoder) -> Result<Metrics, AgentError> {
        Ok(Metrics::default())
    }
}

#[test]
fn a_loss_that_is_not_finite_names_step_and_example() {
    let seeds = SeedTree::new(7);
    let mut trainer = Trainer::new(&config(2, 1), decoder(1), Box::new(Failing { at: 3, seen: vec![] }), seeds).unwrap();
    let step = (0..3).find(|&step| trainer.batch(step).contains(&3)).unwrap();
    (0..step).for_each(|_| drop(trainer.step().unwrap()));
    let error = trainer.step().unwrap_err();
    assert!(matches!(error, AgentError::NonFinite { update, position: 3, .. } if update == step + 1), "{error}");
}

#[test]
fn settings_out_of_their_range_are_named() {
    let field = |config: TrainerConfig| {
        let objective = SftObjective::new(sequences(3), vec![]).unwrap();
        match Trainer::new(&config, decoder(1), Box::new(objective), SeedTree::new(7)).err() {
            Some(AgentError::Config { field, .. }) => field,
            other => panic!("{other:?}"),
        }
    };
    let good = TrainerConfig::default;
    assert_eq!(field(TrainerConfig { epochs: 0, ..good() }), "epochs");
    assert_eq!(field(TrainerConfig { batch_size: 0, ..good() }), "batch_size");
    assert_eq!(field(TrainerConfig { micro_batch_size: 33, ..good() }), "micro_batch_size");
    assert_eq!(field(TrainerConfig { learning_rate: f64::NAN, ..good() }), "learning_rate");
    let schedule = ScheduleConfig { warmup: 1.5, ..ScheduleConfig::default() };
    assert_eq!(field(TrainerConfig { schedule, ..good() }), "schedule.warmup");
    let optimizer = AdamWConfig { beta2: 1.0, ..AdamWConfig::default() };
    assert_eq!(field(TrainerConfig { optimizer, ..good() }), "optimizer.beta2");
    let objective = SftObjective::new(vec![], vec![]).unwrap();
    assert!(Trainer::new(&good(), decoder(1), Box::new(objective), SeedTree::new(7)).is_err());
}
