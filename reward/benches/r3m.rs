//! What R3M adds to a training step: the same step of a reward network with cross-entropy and with R3M, in turns in the
//! same run, and the losses of a batch of margins alone.
//!
//! `cargo bench -p steadfast-reward --bench r3m [-- --json]`. Pin the process (`taskset -c 0`) for steady figures. The
//! losses take turns step by step, each beginning one round in turn, so that drift falls on all alike. Compared are the
//! lower deciles of the steps' times: on a shared machine the slower ones measure the other work.
//! `cross_entropy_again` is the difference of cross-entropy to itself, measured in the same way: what the method cannot
//! tell apart from 0. A plain harness instead of criterion, because turns are the point.

#![allow(clippy::print_stdout, reason = "a benchmark answers on standard output")]

use std::hint::black_box;
use std::time::Instant;

use steadfast_envs::{Rng, SeedTree};
use steadfast_reward::model::{ActionKind, MlpReward, MlpRewardConfig, RewardModel, SegmentSpec};
use steadfast_reward::{LossConfig, LossValue, MarginLoss, R3mConfig, Segment, SegmentPair};

/// A HalfCheetah-sized task in segments of B-Pref's length.
const SPEC: SegmentSpec = SegmentSpec { observation_width: 17, action: ActionKind::Continuous { width: 6 } };
const STEPS: usize = 50;
const BATCH: usize = 64;

fn segment(rng: &mut Rng) -> Segment {
    let mut draw = |n: usize| (0..n).map(|_| rng.normal_f32()).collect::<Vec<f32>>();
    Segment { steps: STEPS, observations: draw(STEPS * 17), actions: draw(STEPS * 6), ..Segment::default() }
}

fn lower_decile(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 10]
}

fn report(json: bool, case: &str, value: f64, unit: &str) {
    if json {
        println!("{{\"peer\": \"steadfast\", \"case\": \"{case}\", \"value\": {value:.4}, \"unit\": \"{unit}\"}}");
    } else {
        println!("{case:<34} {value:>12.4} {unit}");
    }
}

/// A model in training with one loss.
struct Arm {
    model: MlpReward,
    loss: MarginLoss,
}

impl Arm {
    /// Seconds of a step.
    fn step(&mut self, pairs: &[&SegmentPair], equal: &[bool]) -> f64 {
        let start = Instant::now();
        let loss = &self.loss;
        let mut evaluate = |margins: &[f32], out: &mut [LossValue]| loss.batch(margins, equal, out);
        // A rate of almost nothing: all arms stay at the same weights, and see the same margins, for the whole run.
        self.model.step(black_box(pairs), &mut evaluate, 1e-12).expect("finite margins");
        start.elapsed().as_secs_f64()
    }
}

fn main() {
    // `cargo test --benches` runs this once, to see that it works.
    let is_full = std::env::args().any(|a| a == "--bench");
    let json = std::env::args().any(|a| a == "--json");
    let seeds = SeedTree::new(0);
    let mut rng = seeds.child("data").rng();
    let data: Vec<SegmentPair> = (0..BATCH).map(|_| SegmentPair { chosen: segment(&mut rng), rejected: segment(&mut rng) }).collect();
    let (pairs, equal): (Vec<&SegmentPair>, Vec<bool>) = (data.iter().collect(), vec![false; BATCH]);
    let losses =
        [LossConfig::CrossEntropy(Default::default()), LossConfig::R3m(R3mConfig::default()), LossConfig::CrossEntropy(Default::default())]
            .map(|config| config.build().expect("default settings are valid"));
    let mut arms = losses.map(|loss| {
        let mut model = MlpReward::new(&MlpRewardConfig::default(), SPEC, seeds.child("model")).expect("valid settings");
        model.prepare(&pairs).expect("finite segments");
        Arm { model, loss }
    });

    let rounds = if is_full { 3000 } else { 1 };
    let mut seconds = vec![[0.0; 3]; rounds];
    for (round, seconds) in seconds.iter_mut().enumerate() {
        for turn in 0..3 {
            let arm = (round + turn) % 3;
            seconds[arm] = arms[arm].step(&pairs, &equal);
        }
    }
    let [plain, robust, again] = [0, 1, 2].map(|arm| lower_decile(seconds.iter().map(|s| s[arm]).collect()));
    report(json, "reward_step_cross_entropy", 1e6 * plain, "us");
    report(json, "reward_step_r3m", 1e6 * robust, "us");
    report(json, "reward_step_r3m_excess", 100.0 * (robust / plain - 1.0), "percent");
    report(json, "reward_step_cross_entropy_again", 100.0 * (again / plain - 1.0), "percent");

    let margins: Vec<f32> = (0..BATCH).map(|_| 2.0 * rng.normal_f32()).collect();
    let mut out = vec![LossValue::default(); BATCH];
    for (name, loss) in [("cross_entropy", losses[0]), ("r3m", losses[1])] {
        let (chunks, calls) = if is_full { (101, 2000) } else { (1, 1) };
        let per_pair = (0..chunks).map(|_| {
            let start = Instant::now();
            (0..calls).for_each(|_| loss.batch(black_box(&margins), &equal, black_box(&mut out)));
            start.elapsed().as_secs_f64() / (calls * BATCH) as f64
        });
        report(json, &format!("margin_loss_{name}"), 1e9 * lower_decile(per_pair.collect()), "ns per pair");
    }
}
