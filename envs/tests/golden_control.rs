//! Classic control against transitions of Gymnasium, written by `python tests/golden/generate/classic.py`.

use serde::Deserialize;
use serde_json::Value;
use steadfast_envs::control::{
    Acrobot, AcrobotConfig, CartPole, CartPoleConfig, MountainCarContinuous, MountainCarContinuousConfig, Pendulum, PendulumConfig,
};
use steadfast_envs::{Actions, Environment, StepOut};

#[derive(Deserialize)]
struct Fixture {
    header: Header,
    groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Header {
    tolerance: Tolerance,
}

#[derive(Deserialize)]
struct Tolerance {
    observations: f64,
    state: f64,
    rewards: f64,
}

#[derive(Deserialize)]
struct Group {
    env: String,
    config: Value,
    horizon: usize,
    episodes: Vec<Episode>,
}

#[derive(Deserialize)]
struct Episode {
    start: Vec<f64>,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
struct Step {
    action: f64,
    observation: Vec<f64>,
    state: Vec<f64>,
    reward: f64,
    terminated: bool,
}

/// An environment whose state can be set and read.
trait Placed: Environment {
    fn place(&mut self, state: &[f64]);
    fn read(&self) -> Vec<f64>;
    /// The last reward in double precision, if it does not fit single precision.
    fn exact_reward(&self) -> Option<f64>;
}

/// The environments whose state is an array in double precision.
macro_rules! placed {
    ($env:ty, $exact_reward:expr) => {
        impl Placed for $env {
            fn place(&mut self, state: &[f64]) {
                self.set_physical_state(state.try_into().expect("as many numbers as coordinates"));
            }
            fn read(&self) -> Vec<f64> {
                self.physical_state().to_vec()
            }
            fn exact_reward(&self) -> Option<f64> {
                let exact_reward: fn(&Self) -> Option<f64> = $exact_reward;
                exact_reward(self)
            }
        }
    };
}

placed!(CartPole, |_| None);
placed!(Acrobot, |_| None);
placed!(Pendulum, |env| Some(env.reward_f64()));

impl Placed for MountainCarContinuous {
    fn place(&mut self, state: &[f64]) {
        self.set_physical_state([state[0] as f32, state[1] as f32]);
    }
    fn read(&self) -> Vec<f64> {
        self.physical_state().iter().map(|&x| f64::from(x)).collect()
    }
    fn exact_reward(&self) -> Option<f64> {
        Some(self.reward_f64())
    }
}

fn build(name: &str, config: &Value) -> Box<dyn Placed> {
    let config = config.clone();
    let expected = "the configuration is ours and valid";
    match name {
        "cart_pole" => Box::new(serde_json::from_value::<CartPoleConfig>(config).expect(expected).build().expect(expected)),
        "pendulum" => Box::new(serde_json::from_value::<PendulumConfig>(config).expect(expected).build().expect(expected)),
        "acrobot" => Box::new(serde_json::from_value::<AcrobotConfig>(config).expect(expected).build().expect(expected)),
        "mountain_car_continuous" => {
            Box::new(serde_json::from_value::<MountainCarContinuousConfig>(config).expect(expected).build().expect(expected))
        }
        other => panic!("no environment {other}"),
    }
}

fn close(what: &str, got: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len(), "{what}: length");
    for (i, (g, e)) in got.iter().zip(expected).enumerate() {
        assert!((g - e).abs() <= tolerance * e.abs().max(1.0), "{what}[{i}]: got {g}, expected {e}");
    }
}

#[test]
fn transitions_match_gymnasium() {
    let path = format!("{}/../tests/golden/classic.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let fixture: Fixture = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{path}: {e}"));
    let tolerance = &fixture.header.tolerance;
    let mut terminations = std::collections::BTreeMap::new();
    for group in &fixture.groups {
        let mut env = build(&group.env, &group.config);
        let spec = env.spec().clone();
        assert_eq!((spec.name.as_str(), spec.horizon), (group.env.as_str(), group.horizon));
        let mut observations = vec![0.0; spec.observation_width()];
        let mut rewards = [0.0];
        for (number, episode) in group.episodes.iter().enumerate() {
            env.reset(number as u64, &mut observations);
            env.place(&episode.start);
            for (time, step) in episode.steps.iter().enumerate() {
                let place = format!("{} {} episode {number} step {time}", group.env, group.config);
                let index = [step.action as u32];
                let number = [step.action as f32];
                let actions = if spec.has_discrete_actions() { Actions::Discrete(&index) } else { Actions::Continuous(&number) };
                let mut out = StepOut { observations: &mut observations, rewards: &mut rewards, terminated: false, truncated: false };
                env.step(actions, &mut out).expect("the action is valid");
                assert_eq!(out.terminated, step.terminated, "{place}");
                close(&format!("{place} state"), &env.read(), &step.state, tolerance.state);
                let got: Vec<f64> = observations.iter().map(|&x| f64::from(x)).collect();
                close(&format!("{place} observation"), &got, &step.observation, tolerance.observations);
                let reward = env.exact_reward().unwrap_or(f64::from(rewards[0]));
                close(&format!("{place} reward"), &[reward], &[step.reward], tolerance.rewards);
                close(&format!("{place} rounded reward"), &[f64::from(rewards[0])], &[step.reward], tolerance.observations);
                *terminations.entry(group.env.clone()).or_insert(0) += u32::from(step.terminated);
            }
        }
    }
    // The fixture covers the ends of the tasks that end.
    for name in ["cart_pole", "acrobot", "mountain_car_continuous"] {
        assert!(terminations[name] > 0, "{name} never terminated");
    }
}

#[test]
fn resets_are_uniform_over_the_reference_ranges() {
    let cases: [(&str, Vec<(f64, f64)>); 4] = [
        ("cart_pole", vec![(-0.05, 0.05); 4]),
        ("pendulum", vec![(-std::f64::consts::PI, std::f64::consts::PI), (-1.0, 1.0)]),
        ("acrobot", vec![(-0.1, 0.1); 4]),
        ("mountain_car_continuous", vec![(-0.6, -0.4), (0.0, 0.0)]),
    ];
    for (name, ranges) in cases {
        let mut env = build(name, &serde_json::json!({}));
        let mut observations = vec![0.0; env.spec().observation_width()];
        let n = 4000;
        let mut moments = vec![(0.0, 0.0); ranges.len()];
        for seed in 0..n {
            env.reset(seed, &mut observations);
            for ((value, (low, high)), moment) in env.read().into_iter().zip(&ranges).zip(&mut moments) {
                assert!((low - 1e-6..=high + 1e-6).contains(&value), "{name}: {value}");
                moment.0 += value / n as f64;
                moment.1 += value * value / n as f64;
            }
        }
        for ((mean, square), (low, high)) in moments.into_iter().zip(ranges) {
            let width = high - low;
            assert!((mean - (low + high) / 2.0).abs() <= 0.02 * width, "{name}: mean {mean}");
            assert!((square - mean * mean - width * width / 12.0).abs() <= 0.01 * width * width, "{name}: variance");
        }
    }
}

#[test]
fn cart_pole_without_gravity_and_push_keeps_its_velocities() {
    let config = CartPoleConfig { gravity: 0.0, force: 0.0, ..CartPoleConfig::default() };
    let mut env = config.build().expect("the configuration is valid");
    let mut observations = [0.0; 4];
    env.reset(0, &mut observations);
    env.set_physical_state([0.0, 0.5, 0.0, 0.0]);
    let mut rewards = [0.0];
    let mut out = StepOut { observations: &mut observations, rewards: &mut rewards, terminated: false, truncated: false };
    env.step(Actions::Discrete(&[1]), &mut out).expect("the action is valid");
    assert_eq!(env.physical_state(), [0.01, 0.5, 0.0, 0.0]);
}
