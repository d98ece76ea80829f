//! What the rules of the particle environments imply, apart from the reference's numbers.

use proptest::prelude::*;
use steadfast_envs::particle::{
    AdversaryReward, ParticleEnv, Scenario, SimpleAdversaryConfig, SimpleConfig, SimpleCryptoConfig, SimpleReferenceConfig,
    SimpleSpeakerListenerConfig, SimpleSpreadConfig, SimpleTagConfig, SimpleWorldCommConfig, SpreadReward,
};
use steadfast_envs::{Actions, Environment, Rng, StepOut};

struct Step {
    observations: Vec<f32>,
    terminated: bool,
    truncated: bool,
}

fn start<S: Scenario>(env: &mut ParticleEnv<S>, seed: u64) -> Vec<f32> {
    let mut observations = vec![f32::NAN; env.spec().n_agents() * env.spec().observation_width()];
    env.reset(seed, &mut observations);
    observations
}

fn step<S: Scenario>(env: &mut ParticleEnv<S>, actions: Actions<'_>) -> Step {
    let n = env.spec().n_agents();
    let mut observations = vec![f32::NAN; n * env.spec().observation_width()];
    let mut rewards = vec![0.0; n];
    let mut out = StepOut { observations: &mut observations, rewards: &mut rewards, terminated: false, truncated: false };
    env.step(actions, &mut out).expect("the actions are valid");
    let (terminated, truncated) = (out.terminated, out.truncated);
    Step { observations, terminated, truncated }
}

fn metrics<S: Scenario>(env: &ParticleEnv<S>) -> Vec<f64> {
    let mut values = vec![f64::NAN; env.spec().episode_metrics.len()];
    env.episode_metrics(&mut values);
    values
}

proptest! {
    #[test]
    fn permuting_agents_of_spread_permutes_what_they_get(seed in 0_u64..1000, shift in 1_usize..4) {
        let n = 4;
        let config = SimpleSpreadConfig { n_agents: n, ..Default::default() };
        let (mut env, mut permuted) = (config.build().unwrap(), config.build().unwrap());
        start(&mut env, seed);
        start(&mut permuted, seed + 1);
        // Crowded, so that agents touch.
        for p in &mut env.world_mut().positions {
            *p = [0.4 * p[0], 0.4 * p[1]];
        }
        let moved = |agent: usize| (agent + shift) % n;
        let world = env.world().clone();
        permuted.world_mut().positions.copy_from_slice(&world.positions);
        for agent in 0..n {
            permuted.world_mut().positions[moved(agent)] = world.positions[agent];
        }
        let mut rng = Rng::from_seed(seed);
        for _ in 0..5 {
            let actions: Vec<u32> = (0..n).map(|_| rng.below(5) as u32).collect();
            let mut other = vec![0; n];
            for agent in 0..n {
                other[moved(agent)] = actions[agent];
            }
            let (a, b) = (step(&mut env, Actions::Discrete(&actions)), step(&mut permuted, Actions::Discrete(&other)));
            let width = env.spec().observation_width();
            for agent in 0..n {
                prop_assert!((env.rewards_f64()[agent] - permuted.rewards_f64()[moved(agent)]).abs() < 1e-9);
                let velocity = permuted.world().velocities[moved(agent)];
                prop_assert!((env.world().velocities[agent][0] - velocity[0]).abs() < 1e-9);
                // Own velocity, own position and the landmarks; the others come in another order.
                let own = 4 + 2 * n;
                for (x, y) in a.observations[agent * width..][..own].iter().zip(&b.observations[moved(agent) * width..][..own]) {
                    prop_assert!((x - y).abs() < 1e-6);
                }
            }
        }
    }

    #[test]
    fn adversaries_of_tag_are_interchangeable(seed in 0_u64..1000) {
        let (mut env, mut swapped) = (SimpleTagConfig::default().build().unwrap(), SimpleTagConfig::default().build().unwrap());
        start(&mut env, seed);
        start(&mut swapped, seed);
        swapped.world_mut().positions.swap(0, 2);
        for actions in [[1, 2, 3, 4], [4, 4, 2, 1], [2, 0, 1, 3]] {
            step(&mut env, Actions::Discrete(&actions));
            step(&mut swapped, Actions::Discrete(&[actions[2], actions[1], actions[0], actions[3]]));
            prop_assert!((env.rewards_f64()[3] - swapped.rewards_f64()[3]).abs() < 1e-9);
            prop_assert!((env.world().positions[0][0] - swapped.world().positions[2][0]).abs() < 1e-9);
        }
    }

    #[test]
    fn no_speed_limit_is_exceeded(seed in 0_u64..500) {
        let mut env = SimpleTagConfig::default().build().unwrap();
        start(&mut env, seed);
        let mut rng = Rng::from_seed(seed);
        for _ in 0..25 {
            let actions: Vec<u32> = (0..4).map(|_| rng.below(5) as u32).collect();
            step(&mut env, Actions::Discrete(&actions));
            for (agent, v) in env.world().velocities.iter().enumerate() {
                prop_assert!(v[0].hypot(v[1]) <= env.world().body(agent).max_speed * (1.0 + 1e-12));
            }
        }
    }
}

#[test]
fn original_spread_reward_counts_self_collisions_and_is_shared() {
    let config = SimpleSpreadConfig { reward: SpreadReward::SharedSum, ..Default::default() };
    let mut env = config.build().unwrap();
    start(&mut env, 0);
    // Two of three agents overlap by far; everybody stands still after the move, whatever the force.
    let positions = [[0.0, 0.0], [0.1, 0.0], [3.0, 0.0], [0.0, 0.0], [0.1, 0.0], [3.0, 1.0]];
    env.world_mut().positions.copy_from_slice(&positions);
    step(&mut env, Actions::Discrete(&[0, 0, 0]));
    // Three times: −distance 1, three self-collisions over all agents, two ordered pairs.
    for reward in env.rewards_f64() {
        assert!((reward - (-3.0 - 3.0 - 2.0)).abs() < 1e-12, "{reward}");
    }
    assert_eq!(metrics(&env)[..3], [1.0, 2.0, 1.0]);
}

#[test]
fn original_adversary_reward_is_the_square() {
    let config = SimpleAdversaryConfig { adversary_reward: AdversaryReward::SquaredDistance, ..Default::default() };
    let (mut square, mut plain) = (config.build().unwrap(), SimpleAdversaryConfig::default().build().unwrap());
    for seed in 0..20 {
        start(&mut square, seed);
        start(&mut plain, seed);
        step(&mut square, Actions::Discrete(&[1, 2, 3]));
        step(&mut plain, Actions::Discrete(&[1, 2, 3]));
        let (s, p) = (square.rewards_f64(), plain.rewards_f64());
        assert!((s[0] + p[0] * p[0]).abs() < 1e-12);
        assert_eq!(s[1..], p[1..]);
        assert_eq!(p[1], metrics(&plain)[0] - metrics(&plain)[1]);
    }
}

#[test]
fn local_ratio_weighs_own_and_shared_terms() {
    let returns = |local_ratio: f64| {
        let mut env = SimpleReferenceConfig { local_ratio, ..Default::default() }.build().unwrap();
        start(&mut env, 4);
        step(&mut env, Actions::Discrete(&[0, 0]));
        env.rewards_f64().to_vec()
    };
    let (shared, own, half) = (returns(0.0), returns(1.0), returns(0.5));
    assert_eq!(shared[0], shared[1]);
    assert!((shared[0] - (own[0] + own[1]) / 2.0).abs() < 1e-12);
    assert!((half[1] - (shared[1] + own[1]) / 2.0).abs() < 1e-12);
}

#[test]
fn success_terminates_only_if_asked_and_beats_the_time_limit() {
    for terminate_on_success in [false, true] {
        let config = SimpleSpreadConfig { terminate_on_success, horizon: 1, ..Default::default() };
        let mut env = config.build().unwrap();
        start(&mut env, 0);
        let places = [[0.0, 0.0], [2.0, 0.0], [4.0, 0.0]];
        env.world_mut().positions[..3].copy_from_slice(&places);
        env.world_mut().positions[3..].copy_from_slice(&places);
        let end = step(&mut env, Actions::Discrete(&[0, 0, 0]));
        assert_eq!((end.terminated, end.truncated), (terminate_on_success, true));
        assert_eq!(metrics(&env)[1], 3.0);
    }
    let mut tag = SimpleTagConfig { terminate_on_success: true, ..Default::default() }.build().unwrap();
    start(&mut tag, 0);
    let positions = [[0.5, 0.5], [-0.5, -0.5], [0.0, 0.5], [0.5, 0.55], [-0.5, 0.5], [0.5, -0.5]];
    tag.world_mut().positions.copy_from_slice(&positions);
    let end = step(&mut tag, Actions::Discrete(&[0, 0, 0, 0]));
    assert_eq!((end.terminated, end.truncated), (true, false));
    assert_eq!(tag.rewards_f64(), [10.0, 10.0, 10.0, -10.0]);
    assert_eq!(metrics(&tag), [1.0, 1.0]);
}

#[test]
fn slower_prey_obeys_its_limit() {
    let mut env = SimpleTagConfig { prey_speed_factor: 0.5, n_obstacles: 0, ..Default::default() }.build().unwrap();
    start(&mut env, 0);
    env.world_mut().positions = vec![[-9.0, 0.0], [-9.0, 3.0], [-9.0, -3.0], [0.0, 0.0]];
    for _ in 0..20 {
        step(&mut env, Actions::Discrete(&[0, 0, 0, 2]));
    }
    assert!((env.world().velocities[3][0] - 0.65).abs() < 1e-12);
}

#[test]
fn continuous_actions_outside_the_unit_interval_count_as_its_ends() {
    let config = SimpleConfig { continuous_actions: true, ..Default::default() };
    let (mut wild, mut tame) = (config.build().unwrap(), config.build().unwrap());
    start(&mut wild, 3);
    start(&mut tame, 3);
    step(&mut wild, Actions::Continuous(&[7.0, -2.0, 3.0, 0.25, -1.0]));
    step(&mut tame, Actions::Continuous(&[1.0, 0.0, 1.0, 0.25, 0.0]));
    assert_eq!(wild.world().velocities, tame.world().velocities);
    assert_eq!(wild.world().velocities[0], [0.5, -0.125]);
}

#[test]
fn nan_actions_and_wrong_kinds_are_refused_and_change_nothing() {
    let config = SimpleConfig { continuous_actions: true, ..Default::default() };
    let mut env = config.build().unwrap();
    let mut observations = start(&mut env, 0);
    let before = env.world().positions.clone();
    let mut rewards = [0.0];
    for actions in [Actions::Continuous(&[0.0, f32::NAN, 0.0, 0.0, 0.0]), Actions::Discrete(&[1])] {
        let mut out = StepOut { observations: &mut observations, rewards: &mut rewards, terminated: false, truncated: false };
        assert!(env.step(actions, &mut out).is_err());
    }
    assert_eq!(env.world().positions, before);
    let mut speaker = SimpleSpeakerListenerConfig::default().build().unwrap();
    let mut observations = start(&mut speaker, 0);
    let mut out = StepOut { observations: &mut observations, rewards: &mut [0.0; 2], terminated: false, truncated: false };
    let error = speaker.step(Actions::Discrete(&[3, 0]), &mut out).unwrap_err().to_string();
    assert!(error.contains("agent 0") && error.contains("below 3"), "{error}");
}

#[test]
fn movable_speakers_send_the_quotient_and_walk_the_remainder() {
    let mut env = SimpleWorldCommConfig::default().build().unwrap();
    start(&mut env, 0);
    step(&mut env, Actions::Discrete(&[5 * 3 + 2, 0, 0, 0, 0, 0]));
    assert_eq!(env.world().message(0), [0.0, 0.0, 0.0, 1.0]);
    // A new message replaces the old one.
    step(&mut env, Actions::Discrete(&[4, 0, 0, 0, 0, 0]));
    assert_eq!(env.world().message(0), [1.0, 0.0, 0.0, 0.0]);
}

#[test]
fn bob_and_eve_are_counted_when_they_name_the_secret() {
    let mut env = SimpleCryptoConfig::default().build().unwrap();
    start(&mut env, 0);
    env.world_mut().choices.copy_from_slice(&[1, 0]);
    step(&mut env, Actions::Discrete(&[0, 1, 2]));
    assert_eq!(env.rewards_f64(), [-2.0, 2.0, 2.0]);
    step(&mut env, Actions::Discrete(&[1, 1, 3]));
    assert_eq!(metrics(&env), [2.0, 1.0]);
}

#[test]
fn goals_are_drawn_evenly() {
    let mut env = SimpleSpeakerListenerConfig::default().build().unwrap();
    let mut counts = [0; 3];
    for seed in 0..3000 {
        start(&mut env, seed);
        counts[env.world().choices[0]] += 1;
    }
    assert!(counts.iter().all(|&c| (c as f64 - 1000.0).abs() < 130.0), "{counts:?}");
}

#[test]
fn starts_fill_their_squares() {
    let mut env = SimpleTagConfig::default().build().unwrap();
    let (mut agents, mut obstacles) = (0.0_f64, 0.0_f64);
    for seed in 0..2000 {
        start(&mut env, seed);
        let world = env.world();
        let widest = |bodies: &[[f64; 2]]| bodies.as_flattened().iter().fold(0.0_f64, |m, x| m.max(x.abs()));
        agents = agents.max(widest(&world.positions[..4]));
        obstacles = obstacles.max(widest(&world.positions[4..]));
        assert_eq!(world.velocities, [[0.0; 2]; 4]);
    }
    assert!(agents <= 1.0 && agents > 0.99, "{agents}");
    assert!(obstacles <= 0.9 && obstacles > 0.89, "{obstacles}");
}

#[test]
fn heavier_agents_answer_more_slowly() {
    let mut config = SimpleConfig::default();
    config.physics.mass = 2.0;
    let mut env = config.build().unwrap();
    start(&mut env, 0);
    step(&mut env, Actions::Discrete(&[2]));
    assert_eq!(env.world().velocities[0], [0.25, 0.0]);
}

#[test]
fn spread_reports_both_conventions_whatever_the_reward() {
    let returns = |reward: SpreadReward| {
        let mut env = SimpleSpreadConfig { reward, ..Default::default() }.build().unwrap();
        let mut observations = vec![0.0; 54];
        let mut rewards = [0.0_f32; 3];
        let (mut total, mut rng) = ([0.0_f64; 3], Rng::from_seed(8));
        env.reset(5, &mut observations);
        for _ in 0..25 {
            let actions = [rng.below(5) as u32, rng.below(5) as u32, rng.below(5) as u32];
            let mut out = StepOut { observations: &mut observations, rewards: &mut rewards, terminated: false, truncated: false };
            env.step(Actions::Discrete(&actions), &mut out).unwrap();
            total.iter_mut().zip(rewards).for_each(|(t, r)| *t += f64::from(r));
        }
        let mut metrics = [0.0; 5];
        env.episode_metrics(&mut metrics);
        (total, metrics)
    };
    let (local, metrics) = returns(SpreadReward::LocalRatio);
    let (shared, same) = returns(SpreadReward::SharedSum);
    assert_eq!(metrics, same);
    assert!((metrics[3] - local.iter().sum::<f64>() / 3.0).abs() < 1e-4);
    assert!((metrics[4] - shared[0]).abs() < 1e-3);
}

#[test]
fn forests_are_looked_up_again_when_bodies_are_moved_by_hand() {
    let mut env = SimpleWorldCommConfig::default().build().unwrap();
    start(&mut env, 0);
    let (n_agents, forest) = (env.world().n_agents(), env.world().positions.len() - 1);
    for agent in 0..n_agents {
        env.world_mut().positions[agent] = [10.0 * (agent + 1) as f64, 0.0];
    }
    // Flags of the two forests, seen by the last adversary: behind 4 own numbers, 5 landmarks, 5 others, 2 velocities.
    let flags = |env: &ParticleEnv<_>| {
        let mut state = vec![0.0; env.spec().state_dim];
        env.state(&mut state);
        let widths: usize = env.spec().agents[..3].iter().map(|a| a.observation.width()).sum();
        let own = &state[widths..];
        // The prey `agent_0` is the fourth of the other agents.
        ([own[28], own[29]], [own[20], own[21]])
    };
    assert_eq!(flags(&env), ([-1.0, -1.0], [10.0, 0.0]));
    let place = env.world().positions[forest];
    env.world_mut().positions[4] = place;
    assert_eq!(flags(&env).1, [0.0, 0.0], "the prey hides in the forest");
    env.world_mut().positions[3] = place;
    assert_eq!(flags(&env).0[1], 1.0);
}
