//! Policies that learn from preferences, on a tiny decoder.
#![cfg(feature = "llm")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod llm_tiny;

use llm_tiny::{bits, check_gradient, copy, decoder, distance, pairs, shape, trainer, trainer_config};
use steadfast_agents::AgentError;
use steadfast_agents::llm::{Decoder, Objective, TokenSequence};
use steadfast_reward::log_prob_margin::{AnswerLogProb, LogProbMarginConfig, OrpoConfig, ReferenceMarginConfig, SimpoConfig};
use steadfast_reward::margin::{BoundedConfig, CrossEntropyConfig, DropConfig, FlipRateConfig, HingeConfig, IpoConfig};
use steadfast_reward::{
    EncodedAnswer, EncodedPreference, KtoConfig, KtoObjective, LossConfig, PairLoss, PreferenceConfig, PreferenceObjective, R3mConfig,
    ReferenceCache, RewardError,
};

fn dpo(loss: LossConfig) -> PreferenceConfig {
    let margin = LogProbMarginConfig::Dpo(ReferenceMarginConfig { beta: 0.5 });
    PreferenceConfig { margin, loss: Some(loss), ..PreferenceConfig::default() }
}

fn cross_entropy() -> LossConfig {
    LossConfig::CrossEntropy(CrossEntropyConfig {})
}

fn r3m(lambda: f64) -> LossConfig {
    LossConfig::R3m(R3mConfig { lambda })
}

fn objective(config: &PreferenceConfig, n: usize) -> PreferenceObjective {
    PreferenceObjective::new(config, pairs(n, 1), pairs(8, 2), ReferenceCache::default()).unwrap()
}

/// Every method that the module doc names, and a few more.
fn methods() -> Vec<(&'static str, PreferenceConfig)> {
    let reference = ReferenceMarginConfig { beta: 0.5 };
    let simpo = LogProbMarginConfig::Simpo(SimpoConfig { beta: 2.0, gamma: 0.5 });
    let with = |margin, loss| PreferenceConfig { margin, loss, ..PreferenceConfig::default() };
    let orpo = PreferenceConfig {
        margin: LogProbMarginConfig::Orpo(OrpoConfig {}),
        loss_weight: 0.1,
        nll_weight: 1.0,
        ..PreferenceConfig::default()
    };
    vec![
        ("dpo", dpo(cross_entropy())),
        ("r3m", dpo(r3m(0.3))),
        ("cdpo", dpo(LossConfig::LabelSmoothing(FlipRateConfig { epsilon: 0.2 }))),
        ("rdpo", dpo(LossConfig::RobustDpo(FlipRateConfig { epsilon: 0.2 }))),
        ("hinge", dpo(LossConfig::Hinge(HingeConfig {}))),
        ("bounded", dpo(LossConfig::Bounded(BoundedConfig::default()))),
        ("trimmed", dpo(LossConfig::Trimmed(DropConfig { fraction: 0.25 }))),
        ("dpo_normalized", with(LogProbMarginConfig::DpoNormalized(reference), None)),
        ("ipo", with(LogProbMarginConfig::Ipo(reference), None)),
        ("ipo_normalized", with(LogProbMarginConfig::IpoNormalized(reference), None)),
        ("simpo", with(simpo, None)),
        ("r3m_simpo", with(simpo, Some(r3m(0.6)))),
        ("orpo", orpo.clone()),
        ("orpo with prompts", PreferenceConfig { nll_includes_prompt: true, ..orpo }),
    ]
}

fn answers(n: usize) -> Vec<EncodedAnswer> {
    let rows = pairs(n.div_ceil(2), 1).into_iter().flat_map(|p| {
        let row = |sequence, desirable| EncodedAnswer { id: format!("{}-{desirable}", p.id), sequence, desirable, reference: None };
        [row(p.pair.chosen.clone(), true), row(p.pair.rejected.clone(), false)]
    });
    rows.take(n).collect()
}

fn kto(n: usize) -> KtoObjective {
    let config = KtoConfig { beta: 0.4, desirable_weight: 1.2, undesirable_weight: 0.8 };
    KtoObjective::new(&config, answers(n), answers(6), ReferenceCache::default()).unwrap()
}

#[test]
fn without_a_margin_r3m_is_dpo_bit_for_bit() {
    let both = [dpo(cross_entropy()), dpo(r3m(0.75))].map(|config| PairLoss::new(&config).unwrap());
    let answer = |policy: f32| AnswerLogProb { policy, reference: Some(policy), n_tokens: 3 };
    let [a, b] = both.map(|loss| loss.evaluate("p", &answer(-3.0), &answer(-7.0), None, false).unwrap());
    assert_eq!((a.loss.value.to_bits(), a.loss.slope.to_bits()), (b.loss.value.to_bits(), b.loss.slope.to_bits()));
    assert_eq!(a.loss.value, std::f32::consts::LN_2);
    // The first step of a run, where the policy is the reference.
    let run = |loss| {
        let mut run = trainer(&trainer_config(8, 4), decoder(1), objective(&dpo(loss), 8));
        let metrics = run.step().unwrap();
        (metrics.get("train/loss").unwrap().to_bits(), bits(&run.state().unwrap()))
    };
    assert_eq!(run(cross_entropy()), run(r3m(0.75)));
}

#[test]
fn lambda_of_one_is_dpo_through_a_whole_run() {
    let run = |loss| {
        let mut run = trainer(&trainer_config(5, 5), decoder(1), objective(&dpo(loss), 12));
        let losses: Vec<u64> = (0..run.n_steps()).map(|_| run.step().unwrap().get("train/loss").unwrap().to_bits()).collect();
        (losses, bits(&run.state().unwrap()))
    };
    assert_eq!(run(cross_entropy()), run(r3m(1.0)));
}

#[test]
fn gradients_are_derivatives_of_the_loss() {
    // Not the reference itself: at its own place a policy has margins of 0, where many losses look alike.
    let (start, reference) = (decoder(1), decoder(2));
    for (name, config) in methods() {
        // Which pairs `trimmed` leaves out may change within a difference.
        if name != "trimmed" {
            check_gradient(name, &start, 2, &|| Box::new(objective(&config, 5).with_reference(copy(&reference))));
        }
    }
}

#[test]
fn gradient_of_kto_is_the_derivative_at_a_fixed_divergence() {
    // With the policy as its own reference, mismatched log-ratios are 0 within rounding and z₀ stays out of the difference
    // only on one side; a reference that is likelier everywhere keeps it at its bound of 0.
    let start = decoder(1);
    let reference_answers = || {
        let raise = |row: EncodedAnswer| EncodedAnswer { reference: Some(-0.5), ..row };
        answers(6).into_iter().map(raise).collect::<Vec<_>>()
    };
    let reference = {
        let mut run = trainer(&trainer_config(8, 8), decoder(1), sft_on_mismatched());
        (0..40).for_each(|_| drop(run.step().unwrap()));
        copy(run.decoder())
    };
    check_gradient("kto", &start, 2, &|| {
        let objective =
            KtoObjective::new(&KtoConfig { beta: 0.4, ..KtoConfig::default() }, reference_answers(), vec![], ReferenceCache::default());
        Box::new(objective.unwrap().with_reference(copy(&reference)))
    });
}

/// Makes all completions of the rows likelier.
fn sft_on_mismatched() -> steadfast_agents::llm::SftObjective {
    let sequences: Vec<TokenSequence> = answers(6).into_iter().map(|row| row.sequence).collect();
    let all = sequences.iter().flat_map(|a| sequences.iter().map(|b| TokenSequence::new(a.prompt(), b.completion())));
    steadfast_agents::llm::SftObjective::new(all.collect(), vec![]).unwrap()
}

#[test]
fn eight_times_one_equals_one_times_eight_for_every_method() {
    let reference = decoder(2);
    let compare = |name: &str, new: &dyn Fn() -> Box<dyn Objective>| {
        let run = |micro: usize| {
            let seeds = steadfast_envs::SeedTree::new(3);
            let mut run = steadfast_agents::llm::Trainer::new(&trainer_config(8, micro), decoder(1), new(), seeds).unwrap();
            let metrics = [run.step().unwrap(), run.step().unwrap()];
            (metrics, copy(run.decoder()))
        };
        let ((a, whole), (b, parts)) = (run(8), run(1));
        for ((name_a, x), (name_b, y)) in a.iter().zip(&b).flat_map(|(a, b)| a.values.iter().zip(&b.values)) {
            assert_eq!(name_a, name_b);
            assert!((x - y).abs() <= 2e-5 * x.abs().max(1.0), "{name}, {name_a}: {x} and {y}");
        }
        assert!(distance(&whole, &parts) < 2e-4, "{name}: {}", distance(&whole, &parts));
    };
    for (name, config) in methods() {
        compare(name, &|| Box::new(objective(&config, 16).with_reference(copy(&reference))));
    }
    compare("kto", &|| Box::new(kto(16).with_reference(copy(&reference))));
}

#[test]
fn metrics_are_what_the_log_probabilities_say() {
    let (policy, reference) = (decoder(1), decoder(2));
    let config = dpo(r3m(0.4));
    let mut train = pairs(4, 1);
    train[1].margin = Some(0.3);
    train[2].equal = true;
    let terms = |preference: &EncodedPreference| {
        let log_prob = |model: &Decoder, s: &TokenSequence| f64::from(model.log_probs(&[s], 1.0).unwrap()[0].log_prob());
        let ratio = |s| 0.5 * (log_prob(&policy, s) - log_prob(&reference, s));
        (ratio(&preference.pair.chosen), ratio(&preference.pair.rejected), log_prob(&policy, &preference.pair.chosen))
    };
    let expected: Vec<(f64, f64, f64)> = train.iter().map(terms).collect();
    let objective = PreferenceObjective::new(&config, train.clone(), train.clone(), ReferenceCache::default()).unwrap();
    let mut run = trainer(&trainer_config(4, 2), copy(&policy), objective.with_reference(copy(&reference)));
    let evaluated = run.evaluate().unwrap();
    let metrics = run.step().unwrap();
    let mean = |f: &dyn Fn(usize) -> f64| (0..4).map(f).sum::<f64>() / 4.0;
    let c = (1.0_f64 / 0.4 - 1.0).ln();
    let rho = |d: f64| if d < c { -(0.6_f64.ln()) + 0.4 * (c - d) } else { (-d).exp().ln_1p() };
    let margin = |i: usize| expected[i].0 - expected[i].1 - train[i].margin.map_or(0.0, f64::from);
    let loss = |i: usize| if train[i].equal { 0.5 * (rho(margin(i)) + rho(-margin(i))) } else { rho(margin(i)) };
    let delta = |i: usize| if train[i].equal { 0.0 } else { (c - margin(i)).max(0.0) };
    let is_right = |i: usize| f64::from(u8::from(expected[i].0 > expected[i].1));
    let accuracy = (is_right(0) + is_right(1) + is_right(3)) / 3.0;
    for (name, value) in [
        ("loss", mean(&loss)),
        ("rewards/chosen", mean(&|i| expected[i].0)),
        ("rewards/rejected", mean(&|i| expected[i].1)),
        ("rewards/margins", mean(&|i| expected[i].0 - expected[i].1)),
        ("rewards/accuracies", accuracy),
        ("logps/chosen", mean(&|i| expected[i].2)),
    ] {
        let in_training = if name == "loss" { "train/loss".to_string() } else { name.to_string() };
        let in_evaluation = format!("eval/{}", name.replace('/', "_"));
        for (metrics, name) in [(&metrics, in_training), (&evaluated, in_evaluation)] {
            let got = metrics.get(&name).unwrap();
            assert!((got - value).abs() < 2e-5 * value.abs().max(1.0), "{name}: {got} instead of {value}");
        }
    }
    assert!((metrics.get("r3m/delta_mean").unwrap() - mean(&delta)).abs() < 1e-5);
    assert_eq!(metrics.get("r3m/lambda"), Some(0.4));
    assert!((metrics.get("r3m/threshold").unwrap() - c).abs() < 1e-6);
}

#[test]
fn reference_log_probabilities_are_kept_and_damaged_files_are_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let cache = |digest| ReferenceCache { folder: Some(folder.path().join("cache")), tokenizer_digest: digest };
    let files = || {
        let read = |entry: std::fs::DirEntry| (entry.path(), std::fs::read(entry.path()).unwrap());
        std::fs::read_dir(folder.path().join("cache")).unwrap().map(|e| read(e.unwrap())).collect::<Vec<_>>()
    };
    let run = |digest| {
        let objective = PreferenceObjective::new(&dpo(cross_entropy()), pairs(8, 1), pairs(3, 2), cache(digest)).unwrap();
        let mut run = trainer(&trainer_config(4, 4), decoder(1), objective);
        let metrics = run.step().unwrap();
        let notices = run.objective_mut().take_notices();
        (metrics, notices)
    };
    let (first, notices) = run(7);
    assert!(notices.is_empty() && files().len() == 1, "{notices:?}");
    let written = files();
    assert_eq!(run(7), (first.clone(), vec![]));
    // A file whose numbers were changed under a valid name is noticed and written again.
    let mut damaged = written[0].1.clone();
    damaged[40] ^= 0x10;
    std::fs::write(&written[0].0, &damaged).unwrap();
    let (again, notices) = run(7);
    assert_eq!(again, first);
    assert!(notices.len() == 1 && notices[0].contains("computed again"), "{notices:?}");
    assert_eq!(files(), written);
    // Another tokenizer, another file.
    assert_eq!(run(8), (first, vec![]));
    assert_eq!(files().len(), 2);
}

#[test]
fn a_folder_that_cannot_be_written_costs_a_notice_only() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "not a folder").unwrap();
    let cache = ReferenceCache { folder: Some(file), tokenizer_digest: 0 };
    let objective = PreferenceObjective::new(&dpo(cross_entropy()), pairs(4, 1), vec![], cache).unwrap();
    let mut run = trainer(&trainer_config(4, 4), decoder(1), objective);
    run.step().unwrap();
    assert!(!run.objective_mut().take_notices().is_empty());
    assert!(run.objective_mut().take_notices().is_empty());
}

#[test]
fn columns_of_the_data_replace_the_reference() {
    let reference = decoder(2);
    let with_columns: Vec<EncodedPreference> = pairs(6, 1)
        .into_iter()
        .map(|mut p| {
            let both = reference.log_probs(&[&p.pair.chosen, &p.pair.rejected], 1.0).unwrap();
            p.pair.reference = Some([both[0].log_prob(), both[1].log_prob()]);
            p
        })
        .collect();
    let new = |data: Vec<EncodedPreference>| PreferenceObjective::new(&dpo(cross_entropy()), data, vec![], ReferenceCache::default());
    let mut by_columns = trainer(&trainer_config(6, 6), decoder(1), new(with_columns.clone()).unwrap());
    let mut by_model = trainer(&trainer_config(6, 6), decoder(1), new(pairs(6, 1)).unwrap().with_reference(reference));
    let (a, b) = (by_columns.step().unwrap(), by_model.step().unwrap());
    assert!((a.get("train/loss").unwrap() - b.get("train/loss").unwrap()).abs() < 1e-6);
    let mut some = with_columns;
    some[3].pair.reference = None;
    let error = new(some).err().unwrap().to_string();
    assert!(error.starts_with("pair `p3`: it is without `logp_ref_chosen`"), "{error}");
}

#[test]
fn resumed_run_equals_uninterrupted_one_bit_for_bit() {
    let config = trainer_config(5, 2);
    let run = || trainer(&config, decoder(1), objective(&dpo(r3m(0.75)), 12));
    let mut whole = run();
    let logged: Vec<_> = (0..whole.n_steps()).map(|_| whole.step().unwrap()).collect();
    let mut first = run();
    (0..4).for_each(|_| drop(first.step().unwrap()));
    let state = first.state().unwrap();
    // The second run starts from the model that the first one started from: the reference is taken from it.
    let mut second = run();
    second.load_state(&state).unwrap();
    for expected in &logged[4..] {
        assert_eq!(&second.step().unwrap(), expected);
    }
    assert_eq!(bits(&second.state().unwrap()), bits(&whole.state().unwrap()));
}

#[test]
fn held_out_accuracy_rises_with_wrong_labels_among_two_hundred_pairs() {
    for loss in [cross_entropy(), r3m(0.75)] {
        let mut config = trainer_config(20, 10);
        (config.epochs, config.learning_rate) = (3, 3e-3);
        let objective = PreferenceObjective::new(&dpo(loss), pairs(200, 1), pairs(60, 2), ReferenceCache::default()).unwrap();
        let mut run = trainer(&config, decoder(1), objective);
        (0..run.n_steps()).for_each(|_| drop(run.step().unwrap()));
        let metrics = run.evaluate().unwrap();
        let accuracy = metrics.get("eval/true_accuracy").unwrap();
        assert!(accuracy > 0.9, "{}: {accuracy}", loss.name());
        assert!(metrics.get("eval/r3m_auroc").unwrap() > 0.9);
        let table = run.example_table().unwrap();
        assert_eq!((table.columns.len(), table.rows.len()), (4, run.objective().n_examples()));
        assert_eq!(table.rows[4][3], "true");
        assert!(table.metrics.get("r3m/auroc").unwrap() > 0.9);
    }
}

#[test]
fn kto_learns_which_answers_are_good() {
    let mut config = trainer_config(16, 8);
    (config.epochs, config.learning_rate) = (4, 3e-3);
    let mut run = trainer(&config, decoder(1), kto(200));
    (0..run.n_steps()).for_each(|_| drop(run.step().unwrap()));
    let metrics = run.evaluate().unwrap();
    assert!(metrics.get("eval/rewards_margins").unwrap() > 0.5, "{metrics:?}");
    assert!(metrics.get("eval/kl").unwrap() >= 0.0);
}

#[test]
fn combinations_without_meaning_are_refused_with_a_remedy() {
    let field = |config: PreferenceConfig| match config.validate() {
        Err(RewardError::Config { field, expected, .. }) => (field, expected),
        other => panic!("{other:?}"),
    };
    let ipo = LogProbMarginConfig::Ipo(ReferenceMarginConfig { beta: 0.1 });
    let with = |loss| PreferenceConfig { margin: ipo, loss: Some(loss), ..PreferenceConfig::default() };
    for loss in [r3m(0.75), cross_entropy(), LossConfig::Hinge(HingeConfig {})] {
        let (name, expected) = field(with(loss));
        assert!(name == "loss" && expected.contains("`dpo`"));
    }
    let (name, expected) = field(with(LossConfig::Ipo(IpoConfig { target: 1.0 })));
    assert!(name == "loss.ipo.target" && expected.contains("= 5"), "{expected}");
    assert!(with(LossConfig::Ipo(IpoConfig { target: 5.0 })).validate().is_ok());
    assert_eq!(field(dpo(LossConfig::Filtered(DropConfig::default()))).0, "loss");
    assert_eq!(field(dpo(r3m(0.0))).0, "loss.r3m.lambda");
    let good = PreferenceConfig::default;
    assert_eq!(
        field(PreferenceConfig { margin: LogProbMarginConfig::Dpo(ReferenceMarginConfig { beta: 0.0 }), ..good() }).0,
        "margin.dpo.beta"
    );
    assert_eq!(field(PreferenceConfig { loss_weight: -1.0, ..good() }).0, "loss_weight");
    assert_eq!(field(PreferenceConfig { nll_weight: f64::NAN, ..good() }).0, "nll_weight");
    assert_eq!(field(PreferenceConfig { loss_weight: 0.0, ..good() }).0, "loss_weight");
    assert_eq!(field(PreferenceConfig { nll_includes_prompt: true, ..good() }).0, "nll_includes_prompt");
    for (name, config) in methods() {
        assert!(config.validate().is_ok(), "{name}");
    }
}

#[test]
fn pairs_that_cannot_be_used_are_named() {
    let new = |bad: EncodedPreference| {
        let data = vec![pairs(1, 1)[0].clone(), bad];
        PreferenceObjective::new(&dpo(cross_entropy()), data, vec![], ReferenceCache::default())
    };
    let good = pairs(2, 1)[1].clone();
    let mut empty = good.clone();
    empty.pair.chosen.prompt_len = empty.pair.chosen.tokens.len();
    let error = new(empty).err().unwrap().to_string();
    assert!(error.starts_with("pair `p1`: the chosen answer: the completion is empty"), "{error}");
    let mut same = good.clone();
    same.pair.rejected = same.pair.chosen.clone();
    assert!(new(same).err().unwrap().to_string().contains("both answers are the same"));
    let mut margin = good.clone();
    margin.margin = Some(f32::NAN);
    assert!(new(margin).err().unwrap().to_string().contains("its margin must be finite"));
    let mut long = good;
    long.pair.rejected.tokens.extend([4; 30]);
    let error = trainer(&trainer_config(2, 2), decoder(1), new(long).unwrap()).step().unwrap_err();
    assert!(matches!(&error, AgentError::Model { place, reason } if place == "pair `p1`" && reason.contains("24 positions")), "{error}");
    assert_eq!(shape().max_positions, 24);
}
