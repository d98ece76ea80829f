//! A tiny decoder and pairs of completions that it can learn to tell apart.
#![allow(dead_code, reason = "each test binary uses a part")]

use steadfast_agents::StateDict;
use steadfast_agents::llm::{AdamWConfig, Decoder, DecoderConfig, Device, Objective, TokenSequence, Trainer, TrainerConfig};
use steadfast_agents::schedule::{Decay, ScheduleConfig};
use steadfast_envs::SeedTree;
use steadfast_reward::{EncodedPair, EncodedPreference, Preference, Truth};

pub const VOCABULARY: usize = 16;
/// Tokens that make a completion good, and tokens that make it bad.
const GOOD: [u32; 4] = [4, 5, 6, 7];
const BAD: [u32; 4] = [8, 9, 10, 11];

pub fn shape() -> DecoderConfig {
    DecoderConfig {
        bos_token_id: Some(1),
        eos_token_ids: vec![2],
        pad_token_id: Some(0),
        initializer_range: 0.1,
        ..DecoderConfig::llama(VOCABULARY, 16, 2, 2, 32, 24)
    }
}

pub fn decoder(seed: u64) -> Decoder {
    Decoder::fresh(&shape(), false, SeedTree::new(seed), &Device::Cpu).unwrap()
}

/// Completions of one to six tokens and the end; better the more good and the fewer bad tokens they have. Every fifth label
/// is wrong.
pub fn pairs(n: usize, seed: u64) -> Vec<EncodedPreference> {
    let seeds = SeedTree::new(seed);
    let pair = |i: usize| {
        let mut rng = seeds.index(i as u64).rng();
        let prompt: Vec<u32> = [1].into_iter().chain((0..1 + rng.below(3)).map(|_| 12 + rng.below(4) as u32)).collect();
        let mut completion = |set: [u32; 4]| {
            let words = (0..1 + rng.below(6)).map(|_| if rng.unit() < 0.8 { set[rng.below(4)] } else { 12 + rng.below(4) as u32 });
            words.chain([2]).collect::<Vec<u32>>()
        };
        let (good, bad) = (TokenSequence::new(&prompt, &completion(GOOD)), TokenSequence::new(&prompt, &completion(BAD)));
        let flipped = i % 5 == 4;
        let (chosen, rejected) = if flipped { (bad, good) } else { (good, bad) };
        let truth = Truth { flipped: Some(flipped), ..Truth::default() };
        Preference { id: format!("p{i}"), pair: EncodedPair { chosen, rejected, reference: None }, truth, ..Preference::default() }
    };
    (0..n).map(pair).filter(|p| p.pair.check().is_ok()).collect()
}

pub fn trainer_config(batch_size: usize, micro_batch_size: usize) -> TrainerConfig {
    TrainerConfig { epochs: 2, batch_size, micro_batch_size, learning_rate: 1e-3, ..TrainerConfig::default() }
}

/// Steps that move each parameter by minus its gradient.
pub fn gradient_config(batch_size: usize, micro_batch_size: usize) -> TrainerConfig {
    // With moments that forget at once, a step is rate · g / (|g| + ε).
    let scale = 1e7;
    let optimizer = AdamWConfig { beta1: 0.0, beta2: 0.0, epsilon: scale, weight_decay: 0.0, max_grad_norm: 0.0 };
    let schedule = ScheduleConfig { warmup: 0.0, decay: Decay::Constant, floor: 0.0 };
    TrainerConfig { epochs: 1, batch_size, micro_batch_size, learning_rate: scale, schedule, optimizer }
}

pub fn trainer(config: &TrainerConfig, decoder: Decoder, objective: impl Objective + 'static) -> Trainer {
    Trainer::new(config, decoder, Box::new(objective), SeedTree::new(3)).unwrap()
}

/// A decoder with the parameters of another.
pub fn copy(decoder: &Decoder) -> Decoder {
    let mut other = Decoder::fresh(&shape(), decoder.has_scalar_head(), SeedTree::new(0), &Device::Cpu).unwrap();
    decoder.parameters().unwrap().iter().for_each(|(name, _, values)| other.set_parameter(name, values).unwrap());
    other
}

/// Largest difference of two decoders' parameters.
pub fn distance(a: &Decoder, b: &Decoder) -> f32 {
    let (a, b) = (a.parameters().unwrap(), b.parameters().unwrap());
    a.iter().zip(&b).flat_map(|((_, _, x), (_, _, y))| x.iter().zip(y).map(|(x, y)| (x - y).abs())).fold(0.0, f32::max)
}

pub fn bits(state: &StateDict) -> Vec<(String, Vec<u64>)> {
    use steadfast_agents::Array;
    let words = |array: &Array| match array {
        Array::F32(_, v) => v.iter().map(|x| u64::from(x.to_bits())).collect(),
        Array::F64(_, v) => v.iter().map(|x| x.to_bits()).collect(),
        Array::U64(v) => v.clone(),
    };
    state.arrays.iter().map(|(name, array)| (name.clone(), words(array))).collect()
}

/// Compares the gradient of the first step's `train/loss` with central differences at the largest entry of each parameter.
pub fn check_gradient(name: &str, start: &Decoder, micro_batch_size: usize, objective: &dyn Fn() -> Box<dyn Objective>) {
    let n = objective().n_examples();
    let new = |decoder: Decoder| Trainer::new(&gradient_config(n, micro_batch_size), decoder, objective(), SeedTree::new(3)).unwrap();
    let mut run = new(copy(start));
    run.step().unwrap();
    let (before, after) = (start.parameters().unwrap(), run.decoder().parameters().unwrap());
    let gradients: Vec<Vec<f32>> =
        before.iter().zip(&after).map(|((_, _, x), (_, _, y))| x.iter().zip(y).map(|(x, y)| x - y).collect()).collect();
    let largest = gradients.iter().flatten().fold(0.0_f32, |m, g| m.max(g.abs()));
    assert!(largest > 1e-4, "{name}: the gradient vanishes");
    for ((parameter, _, values), gradient) in before.iter().zip(&gradients) {
        let at = (0..gradient.len()).max_by(|&i, &j| gradient[i].abs().total_cmp(&gradient[j].abs())).unwrap();
        let loss = |shift: f32| {
            let mut moved = copy(start);
            let mut values = values.clone();
            values[at] += shift;
            moved.set_parameter(parameter, &values).unwrap();
            new(moved).step().unwrap().get("train/loss").unwrap()
        };
        let h = 1e-2;
        let numeric = (loss(h) - loss(-h)) / (2.0 * f64::from(h));
        let error = (numeric - f64::from(gradient[at])).abs();
        assert!(error < 0.02 * f64::from(largest) + 1e-4, "{name}, {parameter}[{at}]: {} and {numeric}", gradient[at]);
    }
}
