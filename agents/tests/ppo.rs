//! PPO learns small worlds in seconds, is exact where it promises to be, and refuses what does not fit.

use steadfast_agents::algorithms::ppo::{AdvantageNormalization, ContinuousPolicy, Critic, Ppo, PpoConfig};
use steadfast_agents::head::Distance;
use steadfast_agents::nn::Activation;
use steadfast_agents::regularizers::lipschitz::{GaussianConfig, Gradient, LipschitzConfig, Norm, Scale, Scope};
use steadfast_agents::returns::RewardScaling;
use steadfast_agents::schedule::Schedule;
use steadfast_agents::team::{RewardSharing, Sharing};
use steadfast_agents::{AdversarialTrainingConfig, AgentError, Array, Learner, Metrics, RegularizerConfig, StateDict};
use steadfast_envs::particle::{SimpleSpreadConfig, SimpleTagConfig};
use steadfast_envs::testing::{BanditConfig, ChainConfig, IdentityConfig};
use steadfast_envs::{ActMode, EnvConfig, RolloutBatch, RolloutEngine, RolloutOptions, SeedTree, SnapshotWriter, VectorEnv};

const SLOTS: usize = 8;

/// A run small enough for a test.
struct Run {
    engine: RolloutEngine,
    learner: Ppo,
    batch: RolloutBatch,
    updates: usize,
}

impl Run {
    fn new(env: &EnvConfig, config: &PpoConfig, regularizer: Option<&RegularizerConfig>, seed: u64) -> Self {
        let seeds = SeedTree::new(seed);
        let envs = (0..SLOTS).map(|_| env.build().expect("a valid world")).collect();
        let vector = VectorEnv::new(envs, seeds.child("environment")).expect("equal worlds");
        let learner = Ppo::new(config, regularizer, vector.spec(), SLOTS, seeds.child("learner")).expect("a valid learner");
        let options = RolloutOptions { with_state: learner.uses_state(), ..Default::default() };
        let engine = RolloutEngine::new(vector, seeds.child("policy"), options).expect("a state where it is asked for");
        Self { engine, learner, batch: RolloutBatch::default(), updates: 0 }
    }

    fn train_against(&mut self, adversary: &AdversarialTrainingConfig) {
        assert!(self.learner.train_against(adversary, SeedTree::new(99)));
        self.engine.set_disturbs(true);
    }

    fn update(&mut self, total: usize) -> Metrics {
        let steps = self.learner.rollout_steps();
        self.engine.collect(self.learner.policy(), steps, ActMode::Sample, &mut self.batch).expect("finite numbers");
        let progress = self.updates as f64 / total as f64;
        self.updates += 1;
        self.learner.update(&self.batch, progress).expect("finite numbers").clone()
    }

    fn train(&mut self, updates: usize) -> Metrics {
        (0..updates).map(|_| self.update(updates)).last().expect("at least one update")
    }

    fn mean_return(&mut self, mode: ActMode) -> f64 {
        let log = self.engine.evaluate(self.learner.policy(), 40, mode).expect("finite numbers");
        log.iter().map(|e| e.agent_mean()).sum::<f64>() / log.len() as f64
    }
}

/// Settings that learn small worlds quickly.
fn quick() -> PpoConfig {
    PpoConfig {
        rollout_steps: 32,
        minibatch_size: 64,
        epochs: 6,
        learning_rate: 3e-3,
        policy_hidden: vec![32],
        critic_hidden: vec![32],
        entropy_coefficient: 0.005,
        ..PpoConfig::default()
    }
}

fn identity(continuous_actions: bool, n_agents: usize) -> EnvConfig {
    EnvConfig::Identity(IdentityConfig { continuous_actions, n_agents, ..Default::default() })
}

#[test]
fn learns_the_identity() {
    let mut run = Run::new(&identity(false, 1), &quick(), None, 1);
    assert!(run.mean_return(ActMode::Sample) < 8.0);
    run.train(30);
    assert!(run.mean_return(ActMode::Greedy) > 19.5);
}

#[test]
fn learns_the_identity_with_continuous_actions() {
    for policy in [ContinuousPolicy::Gaussian, ContinuousPolicy::SquashedGaussian] {
        let config = PpoConfig { continuous_policy: policy, initial_log_std: -0.5, entropy_coefficient: 0.0, ..quick() };
        let mut run = Run::new(&identity(true, 1), &config, None, 2);
        let before = run.mean_return(ActMode::Greedy);
        run.train(50);
        let after = run.mean_return(ActMode::Greedy);
        assert!(before < 12.0 && after > 17.5, "{policy:?}: {before} -> {after}");
    }
}

#[test]
fn teams_learn_with_every_sharing_and_critic() {
    for (sharing, critic, agent_index) in [
        (Sharing::All, Critic::Local, false),
        (Sharing::Group, Critic::Central, true),
        (Sharing::None, Critic::Central, false),
        (Sharing::None, Critic::Local, true),
    ] {
        let config = PpoConfig { sharing, critic, agent_index, ..quick() };
        let mut run = Run::new(&identity(false, 3), &config, None, 3);
        run.train(25);
        let mean = run.mean_return(ActMode::Greedy);
        assert!(mean > 18.0, "{sharing:?} {critic:?}: {mean}");
    }
}

#[test]
fn credit_reaches_back_over_time_and_arms_are_told_apart() {
    let mut run = Run::new(&EnvConfig::Chain(ChainConfig::default()), &quick(), None, 4);
    run.train(30);
    let mean = run.mean_return(ActMode::Greedy);
    assert!(mean >= 1.0, "{mean}");
    let mut run = Run::new(&EnvConfig::Bandit(BanditConfig::default()), &quick(), None, 5);
    run.train(15);
    assert!(run.mean_return(ActMode::Greedy) > 8.5);
}

#[test]
fn every_option_still_learns() {
    let config = PpoConfig {
        normalize_observations: true,
        reward_scaling: RewardScaling::ReturnStd,
        reward_sharing: RewardSharing::TeamMean,
        value_clip_range: Some(0.5),
        target_kl: Some(0.05),
        learning_rate_schedule: Schedule::Linear,
        advantage_normalization: AdvantageNormalization::Batch,
        activation: Activation::Relu,
        critic_learning_rate: Some(5e-3),
        ..quick()
    };
    let mut run = Run::new(&identity(false, 2), &config, None, 6);
    let last = run.train(40);
    let mean = run.mean_return(ActMode::Greedy);
    assert!(mean > 18.0, "{mean}");
    assert!(last.get("train/learning_rate").unwrap() < 3e-3 / 30.0);
}

#[test]
fn the_ratio_is_one_on_the_first_pass() {
    // One epoch over one minibatch: the only pass sees the policy that collected.
    for (env, continuous_policy) in [
        (identity(false, 2), ContinuousPolicy::Gaussian),
        (identity(true, 2), ContinuousPolicy::Gaussian),
        (identity(true, 2), ContinuousPolicy::SquashedGaussian),
        (EnvConfig::SimpleSpread(SimpleSpreadConfig::default()), ContinuousPolicy::Gaussian),
    ] {
        let config = PpoConfig {
            continuous_policy,
            epochs: 1,
            minibatch_size: 1 << 20,
            normalize_observations: true,
            advantage_normalization: AdvantageNormalization::None,
            ..quick()
        };
        let mut run = Run::new(&env, &config, None, 7);
        for _ in 0..3 {
            let metrics = run.update(3);
            assert_eq!(metrics.get("train/approx_kl"), Some(0.0), "{}", env.name());
            assert_eq!(metrics.get("train/clip_fraction"), Some(0.0));
        }
    }
}

#[test]
fn target_kl_stops_the_passes() {
    let config = PpoConfig { target_kl: Some(1e-4), learning_rate: 0.03, epochs: 10, ..quick() };
    let mut run = Run::new(&identity(false, 1), &config, None, 8);
    assert!(run.update(2).get("train/epochs").unwrap() < 10.0);
}

fn ernie(weight: f64) -> LipschitzConfig {
    LipschitzConfig { weight, warmup_fraction: 0.0, radius: 0.3, probe_every: 1, ..Default::default() }
}

fn weights_after(regularizer: Option<&RegularizerConfig>, env: &EnvConfig) -> StateDict {
    let mut run = Run::new(env, &quick(), regularizer, 9);
    run.train(4);
    let mut state = run.learner.state();
    state.arrays.retain(|name, _| !name.contains("regularizer") && !name.contains("observation.") && !name.contains("lipschitz"));
    state
}

#[test]
fn weight_zero_is_the_unregularised_run_bit_for_bit() {
    for env in [identity(false, 2), identity(true, 1)] {
        let plain = weights_after(None, &env);
        // Plain assertions: two whole states would bury the message.
        assert!(plain == weights_after(Some(&RegularizerConfig::Lipschitz(ernie(0.0))), &env), "weight 0");
        let gaussian = GaussianConfig { weight: 0.0, ..Default::default() };
        assert!(plain == weights_after(Some(&RegularizerConfig::Gaussian(gaussian)), &env), "Gaussian weight 0");
        assert!(plain != weights_after(Some(&RegularizerConfig::Lipschitz(ernie(0.5))), &env), "a weight must matter");
        // A ball without room has no penalty either.
        let pointlike = LipschitzConfig { radius: 0.0, ..ernie(0.5) };
        assert!(plain == weights_after(Some(&RegularizerConfig::Lipschitz(pointlike)), &env), "radius 0");
    }
}

#[test]
fn every_regulariser_learns_and_reports() {
    for regularizer in [
        RegularizerConfig::Lipschitz(ernie(0.02)),
        RegularizerConfig::Lipschitz(LipschitzConfig { norm: Norm::Linf, steps: 3, gradient: Gradient::TargetClean, ..ernie(0.02) }),
        RegularizerConfig::Lipschitz(LipschitzConfig { scale: Scale::Absolute, distance: Some(Distance::L2), ..ernie(0.02) }),
        RegularizerConfig::Gaussian(GaussianConfig { weight: 0.02, warmup_fraction: 0.2, ..Default::default() }),
    ] {
        let mut run = Run::new(&identity(false, 1), &quick(), Some(&regularizer), 10);
        let last = run.train(30);
        let mean = run.mean_return(ActMode::Greedy);
        assert!(mean > 19.0, "{regularizer:?}: {mean}");
        assert!(last.get("ernie/penalty").unwrap() > 0.0);
        let relative = last.get("ernie/perturbation_over_radius").unwrap();
        assert!(relative > 0.5 && relative <= 1.0 + 1e-6, "{relative}");
        assert!(last.get("ernie/gradient_ratio").unwrap() > 0.0);
    }
}

#[test]
fn the_penalty_makes_the_policy_smoother() {
    let bound = |weight: f64| {
        let config = RegularizerConfig::Lipschitz(LipschitzConfig { distance: Some(Distance::L2), ..ernie(weight) });
        let mut run = Run::new(&identity(false, 1), &quick(), Some(&config), 11);
        run.train(25).get("ernie/lipschitz_lower_bound").unwrap()
    };
    // The tiny weight stands for the plain learner: it reports the bound and changes next to nothing.
    let (plain, smooth) = (bound(1e-9), bound(1.0));
    assert!(smooth < 0.7 * plain, "{smooth} against {plain}");
}

#[test]
fn saved_and_loaded_learner_continues_bit_for_bit() {
    let config = PpoConfig { normalize_observations: true, reward_scaling: RewardScaling::ReturnStd, critic: Critic::Central, ..quick() };
    let env = EnvConfig::SimpleSpread(SimpleSpreadConfig::default());
    let regularizer = RegularizerConfig::Lipschitz(ernie(0.1));
    let mut first = Run::new(&env, &config, Some(&regularizer), 12);
    first.train(2);
    let saved = first.learner.state();
    let mut words = SnapshotWriter::default();
    first.engine.snapshot(&mut words);
    let mut other = Run::new(&env, &config, Some(&regularizer), 99);
    other.learner.load_state(&saved).unwrap();
    assert_eq!(other.learner.state(), saved);
    // Seeds of episodes come from the run's seed, so the engine belongs to a run of the same seed.
    let mut second = Run::new(&env, &config, Some(&regularizer), 12);
    second.learner.load_state(&saved).unwrap();
    second.engine.restore(&words.into_words()).unwrap();
    (first.updates, second.updates) = (2, 2);
    let (a, b) = (first.update(4), second.update(4));
    assert_eq!(a, b);
    assert_eq!(first.learner.state(), second.learner.state());
}

#[test]
fn continuous_policies_without_sharing_continue_bit_for_bit() {
    for continuous_policy in [ContinuousPolicy::Gaussian, ContinuousPolicy::SquashedGaussian] {
        let config = PpoConfig { sharing: Sharing::None, continuous_policy, entropy_coefficient: 0.01, ..quick() };
        let env = identity(true, 2);
        let regularizer = RegularizerConfig::Lipschitz(ernie(0.1));
        let mut first = Run::new(&env, &config, Some(&regularizer), 17);
        first.train(2);
        let mut words = SnapshotWriter::default();
        first.engine.snapshot(&mut words);
        let mut second = Run::new(&env, &config, Some(&regularizer), 17);
        second.learner.load_state(&first.learner.state()).unwrap();
        second.engine.restore(&words.into_words()).unwrap();
        (first.updates, second.updates) = (2, 2);
        assert_eq!(first.update(4), second.update(4));
        assert_eq!(first.learner.state(), second.learner.state());
    }
}

#[test]
fn the_entropy_bonus_widens_every_policy() {
    for continuous_policy in [ContinuousPolicy::Gaussian, ContinuousPolicy::SquashedGaussian] {
        let config = PpoConfig { continuous_policy, initial_log_std: -1.5, ..quick() };
        let std = |entropy_coefficient: f64| {
            let mut run = Run::new(&identity(true, 1), &PpoConfig { entropy_coefficient, ..config.clone() }, None, 18);
            run.train(4).get("train/action_std").unwrap()
        };
        let (without, with) = (std(0.0), std(1.0));
        assert!(with > 1.1 * without, "{continuous_policy:?}: {without} -> {with}");
    }
}

#[test]
fn teams_share_rewards_within_their_group() {
    let config = PpoConfig { reward_sharing: RewardSharing::TeamMean, rollout_steps: 25, ..quick() };
    let tag = EnvConfig::SimpleTag(SimpleTagConfig::default());
    let individual = PpoConfig { reward_sharing: RewardSharing::Individual, ..config.clone() };
    let adversary = |config: &PpoConfig| {
        let mut run = Run::new(&tag, config, None, 19);
        run.train(2);
        run.learner.state().arrays.remove("adversary.policy.layers.0.weight")
    };
    // All adversaries of tag have the same reward already, so their mean, without the prey's, changes nothing but rounding.
    let (Some(Array::F32(_, a)), Some(Array::F32(_, b))) = (adversary(&config), adversary(&individual)) else {
        panic!("weights are missing")
    };
    assert!(a.iter().zip(&b).all(|(x, y)| (x - y).abs() < 1e-2));
}

#[test]
fn one_and_two_threads_agree() {
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let config = PpoConfig { minibatch_size: 300, critic: Critic::Central, ..quick() };
            let mut run = Run::new(&identity(false, 3), &config, Some(&RegularizerConfig::Lipschitz(ernie(0.1))), 13);
            (run.train(3), run.learner.state())
        })
    };
    assert_eq!(run(1), run(2));
}

#[test]
fn state_of_another_learner_is_refused_by_name() {
    let mut run = Run::new(&identity(false, 1), &quick(), None, 14);
    let mut wider = Run::new(&identity(false, 1), &PpoConfig { policy_hidden: vec![48], ..quick() }, None, 14);
    let error = wider.learner.load_state(&run.learner.state()).unwrap_err();
    assert!(matches!(&error, AgentError::State { tensor, .. } if tensor.contains("weight")), "{error}");
    let mut state = run.learner.state();
    state.arrays.remove("minibatches.rng");
    let error = run.learner.load_state(&state).unwrap_err().to_string();
    assert!(error.contains("minibatches.rng"), "{error}");
}

#[test]
fn settings_that_do_not_fit_the_world_are_refused() {
    let tag = EnvConfig::SimpleTag(SimpleTagConfig::default()).build().unwrap();
    let build = |config: PpoConfig| Ppo::new(&config, None, tag.spec(), 1, SeedTree::new(0)).map(drop).unwrap_err().to_string();
    assert!(build(PpoConfig { sharing: Sharing::All, ..quick() }).contains("`sharing` must be \"group\" or \"none\""));
    assert!(build(PpoConfig { discount: 1.5, ..quick() }).contains("`discount` must be between 0 and 1, got 1.5"));
    assert!(build(PpoConfig { epochs: 0, ..quick() }).contains("`epochs`"));
    assert!(build(PpoConfig { rollout_steps: 1 << 50, ..quick() }).contains("`rollout_steps`"));
    assert!(build(PpoConfig { policy_hidden: vec![1 << 40], ..quick() }).contains("`policy_hidden`"));
    let chain = EnvConfig::Chain(ChainConfig::default()).build().unwrap();
    let config = PpoConfig { critic: Critic::Central, ..quick() };
    let error = Ppo::new(&config, None, chain.spec(), 1, SeedTree::new(0)).map(drop).unwrap_err().to_string();
    assert!(error.contains("no global state"), "{error}");
}

#[test]
fn groups_with_different_spaces_train_together() {
    let config = PpoConfig { rollout_steps: 25, ..quick() };
    let tag = EnvConfig::SimpleTag(SimpleTagConfig::default());
    let mut run = Run::new(&tag, &config, Some(&RegularizerConfig::Lipschitz(ernie(0.1))), 15);
    let metrics = run.train(2);
    assert!(metrics.values.iter().all(|(_, v)| v.is_finite()));
    let names: Vec<String> = run.learner.state().arrays.keys().filter(|k| k.ends_with("policy.layers.0.weight")).cloned().collect();
    assert_eq!(names, ["adversary.policy.layers.0.weight", "agent.policy.layers.0.weight"]);
}

#[test]
fn a_non_finite_reward_stops_the_update() {
    let mut run = Run::new(&identity(false, 1), &quick(), None, 16);
    run.update(2);
    run.batch.rewards[3] = f32::NAN;
    match run.learner.update(&run.batch, 0.5) {
        Err(AgentError::NonFinite { tensor, update, .. }) => assert!(tensor.contains("of `agent`") && update == 2, "{tensor} {update}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_adversary_moves_what_is_observed_in_its_share_of_the_slots() {
    let env = identity(false, 2);
    let adversary = AdversarialTrainingConfig { radius: 0.4, share: 0.5, warmup_fraction: 0.5, ..Default::default() };
    let mut run = Run::new(&env, &quick(), None, 21);
    run.train_against(&adversary);
    // The first rollout is collected before the warm-up has begun.
    for (update, radius) in [(0, 0.0), (1, 0.0), (11, 0.4 * 10.0 / 20.0 / 0.5), (40, 0.4)] {
        while run.updates <= update {
            run.update(20);
        }
        let row = run.batch.n_agents * run.batch.observation_width;
        let steps = &run.batch.observations[..run.batch.n_steps * SLOTS * row];
        for (i, seen) in steps.chunks_exact(row).enumerate() {
            // One-hot symbols: what is not 0 or 1 was moved.
            let moved = seen.iter().map(|v| (v - v.round().clamp(0.0, 1.0)).abs()).fold(0.0, f32::max);
            let most = if i % SLOTS < SLOTS / 2 { radius as f32 } else { 0.0 };
            assert!(moved <= most + 1e-5, "update {update}, slot {}: {moved}", i % SLOTS);
            assert!(most == 0.0 || update < 40 || moved > 0.3 * most, "update {update}, slot {}: {moved}", i % SLOTS);
        }
    }
    assert!(run.mean_return(ActMode::Greedy) > 18.0);
}

#[test]
fn a_run_against_an_adversary_goes_on_with_the_same_bits() {
    let adversary = AdversarialTrainingConfig { radius: 0.3, warmup_fraction: 0.5, ..Default::default() };
    let start = || {
        let mut run = Run::new(&identity(false, 2), &quick(), None, 22);
        run.train_against(&adversary);
        run
    };
    let mut whole = start();
    (0..5).for_each(|_| drop(whole.update(10)));
    let (state, mut words) = (whole.learner.state(), SnapshotWriter::default());
    whole.engine.snapshot(&mut words);
    (0..5).for_each(|_| drop(whole.update(10)));
    let mut again = start();
    again.learner.load_state(&state).unwrap();
    again.engine.restore(&words.into_words()).unwrap();
    again.updates = 5;
    (0..5).for_each(|_| drop(again.update(10)));
    assert_eq!(whole.learner.state(), again.learner.state());
}

#[test]
fn scopes_over_agents_keep_moments_together() {
    for scope in [Scope::Joint, Scope::Shared, Scope::KOfN] {
        let regularizer = RegularizerConfig::Lipschitz(LipschitzConfig { scope, ..ernie(0.02) });
        // Minibatches that are no multiple of the three agents.
        let config = PpoConfig { minibatch_size: 64, agent_index: true, ..quick() };
        let mut run = Run::new(&identity(false, 3), &config, Some(&regularizer), 23);
        let last = run.train(30);
        let relative = last.get("ernie/perturbation_over_radius").unwrap();
        let expected = if scope == Scope::KOfN { 1.0 / 3.0 } else { 1.0 };
        assert!((relative - expected).abs() < 0.05, "{scope:?}: {relative}");
        let mean = run.mean_return(ActMode::Greedy);
        assert!(mean > 18.0, "{scope:?}: {mean}");
    }
}
