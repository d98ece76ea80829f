//! Segments of trajectories, cut from rollouts, and pairs of them.
//!
//! # Windows
//! Of each agent's trajectory in each slot, windows of a fixed number of steps are taken one behind the other. A window
//! never crosses the end of an episode: one that the end of the task cuts short is kept as a shorter segment, marked
//! `terminated`; one that the time limit cuts short is dropped. The first window of an episode begins after a random number
//! of steps below the length of a window, so that segments do not all begin at multiples of it; if the time limit is so
//! short that no window would fit any more, the number is limited to what leaves room for one.
//!
//! # Actions
//! Segments hold the actions of the policy, continuous ones clamped to the action space. [`crate::LearnedReward`] clamps them
//! in the same way before it asks the model. Where a perturbation replaces actions on their way into the environment, what
//! is stored is still what the policy chose, not what replaced it.

use std::collections::BTreeSet;

use steadfast_envs::{ActMode, EnvSpec, Policy, Rng, RolloutBatch, RolloutEngine, SeedTree, Space};

use crate::error::{Result, RewardError};
use crate::model::SegmentSpec;
use crate::preference::Segment;

/// Brings a continuous action into its space; does nothing for discrete ones. NaN stays NaN.
pub fn clamp_action(space: &Space, action: &mut [f32]) {
    if let Space::Box { low, high } = space {
        action.iter_mut().zip(low.iter().zip(high)).for_each(|(a, (&l, &h))| *a = a.clamp(l, h));
    }
}

/// Cuts rollouts into segments; see the module's documentation for the rules. Batches of one engine must be given without
/// gaps: a window may begin in one and end in the next.
#[derive(Debug, Clone)]
pub struct SegmentSampler {
    spec: SegmentSpec,
    action_space: Space,
    steps: usize,
    /// The first window of an episode begins after fewer steps than this.
    phases: usize,
    slots: Vec<SlotWindow>,
    seeds: SeedTree,
}

/// The running windows of a slot's agents.
#[derive(Debug, Clone)]
struct SlotWindow {
    /// Steps to pass over before the next window.
    skip: usize,
    rng: Rng,
    /// `[agent]`.
    agents: Vec<Segment>,
}

impl SegmentSampler {
    /// For segments of `steps` steps.
    ///
    /// # Errors
    /// [`RewardError::Config`] if `steps` is 0 or above the environment's time limit; [`RewardError::Data`] if agents
    /// differ in their spaces.
    pub fn new(env: &EnvSpec, steps: usize, seeds: SeedTree) -> Result<Self> {
        if !(1..=env.horizon).contains(&steps) {
            return Err(RewardError::Config {
                field: "segment_steps".to_string(),
                expected: format!("between 1 and the {} steps of an episode of `{}`", env.horizon, env.name),
                got: steps.to_string(),
            });
        }
        let spec = SegmentSpec::of(env)?;
        let phases = steps.min(env.horizon - steps + 1);
        Ok(Self { spec, action_space: env.agents[0].action.clone(), steps, phases, slots: Vec::new(), seeds })
    }

    /// Appends the segments that end in `batch` to `out`, in the order of time, slot, agent; `policy` says who acted.
    ///
    /// # Panics
    /// If the batch is of another environment.
    pub fn push(&mut self, batch: &RolloutBatch, policy: &str, out: &mut Vec<Segment>) {
        let width = self.spec.observation_width;
        assert_eq!(batch.observation_width, width, "batch of another environment in SegmentSampler::push");
        for slot in self.slots.len()..batch.n_slots {
            let mut rng = self.seeds.index(slot as u64).rng();
            let skip = rng.below(self.phases);
            self.slots.push(SlotWindow { skip, rng, agents: vec![Segment::default(); batch.n_agents] });
        }
        // Where a learned reward replaced them, the environment's own ones stand beside it.
        let rewards = if batch.environment_rewards.is_empty() { &batch.rewards } else { &batch.environment_rewards };
        for time in 0..batch.n_steps {
            for slot in 0..batch.n_slots {
                let window = &mut self.slots[slot];
                let (terminated, truncated) = (batch.terminated[time * batch.n_slots + slot], batch.truncated[time * batch.n_slots + slot]);
                if window.skip > 0 {
                    window.skip -= 1;
                } else {
                    for (agent, segment) in window.agents.iter_mut().enumerate() {
                        let at = (time * batch.n_slots + slot) * batch.n_agents + agent;
                        segment.steps += 1;
                        segment.observations.extend_from_slice(&batch.observations[at * width..(at + 1) * width]);
                        segment.rewards.push(rewards[at]);
                        if batch.action_width == 0 {
                            segment.actions.push(batch.discrete_actions[at] as f32);
                        } else {
                            let start = segment.actions.len();
                            let action = &batch.continuous_actions[at * batch.action_width..(at + 1) * batch.action_width];
                            segment.actions.extend_from_slice(action);
                            clamp_action(&self.action_space, &mut segment.actions[start..]);
                        }
                    }
                }
                let steps = window.agents.first().map_or(0, |s| s.steps);
                if steps == self.steps || (terminated && steps > 0) {
                    for segment in &mut window.agents {
                        let room = Segment {
                            observations: Vec::with_capacity(self.steps * width),
                            actions: Vec::with_capacity(segment.actions.len()),
                            rewards: Vec::with_capacity(self.steps),
                            ..Segment::default()
                        };
                        out.push(Segment { terminated, policy: policy.to_string(), ..std::mem::replace(segment, room) });
                    }
                }
                if terminated || truncated {
                    window.skip = window.rng.below(self.phases);
                    for segment in &mut window.agents {
                        segment.steps = 0;
                        segment.observations.clear();
                        segment.actions.clear();
                        segment.rewards.clear();
                    }
                }
            }
        }
    }
}

/// What a collection of segments gave.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CollectedSegments {
    /// The segments, as many as were asked for.
    pub segments: Vec<Segment>,
    /// Steps taken, over all slots.
    pub env_steps: usize,
    /// Episodes that ended meanwhile.
    pub n_episodes: usize,
    /// Mean of their returns per agent under the environment's reward; nothing if none ended.
    pub return_mean: Option<f64>,
}

/// Lets `policy`, called `name`, act until there are `n` segments of `steps` steps, going on with the engine's running
/// episodes. The segments carry the environment's own rewards, whatever reward function the engine has.
///
/// # Errors
/// As [`SegmentSampler::new`] and [`RolloutEngine::collect`].
pub fn collect_segments(
    engine: &mut RolloutEngine,
    policy: &mut dyn Policy,
    name: &str,
    n: usize,
    steps: usize,
    mode: ActMode,
    seeds: SeedTree,
) -> Result<CollectedSegments> {
    let mut sampler = SegmentSampler::new(engine.spec(), steps, seeds)?;
    let (mut batch, mut found) = (RolloutBatch::default(), CollectedSegments::default());
    let mut returns = 0.0;
    while found.segments.len() < n {
        engine.collect(policy, steps, mode, &mut batch)?;
        sampler.push(&batch, name, &mut found.segments);
        found.env_steps += steps * batch.n_slots;
        for episode in engine.episodes().iter() {
            found.n_episodes += 1;
            returns += episode.agent_mean();
        }
    }
    found.segments.truncate(n);
    if found.n_episodes > 0 {
        found.return_mean = Some(returns / found.n_episodes as f64);
    }
    Ok(found)
}

/// Draws `n` pairs of different segments, as indices in random order: round after round, each segment once in a round. So up
/// to half as many pairs as segments have no segment in common, and held-out pairs then show nothing of the others. No two
/// segments meet twice before all have met.
///
/// # Errors
/// [`RewardError::Data`] if there are fewer than two segments, or some that cannot be compared: a segment shorter than the
/// longest must have ended with the task.
pub fn pairs(segments: &[Segment], n: usize, seeds: SeedTree) -> Result<Vec<(usize, usize)>> {
    let count = segments.len();
    if count < 2 {
        return Err(RewardError::Data(format!("pairs need at least two segments, found {count}")));
    }
    let longest = segments.iter().map(|s| s.steps).max().unwrap_or(0);
    if let Some(index) = segments.iter().position(|s| s.steps < longest && !s.terminated) {
        let steps = segments[index].steps;
        let reason = format!("segment {index} of {steps} steps cannot be compared with one of {longest}: its task did not end there");
        return Err(RewardError::Data(reason));
    }
    let mut rng = seeds.rng();
    let possible = count * (count - 1) / 2;
    let mut order: Vec<usize> = (0..count).collect();
    let (mut drawn, mut seen) = (Vec::with_capacity(n), BTreeSet::new());
    while drawn.len() < n {
        rng.shuffle(&mut order);
        for pair in order.chunks_exact(2).take(n - drawn.len()) {
            if seen.len() == possible {
                seen.clear();
            }
            // A pair that was drawn before is passed over while there are others.
            if seen.insert((pair[0].min(pair[1]), pair[0].max(pair[1]))) {
                drawn.push((pair[0], pair[1]));
            }
        }
    }
    Ok(drawn)
}
