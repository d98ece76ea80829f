//! Pairs that a policy draws, labelled by a known reward.
#![cfg(feature = "llm")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod llm_tiny;

use llm_tiny::decoder;
use steadfast_agents::llm::{GenerationConfig, Generator};
use steadfast_envs::SeedTree;
use steadfast_reward::dataset::noise::{
    IrrationalNoiseConfig, MaliciousNoiseConfig, MyopicNoiseConfig, StochasticNoiseConfig, UniformNoiseConfig,
};
use steadfast_reward::{EncodedPreference, Gold, NoiseConfig, SampleReport, SampledLabels, sample_preferences};

/// What tempts; worth next to nothing.
const MARK: u32 = 5;

/// Token 4 is worth 1, token 8 costs 1, up to a constant.
fn term(token: u32) -> f64 {
    f64::from(u8::from(token == 4)) - f64::from(u8::from(token == 8)) + 0.01 * f64::from(token)
}

fn draw(prompts: &[Vec<u32>], labels: SampledLabels, has_terms: bool) -> steadfast_reward::Result<(Vec<EncodedPreference>, SampleReport)> {
    let mut generator = Generator::new(&decoder(1)).unwrap();
    let generation = GenerationConfig { max_new_tokens: 6, ..GenerationConfig::default() };
    let terms = |_: &[u32], completion: &[u32]| completion.iter().map(|&t| term(t)).collect::<Vec<f64>>();
    let value = |prompt: &[u32], completion: &[u32]| 5.0 + terms(prompt, completion).iter().sum::<f64>();
    let temptation = |completion: &[u32]| completion.iter().filter(|&&t| t == MARK).count() as f64;
    let gold = Gold {
        value: &value,
        terms: if has_terms { Some(&terms) } else { None },
        temptation: if has_terms { Some(&temptation) } else { None },
    };
    sample_preferences(&mut generator, prompts, &generation, &[2], gold, &labels, SeedTree::new(3))
}

fn prompts(n: usize) -> Vec<Vec<u32>> {
    (0..n).map(|i| vec![1, 12 + i as u32 % 4]).collect()
}

#[test]
fn true_labels_follow_the_gold_reward() {
    let (pairs, report) = draw(&prompts(100), SampledLabels::default(), false).unwrap();
    assert_eq!((report.prompts, pairs.len() + report.same), (100, 100));
    for pair in &pairs {
        pair.pair.check().unwrap();
        let (chosen, rejected) = (pair.truth.gold_chosen.unwrap(), pair.truth.gold_rejected.unwrap());
        assert!(chosen >= rejected && pair.truth.flipped != Some(true), "{chosen} and {rejected}");
        let value = 5.0 + pair.pair.chosen.completion().iter().map(|&t| term(t)).sum::<f64>();
        assert!((value - chosen).abs() < 1e-9);
    }
    // A prompt's draws do not depend on the others.
    let (few, _) = draw(&prompts(10), SampledLabels::default(), false).unwrap();
    assert_eq!(few[..], pairs[..few.len()]);
}

#[test]
fn noise_flips_labels_and_says_so() {
    let annotator = NoiseConfig::Stochastic(StochasticNoiseConfig { temperature: 0.5 });
    for noise in [NoiseConfig::Uniform(UniformNoiseConfig { rate: 0.3 }), NoiseConfig::Irrational(IrrationalNoiseConfig::default())] {
        let (pairs, report) = draw(&prompts(200), SampledLabels { annotator, noise }, false).unwrap();
        let wrong = pairs.iter().filter(|p| p.truth.gold_chosen < p.truth.gold_rejected).count();
        assert_eq!(wrong, report.labels.flipped);
        assert!(wrong > 10 && wrong < pairs.len() / 2, "{wrong}");
    }
    let noise = NoiseConfig::Myopic(MyopicNoiseConfig { discount: 0.3 });
    let labels = SampledLabels { noise, ..SampledLabels::default() };
    assert!(draw(&prompts(4), labels, false).unwrap_err().to_string().contains("single tokens"));
    let (pairs, _) = draw(&prompts(200), labels, true).unwrap();
    assert!(pairs.iter().any(|p| p.truth.flipped == Some(true)));
    assert!(pairs.iter().all(|p| p.truth.gold_chosen.unwrap() > 1.0 - 6.0));
}

#[test]
fn malicious_flips_speak_for_the_mark() {
    let noise = NoiseConfig::Malicious(MaliciousNoiseConfig { rate: 0.1 });
    let labels = SampledLabels { noise, ..SampledLabels::default() };
    let message = draw(&prompts(4), labels, false).unwrap_err().to_string();
    assert!(message.contains("noise `malicious` goes by what the task"), "{message}");
    let (pairs, report) = draw(&prompts(200), labels, true).unwrap();
    let wrong: Vec<&EncodedPreference> = pairs.iter().filter(|p| p.truth.flipped == Some(true)).collect();
    assert_eq!(wrong.len() + report.labels.missing_flips, (0.1 * pairs.len() as f64).round() as usize);
    assert!(wrong.len() > 5, "{}", wrong.len());
    let marks = |tokens: &[u32]| tokens.iter().filter(|&&t| t == MARK).count();
    assert!(wrong.iter().all(|p| marks(p.pair.chosen.completion()) > marks(p.pair.rejected.completion())));
    let (again, _) = draw(&prompts(200), labels, true).unwrap();
    assert_eq!(pairs, again);
    // After an annotator who errs, right labels alone are flipped.
    let annotator = NoiseConfig::Stochastic(StochasticNoiseConfig { temperature: 1.0 });
    let (before, _) = draw(&prompts(200), SampledLabels { annotator, ..SampledLabels::default() }, true).unwrap();
    let (after, report) = draw(&prompts(200), SampledLabels { annotator, noise }, true).unwrap();
    let n_wrong = |pairs: &[EncodedPreference]| pairs.iter().filter(|p| p.truth.flipped == Some(true)).count();
    assert_eq!(n_wrong(&after) + report.labels.missing_flips, n_wrong(&before) + (0.1 * after.len() as f64).round() as usize);
}
