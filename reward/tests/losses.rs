//! Losses of a margin against PyTorch's autograd (`python tests/golden/generate/preference_losses.py`) and their properties.

use proptest::prelude::*;
use serde::Deserialize;
use steadfast_reward::log_prob_margin::{AnswerLogProb, LogProbMarginConfig};
use steadfast_reward::margin::DropConfig;
use steadfast_reward::{LossConfig, LossValue, MarginLoss, R3mConfig};

#[derive(Deserialize)]
struct Fixture {
    header: Header,
    margins: Vec<f32>,
    losses: Vec<Loss>,
    trimmed: Vec<Trimmed>,
    chosen: Answers,
    rejected: Answers,
    methods: Vec<Method>,
}

#[derive(Deserialize)]
struct Header {
    tolerance: Tolerance,
}

#[derive(Deserialize)]
struct Tolerance {
    relative: f64,
    methods: f64,
}

#[derive(Deserialize)]
struct Loss {
    config: LossConfig,
    value: Vec<f64>,
    slope: Vec<f64>,
}

#[derive(Deserialize)]
struct Trimmed {
    fraction: f64,
    margins: Vec<f32>,
    value: Vec<f64>,
    slope: Vec<f64>,
}

#[derive(Deserialize)]
struct Answers {
    n_tokens: Vec<usize>,
    policy: Vec<f32>,
    reference: Vec<f32>,
}

impl Answers {
    fn get(&self, i: usize) -> AnswerLogProb {
        AnswerLogProb { policy: self.policy[i], reference: Some(self.reference[i]), n_tokens: self.n_tokens[i] }
    }
}

#[derive(Deserialize)]
struct Method {
    name: String,
    margin: LogProbMarginConfig,
    loss: LossConfig,
    value: Vec<f64>,
    by_chosen: Vec<f64>,
    by_rejected: Vec<f64>,
}

fn fixture() -> Fixture {
    let path = format!("{}/../tests/golden/preference_losses.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// All losses with their default settings, and R3M below one half.
fn all() -> Vec<MarginLoss> {
    let config = |name: &str| -> LossConfig { serde_json::from_str(&format!("{{\"{name}\": {{}}}}")).expect("defaults of every loss") };
    let mut configs: Vec<_> = LossConfig::LIST.iter().map(|(name, _)| config(name)).collect();
    configs.push(LossConfig::R3m(R3mConfig { lambda: 0.2 }));
    configs.iter().map(|c| c.build().expect("defaults are valid")).collect()
}

fn batch(loss: &MarginLoss, margins: &[f32], equal: &[bool]) -> Vec<LossValue> {
    let mut out = vec![LossValue::default(); margins.len()];
    loss.batch(margins, equal, &mut out);
    out
}

#[test]
fn values_and_slopes_keep_their_digits_in_both_tails() {
    let fixture = fixture();
    let relative = fixture.header.tolerance.relative;
    let mut worst = 0.0_f64;
    for case in &fixture.losses {
        let loss = case.config.build().unwrap();
        for (i, &d) in fixture.margins.iter().enumerate() {
            let got = loss.evaluate(d);
            // Where a sum has parts of either sign, its error is that of the parts.
            let (value_parts, slope_parts) = match &case.config {
                LossConfig::RobustDpo(c) => (c.epsilon / (1.0 - 2.0 * c.epsilon) * f64::from(d).abs(), 0.0),
                LossConfig::LabelSmoothing(c) => (0.0, c.epsilon),
                _ => (0.0, 0.0),
            };
            for (what, got, expected, parts) in
                [("value", got.value, case.value[i], value_parts), ("slope", got.slope, case.slope[i], slope_parts)]
            {
                let error = (f64::from(got) - expected).abs();
                let scale = expected.abs().max(parts);
                assert!(error <= relative * scale, "{:?}, d = {d}: {what} {got}, expected {expected}", case.config);
                worst = worst.max(error / scale.max(f64::MIN_POSITIVE));
            }
        }
    }
    assert!(worst > 0.0, "single precision cannot be exact everywhere");
    println!("worst relative error {worst:.1e}");
}

#[test]
fn trimmed_batches_match() {
    let fixture = fixture();
    for case in &fixture.trimmed {
        let loss = LossConfig::Trimmed(DropConfig { fraction: case.fraction }).build().unwrap();
        let got = batch(&loss, &case.margins, &vec![false; case.margins.len()]);
        for (i, got) in got.iter().enumerate() {
            assert!((f64::from(got.value) - case.value[i]).abs() <= 1e-6, "fraction {}, pair {i}", case.fraction);
            assert!((f64::from(got.slope) - case.slope[i]).abs() <= 1e-6, "fraction {}, pair {i}", case.fraction);
        }
    }
}

#[test]
fn methods_of_the_dpo_family_match_from_log_probabilities() {
    let fixture = fixture();
    for case in &fixture.methods {
        let loss = case.loss.build().unwrap();
        for i in 0..case.value.len() {
            let margin = case.margin.margin("pair", &fixture.chosen.get(i), &fixture.rejected.get(i)).unwrap();
            let value = loss.evaluate(margin.margin);
            // A margin is rounded to single precision once, which moves an exponential tail by that much.
            let tolerance = fixture.header.tolerance.methods;
            let close = |what: &str, got: f32, expected: f64| {
                let error = (f64::from(got) - expected).abs();
                assert!(error <= tolerance * expected.abs() + 1e-30, "{} {i}: {what} {got}, expected {expected}", case.name);
            };
            close("value", value.value, case.value[i]);
            close("derivative by the chosen", value.slope * margin.by_chosen, case.by_chosen[i]);
            close("derivative by the rejected", value.slope * margin.by_rejected, case.by_rejected[i]);
        }
        if let LossConfig::Ipo(_) = case.loss {
            assert_eq!(case.margin.natural_loss(), case.loss, "{}", case.name);
        }
    }
    assert_eq!(fixture.methods.len(), 10);
}

#[test]
fn extreme_margins_stay_finite_where_they_should() {
    for loss in all() {
        for d in [-1e4_f32, -1e3, -200.0, 200.0, 1e3, 1e4] {
            let got = loss.evaluate(d);
            assert!(got.value.is_finite() && got.slope.is_finite(), "{loss:?} at {d}: {got:?}");
        }
        for d in [f32::INFINITY, f32::NEG_INFINITY] {
            let got = loss.evaluate(d);
            assert!(!got.value.is_nan() && !got.slope.is_nan(), "{loss:?} at {d}: {got:?}");
            let is_ipo = matches!(loss, MarginLoss::Ipo { .. });
            assert!(got.slope.is_finite() || is_ipo, "{loss:?} at {d}: {got:?}");
        }
        let nan = loss.evaluate(f32::NAN);
        assert!(nan.value.is_nan(), "{loss:?}: NaN must not be hidden");
    }
    // At +∞ nothing is left to learn, for losses that are bounded below and want a large margin.
    for loss in [MarginLoss::CrossEntropy, MarginLoss::Hinge, MarginLoss::Bounded { logistic: 0.0, bounded: 1.0 }] {
        let got = loss.evaluate(f32::INFINITY);
        assert_eq!((got.value, got.slope), (0.0, 0.0), "{loss:?}");
    }
}

#[test]
fn trimmed_batches_keep_nan_and_one_pair() {
    let most = LossConfig::Trimmed(DropConfig { fraction: 0.99 }).build().unwrap();
    let got = batch(&most, &[1.0, -1.0, 2.0], &[false; 3]);
    assert_eq!(got.iter().map(|v| v.value > 0.0).collect::<Vec<_>>(), [false, false, true]);
    let got = batch(&most, &[1.0, f32::NAN, 2.0], &[false; 3]);
    assert!(got[1].value.is_nan());
    assert!(batch(&most, &[], &[]).is_empty());
    // Ties: the later pair goes.
    let half = LossConfig::Trimmed(DropConfig { fraction: 0.5 }).build().unwrap();
    let got = batch(&half, &[0.5; 4], &[false; 4]);
    assert_eq!(got.iter().map(|v| v.value > 0.0).collect::<Vec<_>>(), [true, true, false, false]);
}

#[test]
fn settings_at_zero_are_cross_entropy_bit_for_bit() {
    for config in
        [r#"{"label_smoothing": {"epsilon": 0}}"#, r#"{"robust_dpo": {"epsilon": 0}}"#, r#"{"bounded": {"logistic": 1, "bounded": 0}}"#]
    {
        let loss = serde_json::from_str::<LossConfig>(config).unwrap().build().unwrap();
        for d in (-4000..4000).map(|i| i as f32 * 0.01).chain([f32::INFINITY, f32::NEG_INFINITY, 1e4, -1e4]) {
            assert_eq!(loss.evaluate(d), MarginLoss::CrossEntropy.evaluate(d), "{config} at {d}");
        }
    }
}

#[test]
fn equal_pairs_count_half_in_each_direction() {
    // R3M with λ = 0.2 is linear below c = ln(1/0.2 − 1) = ln 4 = 1.386294, with −ln(1 − λ) = 0.223144.
    //   ρ( 1) = 0.223144 + 0.2 · 0.386294 = 0.300402, slope −0.2
    //   ρ(−1) = 0.223144 + 0.2 · 2.386294 = 0.700402, slope −0.2   half of both: 0.500402, slope ½ (−0.2 + 0.2) = 0
    //   ρ( 2) = −ln σ(2) = 0.126928, slope −σ(−2) = −0.119203
    //   ρ(−2) = 0.223144 + 0.2 · 3.386294 = 0.900402, slope −0.2   half of both: 0.513665, slope ½ (−0.119203 + 0.2)
    // Cross-entropy: −ln σ(1) = 0.313262, −ln σ(−1) = 1.313262; slopes −σ(−1) = −0.268941 and −σ(1) = −0.731059.
    let r3m = LossConfig::R3m(R3mConfig { lambda: 0.2 }).build().unwrap();
    for (loss, d, value, slope) in [
        (r3m, 1.0, 0.500_402, 0.0),
        (r3m, 2.0, 0.513_665, 0.040_399),
        (r3m, -2.0, 0.513_665, -0.040_399),
        (MarginLoss::CrossEntropy, 1.0, 0.813_262, 0.231_059),
        (MarginLoss::CrossEntropy, 0.0, std::f32::consts::LN_2, 0.0),
    ] {
        let got = batch(&loss, &[d], &[true])[0];
        assert!((got.value - value).abs() < 2e-6 && (got.slope - slope).abs() < 2e-6, "{loss:?} at {d}: {got:?}");
    }
}

#[test]
fn ranges_are_checked() {
    for config in [
        r#"{"r3m": {"lambda": 0}}"#,
        r#"{"r3m": {"lambda": -0.5}}"#,
        r#"{"r3m": {"lambda": 1e-60}}"#,
        r#"{"label_smoothing": {"epsilon": 0.5}}"#,
        r#"{"robust_dpo": {"epsilon": 0.5}}"#,
        r#"{"robust_dpo": {"epsilon": -0.1}}"#,
        r#"{"ipo": {"target": 0}}"#,
        r#"{"ipo": {"target": 1e300}}"#,
        r#"{"bounded": {"logistic": 0, "bounded": 0}}"#,
        r#"{"bounded": {"logistic": -1, "bounded": 1}}"#,
        r#"{"trimmed": {"fraction": 1}}"#,
        r#"{"filtered": {"fraction": -0.1}}"#,
    ] {
        assert!(serde_json::from_str::<LossConfig>(config).unwrap().build().is_err(), "{config}");
    }
    for epsilon in [0.499_999_99, 0.499_999_999_999_9] {
        let loss = serde_json::from_str::<LossConfig>(&format!("{{\"robust_dpo\": {{\"epsilon\": {epsilon}}}}}")).unwrap();
        assert!(loss.build().unwrap().evaluate(1.0).slope.is_finite());
    }
}

proptest! {
    #[test]
    fn slopes_are_finite_differences(d in -8.0_f32..8.0) {
        for loss in all() {
            // Away from the kink of the hinge a second-order difference is exact to h²; single precision adds ε · value / h.
            let h = 0.01;
            if matches!(loss, MarginLoss::Hinge) && (d - 1.0).abs() < 2.0 * h {
                continue;
            }
            let (plus, minus) = (loss.evaluate(d + h), loss.evaluate(d - h));
            let difference = (plus.value - minus.value) / ((d + h) - (d - h));
            let tolerance = 2e-4 * (1.0 + plus.value.abs());
            prop_assert!((difference - loss.evaluate(d).slope).abs() < tolerance.max(3e-3 * h), "{:?} at {}: {}", loss, d, difference);
        }
    }

    #[test]
    fn order_of_the_pairs_is_irrelevant(margins in prop::collection::vec(-5.0_f32..5.0, 1..20), turn in 0_usize..20) {
        let equal: Vec<bool> = margins.iter().map(|d| d.to_bits() % 5 == 0).collect();
        let turn = turn % margins.len();
        let rotate = |v: &[f32]| [&v[turn..], &v[..turn]].concat();
        let turned_equal = [&equal[turn..], &equal[..turn]].concat();
        for loss in all() {
            let mut plain = batch(&loss, &margins, &equal);
            plain.rotate_left(turn);
            prop_assert_eq!(plain, batch(&loss, &rotate(&margins), &turned_equal), "{:?}", loss);
        }
    }

    #[test]
    fn equal_pairs_have_no_direction(d in -20.0_f32..20.0) {
        for loss in all() {
            let both = batch(&loss, &[d, -d], &[true, true]);
            if !matches!(loss, MarginLoss::Trimmed { .. }) {
                prop_assert_eq!(both[0].value, both[1].value);
                prop_assert_eq!(both[0].slope, -both[1].slope);
            }
        }
    }
}
