//! Environment steps per second on one core, with random actions and with resets: the environment alone, and 64 of them
//! behind a [`VectorEnv`] on one thread, with the global state.
//!
//! `cargo bench -p steadfast-envs --bench env_step -- [--json] [NAME]...`. Actions are drawn before the clock starts. Each
//! figure is the median of five repetitions after one that is not counted. With `--json` one line per case that other
//! systems are compared on, behind the vector environment, in the schema of `benches/peers/README.md`.

#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::process::ExitCode;
use std::time::Instant;

use steadfast_envs::control::{AcrobotConfig, CartPoleConfig, MountainCarContinuousConfig, PendulumConfig};
use steadfast_envs::particle::{SimpleAdversaryConfig, SimpleSpreadConfig, SimpleTagConfig, SimpleWorldCommConfig};
use steadfast_envs::rollout::StepBuffers;
use steadfast_envs::testing::random_actions;
use steadfast_envs::{Actions, EnvConfig, Environment, Rng, SeedTree, StepOut, VectorEnv};

/// Actions drawn ahead of time, played in a circle.
const ACTIONS: usize = 4096;
const REPEATS: usize = 5;
/// Steps of a repetition.
const STEPS: usize = 1_000_000;
/// Steps of a repetition where the program is only tried, without the `--bench` that `cargo bench` passes.
const TRIAL_STEPS: usize = 1_000;
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

/// Steps per second of each repetition.
struct Rates {
    wall: Vec<f64>,
    /// By the CPU time of the thread; empty where the system does not tell it.
    cpu: Vec<f64>,
}

impl Rates {
    /// Times `work`, which makes `steps` steps on the calling thread.
    fn of(steps: usize, mut work: impl FnMut()) -> Self {
        work();
        let mut rates = Self { wall: Vec::with_capacity(REPEATS), cpu: Vec::with_capacity(REPEATS) };
        for _ in 0..REPEATS {
            let (start, cpu_start) = (Instant::now(), cpu_seconds());
            work();
            rates.wall.push(steps as f64 / start.elapsed().as_secs_f64());
            if let (Some(before), Some(after)) = (cpu_start, cpu_seconds())
                && after > before
            {
                rates.cpu.push(steps as f64 / (after - before));
            }
        }
        rates
    }
}

/// CPU time of the calling thread, where Linux tells it.
fn cpu_seconds() -> Option<f64> {
    let line = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    let nanoseconds: f64 = line.split_whitespace().next()?.parse().ok()?;
    Some(nanoseconds * 1e-9)
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// Steps per second of the environment alone.
fn alone(config: &EnvConfig, steps: usize) -> Rates {
    let mut env = config.build().expect("the configuration is valid");
    let tape = Tape::new(env.as_ref());
    let n = env.spec().n_agents();
    let mut observations = vec![0.0; n * env.spec().observation_width()];
    let mut rewards = vec![0.0; n];
    let seeds = SeedTree::new(7);
    let rates = Rates::of(steps, || {
        let mut episode = 0;
        env.reset(seeds.index(episode).seed(), &mut observations);
        for step in 0..steps {
            let mut out = StepOut { observations: &mut observations, rewards: &mut rewards, terminated: false, truncated: false };
            env.step(tape.at(step, 1), &mut out).expect("random actions are valid");
            if out.terminated || out.truncated {
                episode += 1;
                env.reset(seeds.index(episode).seed(), &mut observations);
            }
        }
    });
    std::hint::black_box(&observations);
    rates
}

/// Steps per second, counted over all slots, behind a vector environment.
fn vector(config: &EnvConfig, steps: usize) -> Rates {
    let envs: Vec<_> = (0..SLOTS).map(|_| config.build().expect("the configuration is valid")).collect();
    let tape = Tape::new(envs[0].as_ref());
    let mut env = VectorEnv::new(envs, SeedTree::new(7)).expect("all slots are equal");
    let n = env.spec().n_agents();
    let mut observations = vec![0.0; SLOTS * n * env.spec().observation_width()];
    let mut states = vec![0.0; SLOTS * env.spec().state_dim];
    let mut rewards = vec![0.0; SLOTS * n];
    let (mut terminated, mut truncated) = (vec![false; SLOTS], vec![false; SLOTS]);
    let rounds = steps / SLOTS;
    Rates::of(rounds * SLOTS, || {
        env.reset(&mut observations, &mut states);
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
    })
}

/// Name of a case in comparisons with other systems.
fn case_of(name: &str) -> Option<&'static str> {
    match name {
        "simple_spread" => Some("simple_spread_steps"),
        "simple_tag" => Some("simple_tag_steps"),
        "cart_pole" => Some("cartpole_steps"),
        "pendulum" => Some("pendulum_steps"),
        _ => None,
    }
}

/// The result line of a case.
fn result_line(case: &str, rates: &Rates) -> serde_json::Value {
    let mut line = serde_json::json!({
        "peer": "steadfast",
        "case": case,
        "value": median(&rates.wall),
        "unit": "steps/s",
        "samples": rates.wall,
        "envs": SLOTS,
        "versions": { "steadfast": env!("CARGO_PKG_VERSION") },
    });
    if rates.cpu.len() == REPEATS {
        line["cpu_value"] = median(&rates.cpu).into();
    }
    line
}

fn main() -> ExitCode {
    let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("one thread can be started");
    let (mut steps, mut is_json, mut wanted) = (TRIAL_STEPS, false, Vec::new());
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--bench" => steps = STEPS,
            "--json" => is_json = true,
            option if option.starts_with('-') => {
                eprintln!("unknown option `{option}`: expected [--json] [NAME]...");
                return ExitCode::from(2);
            }
            _ => wanted.push(argument),
        }
    }
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
    if !is_json {
        println!("{:<26}{:>16}{:>16}", "joint steps/s", "alone", "vector");
    }
    for (name, config) in configs {
        if !wanted.is_empty() && !wanted.iter().any(|w| name.contains(w.as_str())) {
            continue;
        }
        if is_json {
            if let Some(case) = case_of(name) {
                println!("{}", result_line(case, &one_thread.install(|| vector(&config, steps))));
            }
        } else {
            let vector = one_thread.install(|| vector(&config, steps));
            println!("{name:<26}{:>16.0}{:>16.0}", median(&alone(&config, steps).wall), median(&vector.wall));
        }
    }
    ExitCode::SUCCESS
}
