//! How fast learners from replay train: joint environment steps per second, collection and gradient steps together, on one thread.
//!
//! ```text
//! RAYON_NUM_THREADS=1 cargo bench --bench off_policy [-- --json]
//! ```
//!
//! `qmix_spread_1env` has EPyMARL's schedule: after each episode of 25 steps in one environment a gradient step on as many
//! transitions as 32 episodes have; `qmix_spread_1env_256` the minibatch of 256 transitions of the recipe `spread-qmix`. Each figure is the
//! median of seven repetitions after a warm-up.

#![allow(clippy::print_stdout, reason = "a benchmark answers on standard output")]

use std::time::Instant;

use steadfast_agents::Learner;
use steadfast_agents::algorithms::maddpg::{Maddpg, MaddpgConfig};
use steadfast_agents::algorithms::q_learning::{MixerKind, QLearning, QLearningConfig};
use steadfast_agents::replay::ReplayConfig;
use steadfast_envs::particle::SimpleSpreadConfig;
use steadfast_envs::{ActMode, EnvConfig, EnvSpec, RolloutBatch, RolloutEngine, RolloutOptions, SeedTree, VectorEnv};

/// Joint steps of a repetition.
const STEPS: usize = 5000;

fn steps_per_second(slots: usize, build: impl FnOnce(&EnvSpec, SeedTree) -> Box<dyn Learner>) -> f64 {
    let seeds = SeedTree::new(1);
    let env = EnvConfig::SimpleSpread(SimpleSpreadConfig::default());
    let envs = (0..slots).map(|_| env.build().expect("a valid world")).collect();
    let vector = VectorEnv::new(envs, seeds.child("environment")).expect("equal worlds");
    let mut learner = build(vector.spec(), seeds.child("learner"));
    let options = RolloutOptions { with_state: learner.uses_state(), ..Default::default() };
    let mut engine = RolloutEngine::new(vector, seeds.child("policy"), options).expect("a state where it is asked for");
    let mut batch = RolloutBatch::default();
    let per_update = learner.rollout_steps() * slots;
    let mut rates: Vec<f64> = (0..8)
        .map(|_| {
            let start = Instant::now();
            let updates = STEPS.div_ceil(per_update);
            for _ in 0..updates {
                let steps = learner.rollout_steps();
                engine.collect(learner.policy(), steps, ActMode::Sample, &mut batch).expect("finite numbers");
                learner.update(&batch, 0.5).expect("finite numbers");
            }
            (updates * per_update) as f64 / start.elapsed().as_secs_f64()
        })
        .skip(1)
        .collect();
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

fn main() {
    let json = std::env::args().any(|a| a == "--json");
    let replay = |batch_size| ReplayConfig { capacity: 100_000, learning_starts: 800, batch_size, ..ReplayConfig::default() };
    let report = |case: &str, value: f64| {
        if json {
            println!("{{\"peer\": \"steadfast\", \"case\": \"{case}\", \"value\": {value:.1}, \"unit\": \"steps/s\"}}");
        } else {
            println!("{case:<28} {value:>12.0} steps/s");
        }
    };
    for (name, mixer) in [("qmix", MixerKind::Monotonic), ("vdn", MixerKind::Sum), ("iql", MixerKind::Independent)] {
        for (suffix, batch_size) in [("", 800), ("_256", 256)] {
            let config = QLearningConfig { mixer, replay: replay(batch_size), ..QLearningConfig::default() };
            let learner = |spec: &EnvSpec, seeds| -> Box<dyn Learner> {
                Box::new(QLearning::new(&config, None, None, spec, 1, seeds).expect("a valid learner"))
            };
            report(&format!("{name}_spread_1env{suffix}"), steps_per_second(1, learner));
        }
    }
    let config = MaddpgConfig { rollout_steps: 25, replay: replay(400), ..MaddpgConfig::default() };
    let learner = |spec: &EnvSpec, seeds| -> Box<dyn Learner> {
        Box::new(Maddpg::new(&config, None, None, spec, 1, seeds).expect("a valid learner"))
    };
    report("maddpg_spread_1env", steps_per_second(1, learner));
}
