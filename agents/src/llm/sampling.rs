//! The choice of the next token from its logits.
//!
//! Order, as in `transformers`: the repetition penalty on raw logits, then temperature, top-k, top-p (Keskar et al. 2019,
//! arXiv 1909.05858; Fan et al. 2018, arXiv 1805.04833; Holtzman et al. 2020, arXiv 1904.09751). The log-probability that
//! is recorded is that of the full softmax of the raw logits at the temperature, as training computes it.

use steadfast_envs::Rng;

use super::generate::GenerationConfig;
use super::ops::{largest, softmax};

/// Memory that is kept from token to token.
#[derive(Debug, Default)]
pub(crate) struct Sampler {
    probabilities: Vec<f32>,
    order: Vec<u32>,
}

impl Sampler {
    /// The next token and its log-probability. `seen` are the tokens of the prompt and those generated so far.
    ///
    /// # Errors
    /// The reason, if a logit is NaN or all are infinite.
    pub fn choose(&mut self, logits: &[f32], config: &GenerationConfig, seen: &[u32], rng: &mut Rng) -> Result<(u32, f32), String> {
        // Without an early end, this runs in vectors.
        if logits.iter().fold(false, |found, z| found | z.is_nan() | (*z == f32::INFINITY)) {
            let i = logits.iter().position(|z| z.is_nan() || *z == f32::INFINITY).unwrap_or(0);
            return Err(format!("the logit of token {i} is {}", logits[i]));
        }
        // Greedy choices are recorded at the temperature, too: it is the one of the policy that is evaluated.
        let inverse = 1.0 / config.temperature as f32;
        let p = &mut self.probabilities;
        p.clear();
        p.extend(logits.iter().map(|z| z * inverse));
        let (largest, sum) = softmax(p);
        if !sum.is_finite() {
            return Err("no token has a finite logit".to_string());
        }
        let log_prob = |token: u32| logits[token as usize] * inverse - largest - sum.ln();
        let is_penalised = config.repetition_penalty != 1.0;
        if is_penalised {
            let penalty = config.repetition_penalty as f32;
            p.clear();
            p.extend_from_slice(logits);
            for &token in seen {
                let z = logits[token as usize];
                p[token as usize] = if z > 0.0 { z / penalty } else { z * penalty };
            }
        }
        if config.greedy {
            let token = first_largest(if is_penalised { p } else { logits });
            return Ok((token, log_prob(token)));
        }
        if is_penalised {
            p.iter_mut().for_each(|z| *z *= inverse);
            softmax(p);
        }
        if config.top_k > 0 || config.top_p < 1.0 {
            self.truncate(config);
        }
        let p = &self.probabilities;
        let total: f64 = p.iter().map(|&p| f64::from(p)).sum();
        let mut rest = rng.unit() * total;
        let mut token = None;
        for (i, &p) in p.iter().enumerate().filter(|(_, p)| **p > 0.0) {
            token = Some(i as u32);
            rest -= f64::from(p);
            if rest < 0.0 {
                break;
            }
        }
        let token = token.ok_or("no token has a probability above 0")?;
        Ok((token, log_prob(token)))
    }

    /// Sets the probabilities of tokens outside of top-k and top-p to 0. Ties go to the lower token.
    fn truncate(&mut self, config: &GenerationConfig) {
        let (p, order) = (&mut self.probabilities, &mut self.order);
        order.clear();
        order.extend(0..p.len() as u32);
        order.sort_unstable_by(|&a, &b| p[b as usize].total_cmp(&p[a as usize]).then(a.cmp(&b)));
        let n = if config.top_k > 0 { config.top_k.min(p.len()) } else { p.len() };
        let total: f64 = order[..n].iter().map(|&i| f64::from(p[i as usize])).sum();
        // The smallest set whose share reaches top-p; the most likely token is always in it.
        let mut kept = 0;
        let mut share = 0.0;
        while kept < n && (kept == 0 || share < config.top_p * total) {
            share += f64::from(p[order[kept] as usize]);
            kept += 1;
        }
        order[kept..].iter().for_each(|&i| p[i as usize] = 0.0);
    }
}

/// The most likely token; of equals the first.
fn first_largest(x: &[f32]) -> u32 {
    let best = largest(x);
    x.iter().position(|&z| z == best).unwrap_or(0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> GenerationConfig {
        GenerationConfig::default()
    }

    /// Which of many draws occur, and how often.
    fn counts(logits: &[f32], config: &GenerationConfig, seen: &[u32]) -> Vec<usize> {
        let mut rng = Rng::from_seed(4);
        let mut sampler = Sampler::default();
        let mut counts = vec![0; logits.len()];
        for _ in 0..20_000 {
            counts[sampler.choose(logits, config, seen, &mut rng).unwrap().0 as usize] += 1;
        }
        counts
    }

    fn softmax_of(logits: &[f32]) -> Vec<f64> {
        let weights: Vec<f64> = logits.iter().map(|&z| f64::from(z).exp()).collect();
        let sum: f64 = weights.iter().sum();
        weights.iter().map(|w| w / sum).collect()
    }

    fn assert_frequencies(counts: &[usize], expected: &[f64]) {
        let n: usize = counts.iter().sum();
        for (&count, &p) in counts.iter().zip(expected) {
            let deviation = (p * (1.0 - p) / n as f64).sqrt();
            assert!((count as f64 / n as f64 - p).abs() <= 4.5 * deviation, "{counts:?} {expected:?}");
        }
    }

    const LOGITS: [f32; 6] = [0.3, -1.0, 2.0, 1.9, 0.0, -3.0];

    #[test]
    fn draws_follow_the_softmax_at_the_temperature() {
        assert_frequencies(&counts(&LOGITS, &config(), &[]), &softmax_of(&LOGITS));
        let hot = GenerationConfig { temperature: 2.5, ..config() };
        assert_frequencies(&counts(&LOGITS, &hot, &[]), &softmax_of(&LOGITS.map(|z| z / 2.5)));
    }

    #[test]
    fn top_k_and_top_p_keep_the_most_likely() {
        let two = GenerationConfig { top_k: 2, ..config() };
        assert_frequencies(&counts(&LOGITS, &two, &[]), &softmax_of(&LOGITS.map(|z| if z > 1.0 { z } else { -1e9 })));
        // The first two have 0.84 of the probability, the third brings it to 0.92.
        let nucleus = GenerationConfig { top_p: 0.85, ..config() };
        assert_frequencies(&counts(&LOGITS, &nucleus, &[]), &softmax_of(&LOGITS.map(|z| if z > 0.2 { z } else { -1e9 })));
        let narrow = GenerationConfig { top_p: 1e-6, ..config() };
        assert_eq!(counts(&LOGITS, &narrow, &[])[2], 20_000);
    }

    #[test]
    fn the_penalty_is_on_raw_logits_of_seen_tokens() {
        let penalised = GenerationConfig { repetition_penalty: 2.0, temperature: 0.5, ..config() };
        let expected = softmax_of(&[0.3, -2.0, 1.0, 1.9, 0.0, -3.0].map(|z| z / 0.5));
        assert_frequencies(&counts(&LOGITS, &penalised, &[2, 1, 2]), &expected);
        let greedy = GenerationConfig { greedy: true, ..penalised };
        let (token, log_prob) = Sampler::default().choose(&LOGITS, &greedy, &[2], &mut Rng::from_seed(0)).unwrap();
        // What is recorded knows nothing of the penalty.
        let raw = softmax_of(&LOGITS.map(|z| z / 0.5))[3].ln();
        assert_eq!(token, 3);
        assert!((f64::from(log_prob) - raw).abs() < 1e-6);
    }

    #[test]
    fn logits_that_are_no_numbers_are_refused() {
        for bad in [f32::NAN, f32::INFINITY] {
            let error = Sampler::default().choose(&[0.0, bad], &config(), &[], &mut Rng::from_seed(0)).unwrap_err();
            assert!(error.contains("token 1"), "{error}");
        }
        assert!(Sampler::default().choose(&[f32::NEG_INFINITY; 3], &config(), &[], &mut Rng::from_seed(0)).is_err());
    }
}
