//! How fast PPO trains, and what ERNIE adds to an update.
//!
//! ```text
//! RAYON_NUM_THREADS=1 cargo bench --bench ppo [-- --json]
//! ```
//!
//! Steps per second count collection and update together, as the peers' scripts in `benches/peers` do, on one thread.
//! Each figure is the median of several runs after a warm-up. The cost of ERNIE is measured in the same process,
//! alternating with the plain update, on the same rollout.

#![allow(clippy::print_stdout, reason = "a benchmark answers on standard output")]

use std::time::Instant;

use steadfast_agents::algorithms::ppo::{Critic, Ppo, PpoConfig};
use steadfast_agents::regularizers::lipschitz::{Gradient, LipschitzConfig};
use steadfast_agents::schedule::Schedule;
use steadfast_agents::{Learner, RegularizerConfig};
use steadfast_envs::particle::SimpleSpreadConfig;
use steadfast_envs::{ActMode, EnvConfig, RolloutBatch, RolloutEngine, RolloutOptions, SeedTree, VectorEnv};

struct Run {
    engine: RolloutEngine,
    learner: Ppo,
    batch: RolloutBatch,
}

impl Run {
    fn new(env: &EnvConfig, slots: usize, config: &PpoConfig, regularizer: Option<&RegularizerConfig>) -> Self {
        let seeds = SeedTree::new(1);
        let envs = (0..slots).map(|_| env.build().expect("a valid world")).collect();
        let vector = VectorEnv::new(envs, seeds.child("environment")).expect("equal worlds");
        let learner = Ppo::new(config, regularizer, vector.spec(), slots, seeds.child("learner")).expect("a valid learner");
        let options = RolloutOptions { with_state: learner.uses_state(), ..Default::default() };
        let engine = RolloutEngine::new(vector, seeds.child("policy"), options).expect("a state where it is asked for");
        Self { engine, learner, batch: RolloutBatch::default() }
    }

    fn collect(&mut self) {
        let steps = self.learner.rollout_steps();
        self.engine.collect(self.learner.policy(), steps, ActMode::Sample, &mut self.batch).expect("finite numbers");
    }

    fn update(&mut self) {
        self.learner.update(&self.batch, 0.5).expect("finite numbers");
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn report(json: bool, case: &str, value: f64, unit: &str) {
    if json {
        println!("{{\"peer\": \"steadfast\", \"case\": \"{case}\", \"value\": {value:.3}, \"unit\": \"{unit}\"}}");
    } else {
        println!("{case:<28} {value:>14.3} {unit}");
    }
}

/// Steps per second of collection and update together, over at least `steps` steps per repetition.
fn steps_per_second(slots: usize, config: &PpoConfig, steps: usize) -> f64 {
    let mut run = Run::new(&EnvConfig::CartPole(Default::default()), slots, config, None);
    let per_update = config.rollout_steps * slots;
    let rate = |run: &mut Run| {
        let start = Instant::now();
        let updates = steps.div_ceil(per_update);
        for _ in 0..updates {
            run.collect();
            run.update();
        }
        (updates * per_update) as f64 / start.elapsed().as_secs_f64()
    };
    rate(&mut run);
    median((0..7).map(|_| rate(&mut run)).collect())
}

fn main() {
    let json = std::env::args().any(|a| a == "--json");
    // The pool must not be larger than the peers' single thread.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("one thread");
    pool.install(|| {
        let sb3 = PpoConfig::default();
        report(json, "ppo_cartpole_sb3_1env", steps_per_second(1, &sb3, 16_384), "steps/s");
        report(json, "ppo_cartpole_sb3_8env", steps_per_second(8, &sb3, 16_384), "steps/s");
        let cleanrl = PpoConfig {
            rollout_steps: 128,
            minibatch_size: 128,
            epochs: 4,
            learning_rate: 2.5e-4,
            learning_rate_schedule: Schedule::Linear,
            value_clip_range: Some(0.2),
            entropy_coefficient: 0.01,
            ..PpoConfig::default()
        };
        report(json, "ppo_cartpole_cleanrl_4env", steps_per_second(4, &cleanrl, 40_960), "steps/s");
        ernie_cost(json, Critic::Local, "ippo");
        ernie_cost(json, Critic::Central, "mappo");
    });
}

/// Time of an update with K ascent steps over that of the plain one, on `simple_spread`. A central critic sees 54 numbers
/// instead of 18 and has no part in the penalty, so that the plain update costs more and the penalty weighs less.
fn ernie_cost(json: bool, critic: Critic, host: &str) {
    let env = EnvConfig::SimpleSpread(SimpleSpreadConfig::default());
    let config = PpoConfig { rollout_steps: 128, minibatch_size: 1024, epochs: 4, critic, ..PpoConfig::default() };
    let with = |steps: usize| RegularizerConfig::Lipschitz(LipschitzConfig { steps, warmup_fraction: 0.0, ..LipschitzConfig::default() });
    let stackelberg = RegularizerConfig::Lipschitz(LipschitzConfig {
        gradient: Gradient::Stackelberg,
        warmup_fraction: 0.0,
        ..LipschitzConfig::default()
    });
    let mut runs: Vec<Run> =
        [None, Some(with(1)), Some(with(5)), Some(stackelberg)].iter().map(|r| Run::new(&env, 32, &config, r.as_ref())).collect();
    let mut times = vec![Vec::new(); runs.len()];
    runs.iter_mut().for_each(Run::collect);
    for repetition in 0..12 {
        for (run, times) in runs.iter_mut().zip(&mut times) {
            let start = Instant::now();
            run.update();
            if repetition > 1 {
                times.push(start.elapsed().as_secs_f64());
            }
        }
    }
    let samples = (128 * 32 * 3 * config.epochs) as f64;
    let plain = median(times[0].clone());
    report(json, &format!("update_{host}_plain"), 1e9 * plain / samples, "ns/sample");
    for (steps, times) in [("k1", &times[1]), ("k5", &times[2]), ("stackelberg_k1", &times[3])] {
        let case = format!("update_{host}_ernie_{steps}");
        let time = median(times.clone());
        report(json, &case, 1e9 * time / samples, "ns/sample");
        report(json, &format!("{case}_over_plain"), time / plain, "ratio");
    }
}
