//! The rules of fitting, on a model that writes down what is asked of it, and on real ones.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use steadfast_agents::StateDict;
use steadfast_envs::{Rng, SeedTree};
use steadfast_reward::margin::log_one_plus_exp;
use steadfast_reward::metrics::detect;
use steadfast_reward::model::{ActionKind, BatchLoss, MlpReward, MlpRewardConfig, RewardModel, SegmentSpec};
use steadfast_reward::{
    EpochReport, FitConfig, FitReport, LossConfig, LossValue, Preference, Result, RewardError, Segment, SegmentPair, SegmentPreference,
    Selection, Truth, fit,
};

/// A pair is a number; what margin it has after how many steps is a function.
struct Script {
    margin_of: fn(usize, u64) -> f32,
    steps: u64,
    /// Pairs of each step.
    trained: Vec<Vec<usize>>,
    margins_seen: Vec<(usize, f32, LossValue)>,
    prepared: Vec<usize>,
}

impl Script {
    fn new(margin_of: fn(usize, u64) -> f32) -> Self {
        Self { margin_of, steps: 0, trained: Vec::new(), margins_seen: Vec::new(), prepared: Vec::new() }
    }
}

impl RewardModel<usize> for Script {
    fn check(&self, pair: &usize) -> Result<(), String> {
        if *pair == 666 { Err("it is bad".to_string()) } else { Ok(()) }
    }

    fn prepare(&mut self, pairs: &[&usize]) -> Result<()> {
        self.prepared = pairs.iter().map(|&&p| p).collect();
        Ok(())
    }

    fn margins(&mut self, pairs: &[&usize], out: &mut [f32]) -> Result<()> {
        out.iter_mut().zip(pairs).for_each(|(d, &&p)| *d = (self.margin_of)(p, self.steps));
        Ok(())
    }

    fn step(&mut self, pairs: &[&usize], loss: &mut BatchLoss<'_>, _learning_rate: f32) -> Result<()> {
        let margins: Vec<f32> = pairs.iter().map(|&&p| (self.margin_of)(p, self.steps)).collect();
        let mut values = vec![LossValue::default(); pairs.len()];
        loss(&margins, &mut values);
        self.margins_seen.extend(pairs.iter().zip(&margins).zip(values).map(|((&&p, &d), v)| (p, d, v)));
        self.trained.push(pairs.iter().map(|&&p| p).collect());
        self.steps += 1;
        Ok(())
    }

    fn reset(&mut self, _seed: u64) {
        self.steps = 0;
    }

    fn state(&self) -> StateDict {
        let mut state = StateDict::default();
        state.put_u64("steps", &[self.steps]);
        state
    }

    fn load_state(&mut self, state: &StateDict) -> Result<()> {
        self.steps = state.counter("steps")?;
        Ok(())
    }
}

fn numbered(n: usize) -> Vec<Preference<usize>> {
    (0..n).map(|i| Preference { id: format!("p{i}"), pair: i, ..Default::default() }).collect()
}

fn loss(json: serde_json::Value) -> LossConfig {
    serde_json::from_value(json).unwrap()
}

fn cross_entropy() -> LossConfig {
    loss(serde_json::json!({ "cross_entropy": {} }))
}

fn run(script: &mut Script, data: &[Preference<usize>], loss: &LossConfig, config: &FitConfig) -> Result<FitReport> {
    fit(script, data, &[], loss, config, SeedTree::new(5), &mut |_| {})
}

fn config(epochs: usize, validation_fraction: f64, selection: Selection) -> FitConfig {
    FitConfig { epochs, batch_size: 8, validation_fraction, selection, ..Default::default() }
}

#[test]
fn every_loss_sees_the_same_batches_of_the_same_pairs() {
    let data = numbered(50);
    let settings = config(3, 0.2, Selection::Fixed);
    let trained = |loss: &LossConfig| {
        let mut script = Script::new(|p, _| p as f32 - 20.0);
        run(&mut script, &data, loss, &settings).unwrap();
        script
    };
    let script = trained(&cross_entropy());
    // 40 pairs in 5 batches of 8, three times; each time all of them, in another order; held-out pairs never.
    assert_eq!(script.trained.len(), 15);
    let epochs: Vec<Vec<usize>> = script.trained.chunks(5).map(<[_]>::concat).collect();
    let mut kept = script.prepared.clone();
    assert_eq!(kept.len(), 40);
    for epoch in &epochs {
        let mut sorted = epoch.clone();
        sorted.sort_unstable();
        kept.sort_unstable();
        assert_eq!(sorted, kept);
    }
    assert!(epochs[0] != epochs[1] && epochs[1] != epochs[2]);
    for other in
        [serde_json::json!({ "r3m": { "lambda": 0.3 } }), serde_json::json!({ "bounded": {} }), serde_json::json!({ "trimmed": {} })]
    {
        assert_eq!(trained(&loss(other)).trained, script.trained);
    }
    let mut other_seed = Script::new(|_, _| 0.5);
    fit(&mut other_seed, &data, &[], &cross_entropy(), &settings, SeedTree::new(6), &mut |_| {}).unwrap();
    assert_ne!(other_seed.trained, script.trained);
    assert_ne!(other_seed.prepared, script.prepared);
}

/// With one step per pass: all wrong, all right, all right, all wrong.
fn rise_and_fall(_pair: usize, steps: u64) -> f32 {
    [0.0, -1.0, 2.0, 2.0, -2.0][steps as usize]
}

#[test]
fn best_pass_on_held_out_pairs_is_kept_and_the_earliest_of_equals() {
    let data = numbered(20);
    let settings = FitConfig { batch_size: 100, ..config(4, 0.5, Selection::NoisyValidation) };
    let mut script = Script::new(rise_and_fall);
    let report = run(&mut script, &data, &cross_entropy(), &settings).unwrap();
    assert_eq!((report.selected_epoch, script.steps), (2, 2));
    let accuracies: Vec<f64> = report.epochs.iter().map(|e| e.validation_accuracy.unwrap()).collect();
    assert_eq!(accuracies, [0.0, 1.0, 1.0, 0.0]);
    assert!(report.pairs.len() == 10 && report.pairs.iter().all(|p| p.margin == 2.0));

    // Of equally accurate passes the one with the lower cross-entropy.
    let mut script = Script::new(|_, steps| [0.0, 1.0, 3.0, 2.0, 3.0][steps as usize]);
    assert_eq!(run(&mut script, &data, &cross_entropy(), &settings).unwrap().selected_epoch, 2);

    let mut script = Script::new(rise_and_fall);
    let fixed = FitConfig { selection: Selection::Fixed, ..settings };
    let report = run(&mut script, &data, &cross_entropy(), &fixed).unwrap();
    assert_eq!((report.selected_epoch, script.steps), (4, 4));
    assert_eq!(report.epochs[1].validation_accuracy, Some(1.0));
}

#[test]
fn oracle_goes_by_the_truth_and_needs_it() {
    let mut data = numbered(20);
    let settings = FitConfig { batch_size: 100, ..config(4, 0.5, Selection::Oracle) };
    let error = run(&mut Script::new(rise_and_fall), &data, &cross_entropy(), &settings).unwrap_err();
    assert!(error.to_string().contains("a known truth"), "{error}");
    // All labels are wrong: the passes that the labels like best are the worst.
    data.iter_mut().for_each(|p| p.truth.flipped = Some(true));
    let report = run(&mut Script::new(rise_and_fall), &data, &cross_entropy(), &settings).unwrap();
    assert_eq!(report.selected_epoch, 4);
    let oracle: Vec<f64> = report.epochs.iter().map(|e| e.oracle_accuracy.unwrap()).collect();
    assert_eq!(oracle, [1.0, 0.0, 0.0, 1.0]);
    // True values say the same.
    data.iter_mut().for_each(|p| p.truth = Truth { flipped: None, gold_chosen: Some(1.0), gold_rejected: Some(2.0) });
    assert_eq!(run(&mut Script::new(rise_and_fall), &data, &cross_entropy(), &settings).unwrap().selected_epoch, 4);
}

#[test]
fn filtered_is_a_second_fit_without_the_lowest_margins() {
    let data = numbered(40);
    let settings = config(2, 0.0, Selection::Fixed);
    let filtered = loss(serde_json::json!({ "filtered": { "fraction": 0.1 } }));
    // The margins are 40, 39, ..., 1: the pairs 36 to 39 have the lowest four.
    let mut script = Script::new(|p, _| 40.0 - p as f32);
    let report = run(&mut script, &data, &filtered, &settings).unwrap();
    assert_eq!(report.epochs.iter().map(|e| e.epoch).collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert_eq!((report.selected_epoch, report.pairs.len()), (4, 40));
    let (first, second) = script.trained.split_at(10);
    assert_eq!(first.concat().len(), 80);
    let mut rest = second.concat();
    rest.sort_unstable();
    assert_eq!(rest, (0..36).flat_map(|i| [i, i]).collect::<Vec<_>>());
    // From the same start, with the batches of a fit of its own: ten steps in the second fit, none counted before.
    assert_eq!(script.steps, 10);
    let mut alone = Script::new(|p, _| 40.0 - p as f32);
    run(&mut alone, &data[..36], &cross_entropy(), &settings).unwrap();
    assert_eq!(second, alone.trained);
}

#[test]
fn own_margins_are_subtracted_and_equal_pairs_pull_both_ways() {
    let mut data = numbered(3);
    data[0].margin = Some(0.5);
    (data[1].equal, data[1].margin) = (true, Some(7.0));
    let mut script = Script::new(|_, _| 2.0);
    let report =
        run(&mut script, &data, &loss(serde_json::json!({ "r3m": { "lambda": 0.1 } })), &config(1, 0.0, Selection::Fixed)).unwrap();
    let value = |p: usize| script.margins_seen.iter().find(|s| s.0 == p).unwrap().2;
    let lambda = 0.1_f32;
    let c = (1.0 / lambda - 1.0).ln();
    // Below c = 2.197 the loss is linear: −ln(1 − λ) + λ (c − d).
    let rho = |d: f32| -(1.0 - lambda).ln() + lambda * (c - d);
    assert!((value(0).value - rho(1.5)).abs() < 1e-6 && value(0).slope == -0.1);
    assert!((value(1).value - 0.5 * (rho(2.0) + rho(-2.0))).abs() < 1e-6 && value(1).slope.abs() < 1e-7);
    assert!((value(2).value - rho(2.0)).abs() < 1e-6);
    let (margins, deltas): (Vec<f32>, Vec<f32>) = report.pairs.iter().map(|p| (p.margin, p.delta)).unzip();
    assert_eq!(margins, [1.5, 2.0, 2.0]);
    assert!((deltas[0] - (c - 1.5)).abs() < 1e-6 && deltas[1] == 0.0 && (deltas[2] - (c - 2.0)).abs() < 1e-6);

    let epoch = &report.epochs[0];
    let entropy = |d: f32| f64::from(log_one_plus_exp(-d));
    assert!((epoch.cross_entropy - (entropy(1.5) + 0.5 * (entropy(2.0) + entropy(-2.0)) + entropy(2.0)) / 3.0).abs() < 1e-6);
    assert!((epoch.delta_mean - f64::from(deltas[0] + deltas[2]) / 3.0).abs() < 1e-6);
    assert_eq!((epoch.delta_max, epoch.outlier_fraction), (f64::from(deltas[0]), 2.0 / 3.0));
    assert!((epoch.clip_saturation.unwrap() - 2.0 / 3.0).abs() < 1e-6);
    // Nothing to be right or wrong about: equal pairs are in no accuracy.
    let equal: Vec<Preference<usize>> = numbered(4).into_iter().map(|p| Preference { equal: true, ..p }).collect();
    let report = run(&mut Script::new(|_, _| 2.0), &equal, &cross_entropy(), &config(1, 0.5, Selection::Fixed)).unwrap();
    assert_eq!((report.epochs[0].validation_accuracy, report.epochs[0].clip_saturation), (None, None));
}

#[test]
fn detection_is_that_of_the_final_margins() {
    let mut data = numbered(6);
    data.iter_mut().for_each(|p| p.truth.flipped = Some(p.pair % 3 == 0));
    data[5].truth.flipped = None;
    let mut script = Script::new(|p, _| [-1.0, 1.0, 2.0, 1.5, -0.5, -9.0][p]);
    let report =
        run(&mut script, &data, &loss(serde_json::json!({ "r3m": { "lambda": 0.5 } })), &config(1, 0.0, Selection::Fixed)).unwrap();
    let expected = detect(&[-1.0, 1.0, 2.0, 1.5, -0.5], &[1.0, 0.0, 0.0, 0.0, 0.5], &[true, false, false, true, false]);
    assert!(expected.is_some() && report.detection == expected);
    assert!(
        run(&mut Script::new(|_, _| 1.0), &numbered(5), &cross_entropy(), &config(1, 0.0, Selection::Fixed)).unwrap().detection.is_none()
    );
}

#[test]
fn useless_data_and_numbers_are_refused_by_name() {
    let settings = config(2, 0.0, Selection::Fixed);
    let error = |data: &[Preference<usize>], margin_of, settings: &FitConfig| {
        run(&mut Script::new(margin_of), data, &cross_entropy(), settings).unwrap_err()
    };
    let nan: fn(usize, u64) -> f32 = |p, steps| if p == 3 && steps > 1 { f32::NAN } else { 1.0 };
    match error(&numbered(10), nan, &settings) {
        RewardError::NonFinite { tensor: "margin", epoch: Some(2), pair, .. } => assert_eq!(pair, "p3"),
        other => panic!("{other}"),
    }
    let one: fn(usize, u64) -> f32 = |_, _| 1.0;
    let mut bad = numbered(4);
    bad[2].pair = 666;
    assert_eq!(error(&bad, one, &settings).to_string(), "pair `p2`: it is bad");
    bad[2] = Preference { margin: Some(f32::INFINITY), ..bad[3].clone() };
    assert!(error(&bad, one, &settings).to_string().contains("margin must be finite"));
    assert!(error(&[], one, &settings).to_string().contains("leave none to train on"));
    assert!(error(&numbered(2), one, &config(1, 0.9, Selection::NoisyValidation)).to_string().contains("leave none to train on"));
    assert!(error(&numbered(2), one, &config(1, 0.1, Selection::NoisyValidation)).to_string().contains("none of the 0 held-out"));
    assert!(matches!(error(&numbered(2), one, &config(0, 0.0, Selection::Fixed)), RewardError::Config { field, .. } if field == "epochs"));
}

const SPEC: SegmentSpec = SegmentSpec { observation_width: 2, action: ActionKind::Continuous { width: 1 } };

/// Pairs labelled by the sum of the first observed number; every sixth label is wrong.
fn segment_data(n: usize, seed: u64) -> Vec<SegmentPreference> {
    let mut rng = Rng::from_seed(seed);
    let mut segment = || {
        let observations: Vec<f32> = (0..8).map(|_| rng.normal_f32()).collect();
        Segment { steps: 4, observations, actions: (0..4).map(|_| rng.normal_f32()).collect(), ..Segment::default() }
    };
    (0..n)
        .map(|i| {
            let worth = |s: &Segment| s.observations.iter().step_by(2).sum::<f32>();
            let (mut a, mut b) = (segment(), segment());
            let flipped = i % 6 == 0;
            if (worth(&a) > worth(&b)) == flipped {
                std::mem::swap(&mut a, &mut b);
            }
            let truth = Truth { flipped: Some(flipped), ..Truth::default() };
            SegmentPreference { id: i.to_string(), pair: SegmentPair { chosen: a, rejected: b }, truth, ..Default::default() }
        })
        .collect()
}

fn fitted(data: &[SegmentPreference], loss: &LossConfig, config: &FitConfig, seed: u64) -> (StateDict, FitReport) {
    let network = MlpRewardConfig { hidden: vec![16], ..Default::default() };
    let mut model = MlpReward::new(&network, SPEC, SeedTree::new(seed)).unwrap();
    let mut seen: Vec<EpochReport> = Vec::new();
    let report = fit(&mut model, data, &segment_data(60, 99), loss, config, SeedTree::new(seed), &mut |e| seen.push(*e)).unwrap();
    assert_eq!(seen, report.epochs);
    (model.state(), report)
}

#[test]
fn lambda_of_one_is_cross_entropy_bit_for_bit() {
    let data = segment_data(120, 1);
    let settings = config(6, 0.2, Selection::NoisyValidation);
    let (plain, report) = fitted(&data, &cross_entropy(), &settings, 2);
    for lambda in [1.0, 3.0] {
        let (robust, robust_report) = fitted(&data, &loss(serde_json::json!({ "r3m": { "lambda": lambda } })), &settings, 2);
        assert_eq!(robust, plain);
        assert_eq!((robust_report.selected_epoch, &robust_report.pairs), (report.selected_epoch, &report.pairs));
    }
    assert_ne!(fitted(&data, &loss(serde_json::json!({ "r3m": { "lambda": 0.5 } })), &settings, 2).0, plain);
}

#[test]
fn same_seed_gives_the_same_model_and_the_model_learns() {
    let data = segment_data(240, 3);
    let settings = config(15, 0.0, Selection::Fixed);
    let robust = loss(serde_json::json!({ "r3m": { "lambda": 0.3 } }));
    let (a, report) = fitted(&data, &robust, &settings, 4);
    assert_eq!((a.clone(), report.clone()), fitted(&data, &robust, &settings, 4));
    assert_ne!(a, fitted(&data, &robust, &settings, 5).0);
    // A sixth of the test labels is wrong, but their truth is known.
    assert!(report.epochs.last().unwrap().test_accuracy.unwrap() > 0.85, "{:?}", report.epochs.last());
    assert!(report.detection.unwrap().auroc > 0.85);
}

#[test]
fn what_is_known_about_the_truth_changes_nothing_but_reports() {
    let data = segment_data(120, 6);
    let blind: Vec<SegmentPreference> = data.iter().map(|p| SegmentPreference { truth: Truth::default(), ..p.clone() }).collect();
    for selection in [Selection::Fixed, Selection::NoisyValidation] {
        for json in [serde_json::json!({ "r3m": {} }), serde_json::json!({ "filtered": {} })] {
            let settings = config(4, 0.25, selection);
            let (seeing, report) = fitted(&data, &loss(json.clone()), &settings, 7);
            let (unseeing, blind_report) = fitted(&blind, &loss(json), &settings, 7);
            assert_eq!(seeing, unseeing);
            assert!(report.detection.is_some() && blind_report.detection.is_none());
            assert!(report.epochs[0].oracle_accuracy.is_some() && blind_report.epochs[0].oracle_accuracy.is_none());
        }
    }
}

#[test]
fn selected_pass_is_restored_exactly_and_a_fit_goes_on() {
    let data = segment_data(120, 8);
    let (state, report) = fitted(&data, &cross_entropy(), &config(12, 0.3, Selection::Oracle), 9);
    // The same passes without selection end there.
    let (shorter, _) = fitted(&data, &cross_entropy(), &config(report.selected_epoch, 0.3, Selection::Fixed), 9);
    assert_eq!(state, shorter);
    let best = report.epochs[report.selected_epoch - 1].oracle_accuracy;
    assert!(report.epochs.iter().all(|e| e.oracle_accuracy <= best));

    // Stopped, saved, loaded and continued equals not stopped.
    let network = MlpRewardConfig { hidden: vec![16], ..Default::default() };
    let settings = config(2, 0.0, Selection::Fixed);
    let continue_fit = |model: &mut MlpReward, stage: u64| {
        fit(model, &data, &[], &LossConfig::default(), &settings, SeedTree::new(stage), &mut |_| {}).unwrap();
    };
    let mut whole = MlpReward::new(&network, SPEC, SeedTree::new(1)).unwrap();
    continue_fit(&mut whole, 1);
    let mut resumed = MlpReward::new(&network, SPEC, SeedTree::new(77)).unwrap();
    resumed.load_state(&whole.state()).unwrap();
    continue_fit(&mut whole, 2);
    continue_fit(&mut resumed, 2);
    assert_eq!(whole.state(), resumed.state());
}
