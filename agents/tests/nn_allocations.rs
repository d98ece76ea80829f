//! After a warm-up, nothing in an update allocates memory. A binary of its own: the allocator counts for the process.
#![allow(clippy::unwrap_used, missing_docs)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use steadfast_agents::nn::categorical::{self, CategoricalWork};
use steadfast_agents::nn::gaussian::{self, GaussianWork, KlGradients};
use steadfast_agents::nn::squashed_gaussian::{self, ActionBox, SquashedWork};
use steadfast_agents::nn::{
    Activation, Adam, AdamConfig, Mlp, RewardScale, RunningNorm, Trace, Workspace, clip_scale, distance, squared_norm,
};
use steadfast_envs::Rng;

thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: the caller's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: the caller's contract.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(f: impl FnOnce()) -> usize {
    let before = COUNT.get();
    f();
    COUNT.get() - before
}

#[test]
fn an_update_allocates_nothing_after_warm_up() {
    let mut rng = Rng::from_seed(1);
    let (rows, input, n) = (130, 18, 5);
    let mut net = Mlp::new(input, &[64, 64], n, Activation::Tanh, 1.4, 1.0, &mut rng).unwrap();
    let mut adam = Adam::new(net.n_parameters(), AdamConfig::default());
    let mut gradient = vec![0.0; net.n_parameters()];
    let x: Vec<f32> = (0..rows * input).map(|_| rng.normal_f32()).collect();
    let actions: Vec<u32> = (0..rows).map(|_| rng.below(n) as u32).collect();
    let [mut a, mut b, mut c] = [vec![0.0; rows * n], vec![0.0; rows * n], vec![0.0; rows * n]];
    let [mut log_prob, mut entropy] = [vec![0.0; rows], vec![0.0; rows]];
    let mut d_input = vec![0.0; rows * input];
    let (mut work, mut trace) = (Workspace::default(), Trace::default());
    let (mut categorical_work, mut gaussian_work, mut squashed_work) =
        (CategoricalWork::default(), GaussianWork::default(), SquashedWork::default());
    let bounds = ActionBox::new(&[-1.0; 5], &[1.0; 5]).unwrap();
    let (log_std, mut d_log_std) = ([0.1; 5], [0.0; 5]);
    let (mut norm, mut scale) = (RunningNorm::new(input), RewardScale::of_returns(rows, 0.99));
    let ended = vec![false; rows];
    let mut update = |rng: &mut Rng| {
        net.forward(&x, rows, &mut a, &mut work);
        net.forward(&x[..input], 1, &mut a[..n], &mut work);
        for row in a.chunks(n) {
            categorical::sample(row, rng);
            categorical::greedy(row);
        }
        net.forward_train(&x, rows, &mut trace);
        categorical::evaluate(trace.output(), rows, n, &actions, &mut log_prob, &mut entropy, &mut categorical_work);
        categorical::backward(&categorical_work, &actions, &log_prob, &entropy, &mut b);
        categorical::kl(trace.output(), &a, rows, n, &mut entropy, 0.1, Some(&mut b), Some(&mut c));
        distance::squared_l2(trace.output(), &a, rows, n, &mut entropy, 0.1, Some(&mut b), Some(&mut c));
        gaussian::evaluate(trace.output(), &log_std, rows, &a, &mut log_prob, &mut entropy, &mut gaussian_work);
        gaussian::backward(&gaussian_work, &log_prob, &entropy, &mut b, &mut d_log_std);
        gaussian::kl(&a, &log_std, &b, &log_std, rows, &mut log_prob, 0.1, KlGradients::default());
        squashed_gaussian::evaluate(&a, &log_std, &bounds, rows, &b, &mut log_prob, &mut squashed_work);
        squashed_gaussian::backward(&squashed_work, &log_prob, &mut c, &mut d_log_std);
        gradient.fill(0.0);
        net.backward(&mut trace, &b, Some(&mut gradient), Some(&mut d_input));
        let clip = clip_scale(squared_norm(&gradient).sqrt(), 0.5);
        adam.step(net.parameters_mut(), &gradient, 1e-3, clip);
        norm.update(&x);
        norm.normalize(&x, &mut d_input, 10.0);
        scale.update(&log_prob, &ended);
        scale.normalize(&mut entropy, 10.0);
    };
    assert!(allocations(|| update(&mut rng)) > 0, "the counter must see the warm-up");
    update(&mut rng);
    assert_eq!(allocations(|| (0..5).for_each(|_| update(&mut rng))), 0);
}
