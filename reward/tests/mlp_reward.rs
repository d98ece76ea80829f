//! Reward networks against a second implementation in double precision, finite differences and identities.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use steadfast_agents::nn::Activation;
use steadfast_agents::{Array, StateDict};
use steadfast_envs::{Rng, SeedTree};
use steadfast_reward::model::{ActionKind, MlpReward, MlpRewardConfig, RewardInputs, RewardModel, SegmentSpec};
use steadfast_reward::{LossConfig, LossValue, R3mConfig, RewardError, Segment, SegmentPair};

const DISCRETE: SegmentSpec = SegmentSpec { observation_width: 3, action: ActionKind::Discrete { n: 4 } };
const CONTINUOUS: SegmentSpec = SegmentSpec { observation_width: 2, action: ActionKind::Continuous { width: 2 } };

fn segment(spec: SegmentSpec, steps: usize, terminated: bool, rng: &mut Rng) -> Segment {
    let observations = (0..steps * spec.observation_width).map(|_| 2.0 * rng.normal_f32() + 1.0).collect();
    let actions = match spec.action {
        ActionKind::Discrete { n } => (0..steps).map(|_| rng.below(n) as f32).collect(),
        ActionKind::Continuous { width } => (0..steps * width).map(|_| rng.normal_f32()).collect(),
    };
    Segment { steps, observations, actions, terminated, ..Segment::default() }
}

/// Pairs of equal and of unequal lengths.
fn pairs(spec: SegmentSpec, n: usize, seed: u64) -> Vec<SegmentPair> {
    let mut rng = Rng::from_seed(seed);
    (0..n)
        .map(|i| {
            let (a, b) = ([6, 6, 3][i % 3], [6, 2, 6][i % 3]);
            SegmentPair { chosen: segment(spec, a, a < 6, &mut rng), rejected: segment(spec, b, b < 6, &mut rng) }
        })
        .collect()
}

fn f32s(state: &StateDict, name: &str) -> (Vec<usize>, Vec<f64>) {
    match state.arrays.get(name).unwrap_or_else(|| panic!("{name} is missing")) {
        Array::F32(shape, values) => (shape.clone(), values.iter().map(|&v| f64::from(v)).collect()),
        Array::F64(shape, values) => (shape.clone(), values.clone()),
        Array::U64(_) => panic!("{name} holds words"),
    }
}

/// One network of an ensemble in double precision, rebuilt from a saved state.
struct Reference {
    /// `(weight [output][input], bias)` of each layer.
    layers: Vec<(Vec<Vec<f64>>, Vec<f64>)>,
    scales: Option<(Vec<f64>, Vec<f64>)>,
    config: MlpRewardConfig,
    spec: SegmentSpec,
}

impl Reference {
    fn new(state: &StateDict, member: usize, config: &MlpRewardConfig, spec: SegmentSpec) -> Self {
        let layers = (0..=config.hidden.len())
            .map(|i| {
                let (shape, weight) = f32s(state, &format!("members.{member}.layers.{i}.weight"));
                let rows = weight.chunks(shape[1]).map(<[f64]>::to_vec).collect();
                (rows, f32s(state, &format!("members.{member}.layers.{i}.bias")).1)
            })
            .collect();
        let scales = config.normalize_inputs.then(|| (f32s(state, "inputs.mean").1, f32s(state, "inputs.variance").1));
        Self { layers, scales, config: config.clone(), spec }
    }

    fn step_reward(&self, observation: &[f32], action: &[f32]) -> f64 {
        let mut x: Vec<f64> = observation.iter().map(|&v| f64::from(v)).collect();
        if self.config.inputs == RewardInputs::ObservationAction {
            match self.spec.action {
                ActionKind::Discrete { n } => x.extend((0..n).map(|i| if i as f32 == action[0] { 1.0 } else { 0.0 })),
                ActionKind::Continuous { .. } => x.extend(action.iter().map(|&v| f64::from(v))),
            }
        }
        if let Some((mean, variance)) = &self.scales {
            x.iter_mut().zip(mean.iter().zip(variance)).for_each(|(x, (m, v))| *x = (*x - m) / v.sqrt());
        }
        for (index, (weight, bias)) in self.layers.iter().enumerate() {
            x = weight.iter().zip(bias).map(|(row, b)| b + row.iter().zip(&x).map(|(w, x)| w * x).sum::<f64>()).collect();
            if index + 1 < self.layers.len() {
                x.iter_mut().for_each(|v| {
                    *v = match self.config.activation {
                        Activation::Tanh => v.tanh(),
                        Activation::Relu => v.max(0.0),
                        Activation::LeakyRelu => v.max(0.01 * *v),
                        Activation::Identity => *v,
                    }
                });
            }
        }
        if self.config.bounded_output { x[0].tanh() } else { x[0] }
    }

    fn segment_reward(&self, s: &Segment) -> f64 {
        let (seen, width) = (self.spec.observation_width, self.spec.action.width());
        (0..s.steps)
            .map(|t| {
                let reward = self.step_reward(&s.observations[t * seen..(t + 1) * seen], &s.actions[t * width..(t + 1) * width]);
                self.config.discount.powi(t as i32 + 1) * reward
            })
            .sum()
    }

    fn margin(&self, pair: &SegmentPair) -> f64 {
        self.segment_reward(&pair.chosen) - self.segment_reward(&pair.rejected)
    }
}

/// R3M's loss in double precision.
fn robust_loss(d: f64, lambda: f64) -> f64 {
    let c = (1.0 / lambda - 1.0).ln();
    let delta = (c - d).max(0.0);
    (1.0 + (-(d + delta)).exp()).ln() + lambda * delta
}

fn configs() -> Vec<(MlpRewardConfig, SegmentSpec)> {
    let base = MlpRewardConfig { hidden: vec![5, 4], activation: Activation::Tanh, discount: 0.8, ..Default::default() };
    vec![
        (base.clone(), DISCRETE),
        (MlpRewardConfig { activation: Activation::LeakyRelu, normalize_inputs: false, ..base.clone() }, CONTINUOUS),
        (MlpRewardConfig { ensemble: 3, bounded_output: true, ..base.clone() }, CONTINUOUS),
        (MlpRewardConfig { hidden: vec![], discount: 1.0, ensemble: 2, inputs: RewardInputs::Observation, ..base }, DISCRETE),
    ]
}

/// A model that has made some steps, so that its weights are not those of the beginning.
fn trained(config: &MlpRewardConfig, spec: SegmentSpec, data: &[SegmentPair]) -> MlpReward {
    let mut model = MlpReward::new(config, spec, SeedTree::new(3)).unwrap();
    let batch: Vec<&SegmentPair> = data.iter().collect();
    model.prepare(&batch).unwrap();
    let loss = LossConfig::default().build().unwrap();
    for _ in 0..20 {
        model.step(&batch, &mut |d, out| loss.batch(d, &vec![false; d.len()], out), 1e-2).unwrap();
    }
    model
}

#[test]
fn margins_agree_with_double_precision() {
    for (config, spec) in configs() {
        let data = pairs(spec, 9, 1);
        let mut model = trained(&config, spec, &data);
        let state = model.state();
        let mut margins = vec![0.0; data.len()];
        model.margins(&data.iter().collect::<Vec<_>>(), &mut margins).unwrap();
        let members: Vec<Reference> = (0..config.ensemble).map(|k| Reference::new(&state, k, &config, spec)).collect();
        for (pair, &margin) in data.iter().zip(&margins) {
            let expected = members.iter().map(|m| m.margin(pair)).sum::<f64>() / config.ensemble as f64;
            assert!((f64::from(margin) - expected).abs() < 2e-5, "{margin} {expected}");
        }
        assert!(margins.iter().any(|d| d.abs() > 0.1), "margins of nothing prove nothing: {margins:?}");
    }
}

/// Adam's mean after its first step is 0.1 × the gradient, in the network's flat layout: rows of inputs padded to 16.
fn first_gradient(state: &StateDict, member: usize, layer_widths: &[usize]) -> Vec<(Vec<Vec<f64>>, Vec<f64>)> {
    let (_, mean) = f32s(state, &format!("members.{member}.adam.mean"));
    let mut offset = 0;
    layer_widths
        .windows(2)
        .map(|w| {
            let (input, output, stride) = (w[0], w[1], w[1].next_multiple_of(16));
            let weight = (0..output).map(|o| (0..input).map(|i| 10.0 * mean[offset + i * stride + o]).collect()).collect();
            let bias = (0..output).map(|o| 10.0 * mean[offset + input * stride + o]).collect();
            offset += (input + 1) * stride;
            (weight, bias)
        })
        .collect()
}

#[test]
fn gradient_of_a_step_agrees_with_finite_differences() {
    let lambda = 0.6;
    let loss = LossConfig::R3m(R3mConfig { lambda }).build().unwrap();
    for (config, spec) in configs() {
        let data = pairs(spec, 9, 2);
        let batch: Vec<&SegmentPair> = data.iter().collect();
        // A fresh optimiser around trained weights: the state without Adam's.
        let mut state = trained(&config, spec, &data).state();
        for (name, array) in &mut state.arrays {
            match array {
                Array::F32(_, values) if name.contains("adam") => values.fill(0.0),
                Array::U64(values) if name.contains("adam") => values.fill(0),
                _ => {}
            }
        }
        let mut model = MlpReward::new(&config, spec, SeedTree::new(0)).unwrap();
        model.load_state(&state).unwrap();
        let mut seen = Vec::new();
        let mut evaluate = |d: &[f32], out: &mut [LossValue]| {
            seen.push(d.to_vec());
            loss.batch(d, &vec![false; d.len()], out);
        };
        model.step(&batch, &mut evaluate, 1e-3).unwrap();
        assert_eq!(seen.len(), config.ensemble);
        let after = model.state();
        let mut largest = 0.0_f64;
        for (member, seen) in seen.iter().enumerate() {
            let mut reference = Reference::new(&state, member, &config, spec);
            // Each member follows its own margins.
            for (pair, &margin) in data.iter().zip(seen) {
                assert!((reference.margin(pair) - f64::from(margin)).abs() < 2e-5);
            }
            let mut widths = vec![reference.layers[0].0[0].len()];
            widths.extend(reference.layers.iter().map(|l| l.1.len()));
            let gradient = first_gradient(&after, member, &widths);
            let mean_loss = |r: &Reference| data.iter().map(|p| robust_loss(r.margin(p), lambda)).sum::<f64>() / data.len() as f64;
            let h = 1e-6;
            for layer in 0..gradient.len() {
                for o in 0..gradient[layer].1.len() {
                    for i in 0..=gradient[layer].0[o].len() {
                        let is_bias = i == gradient[layer].0[o].len();
                        let mut shifted = |by: f64| {
                            let (weight, bias) = &mut reference.layers[layer];
                            let place = if is_bias { &mut bias[o] } else { &mut weight[o][i] };
                            *place += by;
                            let value = mean_loss(&reference);
                            let (weight, bias) = &mut reference.layers[layer];
                            *(if is_bias { &mut bias[o] } else { &mut weight[o][i] }) -= by;
                            value
                        };
                        let expected = (shifted(h) - shifted(-h)) / (2.0 * h);
                        let found = if is_bias { gradient[layer].1[o] } else { gradient[layer].0[o][i] };
                        largest = largest.max(expected.abs());
                        assert!((found - expected).abs() < 2e-5 * (1.0 + expected.abs()), "layer {layer} [{o}][{i}]: {found} {expected}");
                    }
                }
            }
        }
        assert!(largest > 0.01, "a gradient of nothing proves nothing: {largest}");
    }
}

#[test]
fn segment_reward_is_the_sum_of_its_steps_and_their_order_matters_only_with_a_discount() {
    let mut rng = Rng::from_seed(4);
    let s = segment(CONTINUOUS, 7, false, &mut rng);
    let mut reversed = s.clone();
    reversed.observations = s.observations.chunks(2).rev().flatten().copied().collect();
    reversed.actions = s.actions.chunks(2).rev().flatten().copied().collect();
    for discount in [1.0, 0.7] {
        let config = MlpRewardConfig { hidden: vec![8], discount, ..Default::default() };
        let mut model = trained(&config, CONTINUOUS, &pairs(CONTINUOUS, 3, 5));
        let by_steps: f64 = (0..7)
            .map(|t| {
                let mut reward = [0.0];
                model.rewards(&s.observations[2 * t..2 * t + 2], &s.actions[2 * t..2 * t + 2], &mut reward).unwrap();
                discount.powi(t as i32 + 1) * f64::from(reward[0])
            })
            .sum();
        let whole = model.segment_reward(&s).unwrap();
        assert!((whole - by_steps).abs() < 1e-12, "{whole} {by_steps}");
        let difference = (model.segment_reward(&reversed).unwrap() - whole).abs();
        assert_eq!(difference < 1e-12, discount == 1.0, "{discount}: {difference}");
    }
}

#[test]
fn rewards_do_not_depend_on_the_steps_beside_them() {
    let config = MlpRewardConfig { ensemble: 2, ..Default::default() };
    let data = pairs(DISCRETE, 3, 6);
    let mut model = trained(&config, DISCRETE, &data);
    let s = &data[0].chosen;
    let mut together = vec![0.0; s.steps];
    model.rewards(&s.observations, &s.actions, &mut together).unwrap();
    for t in 0..s.steps {
        let mut alone = [0.0];
        model.rewards(&s.observations[3 * t..3 * t + 3], &s.actions[t..=t], &mut alone).unwrap();
        assert_eq!(alone[0].to_bits(), together[t].to_bits());
    }
}

#[test]
fn an_ensemble_gives_the_mean_of_its_members() {
    let config = MlpRewardConfig { ensemble: 3, bounded_output: true, ..Default::default() };
    let data = pairs(DISCRETE, 3, 7);
    let mut model = trained(&config, DISCRETE, &data);
    let state = model.state();
    let s = &data[0].chosen;
    let mut mean = vec![0.0; s.steps];
    model.rewards(&s.observations, &s.actions, &mut mean).unwrap();
    let members: Vec<Reference> = (0..3).map(|k| Reference::new(&state, k, &config, DISCRETE)).collect();
    for t in 0..s.steps {
        let values: Vec<f64> = members.iter().map(|m| m.step_reward(&s.observations[3 * t..3 * t + 3], &s.actions[t..=t])).collect();
        let average = values.iter().sum::<f64>() / 3.0;
        assert!((f64::from(mean[t]) - average).abs() < 1e-5);
        assert!(values.iter().any(|v| (v - average).abs() > 1e-4), "members must differ");
    }
}

#[test]
fn restored_model_continues_bit_for_bit() {
    let loss = LossConfig::default().build().unwrap();
    for (config, spec) in configs() {
        let data = pairs(spec, 6, 8);
        let batch: Vec<&SegmentPair> = data.iter().collect();
        let mut model = trained(&config, spec, &data);
        let mut again = MlpReward::new(&config, spec, SeedTree::new(99)).unwrap();
        again.load_state(&model.state()).unwrap();
        assert_eq!(again.state(), model.state());
        for m in [&mut model, &mut again] {
            for _ in 0..5 {
                m.prepare(&batch[..1]).unwrap();
                m.step(&batch, &mut |d, out| loss.batch(d, &vec![false; d.len()], out), 1e-2).unwrap();
            }
        }
        assert_eq!(again.state(), model.state());
    }
}

#[test]
fn state_of_another_shape_is_refused_by_name() {
    let state = MlpReward::new(&MlpRewardConfig::default(), DISCRETE, SeedTree::new(0)).unwrap().state();
    let load =
        |config: MlpRewardConfig| MlpReward::new(&config, DISCRETE, SeedTree::new(0)).unwrap().load_state(&state).unwrap_err().to_string();
    assert!(load(MlpRewardConfig { hidden: vec![64], ..Default::default() }).contains("layers.1.weight"));
    assert!(load(MlpRewardConfig { ensemble: 2, ..Default::default() }).contains("missing"));
}

#[test]
fn reset_draws_the_weights_of_the_seed() {
    let config = MlpRewardConfig { ensemble: 2, ..Default::default() };
    let data = pairs(DISCRETE, 3, 9);
    let new = |seed| MlpReward::new(&config, DISCRETE, SeedTree::new(seed)).unwrap().state();
    let mut model = trained(&config, DISCRETE, &data);
    model.reset(SeedTree::new(5).seed());
    assert_eq!(model.state(), new(5));
    assert_ne!(new(5), new(6));
    let state = new(5);
    assert_ne!(f32s(&state, "members.0.layers.0.weight"), f32s(&state, "members.1.layers.0.weight"));
}

#[test]
fn normalised_inputs_make_units_irrelevant() {
    let data = pairs(CONTINUOUS, 6, 10);
    let mut scaled = data.clone();
    for pair in &mut scaled {
        for s in [&mut pair.chosen, &mut pair.rejected] {
            // A power of two scales without rounding; the offset rounds a little.
            s.observations.iter_mut().step_by(2).for_each(|x| *x = 1024.0 * *x + 512.0);
            s.actions.iter_mut().for_each(|x| *x /= 64.0);
        }
    }
    let margins = |data: &[SegmentPair]| {
        let mut margins = vec![0.0; data.len()];
        trained(&MlpRewardConfig::default(), CONTINUOUS, data).margins(&data.iter().collect::<Vec<_>>(), &mut margins).unwrap();
        margins
    };
    for (a, b) in margins(&data).iter().zip(margins(&scaled)) {
        assert!((a - b).abs() < 1e-2 * (1.0 + a.abs()), "{a} {b}");
    }
}

#[test]
fn clipping_and_decay_do_what_they_say() {
    let data = pairs(DISCRETE, 6, 11);
    let batch: Vec<&SegmentPair> = data.iter().collect();
    let config = MlpRewardConfig { max_gradient_norm: Some(1e-3), ..Default::default() };
    let mut model = MlpReward::new(&config, DISCRETE, SeedTree::new(0)).unwrap();
    model.prepare(&batch).unwrap();
    model.step(&batch, &mut |_, out| out.fill(LossValue { value: 1.0, slope: -1.0 }), 1e-3).unwrap();
    let (_, mean) = f32s(&model.state(), "members.0.adam.mean");
    let norm = 10.0 * mean.iter().map(|g| g * g).sum::<f64>().sqrt();
    assert!((norm - 1e-3).abs() < 1e-5, "{norm}");

    let config = MlpRewardConfig { weight_decay: 0.5, ..Default::default() };
    let mut model = MlpReward::new(&config, DISCRETE, SeedTree::new(0)).unwrap();
    let before = f32s(&model.state(), "members.0.layers.1.weight").1;
    model.step(&batch, &mut |_, out| out.fill(LossValue::default()), 0.1).unwrap();
    let after = f32s(&model.state(), "members.0.layers.1.weight").1;
    assert!(before.iter().zip(&after).all(|(a, b)| (0.95 * a - b).abs() < 1e-6));
}

#[test]
fn order_of_the_pairs_in_a_batch_does_not_matter() {
    let data = pairs(DISCRETE, 9, 12);
    let step = |order: Vec<usize>| {
        let mut model = trained(&MlpRewardConfig::default(), DISCRETE, &data);
        let batch: Vec<&SegmentPair> = order.iter().map(|&i| &data[i]).collect();
        let loss = LossConfig::default().build().unwrap();
        model.step(&batch, &mut |d, out| loss.batch(d, &vec![false; d.len()], out), 1e-3).unwrap();
        f32s(&model.state(), "members.0.layers.1.weight").1
    };
    let (a, b) = (step((0..9).collect()), step((0..9).rev().collect()));
    assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-5));
}

#[test]
fn bad_data_and_numbers_are_refused() {
    let mut data = pairs(DISCRETE, 3, 13);
    let mut model = MlpReward::new(&MlpRewardConfig::default(), DISCRETE, SeedTree::new(0)).unwrap();
    let diverged = |_: &[f32], out: &mut [LossValue]| out.fill(LossValue { value: 0.0, slope: f32::INFINITY });
    let error = model.step(&data.iter().collect::<Vec<_>>(), &mut { diverged }, 1e-3).unwrap_err();
    assert!(error.to_string().contains("reward gradient of member 0"), "{error}");
    data[2].rejected.actions[1] = 4.0;
    let error = model.margins(&data.iter().collect::<Vec<_>>(), &mut [0.0; 3]).unwrap_err();
    assert!(matches!(&error, RewardError::Data(m) if m.contains("pair 2") && m.contains("below 4")), "{error}");
    let mut out = [0.0; 2];
    assert!(model.rewards(&[0.0; 5], &[0.0; 2], &mut out).unwrap_err().to_string().contains("need 6 observations, found 5"));
    assert!(model.rewards(&[0.0; 6], &[0.0, -1.0], &mut out).unwrap_err().to_string().contains("below 4, found -1"));
    assert!(model.rewards(&[0.0; 6], &[0.0, f32::NAN], &mut out).is_err());
}

#[test]
fn settings_out_of_range_are_refused_by_name() {
    let base = MlpRewardConfig::default;
    let cases = [
        (MlpRewardConfig { hidden: vec![64, 0], ..base() }, "hidden"),
        (MlpRewardConfig { hidden: vec![1; 17], ..base() }, "hidden"),
        (MlpRewardConfig { ensemble: 0, ..base() }, "ensemble"),
        (MlpRewardConfig { ensemble: 65, ..base() }, "ensemble"),
        (MlpRewardConfig { discount: 0.0, ..base() }, "discount"),
        (MlpRewardConfig { discount: 1.1, ..base() }, "discount"),
        (MlpRewardConfig { weight_decay: -1.0, ..base() }, "weight_decay"),
        (MlpRewardConfig { max_gradient_norm: Some(0.0), ..base() }, "max_gradient_norm"),
    ];
    for (config, field) in cases {
        match MlpReward::new(&config, DISCRETE, SeedTree::new(0)) {
            Err(RewardError::Config { field: found, .. }) => assert_eq!(found, field),
            other => panic!("{field}: {:?}", other.map(|_| ())),
        }
    }
    assert!(serde_json::from_str::<MlpRewardConfig>("{}").is_ok_and(|c| c == base()));
    assert!(serde_json::from_str::<MlpRewardConfig>(r#"{"hiden": [3]}"#).is_err());
    assert!(serde_json::from_str::<MlpRewardConfig>(r#"{"inputs": "observation", "activation": "leaky_relu"}"#).is_ok());
}
