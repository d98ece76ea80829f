//! Losses and metrics of preferences against TRL's own trainers (`python tests/golden/generate/llm_trl.py`).
#![cfg(feature = "llm")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use serde::Deserialize;
use steadfast_reward::dpo::PairTerms;
use steadfast_reward::kto::divergence;
use steadfast_reward::log_prob_margin::{AnswerLogProb, LogProbMarginConfig, OrpoConfig, ReferenceMarginConfig, SimpoConfig};
use steadfast_reward::margin::{FlipRateConfig, HingeConfig};
use steadfast_reward::{KtoConfig, LossConfig, PairLoss, PreferenceConfig};

#[derive(Deserialize)]
struct Fixture {
    header: Header,
    pairs: Vec<Pair>,
    cases: Vec<Case>,
    kto_rows: Vec<KtoRow>,
    kto_cases: Vec<KtoCase>,
}

#[derive(Deserialize)]
struct Header {
    tolerance: f64,
}

#[derive(Deserialize)]
struct Pair {
    n_tokens: [usize; 2],
    policy: [f32; 2],
    reference: [f32; 2],
}

#[derive(Deserialize)]
struct Case {
    name: String,
    settings: BTreeMap<String, f64>,
    loss: f64,
    metrics: BTreeMap<String, f64>,
}

#[derive(Deserialize)]
struct KtoRow {
    policy: f32,
    reference: f32,
    kl_policy: f32,
    kl_reference: f32,
    desirable: bool,
}

#[derive(Deserialize)]
struct KtoCase {
    rows: String,
    settings: KtoConfig,
    loss: f64,
    metrics: BTreeMap<String, f64>,
}

type Reported<'a> = &'a dyn Fn(&PairTerms) -> f64;

fn fixture() -> Fixture {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/llm_trl.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// The method of a case as we would configure it.
fn config(case: &Case) -> PreferenceConfig {
    let setting = |name: &str| case.settings[name];
    let reference = ReferenceMarginConfig { beta: setting("beta") };
    let (margin, loss) = match case.name.as_str() {
        "sigmoid" => (LogProbMarginConfig::Dpo(reference), None),
        "hinge" => (LogProbMarginConfig::Dpo(reference), Some(LossConfig::Hinge(HingeConfig {}))),
        "robust" => (LogProbMarginConfig::Dpo(reference), Some(LossConfig::RobustDpo(FlipRateConfig { epsilon: setting("epsilon") }))),
        "ipo" => (LogProbMarginConfig::IpoNormalized(reference), None),
        "sigmoid_norm" => (LogProbMarginConfig::DpoNormalized(reference), None),
        "orpo" => (LogProbMarginConfig::Orpo(OrpoConfig {}), None),
        "simpo" => {
            let smoothing = Some(LossConfig::LabelSmoothing(FlipRateConfig { epsilon: setting("epsilon") }));
            let margin = LogProbMarginConfig::Simpo(SimpoConfig { beta: setting("beta"), gamma: setting("gamma") });
            (margin, smoothing.filter(|_| setting("epsilon") > 0.0))
        }
        other => panic!("unknown case `{other}`"),
    };
    let is_orpo = case.name == "orpo";
    let nll_weight = if is_orpo { 1.0 } else { case.settings.get("nll_weight").copied().unwrap_or(0.0) };
    let loss_weight = if is_orpo { setting("beta") } else { 1.0 };
    PreferenceConfig { margin, loss, loss_weight, nll_weight, nll_includes_prompt: false }
}

fn terms(loss: &PairLoss, pairs: &[Pair]) -> Vec<PairTerms> {
    let answer = |pair: &Pair, which: usize| AnswerLogProb {
        policy: pair.policy[which],
        reference: Some(pair.reference[which]),
        n_tokens: pair.n_tokens[which],
    };
    pairs.iter().map(|pair| loss.evaluate("p", &answer(pair, 0), &answer(pair, 1), None, false).unwrap()).collect()
}

#[test]
fn losses_and_rewards_agree_with_trl() {
    let fixture = fixture();
    assert_eq!(fixture.cases.len(), 17);
    for case in &fixture.cases {
        let config = config(case);
        let terms = terms(&PairLoss::new(&config).unwrap(), &fixture.pairs);
        let mean = |f: &dyn Fn(&PairTerms) -> f64| terms.iter().map(f).sum::<f64>() / terms.len() as f64;
        let close = |name: &str, got: f64, expected: f64| {
            let error = (got - expected).abs() / expected.abs().max(1.0);
            assert!(error <= fixture.header.tolerance, "{} {:?} {name}: {got} instead of {expected}", case.name, case.settings);
        };
        let nll = case.settings.get("nll").map_or(0.0, |nll| config.nll_weight * nll);
        close("loss", config.loss_weight * mean(&|t| f64::from(t.loss.value)) + nll, case.loss);
        let ours: [(&str, Reported<'_>); 6] = [
            ("rewards/chosen", &|t| t.rewards[0]),
            ("rewards/rejected", &|t| t.rewards[1]),
            ("rewards/margins", &|t| t.rewards[0] - t.rewards[1]),
            ("rewards/accuracies", &|t| f64::from(u8::from(t.rewards[0] > t.rewards[1]))),
            ("logps/chosen", &|t| t.log_probs[0]),
            ("logps/rejected", &|t| t.log_probs[1]),
        ];
        for (name, f) in ours {
            close(name, mean(f), case.metrics[name]);
        }
    }
}

#[test]
fn kto_agrees_with_trl() {
    let fixture = fixture();
    assert_eq!(fixture.kto_cases.len(), 4);
    for case in &fixture.kto_cases {
        let sign = if case.rows == "swapped" { -1.0 } else { 1.0 };
        let z0 = divergence(fixture.kto_rows.iter().map(|r| sign * (f64::from(r.kl_policy) - f64::from(r.kl_reference))));
        let ratio = |r: &KtoRow| f64::from(r.policy) - f64::from(r.reference);
        let losses = fixture.kto_rows.iter().map(|r| f64::from(case.settings.evaluate(r.desirable, ratio(r), z0).value));
        let reward = |desirable: bool| {
            let rows: Vec<f64> = fixture.kto_rows.iter().filter(|r| r.desirable == desirable).map(ratio).collect();
            case.settings.beta * rows.iter().sum::<f64>() / rows.len() as f64
        };
        let close = |name: &str, got: f64, expected: f64| {
            assert!((got - expected).abs() <= fixture.header.tolerance * expected.abs().max(1.0), "{name}: {got} instead of {expected}");
        };
        close("loss", losses.sum::<f64>() / fixture.kto_rows.len() as f64, case.loss);
        close("kl", z0, case.metrics["kl"]);
        close("rewards/chosen", reward(true), case.metrics["rewards/chosen"]);
        close("rewards/rejected", reward(false), case.metrics["rewards/rejected"]);
        close("rewards/margins", reward(true) - reward(false), case.metrics["rewards/margins"]);
    }
    assert!(fixture.kto_cases.iter().any(|c| c.metrics["kl"] > 0.0) && fixture.kto_cases.iter().any(|c| c.metrics["kl"] == 0.0));
}
