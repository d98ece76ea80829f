//! Learners from replay learn small worlds in seconds, go on exactly where they were, and refuse what does not fit.

use steadfast_agents::algorithms::maddpg::{Maddpg, MaddpgConfig, MinimaxConfig};
use steadfast_agents::algorithms::q_learning::{MixerKind, QLearning, QLearningConfig};
use steadfast_agents::explore::ExplorationConfig;
use steadfast_agents::head::Distance;
use steadfast_agents::nn::{Combined, Mixer, Mixing};
use steadfast_agents::regularizers::action::{ActionRegularizerConfig, ActionSearch};
use steadfast_agents::regularizers::lipschitz::{Gradient, LipschitzConfig, Scale};
use steadfast_agents::replay::ReplayConfig;
use steadfast_agents::returns::RewardScaling;
use steadfast_agents::schedule::Schedule;
use steadfast_agents::target::TargetConfig;
use steadfast_agents::team::{RewardSharing, Sharing};
use steadfast_agents::{AgentError, Learner, Metrics, RegularizerConfig};
use steadfast_envs::Rng;
use steadfast_envs::particle::{SimpleTagConfig, SimpleWorldCommConfig};
use steadfast_envs::testing::{ChainConfig, IdentityConfig};
use steadfast_envs::{ActMode, EnvConfig, EnvSpec, RolloutBatch, RolloutEngine, RolloutOptions, SeedTree, SnapshotWriter, VectorEnv};

const SLOTS: usize = 4;
const MIXERS: [MixerKind; 3] = [MixerKind::Independent, MixerKind::Sum, MixerKind::Monotonic];

/// A run small enough for a test.
struct Run {
    engine: RolloutEngine,
    learner: Box<dyn Learner>,
    batch: RolloutBatch,
    updates: usize,
    /// What is done to each reward before it is learned from.
    change: fn(f32) -> f32,
}

#[derive(Default, Clone, Copy)]
struct Penalties<'a> {
    regularizer: Option<&'a RegularizerConfig>,
    action: Option<&'a ActionRegularizerConfig>,
}

/// Settings of one of the learners.
trait Settings {
    fn learner(&self, penalties: Penalties<'_>, spec: &EnvSpec, seeds: SeedTree) -> Result<Box<dyn Learner>, AgentError>;
}

impl Settings for QLearningConfig {
    fn learner(&self, penalties: Penalties<'_>, spec: &EnvSpec, seeds: SeedTree) -> Result<Box<dyn Learner>, AgentError> {
        Ok(Box::new(QLearning::new(self, penalties.regularizer, penalties.action, spec, SLOTS, seeds)?))
    }
}

impl Settings for MaddpgConfig {
    fn learner(&self, penalties: Penalties<'_>, spec: &EnvSpec, seeds: SeedTree) -> Result<Box<dyn Learner>, AgentError> {
        Ok(Box::new(Maddpg::new(self, penalties.regularizer, penalties.action, spec, SLOTS, seeds)?))
    }
}

impl Run {
    fn new(env: &EnvConfig, settings: &dyn Settings, penalties: Penalties<'_>, seed: u64) -> Self {
        Self::try_new(env, settings, penalties, seed).expect("a valid learner")
    }

    fn try_new(env: &EnvConfig, settings: &dyn Settings, penalties: Penalties<'_>, seed: u64) -> Result<Self, AgentError> {
        let seeds = SeedTree::new(seed);
        let envs = (0..SLOTS).map(|_| env.build().expect("a valid world")).collect();
        let vector = VectorEnv::new(envs, seeds.child("environment")).expect("equal worlds");
        let learner = settings.learner(penalties, vector.spec(), seeds.child("learner"))?;
        let options = RolloutOptions { with_state: learner.uses_state(), ..Default::default() };
        let engine = RolloutEngine::new(vector, seeds.child("policy"), options).expect("a state where it is asked for");
        Ok(Self { engine, learner, batch: RolloutBatch::default(), updates: 0, change: |r| r })
    }

    fn train(&mut self, updates: usize, total: usize) -> Metrics {
        let mut last = Metrics::default();
        for _ in 0..updates {
            let steps = self.learner.rollout_steps();
            self.engine.collect(self.learner.policy(), steps, ActMode::Sample, &mut self.batch).expect("finite numbers");
            self.batch.rewards.iter_mut().for_each(|r| *r = (self.change)(*r));
            let progress = self.updates as f64 / total as f64;
            self.updates += 1;
            last = self.learner.update(&self.batch, progress).expect("finite numbers").clone();
        }
        last
    }

    fn mean_return(&mut self) -> f64 {
        let log = self.engine.evaluate(self.learner.policy(), 40, ActMode::Greedy).expect("finite numbers");
        log.iter().map(|e| e.agent_mean()).sum::<f64>() / log.len() as f64
    }
}

/// Settings that learn small worlds quickly.
fn quick() -> QLearningConfig {
    QLearningConfig {
        rollout_steps: 8,
        gradient_steps: 4,
        replay: ReplayConfig { capacity: 4000, learning_starts: 64, batch_size: 64, ..ReplayConfig::default() },
        exploration: ExplorationConfig { initial: 1.0, last: 0.1, fraction: 0.5 },
        target: TargetConfig { every: 20, share: 1.0 },
        learning_rate: 3e-3,
        discount: 0.9,
        hidden: vec![32],
        mixing_width: 8,
        hypernetwork_hidden: 16,
        ..QLearningConfig::default()
    }
}

fn identity(n_agents: usize) -> EnvConfig {
    EnvConfig::Identity(IdentityConfig { n_agents, ..Default::default() })
}

#[test]
fn teams_learn_with_every_mixer_and_sharing() {
    for mixer in MIXERS {
        for (sharing, agent_index) in [(Sharing::Group, true), (Sharing::None, false)] {
            let config = QLearningConfig { mixer, sharing, agent_index, ..quick() };
            let mut run = Run::new(&identity(2), &config, Penalties::default(), 1);
            let before = run.mean_return();
            let last = run.train(150, 150);
            let mean = run.mean_return();
            assert!(before < 15.0 && mean > 18.5, "{mixer:?} {sharing:?}: {before} -> {mean}, {last:?}");
        }
    }
}

#[test]
fn credit_reaches_back_over_time() {
    for (n_step, double) in [(1, true), (3, true), (1, false)] {
        let replay = ReplayConfig { n_step, ..quick().replay };
        let config = QLearningConfig { replay, double, ..quick() };
        let mut run = Run::new(&EnvConfig::Chain(ChainConfig::default()), &config, Penalties::default(), 2);
        run.train(250, 250);
        let mean = run.mean_return();
        assert!(mean >= 1.0, "{n_step} {double}: {mean}");
    }
}

#[test]
fn values_are_the_discounted_returns() {
    // The best policy earns 1 in every step of 20, after which the world is cut: the value of an endless continuation.
    let config = QLearningConfig { reward_scaling: RewardScaling::None, target: TargetConfig { every: 1, share: 0.05 }, ..quick() };
    let mut run = Run::new(&identity(1), &config, Penalties::default(), 3);
    let last = run.train(400, 400);
    // Of all actions in memory some are random and earn nothing at once.
    let value = last.get("train/value").unwrap();
    assert!((8.0..10.1).contains(&value), "{value}");
}

#[test]
fn every_option_still_learns() {
    let config = QLearningConfig {
        mixer: MixerKind::Monotonic,
        normalize_observations: true,
        learning_rate_schedule: Schedule::Linear,
        target: TargetConfig { every: 1, share: 0.05 },
        gradient_steps: 6,
        ..quick()
    };
    let ernie = RegularizerConfig::Lipschitz(LipschitzConfig { weight: 0.01, radius: 0.1, ..LipschitzConfig::default() });
    for search in [ActionSearch::Exact, ActionSearch::Greedy, ActionSearch::Gradient] {
        let action = ActionRegularizerConfig { weight: 0.01, agents: 2, search, ..ActionRegularizerConfig::default() };
        let mut run = Run::new(&identity(3), &config, Penalties { regularizer: Some(&ernie), action: Some(&action) }, 4);
        let last = run.train(150, 150);
        let mean = run.mean_return();
        assert!(mean > 18.0, "{search:?}: {mean}");
        assert!(last.get("train/learning_rate").unwrap() < 3e-3 / 30.0);
        for name in ["ernie/penalty", "ernie/lipschitz_lower_bound", "ernie_action/penalty", "ernie_action/changed"] {
            assert!(last.get(name).is_some_and(|v| v > 0.0), "{name} in {last:?}");
        }
        assert!(last.get("ernie/lipschitz_lower_bound") <= last.get("ernie/lipschitz_upper_bound"));
    }
}

#[test]
fn penalties_of_weight_zero_change_no_bit() {
    let config = QLearningConfig { mixer: MixerKind::Monotonic, ..quick() };
    let mut plain = Run::new(&identity(2), &config, Penalties::default(), 5);
    plain.train(20, 40);
    let ernie = RegularizerConfig::Lipschitz(LipschitzConfig { weight: 0.0, scale: Scale::Absolute, ..LipschitzConfig::default() });
    let action = ActionRegularizerConfig { weight: 0.0, ..ActionRegularizerConfig::default() };
    let mut zero = Run::new(&identity(2), &config, Penalties { regularizer: Some(&ernie), action: Some(&action) }, 5);
    zero.train(20, 40);
    let (plain, zero) = (plain.learner.state(), zero.learner.state());
    for (name, array) in &plain.arrays {
        if name != "lipschitz_bounds" {
            assert_eq!(Some(array), zero.arrays.get(name), "{name}");
        }
    }
}

#[test]
fn penalties_make_values_flatter() {
    let config = QLearningConfig { mixer: MixerKind::Sum, reward_scaling: RewardScaling::None, ..quick() };
    let trained = |weight: f64, action_weight: f64| {
        let gradient = if weight > 0.0 { Gradient::Stackelberg } else { Gradient::Detached };
        let ernie = LipschitzConfig { weight, gradient, radius: 0.5, scale: Scale::Absolute, ..LipschitzConfig::default() };
        let action = ActionRegularizerConfig { weight: action_weight, ..ActionRegularizerConfig::default() };
        let regularizer = RegularizerConfig::Lipschitz(ernie);
        let mut run = Run::new(&identity(2), &config, Penalties { regularizer: Some(&regularizer), action: Some(&action) }, 6);
        run.train(121, 121)
    };
    let (plain, smooth) = (trained(1e-9, 0.0), trained(0.3, 0.0));
    let slope = |m: &Metrics| m.get("ernie/lipschitz_lower_bound").unwrap();
    assert!(slope(&smooth) < 0.8 * slope(&plain), "{} {}", slope(&smooth), slope(&plain));
    let (plain, smooth) = (trained(0.0, 1e-9), trained(0.0, 0.3));
    let change = |m: &Metrics| m.get("ernie_action/penalty").unwrap();
    assert!(change(&smooth) < 0.8 * change(&plain), "{} {}", change(&smooth), change(&plain));
}

#[test]
fn a_restored_run_goes_on_with_the_same_bits() {
    let ernie = RegularizerConfig::Lipschitz(LipschitzConfig { weight: 0.05, ..LipschitzConfig::default() });
    let action = ActionRegularizerConfig::default();
    let q = |mixer| QLearningConfig { mixer, normalize_observations: true, ..quick() };
    let maddpg = MaddpgConfig {
        normalize_observations: true,
        minimax: Some(MinimaxConfig { opponents: 0.1, teammates: 0.01 }),
        sharing: Sharing::Group,
        reward_scaling: RewardScaling::Standardize,
        ..quick_maddpg()
    };
    let (tag, continuous) = (SimpleTagConfig::default(), SimpleTagConfig { continuous_actions: true, ..Default::default() });
    for (name, settings, env, action) in [
        ("IQL", &q(MixerKind::Independent) as &dyn Settings, &tag, None),
        ("VDN", &q(MixerKind::Sum), &tag, Some(&action)),
        ("QMIX", &QLearningConfig { reward_scaling: RewardScaling::Standardize, ..q(MixerKind::Monotonic) }, &tag, Some(&action)),
        ("MADDPG", &maddpg, &tag, Some(&action)),
        ("continuous MADDPG", &maddpg, &continuous, Some(&action)),
    ] {
        let (env, penalties) = (EnvConfig::SimpleTag(env.clone()), Penalties { regularizer: Some(&ernie), action });
        let mut whole = Run::new(&env, settings, penalties, 7);
        whole.train(14, 28);
        let (state, mut words) = (whole.learner.state(), SnapshotWriter::default());
        whole.engine.snapshot(&mut words);
        let last = whole.train(14, 28);
        assert!(last.get("train/gradient_norm").is_some_and(|v| v > 0.0), "{name} learns: {last:?}");

        let mut again = Run::new(&env, settings, penalties, 7);
        again.learner.load_state(&state).unwrap();
        again.engine.restore(&words.into_words()).unwrap();
        again.updates = 14;
        again.train(14, 28);
        assert_eq!(whole.learner.state(), again.learner.state(), "{name}");
    }
}

#[test]
fn standardised_rewards_have_no_origin_and_no_unit() {
    let replay = ReplayConfig { n_step: 3, ..quick().replay };
    let env = EnvConfig::SimpleSpread(Default::default());
    let loss = |settings: &dyn Settings, change: fn(f32) -> f32| {
        let mut run = Run::new(&env, settings, Penalties::default(), 3);
        run.change = change;
        let last = run.train(5, 5);
        last.get("train/loss").or(last.get("train/critic_loss")).unwrap()
    };
    for scaling in [RewardScaling::Standardize, RewardScaling::ReturnStd] {
        let q = QLearningConfig { mixer: MixerKind::Monotonic, reward_scaling: scaling, replay: replay.clone(), ..quick() };
        let maddpg = MaddpgConfig { reward_scaling: scaling, replay: replay.clone(), ..quick_maddpg() };
        for settings in [&q as &dyn Settings, &maddpg] {
            let (plain, shifted, larger) = (loss(settings, |r| r), loss(settings, |r| r + 5.0), loss(settings, |r| 4.0 * r));
            let is_near = |other: f64| (plain - other).abs() < 1e-3 * plain;
            assert!(
                is_near(larger) && is_near(shifted) == (scaling == RewardScaling::Standardize),
                "{scaling:?}: {plain} {shifted} {larger}"
            );
        }
    }
}

/// MADDPG that learns small worlds quickly.
fn quick_maddpg() -> MaddpgConfig {
    MaddpgConfig {
        rollout_steps: 8,
        gradient_steps: 4,
        replay: ReplayConfig { capacity: 4000, learning_starts: 64, batch_size: 64, ..ReplayConfig::default() },
        target: TargetConfig { every: 1, share: 0.05 },
        learning_rate: 3e-3,
        critic_learning_rate: Some(5e-3),
        discount: 0.5,
        exploration_noise: 0.3,
        policy_hidden: vec![32],
        critic_hidden: vec![32],
        ..MaddpgConfig::default()
    }
}

#[test]
fn actors_learn_with_every_sharing_and_kind_of_action() {
    for continuous_actions in [false, true] {
        for (sharing, minimax) in [(Sharing::None, None), (Sharing::Group, Some(MinimaxConfig { opponents: 0.1, teammates: 0.1 }))] {
            let env = EnvConfig::Identity(IdentityConfig { n_agents: 2, continuous_actions, ..Default::default() });
            let ernie = RegularizerConfig::Lipschitz(LipschitzConfig { weight: 0.003, radius: 0.05, ..LipschitzConfig::default() });
            let action = ActionRegularizerConfig { weight: 0.003, search: ActionSearch::Exact, ..ActionRegularizerConfig::default() };
            let with = minimax.is_some();
            let penalties = Penalties { regularizer: with.then_some(&ernie), action: with.then_some(&action) };
            let config = MaddpgConfig { sharing, minimax, ..quick_maddpg() };
            let mut run = Run::new(&env, &config, penalties, 11);
            let before = run.mean_return();
            let last = run.train(300, 300);
            let after = run.mean_return();
            assert!(before < 14.0 && after > 17.5, "{continuous_actions} {sharing:?}: {before} -> {after}, {last:?}");
            if with {
                let names = ["ernie/penalty", "ernie/lipschitz_lower_bound", "ernie_action/penalty", "ernie_action/changed"];
                assert!(names.iter().all(|name| last.get(name).is_some_and(|v| v > 0.0)), "{last:?}");
            }
        }
    }
}

#[test]
fn critics_resist_changed_actions() {
    for (continuous_actions, only_harmful) in [(false, false), (true, false), (true, true)] {
        let env = EnvConfig::Identity(IdentityConfig { n_agents: 3, continuous_actions, ..Default::default() });
        let trained = |weight: f64| {
            // With the mean of the team as reward each agent's value depends on the others' actions.
            let config = MaddpgConfig { reward_sharing: RewardSharing::TeamMean, ..quick_maddpg() };
            let action = ActionRegularizerConfig { weight, agents: 2, radius: 0.5, steps: 3, only_harmful, ..Default::default() };
            Run::new(&env, &config, Penalties { action: Some(&action), ..Penalties::default() }, 12).train(100, 100)
        };
        let change = |m: &Metrics| m.get("ernie_action/penalty").unwrap();
        let (plain, resisting) = (trained(1e-9), trained(3.0));
        assert!(change(&resisting) < 0.5 * change(&plain), "{continuous_actions}: {} {}", change(&resisting), change(&plain));
        let changed = plain.get("ernie_action/changed").unwrap();
        assert!(changed > 0.5 && changed <= 2.0, "{changed}");
    }
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let refused = |env: &EnvConfig, config: &dyn Settings, penalties: Penalties<'_>| match Run::try_new(env, config, penalties, 8) {
        Ok(_) => panic!("accepted"),
        Err(error) => error.to_string(),
    };
    let mixed = QLearningConfig { mixer: MixerKind::Monotonic, ..quick() };
    let none = Penalties::default();
    let chain = EnvConfig::Chain(ChainConfig::default());
    assert!(refused(&chain, &mixed, none).contains("`mixer` must be \"independent\" or \"sum\": `chain` has no global state"));
    let continuous = EnvConfig::Identity(IdentityConfig { continuous_actions: true, ..Default::default() });
    assert!(refused(&continuous, &quick(), none).contains("Q-learning needs a number of choices"));
    let action = ActionRegularizerConfig::default();
    let error = refused(&identity(2), &quick(), Penalties { action: Some(&action), ..none });
    assert!(error.contains("`action_regularizer` must be absent without a mixer"), "{error}");
    let individual = QLearningConfig { reward_sharing: RewardSharing::Individual, ..mixed };
    assert!(refused(&identity(2), &individual, none).contains("`reward_sharing`"));
    let kl = RegularizerConfig::Lipschitz(LipschitzConfig { distance: Some(Distance::Kl), ..LipschitzConfig::default() });
    let error = refused(&identity(2), &quick(), Penalties { regularizer: Some(&kl), ..none });
    assert!(error.contains("`regularizer.lipschitz.distance` must be \"l2\""), "{error}");
    let mixed = QLearningConfig { reward_sharing: RewardSharing::TeamMean, ..individual };
    let all = ActionRegularizerConfig { agents: 2, ..ActionRegularizerConfig::default() };
    let error = refused(&identity(2), &mixed, Penalties { action: Some(&all), ..none });
    assert!(error.contains("`action_regularizer.agents` must be fewer than the members of the largest team"), "{error}");
    let minimax = MaddpgConfig { minimax: Some(MinimaxConfig::default()), ..quick_maddpg() };
    assert!(refused(&identity(1), &minimax, none).contains("`minimax` must be absent: there are no other agents"));
    let alone = refused(&identity(1), &quick_maddpg(), Penalties { action: Some(&action), ..none });
    assert!(alone.contains("`action_regularizer` must be absent: there are no other agents"), "{alone}");
    let kl = Penalties { regularizer: Some(&kl), ..none };
    assert!(refused(&continuous, &quick_maddpg(), kl).contains("`regularizer.lipschitz.distance` must be \"l2\""));
    let small = QLearningConfig { replay: ReplayConfig { capacity: 8, learning_starts: 0, ..quick().replay }, ..quick() };
    assert!(refused(&identity(2), &small, none).contains("`replay.capacity` must be at least 4 for each of the 4 slots"));
}

/// `tests/golden/generate/qmix.py`
#[test]
fn the_mixing_network_agrees_with_epymarl() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/qmix.json");
    let golden: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    fn flat(value: &serde_json::Value) -> Vec<f32> {
        match value.as_array() {
            Some(list) => list.iter().flat_map(flat).collect(),
            None => vec![value.as_f64().unwrap() as f32],
        }
    }
    let size = |name: &str| golden[name].as_u64().unwrap() as usize;
    let (agents, state) = (size("n_agents"), size("state"));
    let mut mixer = Mixer::new(agents, state, size("width"), size("hypernetwork"), &mut Rng::from_seed(0)).unwrap();
    let tensor = |set: &str, part: &str, name: &str| {
        let (layer, kind) = name.strip_prefix("layers.").and_then(|n| n.split_once('.')).unwrap();
        flat(&golden[set][part][layer.parse::<usize>().unwrap()][kind])
    };
    for (part, net) in mixer.nets_mut() {
        let shapes: Vec<_> = net.tensors().into_iter().map(|t| (t.name, t.shape)).collect();
        let shape = |name: &str| shapes.iter().find(|(n, _)| n == name).map(|(_, shape)| shape.clone());
        net.load_tensors(&|name| Some((shape(name)?, tensor("parts", part, name)))).unwrap();
    }
    let close = |name: &str, got: &[f32], expected: &[f32]| {
        let largest = expected.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
        assert_eq!(got.len(), expected.len(), "{name}");
        for (g, e) in got.iter().zip(expected) {
            assert!((g - e).abs() <= 1e-5 * largest, "{name}: {g} {e}");
        }
    };
    let (states, q, weights) = (flat(&golden["states"]), flat(&golden["values"]), flat(&golden["weights"]));
    let places: Vec<u32> = (0..weights.len() as u32).collect();
    let (mut mixing, mut combined, mut d_q) = (Mixing::default(), Combined::default(), vec![0.0; q.len()]);
    mixer.weigh_train(&states, places.len(), &mut mixing);
    mixer.combine(&mixing, &places, &q, &mut combined);
    close("values", &combined.values, &flat(&golden["mixed"]));
    mixer.add_gradient(&mut mixing, &places, &q, &combined, &weights, &mut d_q);
    close("derivatives", &d_q, &flat(&golden["d_values"]));
    let mut gradients: [Vec<f32>; 4] = Default::default();
    mixer.nets().zip(&mut gradients).for_each(|((_, net), gradient)| gradient.resize(net.n_parameters(), 0.0));
    mixer.backward(&mut mixing, &mut gradients);
    for ((part, net), gradient) in mixer.nets_mut().zip(&gradients) {
        net.parameters_mut().copy_from_slice(gradient);
        for found in net.tensors() {
            close(&format!("{part}.{}", found.name), &found.data, &tensor("gradients", part, &found.name));
        }
    }
}

/// The leader of this world, who also speaks, has more actions than the others.
#[test]
fn agents_with_different_numbers_of_actions_learn_together() {
    let env = EnvConfig::SimpleWorldComm(SimpleWorldCommConfig::default());
    for search in [ActionSearch::Exact, ActionSearch::Greedy, ActionSearch::Gradient] {
        let action = ActionRegularizerConfig { search, ..ActionRegularizerConfig::default() };
        let penalties = Penalties { action: Some(&action), ..Penalties::default() };
        let last = Run::new(&env, &quick_maddpg(), penalties, 31).train(15, 15);
        assert!(last.get("ernie_action/changed").is_some_and(|v| v > 0.9 && v <= 1.0), "{search:?}: {last:?}");
    }
    let action = ActionRegularizerConfig::default();
    let config = QLearningConfig { mixer: MixerKind::Sum, ..quick() };
    let last = Run::new(&env, &config, Penalties { action: Some(&action), ..Penalties::default() }, 32).train(15, 15);
    assert!(last.get("ernie_action/penalty").is_some_and(|v| v > 0.0), "{last:?}");
}

#[test]
fn a_policy_acts_without_its_memory() {
    for settings in [&quick() as &dyn Settings, &quick_maddpg()] {
        let mut run = Run::new(&identity(2), settings, Penalties::default(), 33);
        run.train(20, 20);
        let (mut state, mean) = (run.learner.state(), run.mean_return());
        state.arrays.retain(|name, _| !name.starts_with(steadfast_agents::replay::PREFIX));
        let mut other = Run::new(&identity(2), settings, Penalties::default(), 33);
        assert!(other.learner.load_state(&state).is_err(), "training needs the memory");
        other.learner.load_policy(&state).unwrap();
        assert_eq!(other.mean_return(), mean);
    }
}
