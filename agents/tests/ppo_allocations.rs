//! A PPO update with the adversarial penalty asks for no memory once it has warmed up.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use steadfast_agents::algorithms::ppo::{Critic, Ppo, PpoConfig};
use steadfast_agents::regularizers::lipschitz::LipschitzConfig;
use steadfast_agents::returns::RewardScaling;
use steadfast_agents::team::RewardSharing;
use steadfast_agents::{Learner, RegularizerConfig};
use steadfast_envs::particle::{SimpleSpreadConfig, SimpleTagConfig};
use steadfast_envs::{ActMode, EnvConfig, RolloutBatch, RolloutEngine, RolloutOptions, SeedTree, VectorEnv};

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

/// Counts the allocations of each thread.
struct Counting;

// SAFETY: every call is passed on to the system allocator unchanged; counting touches no memory of the caller.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|n| n.set(n.get() + 1));
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(ptr, layout) }
    }
    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.with(|n| n.set(n.get() + 1));
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(ptr, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn collection_and_update_allocate_nothing_after_warm_up() {
    let continuous = SimpleSpreadConfig { continuous_actions: true, ..Default::default() };
    for env in [
        EnvConfig::SimpleSpread(SimpleSpreadConfig::default()),
        EnvConfig::SimpleSpread(continuous),
        EnvConfig::SimpleTag(SimpleTagConfig::default()),
    ] {
        let config = PpoConfig {
            rollout_steps: 50,
            epochs: 2,
            // Too small to be split over threads, so that the counter of this thread sees everything.
            minibatch_size: 128,
            critic: Critic::Central,
            agent_index: true,
            normalize_observations: true,
            reward_scaling: RewardScaling::ReturnStd,
            reward_sharing: RewardSharing::TeamMean,
            ..PpoConfig::default()
        };
        let penalty = LipschitzConfig { warmup_fraction: 0.0, probe_every: 1, ..Default::default() };
        let seeds = SeedTree::new(1);
        let worlds = (0..4).map(|_| env.build().expect("a valid world")).collect();
        let vector = VectorEnv::new(worlds, seeds.child("environment")).expect("equal worlds");
        let mut learner =
            Ppo::new(&config, Some(&RegularizerConfig::Lipschitz(penalty)), vector.spec(), 4, seeds).expect("a valid learner");
        let options = RolloutOptions { with_state: true, ..Default::default() };
        let mut engine = RolloutEngine::new(vector, seeds.child("policy"), options).expect("a state");
        let mut batch = RolloutBatch::default();
        let mut cycle = || {
            engine.collect(learner.policy(), 50, ActMode::Sample, &mut batch).expect("finite numbers");
            learner.update(&batch, 0.5).expect("finite numbers");
        };
        (0..3).for_each(|_| cycle());
        let before = ALLOCATIONS.with(Cell::get);
        cycle();
        assert_eq!(ALLOCATIONS.with(Cell::get) - before, 0, "{}", env.name());
    }
}
