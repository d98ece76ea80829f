//! Particle environments against transitions of the `mpe2` package, and an independent semi-implicit integrator.
//!
//! The numbers are written by `python tests/golden/generate/mpe.py`.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use steadfast_envs::particle::{
    ParticleEnv, Scenario, SimpleAdversaryConfig, SimpleConfig, SimpleCryptoConfig, SimplePushConfig, SimpleReferenceConfig,
    SimpleSpeakerListenerConfig, SimpleSpreadConfig, SimpleTagConfig, SimpleWorldCommConfig,
};
use steadfast_envs::{Actions, Environment, Result, Space, StepOut};

#[derive(Deserialize)]
struct Fixture {
    header: Header,
    scenario: String,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Header {
    tolerance: Tolerance,
}

#[derive(Deserialize)]
struct Tolerance {
    observations: f64,
    physics: f64,
    rewards: f64,
}

#[derive(Deserialize)]
struct Case {
    config: Value,
    agents: Vec<String>,
    action_sizes: Vec<usize>,
    choices: Vec<usize>,
    positions: Vec<f64>,
    velocities: Vec<f64>,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
struct Step {
    actions: Vec<Value>,
    positions: Vec<f64>,
    velocities: Vec<f64>,
    rewards: Option<Vec<f64>>,
    /// Terminated, truncated.
    ends: Option<(bool, bool)>,
    observations: Option<Vec<Vec<f64>>>,
}

fn close(what: &str, got: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len(), "{what}: length");
    for (i, (g, e)) in got.iter().zip(expected).enumerate() {
        assert!((g - e).abs() <= tolerance * e.abs().max(1.0), "{what}[{i}]: got {g}, expected {e}");
    }
}

fn load(scenario: &str) -> Fixture {
    let path = format!("{}/../tests/golden/mpe_{scenario}.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Plays all cases of a scenario; returns how many steps were compared.
fn replay<C: DeserializeOwned, S: Scenario>(scenario: &str, build: impl Fn(&C) -> Result<ParticleEnv<S>>) -> usize {
    let fixture = load(scenario);
    assert_eq!(fixture.scenario, scenario);
    let tolerance = &fixture.header.tolerance;
    let mut compared = 0;
    for (number, case) in fixture.cases.iter().enumerate() {
        let config: C = serde_json::from_value(case.config.clone()).expect("the case's configuration is ours");
        let mut env = build(&config).expect("the case's configuration is valid");
        let spec = env.spec().clone();
        let names: Vec<&str> = spec.agents.iter().map(|a| a.name.as_str()).collect();
        assert_eq!(names, case.agents);
        let sizes: Vec<usize> = spec
            .agents
            .iter()
            .map(|a| match &a.action {
                Space::Discrete { n } => *n,
                space => space.width(),
            })
            .collect();
        assert_eq!(sizes, case.action_sizes);
        let width = spec.observation_width();
        let mut observations = vec![0.0; spec.n_agents() * width];
        let mut rewards = vec![0.0; spec.n_agents()];
        env.reset(number as u64, &mut observations);
        let world = env.world_mut();
        world.positions.as_flattened_mut().copy_from_slice(&case.positions);
        world.velocities.as_flattened_mut().copy_from_slice(&case.velocities);
        world.choices.copy_from_slice(&case.choices);
        for (time, step) in case.steps.iter().enumerate() {
            let place = format!("{scenario} case {number} step {time}");
            let mut discrete = vec![0_u32; spec.n_agents()];
            let mut continuous = vec![0.0_f32; spec.n_agents() * spec.action_width()];
            for (agent, action) in step.actions.iter().enumerate() {
                match action {
                    Value::Array(row) => {
                        for (i, value) in row.iter().enumerate() {
                            continuous[agent * spec.action_width() + i] = value.as_f64().expect("actions are numbers") as f32;
                        }
                    }
                    index => discrete[agent] = index.as_u64().expect("actions are indices") as u32,
                }
            }
            let actions = if spec.has_discrete_actions() { Actions::Discrete(&discrete) } else { Actions::Continuous(&continuous) };
            let mut out = StepOut { observations: &mut observations, rewards: &mut rewards, terminated: false, truncated: false };
            env.step(actions, &mut out).expect("the case's actions are valid");
            assert_eq!((out.terminated, out.truncated), step.ends.unwrap_or_default(), "{place}");
            let n = spec.n_agents();
            close(&format!("{place} positions"), env.world().positions[..n].as_flattened(), &step.positions, tolerance.physics);
            close(&format!("{place} velocities"), env.world().velocities.as_flattened(), &step.velocities, tolerance.physics);
            if let Some(expected) = &step.rewards {
                close(&format!("{place} rewards"), env.rewards_f64(), expected, tolerance.rewards);
                let rounded: Vec<f64> = rewards.iter().map(|&r| f64::from(r)).collect();
                close(&format!("{place} rounded rewards"), &rounded, expected, tolerance.observations);
            }
            if let Some(expected) = &step.observations {
                let mut state = vec![0.0; spec.state_dim];
                env.state(&mut state);
                let state: Vec<f64> = state.iter().map(|&x| f64::from(x)).collect();
                close(&format!("{place} state"), &state, &expected.concat(), tolerance.observations);
                for (agent, row) in expected.iter().enumerate() {
                    let got: Vec<f64> = observations[agent * width..][..row.len()].iter().map(|&x| f64::from(x)).collect();
                    assert_eq!(spec.agents[agent].observation.width(), row.len());
                    close(&format!("{place} agent {agent} observation"), &got, row, tolerance.observations);
                }
            }
            compared += 1;
        }
    }
    compared
}

#[test]
fn simple_matches_the_package() {
    assert_eq!(replay("simple", SimpleConfig::build), 65);
}

#[test]
fn simple_adversary_matches_the_package() {
    assert_eq!(replay("simple_adversary", SimpleAdversaryConfig::build), 105);
}

#[test]
fn simple_crypto_matches_the_package() {
    assert_eq!(replay("simple_crypto", SimpleCryptoConfig::build), 65);
}

#[test]
fn simple_push_matches_the_package() {
    assert_eq!(replay("simple_push", SimplePushConfig::build), 65);
}

#[test]
fn simple_reference_matches_the_package() {
    assert_eq!(replay("simple_reference", SimpleReferenceConfig::build), 105);
}

#[test]
fn simple_speaker_listener_matches_the_package() {
    assert_eq!(replay("simple_speaker_listener", SimpleSpeakerListenerConfig::build), 65);
}

#[test]
fn simple_spread_matches_the_package_and_the_original_integrator() {
    assert_eq!(replay("simple_spread", SimpleSpreadConfig::build), 165);
}

#[test]
fn simple_tag_matches_the_package_and_the_original_integrator() {
    assert_eq!(replay("simple_tag", SimpleTagConfig::build), 125);
}

#[test]
fn simple_world_comm_matches_the_package() {
    assert_eq!(replay("simple_world_comm", SimpleWorldCommConfig::build), 105);
}

/// Positions of every body, velocities of the agents.
fn place<S: Scenario>(env: &mut ParticleEnv<S>, positions: &[[f64; 2]], velocities: &[[f64; 2]]) -> Vec<f32> {
    let mut observations = vec![0.0; env.spec().n_agents() * env.spec().observation_width()];
    env.reset(0, &mut observations);
    env.world_mut().positions.copy_from_slice(positions);
    env.world_mut().velocities.copy_from_slice(velocities);
    observations
}

fn advance<S: Scenario>(env: &mut ParticleEnv<S>, actions: Actions<'_>, observations: &mut [f32]) {
    let mut rewards = vec![0.0; env.spec().n_agents()];
    let mut out = StepOut { observations, rewards: &mut rewards, terminated: false, truncated: false };
    env.step(actions, &mut out).expect("the actions are valid");
}

const TEN_DIGITS: f64 = 1e-9;

#[test]
fn spread_reproduces_three_published_steps() {
    let mut env = SimpleSpreadConfig::default().build().expect("defaults are valid");
    let positions = [[0.0, 0.0], [0.2, 0.1], [-0.5, 0.5], [0.0, 0.0], [0.5, 0.5], [-0.5, -0.5]];
    let mut observations = place(&mut env, &positions, &[[0.0; 2]; 3]);
    let expected: [(&[f64], &[f64], &[f64]); 3] = [
        (
            &[0.0, 0.0, 0.2, 0.1, -0.5, 0.5],
            &[-0.183281573, -0.3416407865, 0.183281573, 0.3416407865, 0.0, 0.5],
            &[-1.103553391, -1.103553391, -0.6035533906],
        ),
        (
            &[-0.0183281573, -0.03416407865, 0.2183281573, 0.1341640786, -0.5, 0.55],
            &[-0.8207427527, -0.5978713764, 0.8207427527, 0.09787137637, 0.5, 0.375],
            &[-1.085280683, -1.085280683, -0.5852806831],
        ),
        (
            &[-0.1004024326, -0.09395121629, 0.3004024326, 0.1439512163, -0.45, 0.5875],
            &[-1.193669081, -0.5039628011, 0.693669081, 0.1289628011, 0.375, 0.28125],
            &[-0.5576897617, -0.5576897617, -0.5576897617],
        ),
    ];
    for (actions, (p, v, r)) in [[2, 1, 4], [0, 3, 2], [1, 0, 0]].iter().zip(expected) {
        advance(&mut env, Actions::Discrete(actions), &mut observations);
        close("positions", env.world().positions[..3].as_flattened(), p, TEN_DIGITS);
        close("velocities", env.world().velocities.as_flattened(), v, TEN_DIGITS);
        close("rewards", env.rewards_f64(), r, TEN_DIGITS);
    }
}

#[test]
fn tag_reproduces_three_published_steps() {
    let mut env = SimpleTagConfig::default().build().expect("defaults are valid");
    let positions = [[0.1, 0.0], [-0.6, -0.6], [0.8, 0.8], [0.2, 0.0], [0.0, 0.25], [0.5, -0.6]];
    let mut observations = place(&mut env, &positions, &[[1.0, 0.0], [0.0, 0.0], [0.0, 0.0], [1.2, 0.5]]);
    let expected: [(&[f64], &[f64]); 3] = [
        (&[0.2, 0.0, -0.6, -0.6, 0.8, 0.8, 0.32, 0.05], &[0.8213362592, -0.05334064813, 0.0, 0.3, -0.3, 0.0, 1.263546406, 0.3056967112]),
        (
            &[0.2821336259, -0.005334064813, -0.6, -0.57, 0.77, 0.8, 0.4463546406, 0.08056967112],
            &[0.9159402066, -0.04003131436, 0.0, 0.525, -0.525, 0.0, 0.9477217925, 0.6292983617],
        ),
        (
            &[0.3737276466, -0.009337196248, -0.6, -0.5175, 0.7175, 0.8, 0.5411268199, 0.1434995073],
            &[0.986955155, -0.03002348577, 0.0, 0.69375, -0.69375, 0.0, 1.110791344, 0.4719737712],
        ),
    ];
    for (actions, (p, v)) in [[2, 4, 1, 2], [2, 4, 1, 4], [2, 4, 1, 2]].iter().zip(expected) {
        advance(&mut env, Actions::Discrete(actions), &mut observations);
        close("positions", env.world().positions[..4].as_flattened(), p, TEN_DIGITS);
        close("velocities", env.world().velocities.as_flattened(), v, TEN_DIGITS);
        assert_eq!(env.rewards_f64(), [0.0; 4]);
    }
    let prey = [
        1.110791,
        0.4719738,
        0.5411268,
        0.1434995,
        -0.5411268,
        0.1065005,
        -0.04112682,
        -0.7434995,
        -0.1673992,
        -0.1528367,
        -1.141127,
        -0.6609995,
        0.1763732,
        0.6565005,
    ];
    let got: Vec<f64> = observations[3 * 16..][..14].iter().map(|&x| f64::from(x)).collect();
    close("prey", &got, &prey, 1e-6);
    assert_eq!(observations[3 * 16 + 14..], [0.0; 2], "padding");
}

#[test]
fn continuous_spread_reproduces_two_published_steps() {
    let config = SimpleSpreadConfig { continuous_actions: true, ..Default::default() };
    let mut env = config.build().expect("the configuration is valid");
    let positions = [[0.0, 0.0], [0.6, 0.1], [-0.5, 0.5], [0.0, 0.0], [0.5, 0.5], [-0.5, -0.5]];
    let mut observations = place(&mut env, &positions, &[[0.0; 2]; 3]);
    let actions = [0.0, 0.2, 0.9, 0.1, 0.4, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.5, 0.0];
    advance(&mut env, Actions::Continuous(&actions), &mut observations);
    let first = [0.349999994, 0.150000006, 0.0, 0.5, -0.5, -0.25];
    close("velocities", env.world().velocities.as_flattened(), &first, 1e-9);
    close("rewards", env.rewards_f64(), &[-0.5597086719; 3], TEN_DIGITS);
    advance(&mut env, Actions::Continuous(&actions), &mut observations);
    let p = [0.0349999994, 0.0150000006, 0.6, 0.15, -0.55, 0.475];
    let v = [0.6124999896, 0.2625000104, 0.0, 0.875, -0.875, -0.4375];
    close("positions", env.world().positions[..3].as_flattened(), &p, 1e-9);
    close("velocities", env.world().velocities.as_flattened(), &v, 1e-9);
    close("rewards", env.rewards_f64(), &[-0.5723405774; 3], TEN_DIGITS);
}

#[test]
fn prey_outside_the_arena_pays_the_published_penalty() {
    let mut env = SimpleTagConfig::default().build().expect("defaults are valid");
    let positions = [[0.95, 0.0], [0.9, 0.05], [-0.6, -0.6], [1.0, 0.02], [0.0, 0.25], [0.5, -0.6]];
    let mut observations = place(&mut env, &positions, &[[0.0; 2], [0.0; 2], [0.0; 2], [1.2, 1.0]]);
    advance(&mut env, Actions::Discrete(&[0, 2, 0, 2]), &mut observations);
    let p = [0.95, 0.0, 0.9, 0.05, -0.6, -0.6, 1.12, 0.12];
    let v = [-0.09993569183, -0.8248985172, -0.4579430283, 0.6198450287, 0.0, 0.0, 1.188772175, 0.5261375452];
    close("positions", env.world().positions[..4].as_flattened(), &p, TEN_DIGITS);
    close("velocities", env.world().velocities.as_flattened(), &v, TEN_DIGITS);
    close("rewards", env.rewards_f64(), &[0.0, 0.0, 0.0, -0.24_f64.exp()], 1e-12);
}

#[test]
fn forests_hide_and_the_leader_speaks_as_published() {
    let mut env = SimpleWorldCommConfig::default().build().expect("defaults are valid");
    let positions = [
        [0.0, 0.0],
        [0.5, 0.5],
        [-0.5, 0.5],
        [0.6, -0.6],
        [0.1, 0.1],
        [-0.8, -0.8],
        [0.9, 0.9],
        [0.15, 0.1],
        [-0.7, -0.7],
        [0.05, 0.05],
        [-0.6, 0.4],
    ];
    let mut observations = place(&mut env, &positions, &[[0.0; 2]; 6]);
    advance(&mut env, Actions::Discrete(&[7, 0, 0, 3, 0, 4]), &mut observations);
    let rewards = [-0.01414213562, -0.05656854249, -0.07211102551, -0.08602325267, 1.9975, -0.007071067812];
    close("rewards", env.rewards_f64(), &rewards, TEN_DIGITS);
    let row = |agent: usize| -> Vec<f64> { observations[agent * 34..][..34].iter().map(|&x| f64::from(x)).collect() };
    close("leader", &row(0)[24..], &[0.0, 0.0, 0.0, 0.4, 1.0, -1.0, 0.0, 1.0, 0.0, 0.0], 1e-6);
    // adversary_0: v, p, five landmarks, then leader, two adversaries and the good agents.
    let outsider = row(1);
    close("hidden agent", &outsider[20..22], &[0.0, 0.0], 0.0);
    close("visible agent", &outsider[22..24], &[-1.3, -1.3], 1e-6);
    close("velocities", &outsider[24..28], &[0.0, 0.0, 0.0, 0.4], 1e-6);
}

#[test]
fn deception_reproduces_the_published_rewards() {
    let mut env = SimpleAdversaryConfig::default().build().expect("defaults are valid");
    let positions = [[0.0, 0.0], [0.5, 0.5], [-0.5, 0.5], [0.4, 0.4], [-0.3, 0.2]];
    let mut observations = place(&mut env, &positions, &[[0.0; 2]; 3]);
    env.world_mut().choices[0] = 1;
    advance(&mut env, Actions::Discrete(&[1, 1, 3]), &mut observations);
    close("rewards", env.rewards_f64(), &[-0.3605551275, 0.0, 0.0], TEN_DIGITS);
}
