//! Segments cut from rollouts, against the rollouts themselves.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod random_policy;

use std::collections::BTreeSet;

use random_policy::{RandomPolicy, Wild};
use steadfast_envs::testing::IdentityConfig;
use steadfast_envs::{ActMode, EnvConfig, RewardFn, RolloutBatch, RolloutEngine, RolloutOptions, SeedTree, Transition, VectorEnv};
use steadfast_reward::dataset::segments::{SegmentSampler, collect_segments, pairs};
use steadfast_reward::{RewardError, Segment};

fn config(json: serde_json::Value) -> EnvConfig {
    serde_json::from_value(json).unwrap()
}

fn engine(config: &EnvConfig, slots: usize, reward_fn: Option<Box<dyn RewardFn>>) -> RolloutEngine {
    let vector = VectorEnv::new((0..slots).map(|_| config.build().unwrap()).collect(), SeedTree::new(1)).unwrap();
    RolloutEngine::new(vector, SeedTree::new(2), RolloutOptions { reward_fn, ..RolloutOptions::default() }).unwrap()
}

/// Collects in batches of `chunk` steps; returns the batches' rows joined together, and the segments.
fn sampled(config: &EnvConfig, slots: usize, steps: usize, chunk: usize, total: usize) -> (RolloutBatch, Vec<Segment>) {
    let mut engine = engine(config, slots, None);
    let mut policy = RandomPolicy(engine.spec().clone());
    let mut sampler = SegmentSampler::new(engine.spec(), steps, SeedTree::new(3)).unwrap();
    let (mut all, mut batch, mut segments) = (RolloutBatch::default(), RolloutBatch::default(), Vec::new());
    for _ in 0..total / chunk {
        engine.collect(&mut policy, chunk, ActMode::Sample, &mut batch).unwrap();
        sampler.push(&batch, "random", &mut segments);
        let row = batch.observation_row();
        all.observations.extend_from_slice(&batch.observations[..chunk * row]);
        all.rewards.extend_from_slice(&batch.rewards);
        all.discrete_actions.extend_from_slice(&batch.discrete_actions);
        all.continuous_actions.extend_from_slice(&batch.continuous_actions);
        all.terminated.extend_from_slice(&batch.terminated);
        all.truncated.extend_from_slice(&batch.truncated);
    }
    (all, segments)
}

/// Checks every segment of a world with one agent and discrete actions against the recorded steps; returns the place
/// `(slot, step)` of each and the steps from the beginning of its episode.
fn locate(all: &RolloutBatch, slots: usize, width: usize, steps: usize, segments: &[Segment]) -> Vec<(usize, usize, usize)> {
    let time = all.rewards.len() / slots;
    segments
        .iter()
        .map(|s| {
            let row = |t: usize, slot: usize| &all.observations[(t * slots + slot) * width..(t * slots + slot + 1) * width];
            let is_at = |t: usize, slot: usize| {
                (0..s.steps).all(|i| t + i < time && row(t + i, slot) == &s.observations[i * width..(i + 1) * width])
            };
            let places: Vec<_> =
                (0..slots).flat_map(|slot| (0..time).map(move |t| (t, slot))).filter(|&(t, slot)| is_at(t, slot)).collect();
            let [(t, slot)] = places[..] else { panic!("a segment must be a stretch of one trajectory, found {places:?}") };
            for i in 0..s.steps {
                let at = (t + i) * slots + slot;
                assert_eq!(s.rewards[i], all.rewards[at]);
                assert_eq!(s.actions[i], all.discrete_actions[at] as f32);
                if i + 1 < s.steps {
                    assert!(!all.terminated[at] && !all.truncated[at], "a window crosses the end of an episode");
                }
            }
            let last = (t + s.steps - 1) * slots + slot;
            assert_eq!(s.terminated, all.terminated[last]);
            assert!(s.steps == steps || (s.steps < steps && s.terminated));
            assert_eq!(s.policy, "random");
            let from_start = (0..t).rev().take_while(|&u| !all.terminated[u * slots + slot] && !all.truncated[u * slots + slot]).count();
            (slot, t, from_start)
        })
        .collect()
}

#[test]
fn segments_are_stretches_of_episodes() {
    let (slots, steps) = (3, 7);
    let world = config(serde_json::json!({ "cart_pole": { "horizon": 30 } }));
    let (all, segments) = sampled(&world, slots, steps, 50, 600);
    let places = locate(&all, slots, 4, steps, &segments);
    assert!(segments.len() > 150, "{}", segments.len());
    assert!(segments.iter().any(|s| s.terminated && s.steps < steps) && segments.iter().any(|s| !s.terminated));
    // No step is in two segments, and the windows of an episode lie one behind the other.
    let mut used = BTreeSet::new();
    for (&(slot, t, _), s) in places.iter().zip(&segments) {
        assert!((t..t + s.steps).all(|u| used.insert((slot, u))));
    }
    let mut phases = [0; 7];
    for (index, &(slot, t, from_start)) in places.iter().enumerate() {
        let follows = places.iter().zip(&segments).any(|(&(s, u, _), w)| s == slot && u + w.steps == t && from_start >= w.steps);
        if !follows {
            assert!(from_start < steps, "segment {index} leaves a gap before it");
            phases[from_start] += 1;
        }
    }
    assert!(phases.iter().all(|&n| n > 0), "windows must begin anywhere: {phases:?}");
}

#[test]
fn cutting_batches_elsewhere_changes_nothing() {
    let world = config(serde_json::json!({ "cart_pole": { "horizon": 30 } }));
    let (all, segments) = sampled(&world, 2, 5, 60, 240);
    for chunk in [1, 3, 40] {
        assert_eq!(
            (&all.observations, &segments),
            (&sampled(&world, 2, 5, chunk, 240).0.observations, &sampled(&world, 2, 5, chunk, 240).1)
        );
    }
}

#[test]
fn time_limit_drops_what_is_not_complete() {
    // Episodes of 12 steps: windows of 5 that begin at 0 to 4 leave room for two, or for one.
    let world = config(serde_json::json!({ "random_reward": { "horizon": 12 } }));
    let (all, segments) = sampled(&world, 2, 5, 24, 240);
    let places = locate(&all, 2, 6, 5, &segments);
    assert!(segments.iter().all(|s| s.steps == 5 && !s.terminated));
    for slot in 0..2 {
        for episode in 0..20 {
            let starts: Vec<usize> = places.iter().filter(|p| p.0 == slot && p.1 / 12 == episode).map(|p| p.1 % 12).collect();
            let expected = if starts[0] <= 2 { vec![starts[0], starts[0] + 5] } else { vec![starts[0]] };
            assert!(starts[0] < 5 && starts == expected, "{starts:?}");
        }
    }
    // Windows as long as the episode have no choice.
    let (all, segments) = sampled(&world, 2, 12, 24, 240);
    assert_eq!(locate(&all, 2, 6, 12, &segments).iter().map(|p| p.2).collect::<Vec<_>>(), vec![0; 40]);
    let spec = world.build().unwrap().spec().clone();
    for steps in [0, 13] {
        let error = SegmentSampler::new(&spec, steps, SeedTree::new(0)).unwrap_err();
        assert!(matches!(error, RewardError::Config { .. }), "{error}");
    }
}

struct Zero;

impl RewardFn for Zero {
    fn reward(&mut self, _transition: &Transition<'_>) -> steadfast_envs::Result<f32> {
        Ok(0.0)
    }
}

#[test]
fn actions_are_clamped_and_rewards_are_the_environments() {
    let world = config(serde_json::json!({ "pendulum": { "horizon": 40 } }));
    let collect = |reward_fn| {
        let mut engine = engine(&world, 2, reward_fn);
        collect_segments(&mut engine, &mut Wild, "wild", 30, 10, ActMode::Sample, SeedTree::new(4)).unwrap()
    };
    let found = collect(None);
    assert_eq!((found.segments.len(), &*found.segments[0].policy), (30, "wild"));
    let actions: Vec<f32> = found.segments.iter().flat_map(|s| s.actions.clone()).collect();
    assert!(actions.iter().all(|a| a.abs() <= 2.0) && actions.contains(&2.0) && actions.contains(&-2.0));
    assert!(actions.iter().any(|a| a.abs() < 2.0));
    assert!(found.segments.iter().all(|s| s.rewards.iter().any(|&r| r < 0.0)));
    assert_eq!(found, collect(Some(Box::new(Zero))));
    // The account of episodes: all have 40 steps, and their return is what their steps add up to.
    assert_eq!(found.env_steps % 20, 0);
    assert!(found.n_episodes >= 2 && found.return_mean.unwrap() < -10.0);
}

#[test]
fn account_of_episodes_is_the_engines() {
    let world = config(serde_json::json!({ "cart_pole": {} }));
    let mut first = engine(&world, 2, None);
    let mut policy = RandomPolicy(first.spec().clone());
    let found = collect_segments(&mut first, &mut policy, "random", 40, 10, ActMode::Sample, SeedTree::new(4)).unwrap();
    let (mut second, mut batch) = (engine(&world, 2, None), RolloutBatch::default());
    second.collect(&mut policy, found.env_steps / 2, ActMode::Sample, &mut batch).unwrap();
    let lengths: Vec<f64> = second.episodes().iter().map(|e| e.length as f64).collect();
    assert_eq!(found.n_episodes, lengths.len());
    let mean = lengths.iter().sum::<f64>() / lengths.len() as f64;
    // Every step of the cart pole pays 1.
    assert!((found.return_mean.unwrap() - mean).abs() < 1e-9);
}

#[test]
fn every_agent_of_a_team_has_segments() {
    let world = EnvConfig::Identity(IdentityConfig { n_agents: 3, ..Default::default() });
    let mut engine = engine(&world, 2, None);
    let mut policy = RandomPolicy(engine.spec().clone());
    let found = collect_segments(&mut engine, &mut policy, "", 60, 10, ActMode::Sample, SeedTree::new(5)).unwrap();
    // Segments come in threes of one slot; each agent's reward tells whether its action repeats its symbol.
    for s in &found.segments {
        for (t, symbol) in s.observations.chunks(4).enumerate() {
            assert_eq!(s.rewards[t], symbol[s.actions[t] as usize]);
        }
    }
    assert!(found.segments.chunks(3).all(|team| team[0] != team[1] && team[1] != team[2]));

    let mixed = config(serde_json::json!({ "simple_tag": {} }));
    let spec = mixed.build().unwrap().spec().clone();
    assert!(matches!(SegmentSampler::new(&spec, 5, SeedTree::new(0)), Err(RewardError::Data(_))));
}

#[test]
fn pairs_are_of_different_segments_and_none_comes_twice() {
    let segments = vec![Segment { steps: 4, ..Segment::default() }; 10];
    for n in [1, 20, 30, 45] {
        let drawn = pairs(&segments, n, SeedTree::new(n as u64)).unwrap();
        let unordered: BTreeSet<(usize, usize)> = drawn.iter().map(|&(a, b)| (a.min(b), a.max(b))).collect();
        assert_eq!((drawn.len(), unordered.len()), (n, n));
        assert!(drawn.iter().all(|&(a, b)| a != b && a < 10 && b < 10));
        assert_eq!(drawn, pairs(&segments, n, SeedTree::new(n as u64)).unwrap());
        assert_ne!(drawn, pairs(&segments, n, SeedTree::new(1000)).unwrap());
    }
    // Up to half as many pairs as segments share none.
    let mut once: Vec<usize> = pairs(&segments, 5, SeedTree::new(4)).unwrap().into_iter().flat_map(|(a, b)| [a, b]).collect();
    once.sort_unstable();
    assert_eq!(once, (0..10).collect::<Vec<_>>());
    // Both orders occur.
    let drawn = pairs(&segments, 45, SeedTree::new(0)).unwrap();
    assert!(drawn.iter().any(|p| p.0 < p.1) && drawn.iter().any(|p| p.0 > p.1));
    // More than there are: all of them before one comes again.
    let drawn = pairs(&segments, 100, SeedTree::new(0)).unwrap();
    let count = |a: usize, b: usize| drawn.iter().filter(|&&(x, y)| (x, y) == (a, b) || (x, y) == (b, a)).count();
    assert!((0..10).all(|b| (0..b).all(|a| (2..=3).contains(&count(a, b)))));

    assert!(pairs(&segments[..1], 1, SeedTree::new(0)).is_err());
    let mut short = segments;
    short[3].steps = 2;
    assert!(pairs(&short, 5, SeedTree::new(0)).unwrap_err().to_string().contains("segment 3"));
    short[3].terminated = true;
    assert!(pairs(&short, 5, SeedTree::new(0)).is_ok());
}
