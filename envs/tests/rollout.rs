//! What the rollout engine promises: determinism, exact resume, correct ends, no allocation per step.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use steadfast_envs::particle::SimpleSpreadConfig;
use steadfast_envs::perturb::MaliciousActionConfig;
use steadfast_envs::rollout::StepBuffers;
use steadfast_envs::testing::{BanditConfig, ChainConfig, IdentityConfig, random_actions, random_tokens};
use steadfast_envs::{
    ActMode, ActionBatch, Actions, ActionsMut, EnvConfig, EnvError, EnvSpec, Environment, ObservationBatch, PerturbationConfig, Perturbed,
    Policy, Result, RewardFn, Rng, RolloutBatch, RolloutEngine, RolloutOptions, SeedTree, SnapshotReader, SnapshotWriter, StepOut,
    Transition, TransitionBatch, VectorEnv, read_tokens, write_tokens,
};

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

/// Uniformly random actions from the slots' own generators.
struct RandomPolicy {
    spec: EnvSpec,
}

impl Policy for RandomPolicy {
    fn reset(&mut self, _slot: usize) {}

    fn act(&mut self, observations: &ObservationBatch<'_>, rngs: &mut [Rng], _mode: ActMode, out: &mut ActionBatch<'_>) -> Result<()> {
        let (agents, width) = (self.spec.n_agents(), self.spec.n_agents() * self.spec.action_width());
        for slot in 0..observations.n_slots {
            match &mut out.actions {
                ActionsMut::Discrete(a) => random_actions(&self.spec, &mut rngs[slot], &mut a[slot * agents..(slot + 1) * agents], &mut []),
                ActionsMut::Continuous(a) => random_actions(&self.spec, &mut rngs[slot], &mut [], &mut a[slot * width..(slot + 1) * width]),
                ActionsMut::Tokens(rows) => {
                    let tokens = &mut rows.tokens[slot * width..(slot + 1) * width];
                    random_tokens(&self.spec, &mut rngs[slot], tokens, &mut rows.lengths[slot * agents..(slot + 1) * agents]);
                }
            }
        }
        out.log_probs.fill(-1.0);
        Ok(())
    }
}

fn engine(config: &EnvConfig, slots: usize, with_state: bool, reward_fn: Option<Box<dyn RewardFn>>) -> (RolloutEngine, RandomPolicy) {
    engine_of(|| config.build().expect("a valid world"), slots, with_state, reward_fn)
}

fn engine_of(
    build: impl Fn() -> Box<dyn Environment>,
    slots: usize,
    with_state: bool,
    reward_fn: Option<Box<dyn RewardFn>>,
) -> (RolloutEngine, RandomPolicy) {
    let seeds = SeedTree::new(11);
    let envs = (0..slots).map(|_| build()).collect();
    let vector = VectorEnv::new(envs, seeds.child("environment")).expect("a valid world");
    let policy = RandomPolicy { spec: vector.spec().clone() };
    (
        RolloutEngine::new(vector, seeds.child("policy"), RolloutOptions { with_state, reward_fn, ..RolloutOptions::default() })
            .expect("a valid world"),
        policy,
    )
}

fn spread() -> EnvConfig {
    EnvConfig::SimpleSpread(SimpleSpreadConfig::default())
}

#[test]
fn the_same_batch_for_one_and_two_threads() {
    let collect = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let (mut engine, mut policy) = engine(&spread(), 33, true, None);
            let mut batch = RolloutBatch::default();
            for _ in 0..3 {
                engine.collect(&mut policy, 20, ActMode::Sample, &mut batch).unwrap();
            }
            batch
        })
    };
    let one = collect(1);
    assert_eq!(one, collect(2));
    assert!(!one.ends.is_empty() && one.states.iter().any(|v| *v != 0.0));
}

#[test]
fn nothing_is_allocated_per_step() {
    for config in [
        spread(),
        EnvConfig::SimpleSpread(SimpleSpreadConfig { continuous_actions: true, ..Default::default() }),
        EnvConfig::CartPole(Default::default()),
        EnvConfig::SimpleWorldComm(Default::default()),
        EnvConfig::Pendulum(Default::default()),
    ] {
        let (mut engine, mut policy) = engine(&config, 4, config.build().unwrap().spec().state_dim > 0, None);
        let mut batch = RolloutBatch::default();
        for _ in 0..4 {
            engine.collect(&mut policy, 300, ActMode::Sample, &mut batch).unwrap();
        }
        let before = ALLOCATIONS.with(Cell::get);
        engine.collect(&mut policy, 300, ActMode::Sample, &mut batch).unwrap();
        assert_eq!(ALLOCATIONS.with(Cell::get) - before, 0, "{}", config.name());
        assert!(!batch.ends.is_empty(), "{}: resets must be part of what is counted", config.name());
    }
}

#[test]
fn the_final_observation_of_a_truncated_episode_is_kept() {
    let (mut engine, mut policy) = engine(&spread(), 2, true, None);
    let mut batch = RolloutBatch::default();
    engine.collect(&mut policy, 30, ActMode::Sample, &mut batch).unwrap();
    assert_eq!(batch.ends, [(24, 0), (24, 1)]);
    assert!(batch.truncated[24 * 2] && !batch.terminated[24 * 2]);
    let agents = batch.n_agents * batch.observation_width;
    // The next row belongs to the new episode: agents stand still there, while they moved at the end of the old one.
    let next = &batch.observations[25 * batch.observation_row()..][..agents];
    let last = &batch.final_observations[..agents];
    assert_eq!(next[..2], [0.0, 0.0]);
    assert!(last[..2] != [0.0, 0.0]);
    assert_ne!(next, last);
    // Global states follow the same rule: here they are the observations in a row.
    assert_eq!(&batch.final_states[..batch.state_dim], last);
    assert_eq!(engine.episodes().len(), 2);
    assert_eq!(engine.episodes().get(0).length, 25);
}

#[test]
fn termination_and_truncation_are_not_merged() {
    let (mut engine, mut policy) = engine(&EnvConfig::Chain(ChainConfig { length: 3, horizon: 3 }), 8, false, None);
    let mut batch = RolloutBatch::default();
    engine.collect(&mut policy, 60, ActMode::Sample, &mut batch).unwrap();
    let (terminated, truncated) = (batch.terminated.iter().filter(|t| **t).count(), batch.truncated.iter().filter(|t| **t).count());
    assert!(terminated > 0 && truncated > 0);
    assert!(batch.terminated.iter().zip(&batch.truncated).all(|(a, b)| !(a & b)));
    assert_eq!(terminated + truncated, batch.ends.len());
    for stats in engine.episodes().iter() {
        assert_eq!(stats.terminated, stats.returns[0] >= 1.0);
    }
}

fn continues_exactly(build: impl Fn() -> Box<dyn Environment>) {
    let with_state = build().spec().state_dim > 0;
    let (mut first, mut policy) = engine_of(&build, 3, with_state, None);
    let mut batch = RolloutBatch::default();
    first.collect(&mut policy, 17, ActMode::Sample, &mut batch).expect("sound worlds");
    let mut words = SnapshotWriter::default();
    first.snapshot(&mut words);
    let words = words.into_words();
    first.collect(&mut policy, 40, ActMode::Sample, &mut batch).expect("sound worlds");
    assert!(!batch.ends.is_empty());
    let (mut second, mut policy) = engine_of(&build, 3, with_state, None);
    second.restore(&words).expect("sound worlds");
    let mut again = RolloutBatch::default();
    second.collect(&mut policy, 40, ActMode::Sample, &mut again).expect("sound worlds");
    assert_eq!(batch, again);
    assert_eq!(first.episodes(), second.episodes());
    assert!(matches!(second.restore(&words[..words.len() - 1]), Err(EnvError::Snapshot { .. })));
    assert!(matches!(second.restore(&[]), Err(EnvError::Snapshot { .. })));
}

#[test]
fn a_restored_engine_continues_exactly() {
    let config = EnvConfig::Identity(IdentityConfig { n_agents: 2, ..Default::default() });
    continues_exactly(|| config.build().unwrap());
}

#[test]
fn a_restored_engine_of_perturbed_particles_continues_exactly() {
    let noise = PerturbationConfig::ObservationNoise(Default::default());
    let malicious = PerturbationConfig::MaliciousAction(MaliciousActionConfig { probability: 0.5, ..Default::default() });
    continues_exactly(|| Box::new(Perturbed::new(spread().build().unwrap(), &[noise.clone(), malicious.clone()]).unwrap()));
}

#[test]
fn evaluation_does_not_depend_on_the_number_of_slots() {
    let evaluate = |slots: usize| {
        let (mut engine, mut policy) = engine(&EnvConfig::CartPole(Default::default()), slots, false, None);
        engine.evaluate(&mut policy, 20, ActMode::Sample).unwrap()
    };
    let one = evaluate(1);
    assert_eq!(one, evaluate(7));
    assert_eq!(one.iter().map(|s| s.number).collect::<Vec<_>>(), (0..20).collect::<Vec<_>>());
    assert!(one.iter().any(|s| s.length != one.get(0).length), "episodes of different lengths are the point");
}

#[test]
fn rewards_of_steps_add_up_to_returns() {
    for (config, reward_fn) in [(EnvConfig::CartPole(Default::default()), false), (spread(), false), (spread(), true)] {
        let reward_fn: Option<Box<dyn RewardFn>> = if reward_fn { Some(Box::new(Two)) } else { None };
        let (mut engine, mut policy) = engine(&config, 3, false, reward_fn);
        let (episodes, steps) = engine.evaluate_steps(&mut policy, 10, ActMode::Sample).unwrap();
        assert_eq!((episodes.clone(), steps.n_episodes()), (engine.evaluate(&mut policy, 10, ActMode::Sample).unwrap(), 10));
        for episode in episodes.iter() {
            let number = episode.number as usize;
            for (agent, expected) in episode.returns.iter().enumerate() {
                let sum: f64 = (0..episode.length).map(|step| f64::from(steps.get(number, step).unwrap()[agent])).sum();
                assert!((sum - expected).abs() < 1e-9, "{number}: {sum} {expected}");
            }
            assert_eq!(steps.get(number, episode.length), None, "{number}");
        }
        assert_eq!(steps.get(10, 0), None);
    }
}

/// Pays 2 for every step.
struct Two;

impl RewardFn for Two {
    fn reward(&mut self, t: &Transition<'_>) -> Result<f32> {
        assert!(t.action_index.is_some() && t.next_observation.len() == t.observation.len());
        Ok(2.0)
    }
}

#[test]
fn a_reward_function_replaces_rewards_but_not_returns() {
    let (mut engine, mut policy) = engine(&EnvConfig::Bandit(BanditConfig::default()), 2, false, Some(Box::new(Two)));
    let mut batch = RolloutBatch::default();
    engine.collect(&mut policy, 20, ActMode::Sample, &mut batch).unwrap();
    assert!(batch.rewards.iter().all(|r| *r == 2.0));
    assert!(engine.episodes().iter().all(|s| s.returns[0] < 15.0));
    // The environment's rewards stand beside them, and add up to the returns: slot 0 plays the episodes 0 and 2.
    let first: f64 = (0..10).map(|t| f64::from(batch.environment_rewards[2 * t])).sum();
    assert_eq!(engine.episodes().iter().find(|s| s.number == 0).unwrap().returns[0], first);

    let mut function = engine.set_reward_fn(None).expect("the one given at the start");
    engine.collect(&mut policy, 20, ActMode::Sample, &mut batch).unwrap();
    assert!(batch.environment_rewards.is_empty() && batch.rewards.iter().all(|r| *r != 2.0));
    let transition = Transition {
        agent: 0,
        observation: &[1.0],
        action_index: Some(0),
        action: &[],
        tokens: &[],
        next_observation: &[1.0],
        reward: 0.5,
        terminated: false,
    };
    assert_eq!(function.reward(&transition).unwrap(), 2.0);
    assert!(engine.set_reward_fn(Some(function)).is_none());
    engine.collect(&mut policy, 20, ActMode::Sample, &mut batch).unwrap();
    assert!(batch.rewards.iter().all(|r| *r == 2.0));
}

/// Where [`Faulty`] puts a number that is not finite.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    /// In the observation after the given step of the episode; step 0 is the reset.
    Observation(usize),
    /// In the reward of the given step.
    Reward(usize),
    /// In the global state after the given step.
    State(usize),
}

/// A world with a fault in the episodes from the given one on.
struct Faulty {
    inner: Box<dyn Environment>,
    fault: Fault,
    first_episode: usize,
    episode: usize,
    time: usize,
}

impl Faulty {
    fn has(&self, fault: Fault) -> bool {
        self.episode > self.first_episode && self.fault == fault
    }
}

impl Environment for Faulty {
    fn spec(&self) -> &EnvSpec {
        self.inner.spec()
    }
    fn reset(&mut self, seed: u64, observations: &mut [f32]) {
        self.time = 0;
        self.episode += 1;
        self.inner.reset(seed, observations);
        if self.has(Fault::Observation(0)) {
            observations[1] = f32::NAN;
        }
    }
    fn step(&mut self, actions: Actions<'_>, out: &mut StepOut<'_>) -> Result<()> {
        self.inner.step(actions, out)?;
        self.time += 1;
        if self.has(Fault::Observation(self.time)) {
            out.observations[1] = f32::NAN;
        }
        if self.has(Fault::Reward(self.time)) {
            out.rewards[0] = f32::INFINITY;
        }
        Ok(())
    }
    fn state(&self, out: &mut [f32]) {
        self.inner.state(out);
        if self.has(Fault::State(self.time)) {
            out[2] = f32::NEG_INFINITY;
        }
    }
    fn snapshot(&self, out: &mut SnapshotWriter) {
        self.inner.snapshot(out);
    }
    fn restore(&mut self, input: &mut SnapshotReader<'_>) -> Result<()> {
        self.inner.restore(input)
    }
}

/// An engine with a sound world in slot 0 and a faulty one, whose episodes last 20 steps, in slot 1.
fn faulty_engine(fault: Fault, first_episode: usize) -> Result<(RolloutEngine, RandomPolicy)> {
    let sound = || EnvConfig::Identity(IdentityConfig::default()).build().expect("a valid world");
    let faulty = Faulty { inner: sound(), fault, first_episode, episode: 0, time: 0 };
    let vector = VectorEnv::new(vec![sound(), Box::new(faulty)], SeedTree::new(0)).expect("a valid world");
    let policy = RandomPolicy { spec: vector.spec().clone() };
    let options = RolloutOptions { with_state: true, ..Default::default() };
    Ok((RolloutEngine::new(vector, SeedTree::new(1), options)?, policy))
}

/// Tensor, step, slot and position of an error.
fn place_of(error: EnvError) -> (&'static str, usize, usize, usize) {
    match error {
        EnvError::NonFinite { tensor, step, slot, position, .. } => (tensor, step, slot, position),
        other => panic!("{other}"),
    }
}

#[test]
fn non_finite_numbers_are_named_with_their_place() {
    for (fault, place) in [
        (Fault::Observation(5), ("observation", 4, 1, 1)),
        (Fault::Reward(5), ("reward", 4, 1, 0)),
        (Fault::State(5), ("state", 4, 1, 2)),
        (Fault::Observation(20), ("final observation", 19, 1, 1)),
        (Fault::State(20), ("final state", 19, 1, 2)),
    ] {
        let (mut engine, mut policy) = faulty_engine(fault, 0).unwrap();
        let error = engine.collect(&mut policy, 30, ActMode::Sample, &mut RolloutBatch::default()).unwrap_err();
        assert_eq!(place_of(error), place);
    }
}

#[test]
fn the_first_observations_and_states_must_be_finite() {
    for (fault, place) in [(Fault::Observation(0), ("first observation", 0, 1, 1)), (Fault::State(0), ("first state", 0, 1, 2))] {
        assert_eq!(place_of(faulty_engine(fault, 0).err().unwrap()), place);
        // Sound when the engine is built, faulty when an evaluation starts anew.
        let (mut engine, mut policy) = faulty_engine(fault, 1).unwrap();
        assert_eq!(place_of(engine.evaluate(&mut policy, 1, ActMode::Sample).unwrap_err()), place);
    }
}

#[test]
fn an_error_does_not_outlive_its_step() {
    let envs = (0..3).map(|_| EnvConfig::Identity(IdentityConfig::default()).build().unwrap()).collect();
    let mut vector = VectorEnv::new(envs, SeedTree::new(0)).unwrap();
    let mut observations = vec![0.0; 3 * vector.spec().observation_width()];
    vector.reset(&mut observations, &mut []);
    let mut step = |actions: &[u32]| {
        let (mut rewards, mut terminated, mut truncated) = ([0.0; 3], [false; 3], [false; 3]);
        vector.step(
            Actions::Discrete(actions),
            StepBuffers {
                observations: &mut observations,
                states: &mut [],
                rewards: &mut rewards,
                terminated: &mut terminated,
                truncated: &mut truncated,
            },
        )
    };
    assert!(step(&[0, 98, 99]).unwrap_err().to_string().contains("98"));
    assert_eq!(step(&[0, 1, 2]), Ok(()));
}

#[test]
fn perturbed_particles_see_noise_and_keep_their_rewards() {
    let noise = PerturbationConfig::ObservationNoise(Default::default());
    let mut plain = spread().build().unwrap();
    let mut noisy = Perturbed::new(spread().build().unwrap(), &[noise]).unwrap();
    let n = plain.spec().n_agents() * plain.spec().observation_width();
    let (mut a, mut b) = (vec![0.0; n], vec![0.0; n]);
    plain.reset(1, &mut a);
    noisy.reset(1, &mut b);
    assert_ne!(a, b);
    let (mut ra, mut rb) = ([0.0; 3], [0.0; 3]);
    for action in 0..5 {
        let actions = Actions::Discrete(&[action; 3]);
        let mut out = StepOut { observations: &mut a, rewards: &mut ra, terminated: false, truncated: false };
        plain.step(actions, &mut out).unwrap();
        let mut out = StepOut { observations: &mut b, rewards: &mut rb, terminated: false, truncated: false };
        noisy.step(actions, &mut out).unwrap();
        assert_eq!(ra, rb);
    }
}

/// A two-turn conversation: what was said is seen in the next turn, a completion earns its first token.
struct TwoTurns {
    spec: EnvSpec,
    conversation: Vec<u32>,
    turn: u64,
}

impl TwoTurns {
    fn new() -> Self {
        let tokens = |max_tokens| steadfast_envs::Space::Tokens { vocab_size: 9, max_tokens };
        let agent = steadfast_envs::AgentSpec {
            name: "agent_0".to_string(),
            group: "agent".to_string(),
            observation: tokens(7),
            action: tokens(3),
        };
        let spec = EnvSpec {
            name: "two_turns".to_string(),
            agents: vec![agent],
            state_dim: 0,
            horizon: 2,
            step_seconds: 1.0,
            episode_metrics: Vec::new(),
        };
        Self { spec, conversation: Vec::new(), turn: 0 }
    }
}

impl Environment for TwoTurns {
    fn spec(&self) -> &EnvSpec {
        &self.spec
    }
    fn reset(&mut self, seed: u64, observations: &mut [f32]) {
        self.conversation = vec![(seed % 9) as u32];
        self.turn = 0;
        write_tokens("two_turns", &self.conversation, observations).expect("room for the conversation");
    }
    fn step(&mut self, actions: Actions<'_>, out: &mut StepOut<'_>) -> Result<()> {
        let said = actions.tokens("two_turns")?.row(0);
        if let Some(token) = said.iter().find(|t| **t >= 9) {
            let expected = "tokens below 9".to_string();
            return Err(EnvError::Action { env: "two_turns".to_string(), agent: 0, expected, got: token.to_string() });
        }
        self.conversation.extend_from_slice(said);
        self.turn += 1;
        out.rewards[0] = said[0] as f32;
        out.terminated = self.turn == 2;
        write_tokens("two_turns", &self.conversation, out.observations)
    }
    fn snapshot(&self, out: &mut SnapshotWriter) {
        out.u64(self.turn);
        out.u64(self.conversation.len() as u64);
        self.conversation.iter().for_each(|&t| out.u64(u64::from(t)));
    }
    fn restore(&mut self, input: &mut SnapshotReader<'_>) -> Result<()> {
        self.turn = input.u64()?;
        let n = input.u64()?;
        self.conversation = (0..n).map(|_| Ok(input.u64()? as u32)).collect::<Result<_>>()?;
        Ok(())
    }
}

/// Pays the length of the completion, and checks that it sees the whole time step at once.
struct Length(usize);

impl RewardFn for Length {
    fn reward(&mut self, t: &Transition<'_>) -> Result<f32> {
        assert!(t.action_index.is_none() && t.action.is_empty());
        Ok(t.tokens.len() as f32)
    }
    fn reward_batch(&mut self, transitions: &TransitionBatch<'_>, rewards: &mut [f32]) -> Result<()> {
        assert_eq!((transitions.len(), rewards.len()), (self.0, self.0));
        for (i, reward) in rewards.iter_mut().enumerate() {
            *reward = self.reward(&transitions.get(i))?;
        }
        Ok(())
    }
}

#[test]
fn conversations_of_several_turns_go_through_the_engine() {
    steadfast_envs::testing::check_environment(&|| Ok(Box::new(TwoTurns::new()))).unwrap();
    continues_exactly(|| Box::new(TwoTurns::new()));
    let (mut engine, mut policy) = engine_of(|| Box::new(TwoTurns::new()), 3, false, Some(Box::new(Length(3))));
    let mut batch = RolloutBatch::default();
    let (mut before, mut after) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        engine.collect(&mut policy, 4, ActMode::Sample, &mut batch).unwrap();
        assert_eq!((batch.token_width, batch.action_width, batch.discrete_actions.len()), (3, 0, 0));
        assert_eq!(batch.ends, [(1, 0), (1, 1), (1, 2), (3, 0), (3, 1), (3, 2)]);
        for row in 0..12 {
            let said = batch.token_rows().row(row);
            assert_eq!(batch.environment_rewards[row], said[0] as f32);
            assert_eq!(batch.rewards[row], said.len() as f32);
            assert!(batch.token_actions[row * 3 + said.len()..(row + 1) * 3].iter().all(|t| *t == 0));
            if row / 3 % 2 == 0 {
                read_tokens(&batch.observations[row * 8..(row + 1) * 8], &mut before).unwrap();
                read_tokens(&batch.observations[(row + 3) * 8..(row + 4) * 8], &mut after).unwrap();
                assert_eq!(after, [before.as_slice(), said].concat());
            }
        }
    }
}

#[test]
fn slots_of_a_group_see_the_same_prompts_and_act_differently() {
    let config = EnvConfig::TopicLexicon(Default::default());
    let envs = |n: usize| (0..n).map(|_| config.build().unwrap()).collect::<Vec<_>>();
    let seeds = SeedTree::new(5);
    let vector = VectorEnv::with_groups(envs(6), seeds.child("environment"), 3).unwrap();
    assert_eq!(vector.group(), 3);
    let mut policy = RandomPolicy { spec: vector.spec().clone() };
    let width = vector.spec().observation_width();
    let mut engine = RolloutEngine::new(vector, seeds.child("policy"), RolloutOptions::default()).unwrap();
    let mut batch = RolloutBatch::default();
    engine.collect(&mut policy, 4, ActMode::Sample, &mut batch).unwrap();
    // The prompts of the groups are those of two plain slots.
    let plain = VectorEnv::new(envs(2), seeds.child("environment")).unwrap();
    let mut alone = RolloutEngine::new(plain, seeds.child("policy"), RolloutOptions::default()).unwrap();
    let mut other = RolloutBatch::default();
    alone.collect(&mut policy, 4, ActMode::Sample, &mut other).unwrap();
    for time in 0..4 {
        for slot in 0..6 {
            let prompt = &batch.observations[(time * 6 + slot) * width..][..width];
            assert_eq!(prompt, &other.observations[(time * 2 + slot / 3) * width..][..width]);
        }
        let rows = batch.token_rows();
        assert!(rows.row(time * 6) != rows.row(time * 6 + 1) && rows.row(time * 6) != rows.row(time * 6 + 2));
    }
    let metrics = engine.episodes().get(0).metrics.to_vec();
    assert!((metrics[0] - engine.episodes().get(0).returns[0]).abs() < 1e-6);
    for (n, group) in [(6, 4), (6, 0)] {
        let message = VectorEnv::with_groups(envs(n), seeds, group).err().unwrap().to_string();
        assert!(message.contains("multiple"), "{message}");
    }
}

/// Says nothing at all.
struct Silent;

impl Policy for Silent {
    fn reset(&mut self, _slot: usize) {}
    fn act(&mut self, _: &ObservationBatch<'_>, _: &mut [Rng], _: ActMode, _: &mut ActionBatch<'_>) -> Result<()> {
        Ok(())
    }
}

#[test]
fn an_empty_completion_is_an_error_that_names_its_slot() {
    let (mut engine, _) = engine(&EnvConfig::SalientCopy(Default::default()), 2, false, None);
    let error = engine.collect(&mut Silent, 1, ActMode::Sample, &mut RolloutBatch::default()).unwrap_err();
    assert!(error.to_string().contains("slot 0"), "{error}");
}

#[test]
fn rows_that_hold_no_tokens_are_refused() {
    let mut tokens = Vec::new();
    for row in [&[] as &[f32], &[2.0, 1.0], &[1.5, 1.0, 1.0], &[1.0, -1.0], &[1.0, f32::NAN], &[f32::NAN, 0.0], &[1.0, 16_777_216.0]] {
        assert!(read_tokens(row, &mut tokens).is_err(), "{row:?}");
    }
    read_tokens(&[2.0, 7.0, 16_777_215.0, 0.0], &mut tokens).unwrap();
    assert_eq!(tokens, [7, 16_777_215]);
    assert!(write_tokens("env", &[1, 2], &mut [0.0; 2]).is_err());
}
