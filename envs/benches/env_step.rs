//! Environment steps per second on one core, with random actions and with resets: the environment alone, and 64 of them
//! behind a [`VectorEnv`] on one thread, with the global state.
//!
//! `cargo bench -p steadfast-envs --bench env_step [NAME]`. Actions are drawn before the clock starts.

#![allow(clippy::print_stdout)]

use std::time::Instant;

use steadfast_envs::control::{AcrobotConfig, CartPoleConfig, MountainCarContinuousConfig, PendulumConfig};
use steadfast_envs::particle::{SimpleAdversaryConfig, SimpleSpreadConfig, SimpleTagConfig, SimpleWorldCommConfig};
use steadfast_envs::rollout::StepBuffers;
use steadfast_envs::testing::random_actions;
use steadfast_envs::{Actions, EnvConfig, Environment, Rng, SeedTree, StepOut, VectorEnv};

/// Actions drawn ahead of time, played in a circle.
const ACTIONS: usize = 4096;
const REPEATS: usize = 3;
/// Environments behind the vector environment.
const SLOTS: usize = 64;

struct Tape {
    discrete: Vec<u32>,
    continuous: Vec<f32>,
    agents: usize,
    width: usize,
    is_discrete: bool,
}

impl Tape {
    fn new(env: &dyn Environment) -> Self {
        let spec = env.spec();
        let (agents, width) = (spec.n_agents(), spec.action_width());
        let mut discrete = vec![0; ACTIONS * agents];
        let mut continuous = vec![0.0; ACTIONS * agents * width];
        let mut rng = Rng::from_seed(1);
        for step in 0..ACTIONS {
            random_actions(
                spec,
                &mut rng,
                &mut discrete[step * agents..(step + 1) * agents],
                &mut continuous[step * agents * width..(step + 1) * agents * width],
            );
        }
        Self { discrete, continuous, agents, width, is_discrete: spec.has_discrete_actions() }
    }

    /// The actions of step `step` when each step takes those of `slots` environments.
    fn at(&self, step: usize, slots: usize) -> Actions<'_> {
        let step = step % (ACTIONS / slots);
        if self.is_discrete {
            Actions::Discrete(&self.discrete).slot(step, slots * self.agents)
        } else {
            Actions::Continuous(&self.continuous).slot(step, slots * self.agents * self.width)
        }
    }
}

/// Steps per second of the environment alone, best of a few repeats.
fn alone(config: &EnvConfig, steps: usize) -> f64 {
    let mut env = config.build().expect("the configuration is valid");
    let tape = Tape::new(env.as_ref());
    let n = env.spec().n_agents();
    let mut observations = vec![0.0; n * env.spec().observation_width()];
    let mut rewards = vec![0.0; n];
    let mut best = 0.0_f64;
    for _ in 0..REPEATS {
        let seeds = SeedTree::new(7);
        let mut episode = 0;
        env.reset(seeds.index(episode).seed(), &mut observations);
        let start = Instant::now();
        for step in 0..steps {
            let mut out = StepOut { observations: &mut observations, rewards: &mut rewards, terminated: false, truncated: false };
            env.step(tape.at(step, 1), &mut out).expect("random actions are valid");
            if out.terminated || out.truncated {
                episode += 1;
                env.reset(seeds.index(episode).seed(), &mut observations);
            }
        }
        best = best.max(steps as f64 / start.elapsed().as_secs_f64());
    }
    std::hint::black_box(&observations);
    best
}

/// Steps per second, counted over all slots, behind a vector environment.
fn vector(config: &EnvConfig, steps: usize) -> f64 {
    let envs: Vec<_> = (0..SLOTS).map(|_| config.build().expect("the configuration is valid")).collect();
    let tape = Tape::new(envs[0].as_ref());
    let mut env = VectorEnv::new(envs, SeedTree::new(7)).expect("all slots are equal");
    let n = env.spec().n_agents();
    let mut observations = vec![0.0; SLOTS * n * env.spec().observation_width()];
    let mut states = vec![0.0; SLOTS * env.spec().state_dim];
    let mut rewards = vec![0.0; SLOTS * n];
    let (mut terminated, mut truncated) = (vec![false; SLOTS], vec![false; SLOTS]);
    let rounds = steps / SLOTS;
    let mut best = 0.0_f64;
    for _ in 0..REPEATS {
        env.reset(&mut observations, &mut states);
        let start = Instant::now();
        for round in 0..rounds {
            let out = StepBuffers {
                observations: &mut observations,
                states: &mut states,
                rewards: &mut rewards,
                terminated: &mut terminated,
                truncated: &mut truncated,
            };
            env.step(tape.at(round, SLOTS), out).expect("random actions are valid");
        }
        best = best.max((rounds * SLOTS) as f64 / start.elapsed().as_secs_f64());
    }
    best
}

fn main() {
    let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("one thread can be started");
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let continuous = SimpleSpreadConfig { continuous_actions: true, ..SimpleSpreadConfig::default() };
    let many = SimpleSpreadConfig { n_agents: 10, ..SimpleSpreadConfig::default() };
    let configs = [
        ("simple_spread", EnvConfig::SimpleSpread(SimpleSpreadConfig::default())),
        ("simple_spread_continuous", EnvConfig::SimpleSpread(continuous)),
        ("simple_spread_10", EnvConfig::SimpleSpread(many)),
        ("simple_tag", EnvConfig::SimpleTag(SimpleTagConfig::default())),
        ("simple_adversary", EnvConfig::SimpleAdversary(SimpleAdversaryConfig::default())),
        ("simple_world_comm", EnvConfig::SimpleWorldComm(SimpleWorldCommConfig::default())),
        ("cart_pole", EnvConfig::CartPole(CartPoleConfig::default())),
        ("pendulum", EnvConfig::Pendulum(PendulumConfig::default())),
        ("acrobot", EnvConfig::Acrobot(AcrobotConfig::default())),
        ("mountain_car_continuous", EnvConfig::MountainCarContinuous(MountainCarContinuousConfig::default())),
    ];
    println!("{:<26}{:>16}{:>16}", "joint steps/s", "alone", "vector");
    for (name, config) in configs {
        if wanted.is_empty() || wanted.iter().any(|w| name.contains(w.as_str())) {
            let vector = one_thread.install(|| vector(&config, 1_000_000));
            println!("{name:<26}{:>16.0}{vector:>16.0}", alone(&config, 1_000_000));
        }
    }
}
