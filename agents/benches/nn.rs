//! Small control networks on one core: microseconds per call and nanoseconds per sample, for every set of vector
//! instructions of this processor, beside the arithmetic floor measured with the same kernel in the same run.
//!
//! `cargo bench -p steadfast-agents --bench nn`. Pin the process (`taskset -c 0`) for steady figures. Each figure is the
//! median of 41 chunks of at least 2 ms, with the fastest chunk beside it: on a shared machine only that one measures the
//! code. Floor and ratio are of fastest chunks. A plain harness instead of criterion, because the floor belongs in the
//! same table. With `--json` the medians of the best instruction set are printed for `benches/peers/compare.py`.
#![allow(clippy::print_stdout, missing_docs)]

use std::hint::black_box;
use std::time::Instant;

use steadfast_agents::nn::categorical::{self, CategoricalWork};
use steadfast_agents::nn::{Activation, Adam, AdamConfig, Isa, Mlp, Trace, Workspace, clip_scale, exp_in_place, set_isa, squared_norm};
use steadfast_envs::{Rng, SeedTree};

/// Network A of the measurements: observation, hidden widths, actions.
const INPUT: usize = 18;
const HIDDEN: [usize; 2] = [64, 64];
const ACTIONS: usize = 5;

/// Seconds per call: median and fastest chunk.
fn measure(is_full: bool, mut f: impl FnMut()) -> [f64; 2] {
    if !is_full {
        let start = Instant::now();
        f();
        return [start.elapsed().as_secs_f64(); 2];
    }
    for _ in 0..3 {
        f();
    }
    let mut n = 1;
    loop {
        let start = Instant::now();
        (0..n).for_each(|_| f());
        if start.elapsed().as_secs_f64() > 2e-3 {
            break;
        }
        n *= 2;
    }
    let mut chunks: Vec<f64> = (0..41)
        .map(|_| {
            let start = Instant::now();
            (0..n).for_each(|_| f());
            start.elapsed().as_secs_f64() / f64::from(n)
        })
        .collect();
    chunks.sort_by(f64::total_cmp);
    [chunks[chunks.len() / 2], chunks[0]]
}

fn noise(n: usize, rng: &mut Rng) -> Vec<f32> {
    (0..n).map(|_| rng.normal_f32()).collect()
}

fn net(output: usize, rng: &mut Rng) -> Mlp {
    Mlp::new(INPUT, &HIDDEN, output, Activation::Tanh, 2.0_f32.sqrt(), 1.0, rng).expect("valid widths")
}

/// Weights of all layers, without biases: multiply-adds of a forward pass.
fn products(output: usize) -> f64 {
    (INPUT * HIDDEN[0] + HIDDEN[0] * HIDDEN[1] + HIDDEN[1] * output) as f64
}

/// Floating-point operations per sample of forward and weight gradients.
fn train_flop(output: usize) -> f64 {
    2.0 * (3.0 * products(output) - (INPUT * HIDDEN[0]) as f64)
}

struct Table {
    isa: Isa,
    peak: f64,
    json: bool,
}

impl Table {
    fn row(&self, name: &str, batch: usize, [median, fastest]: [f64; 2], flop_per_sample: f64) {
        if self.json {
            let case = match name {
                "forward" => "mlp_forward",
                "train" => "mlp_train",
                "forward + input gradient" => "mlp_input_gradient",
                "PPO step" => "ppo_step",
                _ => return,
            };
            println!("{{\"peer\": \"steadfast\", \"case\": \"{case}_b{batch}\", \"value\": {:.4}, \"unit\": \"us\"}}", median * 1e6);
            return;
        }
        let per_sample = fastest * 1e9 / batch as f64;
        let floor = flop_per_sample / self.peak * 1e9;
        println!(
            "{:>9} {name:<28} {batch:>6} {:>10.2} {:>10.2} {per_sample:>10.1} {floor:>10.1} {:>7.2}",
            format!("{:?}", self.isa),
            median * 1e6,
            fastest * 1e6,
            per_sample / floor
        );
    }
}

/// Everything a PPO minibatch step touches.
struct Ppo {
    actor: Mlp,
    critic: Mlp,
    traces: [Trace; 2],
    gradients: [Vec<f32>; 2],
    optimizers: [Adam; 2],
    work: CategoricalWork,
    buffers: [Vec<f32>; 6],
}

impl Ppo {
    fn new(rows: usize, rng: &mut Rng) -> Self {
        let (actor, critic) = (net(ACTIONS, rng), net(1, rng));
        Self {
            traces: [Trace::default(), Trace::default()],
            gradients: [vec![0.0; actor.n_parameters()], vec![0.0; critic.n_parameters()]],
            optimizers: [&actor, &critic].map(|n| Adam::new(n.n_parameters(), AdamConfig::default())),
            work: CategoricalWork::default(),
            buffers: [rows, rows, rows, rows, rows * ACTIONS, rows].map(|n| vec![0.0; n]),
            actor,
            critic,
        }
    }

    /// Clipped policy loss, entropy bonus, squared value error, both backward passes, joint clipping, Adam.
    fn step(&mut self, x: &[f32], actions: &[u32], old: &[f32], advantage: &[f32], target: &[f32]) {
        let rows = actions.len();
        let scale = 1.0 / rows as f32;
        let [trace, value_trace] = &mut self.traces;
        let [log_prob, entropy, d_log_prob, d_entropy, d_logits, d_value] = &mut self.buffers;
        self.actor.forward_train(x, rows, trace);
        self.critic.forward_train(x, rows, value_trace);
        categorical::evaluate(trace.output(), rows, ACTIONS, actions, log_prob, entropy, &mut self.work);
        for r in 0..rows {
            d_log_prob[r] = log_prob[r] - old[r];
        }
        exp_in_place(d_log_prob);
        for r in 0..rows {
            let ratio = d_log_prob[r];
            let is_clipped = if advantage[r] > 0.0 { ratio > 1.2 } else { ratio < 0.8 };
            d_log_prob[r] = if is_clipped { 0.0 } else { -scale * advantage[r] * ratio };
            d_entropy[r] = -0.01 * scale;
            d_value[r] = scale * (value_trace.output()[r] - target[r]);
        }
        d_logits.fill(0.0);
        categorical::backward(&self.work, actions, d_log_prob, d_entropy, d_logits);
        let [actor_gradient, critic_gradient] = &mut self.gradients;
        actor_gradient.fill(0.0);
        critic_gradient.fill(0.0);
        self.actor.backward(trace, d_logits, Some(actor_gradient), None);
        self.critic.backward(value_trace, d_value, Some(critic_gradient), None);
        let norm = (squared_norm(actor_gradient) + squared_norm(critic_gradient)).sqrt();
        let clip = clip_scale(norm, 0.5);
        let [actor_optimizer, critic_optimizer] = &mut self.optimizers;
        actor_optimizer.step(self.actor.parameters_mut(), actor_gradient, 3e-4, clip);
        critic_optimizer.step(self.critic.parameters_mut(), critic_gradient, 3e-4, clip);
    }
}

fn main() {
    // `cargo test --benches` runs this once, to see that it works.
    let is_full = std::env::args().any(|a| a == "--bench");
    let json = std::env::args().any(|a| a == "--json");
    let heading = format!(
        "{:>9} {:<28} {:>6} {:>10} {:>10} {:>10} {:>10} {:>7}",
        "isa", "what", "batch", "median us", "fastest us", "ns/sample", "floor ns", "ratio"
    );
    if !json {
        println!("{heading}");
    }
    // A word among the arguments, such as `avx2`, chooses one set.
    let wanted = |isa: Isa| {
        let names: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
        names.is_empty() || names.contains(&format!("{isa:?}").to_lowercase())
    };
    for isa in [Isa::Avx512, Isa::Avx2, Isa::Portable] {
        if !wanted(isa) || !set_isa(Some(isa)) {
            continue;
        }
        let mut rng = SeedTree::new(0).child("bench").rng();
        // The floor: the kernel on a matrix that stays in the first-level cache, no activation, no padding.
        let square = Mlp::new(64, &[], 64, Activation::Identity, 1.0, 1.0, &mut rng).expect("valid widths");
        let (x, mut out) = (noise(48 * 64, &mut rng), vec![0.0; 48 * 64]);
        let mut work = Workspace::default();
        let seconds = measure(is_full, || square.forward(black_box(&x), 48, &mut out, &mut work));
        let table = Table { isa, peak: 2.0 * 48.0 * 64.0 * 64.0 / seconds[1], json };
        if !json {
            println!("{:>9} kernel peak {:.1} GFLOP/s", format!("{isa:?}"), table.peak / 1e9);
        }

        let mut actor = net(ACTIONS, &mut rng);
        let forward_flop = 2.0 * products(ACTIONS);
        for rows in [1, 16, 64, 256, 2048] {
            let (x, mut out) = (noise(rows * INPUT, &mut rng), vec![0.0; rows * ACTIONS]);
            let seconds = measure(is_full, || actor.forward(black_box(&x), rows, &mut out, &mut work));
            table.row("forward", rows, seconds, forward_flop);
        }
        for rows in [1, 16, 64, 256, 2048] {
            let (x, mut trace) = (noise(rows * INPUT, &mut rng), Trace::default());
            let mut d_out = vec![0.0; rows * ACTIONS];
            let mut gradient = vec![0.0; actor.n_parameters()];
            let mut adam = Adam::new(actor.n_parameters(), AdamConfig::default());
            let seconds = measure(is_full, || {
                actor.forward_train(black_box(&x), rows, &mut trace);
                for (d, y) in d_out.iter_mut().zip(trace.output()) {
                    *d = y / rows as f32;
                }
                gradient.fill(0.0);
                actor.backward(&mut trace, &d_out, Some(&mut gradient), None);
                adam.step(actor.parameters_mut(), &gradient, 1e-4, 1.0);
            });
            table.row("train", rows, seconds, train_flop(ACTIONS));
            let mut d_input = vec![0.0; x.len()];
            let seconds = measure(is_full, || {
                actor.forward_train(black_box(&x), rows, &mut trace);
                actor.backward(&mut trace, &d_out, None, Some(&mut d_input));
            });
            table.row("forward + input gradient", rows, seconds, 2.0 * forward_flop);
        }
        for rows in [64, 256, 2048] {
            let (logits, d) = (noise(rows * ACTIONS, &mut rng), noise(rows, &mut rng));
            let actions: Vec<u32> = (0..rows).map(|_| rng.below(ACTIONS) as u32).collect();
            let [mut log_prob, mut entropy] = [vec![0.0; rows], vec![0.0; rows]];
            let mut d_logits = vec![0.0; rows * ACTIONS];
            let mut work = CategoricalWork::default();
            let seconds = measure(is_full, || {
                categorical::evaluate(black_box(&logits), rows, ACTIONS, &actions, &mut log_prob, &mut entropy, &mut work);
                categorical::backward(&work, &actions, &d, &d, &mut d_logits);
            });
            table.row("categorical value + gradient", rows, seconds, f64::NAN);
            let mut ppo = Ppo::new(rows, &mut rng);
            let x = noise(rows * INPUT, &mut rng);
            let (advantage, target) = (noise(rows, &mut rng), noise(rows, &mut rng));
            let old = vec![-(ACTIONS as f32).ln(); rows];
            let seconds = measure(is_full, || ppo.step(black_box(&x), &actions, &old, &advantage, &target));
            table.row("PPO step", rows, seconds, train_flop(ACTIONS) + train_flop(1));
        }
        let mut adam = Adam::new(actor.n_parameters(), AdamConfig::default());
        let gradient = noise(actor.n_parameters(), &mut rng);
        let seconds = measure(is_full, || adam.step(actor.parameters_mut(), black_box(&gradient), 0.0, 1.0));
        table.row("Adam", 1, seconds, f64::NAN);
        set_isa(None);
        if json {
            // The first set that exists is the one that training uses.
            break;
        }
    }
}
