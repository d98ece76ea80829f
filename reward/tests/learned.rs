//! A learned reward inside the engine.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod random_policy;

use random_policy::{RandomPolicy, Wild};
use steadfast_agents::StateDict;
use steadfast_envs::{
    ActMode, EnvConfig, EnvError, Policy, RewardFn, RolloutBatch, RolloutEngine, RolloutOptions, SeedTree, Space, Transition, VectorEnv,
};
use steadfast_reward::dataset::SegmentSampler;
use steadfast_reward::model::{ActionKind, MlpReward, MlpRewardConfig, RewardInputs, RewardModel, SegmentSpec};
use steadfast_reward::{LearnedReward, RewardError, RewardNormalization, Segment};

fn engine(name: &str, slots: usize) -> RolloutEngine {
    let config: EnvConfig = serde_json::from_value(serde_json::json!({ name: { "horizon": 30 } })).unwrap();
    let vector = VectorEnv::new((0..slots).map(|_| config.build().unwrap()).collect(), SeedTree::new(1)).unwrap();
    RolloutEngine::new(vector, SeedTree::new(2), RolloutOptions::default()).unwrap()
}

/// Segments of a first collection, with which the reward is scaled.
fn segments(name: &str, policy: &mut dyn Policy) -> Vec<Segment> {
    let mut engine = engine(name, 2);
    let mut sampler = SegmentSampler::new(engine.spec(), 6, SeedTree::new(3)).unwrap();
    let (mut batch, mut found) = (RolloutBatch::default(), Vec::new());
    engine.collect(policy, 120, ActMode::Sample, &mut batch).unwrap();
    sampler.push(&batch, "", &mut found);
    found
}

#[test]
fn rewards_in_a_rollout_are_those_of_its_segments() {
    for (name, discount) in [("pendulum", 1.0), ("pendulum", 0.9), ("cart_pole", 1.0)] {
        let mut engine = engine(name, 3);
        let mut policy: Box<dyn Policy> = if name == "pendulum" { Box::new(Wild) } else { Box::new(RandomPolicy(engine.spec().clone())) };
        let scaling = segments(name, &mut *policy);
        let config = MlpRewardConfig { ensemble: 2, hidden: vec![16], discount, ..Default::default() };
        let spec = SegmentSpec::of(engine.spec()).unwrap();
        let mut model = MlpReward::new(&config, spec, SeedTree::new(4)).unwrap();
        let pairs: Vec<_> =
            scaling.chunks_exact(2).map(|two| steadfast_reward::SegmentPair { chosen: two[0].clone(), rejected: two[1].clone() }).collect();
        model.prepare(&pairs.iter().collect::<Vec<_>>()).unwrap();
        let space = engine.spec().agents[0].action.clone();
        let learned = LearnedReward::new(model.clone(), &space, RewardNormalization::Standardize, &scaling).unwrap();
        let (shift, scale) = (learned.shift(), learned.scale());
        assert!(shift != 0.0 && scale != 1.0);
        engine.set_reward_fn(Some(Box::new(learned)));
        let mut sampler = SegmentSampler::new(engine.spec(), 6, SeedTree::new(5)).unwrap();
        let (mut batch, mut found) = (RolloutBatch::default(), Vec::new());
        engine.collect(&mut *policy, 120, ActMode::Sample, &mut batch).unwrap();
        sampler.push(&batch, "", &mut found);
        assert!(found.len() > 20);
        // The segment's steps are found again in the batch by their observations; the sampler took the environment's
        // rewards, the batch holds the learned ones.
        let (slots, width) = (batch.n_slots, batch.observation_width);
        for s in &found {
            let (time, slot) = (0..120)
                .flat_map(|t| (0..slots).map(move |slot| (t, slot)))
                .find(|&(t, slot)| batch.observations[(t * slots + slot) * width..][..width] == s.observations[..width])
                .unwrap();
            let sum: f64 = (0..s.steps).map(|i| discount.powi(i as i32 + 1) * f64::from(batch.rewards[(time + i) * slots + slot])).sum();
            let weights: f64 = (0..s.steps).map(|i| discount.powi(i as i32 + 1)).sum();
            let expected = (model.segment_reward(s).unwrap() - weights * shift) / scale;
            assert!((sum - expected).abs() < 1e-4 * (1.0 + expected.abs()), "{sum} {expected}");
            assert!((0..s.steps).all(|i| batch.environment_rewards[(time + i) * slots + slot] == s.rewards[i]));
        }
        if name == "pendulum" {
            assert!(batch.continuous_actions.iter().any(|a| a.abs() > 2.0), "the policy must leave the action space");
        }
    }
}

/// A linear reward with the given weights.
fn linear(spec: SegmentSpec, weights: &[f32], bias: f32) -> MlpReward {
    let config = MlpRewardConfig { hidden: vec![], normalize_inputs: false, ..Default::default() };
    let mut model = MlpReward::new(&config, spec, SeedTree::new(0)).unwrap();
    let mut state: StateDict = model.state();
    state.put_f32("members.0.layers.0.weight", &[1, weights.len()], weights);
    state.put_f32("members.0.layers.0.bias", &[1], &[bias]);
    model.load_state(&state).unwrap();
    model
}

fn transition<'a>(observation: &'a [f32], action_index: Option<u32>, action: &'a [f32]) -> Transition<'a> {
    Transition { agent: 0, observation, action_index, action, tokens: &[], next_observation: observation, reward: 100.0, terminated: false }
}

#[test]
fn known_weights_give_known_rewards() {
    let spec = SegmentSpec { observation_width: 2, action: ActionKind::Continuous { width: 2 } };
    let space = Space::Box { low: vec![-1.0, 0.0], high: vec![1.0, 4.0] };
    let mut learned = LearnedReward::with_scale(linear(spec, &[1.0, 2.0, 3.0, 4.0], 0.5), &space, 0.25, 2.0).unwrap();
    // The action is clamped to (1, 0): 0.5 + 1·1 + 2·2 + 3·1 + 4·0 = 8.5.
    assert_eq!(learned.reward(&transition(&[1.0, 2.0], None, &[3.0, -9.0])).unwrap(), (8.5 - 0.25) / 2.0);
    let spec = SegmentSpec { observation_width: 1, action: ActionKind::Discrete { n: 3 } };
    let space = Space::Discrete { n: 3 };
    let mut learned = LearnedReward::with_scale(linear(spec, &[10.0, 1.0, 2.0, 3.0], 0.0), &space, 0.0, 1.0).unwrap();
    for action in 0..3 {
        assert_eq!(learned.reward(&transition(&[0.5], Some(action), &[])).unwrap(), 6.0 + action as f32);
    }
    let error = learned.reward(&transition(&[0.5], Some(3), &[])).unwrap_err();
    assert!(matches!(&error, EnvError::Reward(m) if m.contains("below 3")), "{error}");
    assert!(learned.reward(&transition(&[0.5], None, &[1.0])).unwrap_err().to_string().contains("got 1 numbers"));
    assert!(learned.reward(&transition(&[0.5, 0.5], Some(0), &[])).is_err());
    assert!(matches!(
        LearnedReward::with_scale(linear(spec, &[0.0; 4], 0.0), &Space::Discrete { n: 4 }, 0.0, 1.0),
        Err(RewardError::Data(_))
    ));
    assert!(LearnedReward::with_scale(linear(spec, &[0.0; 4], 0.0), &space, 0.0, 0.0).is_err());
    assert!(LearnedReward::with_scale(linear(spec, &[0.0; 4], 0.0), &space, f64::NAN, 1.0).is_err());
}

#[test]
fn normalisation_is_over_the_steps_of_the_segments() {
    let spec = SegmentSpec { observation_width: 1, action: ActionKind::Discrete { n: 2 } };
    let space = Space::Discrete { n: 2 };
    let segment = |x: &[f32]| Segment { steps: x.len(), observations: x.to_vec(), actions: vec![0.0; x.len()], ..Segment::default() };
    // Rewards 2, 4, 6, 12: mean 6, deviation √14.
    let data = [segment(&[1.0, 2.0, 3.0]), segment(&[6.0])];
    let model = || linear(spec, &[2.0, 0.0, 0.0], 0.0);
    let of = |normalization| {
        let learned = LearnedReward::new(model(), &space, normalization, &data).unwrap();
        (learned.shift(), learned.scale())
    };
    assert_eq!(of(RewardNormalization::None), (0.0, 1.0));
    let deviation = 14.0_f64.sqrt();
    let (shift, scale) = of(RewardNormalization::Scale);
    assert!(shift == 0.0 && (scale - deviation).abs() < 1e-6);
    let (shift, scale) = of(RewardNormalization::Standardize);
    assert!((shift - 6.0).abs() < 1e-6 && (scale - deviation).abs() < 1e-6);
    // A constant reward has no scale of its own.
    let constant = LearnedReward::new(linear(spec, &[0.0; 3], 7.0), &space, RewardNormalization::Scale, &data).unwrap();
    assert_eq!(constant.scale(), 1.0);
    assert!(LearnedReward::new(model(), &space, RewardNormalization::Scale, &[]).is_err());
    assert!(LearnedReward::new(model(), &space, RewardNormalization::None, &[]).is_ok());
    assert!(LearnedReward::new(model(), &space, RewardNormalization::Scale, &[segment(&[f32::NAN])]).is_err());
}

#[test]
fn rewards_of_observations_ignore_actions() {
    let spec = SegmentSpec { observation_width: 3, action: ActionKind::Discrete { n: 2 } };
    let config = MlpRewardConfig { inputs: RewardInputs::Observation, ..Default::default() };
    let model = MlpReward::new(&config, spec, SeedTree::new(0)).unwrap();
    let mut learned = LearnedReward::with_scale(model, &Space::Discrete { n: 2 }, 0.0, 1.0).unwrap();
    let reward = |learned: &mut LearnedReward, action| learned.reward(&transition(&[1.0, 2.0, 3.0], Some(action), &[])).unwrap();
    assert_eq!(reward(&mut learned, 0), reward(&mut learned, 1));
}
