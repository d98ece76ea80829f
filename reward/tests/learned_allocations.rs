//! After a warm-up, a learned reward allocates no memory. A binary of its own: the allocator counts for the process.
#![allow(clippy::unwrap_used, missing_docs)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use steadfast_envs::{RewardFn, SeedTree, Space, Transition};
use steadfast_reward::model::{ActionKind, MlpReward, MlpRewardConfig, RewardModel, SegmentSpec};
use steadfast_reward::{LearnedReward, Segment, SegmentPair};

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

#[test]
fn a_learned_reward_allocates_nothing_per_step() {
    let spaces = [Space::Discrete { n: 3 }, Space::interval(3, -1.0, 1.0)];
    for space in spaces {
        let spec = SegmentSpec { observation_width: 4, action: ActionKind::of(&space) };
        let config = MlpRewardConfig { ensemble: 3, bounded_output: true, ..Default::default() };
        let mut model = MlpReward::new(&config, spec, SeedTree::new(0)).unwrap();
        let segment = Segment {
            steps: 2,
            observations: (0..8).map(|i| i as f32).collect(),
            actions: vec![1.0; 2 * spec.action.width()],
            ..Segment::default()
        };
        model.prepare(&[&SegmentPair { chosen: segment.clone(), rejected: segment }]).unwrap();
        let mut learned = LearnedReward::with_scale(model, &space, 0.1, 2.0).unwrap();
        let (index, action): (Option<u32>, &[f32]) = if space.is_discrete() { (Some(1), &[]) } else { (None, &[2.0, 0.0, -2.0]) };
        let observation = [0.1, 0.2, 0.3, 0.4];
        let transition = Transition {
            agent: 0,
            observation: &observation,
            action_index: index,
            action,
            tokens: &[],
            next_observation: &observation,
            reward: 0.0,
            terminated: false,
        };
        let first = learned.reward(&transition).unwrap();
        let before = COUNT.get();
        for _ in 0..100 {
            assert_eq!(learned.reward(&transition).unwrap(), first);
        }
        assert_eq!(COUNT.get(), before);
    }
}
