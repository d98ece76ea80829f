//! RLOO, GRPO and PPO with a tiny decoder through the rollout engine: first pass, learning, micro-batches, resume, errors.
#![cfg(feature = "llm")]

use steadfast_agents::llm::policy_gradient::{GrpoConfig, KlConfig, LossType, RatioLevel, RlooConfig, TextPpoConfig, UpdateConfig};
use steadfast_agents::llm::{AdamWConfig, Decoder, DecoderConfig, Device, GenerationConfig, PolicyGradientConfig, TextPolicyGradient};
use steadfast_agents::schedule::{Decay, ScheduleConfig};
use steadfast_agents::{AgentError, Array, Learner, Metrics, StateDict};
use steadfast_envs::text::{EOS, TopicLexiconConfig};
use steadfast_envs::{ActMode, EnvConfig, RolloutBatch, RolloutEngine, RolloutOptions, SeedTree, SnapshotWriter, VectorEnv};

const TOTAL: u64 = 40;

/// Two topics, six words, at most four of them in a completion.
fn world() -> EnvConfig {
    EnvConfig::TopicLexicon(TopicLexiconConfig { n_topics: 2, n_words: 6, max_words: 4, seed: 1 })
}

fn shape(vocab_size: usize) -> DecoderConfig {
    DecoderConfig {
        n_kv_heads: 1,
        bos_token_id: Some(1),
        eos_token_ids: vec![2],
        pad_token_id: Some(0),
        initializer_range: 0.05,
        ..DecoderConfig::llama(vocab_size, 16, 1, 2, 24, 16)
    }
}

fn decoder(seed: u64) -> Decoder {
    let vocab = world().text_task().expect("a sound run").expect("a task of text").words().len();
    Decoder::fresh(&shape(vocab), false, SeedTree::new(seed), &Device::Cpu).expect("a sound run")
}

fn update(learning_rate: f64) -> UpdateConfig {
    UpdateConfig { learning_rate, schedule: ScheduleConfig { decay: Decay::Constant, warmup: 0.0, floor: 0.0 }, ..Default::default() }
}

fn rloo() -> RlooConfig {
    RlooConfig { update: update(2e-2), ..Default::default() }
}

fn grpo() -> GrpoConfig {
    GrpoConfig { group_size: 4, update: update(2e-2), ..Default::default() }
}

fn ppo() -> TextPpoConfig {
    TextPpoConfig {
        generation: Default::default(),
        critic_learning_rate: 2e-2,
        update: UpdateConfig { epochs: 2, minibatches: 2, ..update(1e-2) },
        ..Default::default()
    }
}

fn all() -> [PolicyGradientConfig; 3] {
    [PolicyGradientConfig::Rloo(rloo()), PolicyGradientConfig::Grpo(grpo()), PolicyGradientConfig::Ppo(ppo())]
}

struct Run {
    learner: TextPolicyGradient,
    engine: RolloutEngine,
    batch: RolloutBatch,
}

impl Run {
    fn new(config: &PolicyGradientConfig, slots: usize) -> Self {
        let seeds = SeedTree::new(3);
        let envs = (0..slots).map(|_| world().build().expect("a sound run")).collect();
        let envs = VectorEnv::with_groups(envs, seeds.child("environment"), config.group_size()).expect("a sound run");
        let learner =
            TextPolicyGradient::new(config, decoder(1), vec![EOS], envs.spec(), slots, seeds.child("learner"), TOTAL).expect("a sound run");
        let engine = RolloutEngine::new(envs, seeds.child("policy"), RolloutOptions::default()).expect("a sound run");
        Self { learner, engine, batch: RolloutBatch::default() }
    }

    fn collect(&mut self) {
        let steps = self.learner.rollout_steps();
        self.engine.collect(self.learner.policy(), steps, ActMode::Sample, &mut self.batch).expect("a sound run");
    }

    fn update(&mut self) -> Metrics {
        self.collect();
        self.learner.update(&self.batch, 0.0).expect("a sound run").clone()
    }
}

fn bits(state: &StateDict) -> Vec<(String, Vec<u64>)> {
    let words = |array: &Array| match array {
        Array::F32(_, v) => v.iter().map(|x| u64::from(x.to_bits())).collect(),
        Array::F64(_, v) => v.iter().map(|x| x.to_bits()).collect(),
        Array::U64(v) => v.clone(),
    };
    state.arrays.iter().map(|(name, array)| (name.clone(), words(array))).collect()
}

#[test]
fn first_pass_agrees_with_the_sampler_and_the_reference() {
    for config in all() {
        let mut run = Run::new(&config, 8);
        for round in 0..2 {
            let metrics = run.update();
            let get = |name: &str| metrics.get(name).unwrap_or_else(|| panic!("{name} is logged"));
            assert!(metrics.values.iter().all(|(_, v)| v.is_finite()), "{metrics:?}");
            assert!(get("sampling/log_prob_gap_max") <= 1e-5, "{metrics:?}");
            assert!((get("sampling/ratio") - 1.0).abs() < 1e-5);
            if round == 0 {
                assert!(get("train/kl").abs() < 1e-4 && get("train/kl_k3").abs() < 1e-6);
            } else {
                assert!(get("train/kl_k3") > 1e-6, "the policy has moved: {metrics:?}");
            }
            assert!(get("train/grad_norm") > 0.0 && get("train/entropy") > 1.0);
            assert!((1.0..=5.0).contains(&get("completions/length_mean")));
            assert!(get("completions/length_min") <= get("completions/length_max"));
        }
    }
}

#[test]
fn every_estimator_learns_the_topic_lexicon() {
    for config in all() {
        let mut run = Run::new(&config, 32);
        let rewards: Vec<f64> = (0..TOTAL).map(|_| run.update().get("train/reward").unwrap()).collect();
        let mean = |r: &[f64]| r.iter().sum::<f64>() / r.len() as f64;
        let (first, last) = (mean(&rewards[..5]), mean(&rewards[35..]));
        assert!(last > first + 1.0, "{config:?}: {first} to {last}");
    }
}

#[test]
fn a_price_on_divergence_keeps_the_policy_near_its_reference() {
    let kl_after = |coefficient: f64| {
        let kl = KlConfig { coefficient, ..KlConfig::default() };
        let mut run = Run::new(&PolicyGradientConfig::Rloo(RlooConfig { kl, ..rloo() }), 32);
        (0..15).map(|_| run.update().get("train/kl").unwrap()).last().unwrap()
    };
    let (free, dear) = (kl_after(0.0), kl_after(5.0));
    assert!(dear < 0.5 * free, "{dear} {free}");
}

#[test]
fn eight_times_one_equals_one_times_eight() {
    let variants = |micro_batch_size: usize| {
        // A large epsilon: else Adam blows the rounding of vanishing gradients up to whole steps.
        let optimizer = AdamWConfig { epsilon: 1e-2, ..Default::default() };
        let update = UpdateConfig { micro_batch_size, optimizer, ..update(1e-2) };
        let mut all = vec![
            PolicyGradientConfig::Rloo(RlooConfig { update: update.clone(), ..rloo() }),
            PolicyGradientConfig::Ppo(TextPpoConfig { update: update.clone(), ..ppo() }),
        ];
        for loss_type in [LossType::Grpo, LossType::Bnpo, LossType::DrGrpo, LossType::Dapo] {
            let kl = KlConfig { coefficient: 0.1, ..GrpoConfig::default().kl };
            let ratio = if loss_type == LossType::Grpo { RatioLevel::Sequence } else { RatioLevel::Token };
            all.push(PolicyGradientConfig::Grpo(GrpoConfig { loss_type, ratio, kl, update: update.clone(), ..grpo() }));
        }
        all
    };
    for (whole, parts) in variants(8).iter().zip(&variants(1)) {
        let (mut a, mut b) = (Run::new(whole, 8), Run::new(parts, 8));
        a.update();
        b.update();
        let (a, b) = (a.learner.state(), b.learner.state());
        for ((name, x), y) in a.arrays.iter().zip(b.arrays.values()) {
            if let (Array::F32(_, x), Array::F32(_, y)) = (x, y) {
                let gap = x.iter().zip(y).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
                assert!(gap < 1e-5, "{whole:?}: {name} differs by {gap}");
            }
        }
    }
}

#[test]
fn a_restored_run_continues_to_the_same_bits() {
    for mut config in all() {
        // A target changes the coefficient, which must be restored, too.
        if let PolicyGradientConfig::Rloo(c) = &mut config {
            c.kl.target = Some(0.5);
        }
        let mut run = Run::new(&config, 8);
        run.update();
        run.update();
        let mut words = SnapshotWriter::default();
        run.engine.snapshot(&mut words);
        let (words, state) = (words.into_words(), run.learner.state());
        let metrics: Vec<Metrics> = (0..2).map(|_| run.update()).collect();
        let mut again = Run::new(&config, 8);
        again.learner.load_state(&state).unwrap();
        again.engine.restore(&words).unwrap();
        assert_eq!(bits(&again.learner.state()), bits(&state));
        for expected in metrics {
            assert_eq!(again.update(), expected);
        }
        assert_eq!(bits(&again.learner.state()), bits(&run.learner.state()));
    }
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let states = [1, 3].map(|threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut run = Run::new(&PolicyGradientConfig::Ppo(ppo()), 16);
            run.update();
            run.update();
            bits(&run.learner.state())
        })
    });
    assert!(states[0] == states[1]);
}

#[test]
fn what_does_not_fit_is_said_before_anything_starts() {
    let envs = VectorEnv::new(vec![world().build().unwrap()], SeedTree::new(0)).unwrap();
    let message = |config: &PolicyGradientConfig, decoder: Decoder, spec: &steadfast_envs::EnvSpec, slots: usize| {
        let made = TextPolicyGradient::new(config, decoder, vec![EOS], spec, slots, SeedTree::new(0), 1);
        made.err().expect("it does not fit").to_string()
    };
    let config = PolicyGradientConfig::Rloo(rloo());
    assert!(message(&config, decoder(0), envs.spec(), 6).contains("multiple of the 4"));
    let small = Decoder::fresh(&shape(10), false, SeedTree::new(0), &Device::Cpu).unwrap();
    assert!(message(&config, small, envs.spec(), 4).contains("vocabulary"));
    let large = Decoder::fresh(&shape(64), false, SeedTree::new(0), &Device::Cpu).unwrap();
    assert!(message(&config, large, envs.spec(), 4).contains("vocabulary"));
    let control = EnvConfig::CartPole(Default::default()).build().unwrap();
    assert!(message(&config, decoder(0), control.spec(), 4).contains("a world of text"));
    let mut turns = envs.spec().clone();
    turns.horizon = 2;
    assert!(message(&config, decoder(0), &turns, 4).contains("one turn"));
    let scorer = decoder(0).with_scalar_head(SeedTree::new(0)).unwrap();
    assert!(message(&config, scorer, envs.spec(), 4).contains("language model"));
    let many = PolicyGradientConfig::Rloo(RlooConfig { update: UpdateConfig { minibatches: 5, ..update(1e-3) }, ..rloo() });
    assert!(message(&many, decoder(0), envs.spec(), 4).contains("minibatches"));
}

#[test]
fn slots_without_groups_and_states_of_other_models_are_refused() {
    let seeds = SeedTree::new(0);
    let envs = VectorEnv::new((0..8).map(|_| world().build().unwrap()).collect(), seeds).unwrap();
    let config = PolicyGradientConfig::Rloo(rloo());
    let mut learner = TextPolicyGradient::new(&config, decoder(1), vec![EOS], envs.spec(), 8, seeds, 1).unwrap();
    let mut engine = RolloutEngine::new(envs, seeds, RolloutOptions::default()).unwrap();
    let mut batch = RolloutBatch::default();
    engine.collect(learner.policy(), 1, ActMode::Sample, &mut batch).unwrap();
    let error = learner.update(&batch, 0.0).unwrap_err();
    assert!(matches!(&error, AgentError::Model { reason, .. } if reason.contains("same prompt")), "{error}");

    let other = TextPolicyGradient::new(&config, decoder(2), vec![EOS], engine.spec(), 8, seeds, 1).unwrap();
    let error = learner.load_state(&other.state()).unwrap_err().to_string();
    assert!(error.contains("another model"), "{error}");
    let mut state = learner.state();
    let name = state.arrays.keys().find(|k| k.starts_with("policy/")).unwrap().clone();
    state.arrays.remove(&name);
    assert!(learner.load_state(&state).unwrap_err().to_string().contains(&name));
}

#[test]
fn greedy_evaluation_depends_on_the_prompts_alone() {
    let config = PolicyGradientConfig::Grpo(grpo());
    let mut run = Run::new(&config, 8);
    run.update();
    let mut logs = [(1, 5), (3, 6)].map(|(slots, policy_seed)| {
        let envs = (0..slots).map(|_| world().build().unwrap()).collect();
        let envs = VectorEnv::new(envs, SeedTree::new(4)).unwrap();
        let mut engine = RolloutEngine::new(envs, SeedTree::new(policy_seed), RolloutOptions::default()).unwrap();
        engine.evaluate(run.learner.policy(), 12, ActMode::Greedy).unwrap()
    });
    let [first, second] = &mut logs;
    assert_eq!(first, second);
    assert_eq!(first.len(), 12);
    // Gold reward, tokens, whether the end was written.
    assert!(first.iter().all(|e| e.terminated && e.metrics.len() == 3 && (1.0..=5.0).contains(&e.metrics[1])));
}

#[test]
fn an_evaluation_measures_the_divergence_of_its_own_completions() {
    let reference = KlConfig { measure: true, coefficient: 0.0, ..KlConfig::default() };
    let config = PolicyGradientConfig::Rloo(RlooConfig { kl: reference, ..rloo() });
    let mut run = Run::new(&config, 8);
    assert_eq!(run.learner.evaluation_metrics(), ["completion_length", "ended", "entropy_sampled", "kl", "kl_k3"]);
    // Three slots for ten episodes: two completions of the last round count nowhere.
    let evaluate = |run: &mut Run| {
        let envs = (0..3).map(|_| world().build().unwrap()).collect();
        let envs = VectorEnv::new(envs, SeedTree::new(4)).unwrap();
        let mut engine = RolloutEngine::new(envs, SeedTree::new(5), RolloutOptions::default()).unwrap();
        run.learner.begin_evaluation();
        let episodes = engine.evaluate(run.learner.policy(), 10, ActMode::Sample).unwrap();
        let found = run.learner.end_evaluation(10).unwrap();
        let mean = |i: usize| episodes.iter().map(|e| e.metrics[i]).sum::<f64>() / 10.0;
        let get = |name: &str| found.get(name).unwrap();
        assert!((get("completion_length") - mean(1)).abs() < 1e-12 && (get("ended") - mean(2)).abs() < 1e-12);
        assert!(get("entropy_sampled") > 0.5 && get("kl_k3") >= 0.0);
        (get("kl"), get("kl_k3"))
    };
    let (kl, kl_k3) = evaluate(&mut run);
    assert!(kl.abs() < 1e-4 && kl_k3 < 1e-6, "{kl} {kl_k3}");
    (0..3).for_each(|_| drop(run.update()));
    let (_, kl_k3) = evaluate(&mut run);
    assert!(kl_k3 > 1e-4, "the policy has moved: {kl_k3}");
    let without = KlConfig { coefficient: 0.0, measure: false, ..KlConfig::default() };
    let run = Run::new(&PolicyGradientConfig::Rloo(RlooConfig { kl: without, ..rloo() }), 8);
    assert_eq!(run.learner.evaluation_metrics().len(), 3);
}

#[test]
fn a_missing_end_costs_its_penalty() {
    let penalty = |missing_eos_penalty: f64| {
        let kl = KlConfig { coefficient: 0.0, ..KlConfig::default() };
        // One token leaves no room for an end after a word.
        let generation = GenerationConfig { max_new_tokens: 1, ..Default::default() };
        let config = PolicyGradientConfig::Rloo(RlooConfig { missing_eos_penalty, kl, generation, ..rloo() });
        let mut run = Run::new(&config, 32);
        let metrics = run.update();
        let get = |name: &str| metrics.get(name).expect("it is logged");
        (get("train/reward"), get("train/penalized_reward"), get("completions/eos_share"), get("completions/length_max"))
    };
    let (reward, penalized, ended, longest) = penalty(3.0);
    assert!(ended < 0.5 && longest == 1.0);
    assert!((reward - penalized - 3.0 * (1.0 - ended)).abs() < 1e-9);
    let (reward, penalized, ..) = penalty(0.0);
    assert_eq!(reward, penalized);
}
