//! One token from logits: greedy, temperature, top-k, top-p, repetition penalty.
//!
//! In the order and by the definitions of Hugging Face's `generate`: the penalty on raw logits over prompt and completion so
//! far, then temperature, top-k, top-p. The recorded log-probability is that of the full softmax of raw logits / temperature.

use steadfast_envs::Rng;

use super::generate::GenerationConfig;

/// Draws a token after `seen`; returns it with its log-probability. Uses one uniform number unless greedy.
///
/// `logits`: `[vocab]`, finite, at least one.
pub fn draw(logits: &[f32], seen: &[u32], config: &GenerationConfig, rng: &mut Rng) -> (u32, f32) {
    let mut scores: Vec<f64> = logits.iter().map(|&x| f64::from(x)).collect();
    if config.repetition_penalty != 1.0 {
        let mut tokens = seen.to_vec();
        tokens.sort_unstable();
        tokens.dedup();
        for token in tokens {
            let score = &mut scores[token as usize];
            *score = if *score > 0.0 { *score / config.repetition_penalty } else { *score * config.repetition_penalty };
        }
    }
    let log_prob = |token: usize| {
        let scaled = |x: f32| f64::from(x) / config.temperature;
        let most = logits.iter().map(|&x| scaled(x)).fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = logits.iter().map(|&x| (scaled(x) - most).exp()).sum();
        (scaled(logits[token]) - most - sum.ln()) as f32
    };
    let first_best = |scores: &[f64]| (0..scores.len()).rev().max_by(|&a, &b| scores[a].total_cmp(&scores[b])).unwrap_or(0);
    if config.greedy {
        let token = first_best(&scores);
        return (token as u32, log_prob(token));
    }
    scores.iter_mut().for_each(|score| *score /= config.temperature);
    let mut order: Vec<usize> = (0..scores.len()).collect();
    if config.top_k > 0 || config.top_p < 1.0 {
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    }
    if config.top_k > 0 && config.top_k < order.len() {
        // Ties with the last one that is kept are kept as well.
        let least = scores[order[config.top_k - 1]];
        order.retain(|&i| scores[i] >= least);
    }
    let most = order.iter().map(|&i| scores[i]).fold(f64::NEG_INFINITY, f64::max);
    let mut weights: Vec<f64> = order.iter().map(|&i| (scores[i] - most).exp()).collect();
    let mut total: f64 = weights.iter().sum();
    if config.top_p < 1.0 {
        // A token stays if those before it have less than `top_p` together; so the first one always does.
        let (mut n, mut before) = (1, weights[0]);
        while n < weights.len() && before < config.top_p * total {
            before += weights[n];
            n += 1;
        }
        weights.truncate(n);
        total = weights.iter().sum();
    }
    let mut left = rng.unit() * total;
    let mut chosen = weights.len() - 1;
    for (i, weight) in weights.iter().enumerate() {
        left -= weight;
        if left < 0.0 {
            chosen = i;
            break;
        }
    }
    (order[chosen] as u32, log_prob(order[chosen]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frequencies(config: &GenerationConfig, logits: &[f32], seen: &[u32]) -> Vec<f64> {
        let mut rng = Rng::from_seed(1);
        let mut counts = vec![0.0; logits.len()];
        (0..20_000).for_each(|_| counts[draw(logits, seen, config, &mut rng).0 as usize] += 1.0 / 20_000.0);
        counts
    }

    #[test]
    fn frequencies_are_those_of_the_softmax() {
        let logits = [0.5_f32, -1.0, 2.0, 0.0];
        let config = GenerationConfig { temperature: 0.7, ..Default::default() };
        let weights: Vec<f64> = logits.iter().map(|&x| (f64::from(x) / 0.7).exp()).collect();
        let sum: f64 = weights.iter().sum();
        for (i, found) in frequencies(&config, &logits, &[]).iter().enumerate() {
            assert!((found - weights[i] / sum).abs() < 0.015, "token {i}: {found}");
        }
        let (token, log_prob) = draw(&logits, &[], &config, &mut Rng::from_seed(3));
        assert!((f64::from(log_prob) - (weights[token as usize] / sum).ln()).abs() < 1e-6);
    }

    #[test]
    fn sets_are_cut_as_by_hand() {
        let logits = [0.1_f32.ln(), 0.2_f32.ln(), 0.3_f32.ln(), 0.4_f32.ln()];
        let support =
            |config: &GenerationConfig, seen: &[u32]| frequencies(config, &logits, seen).iter().map(|&f| f > 0.0).collect::<Vec<_>>();
        let base = GenerationConfig::default();
        assert_eq!(support(&GenerationConfig { top_k: 2, ..base.clone() }, &[]), [false, false, true, true]);
        assert_eq!(support(&GenerationConfig { top_p: 0.6, ..base.clone() }, &[]), [false, false, true, true]);
        assert_eq!(support(&GenerationConfig { top_p: 0.39, ..base.clone() }, &[]), [false, false, false, true]);
        let greedy = GenerationConfig { greedy: true, ..base.clone() };
        let mut rng = Rng::from_seed(0);
        assert_eq!(draw(&logits, &[], &greedy, &mut rng).0, 3);
        // ln 0.4 · 2 is below ln 0.3.
        let penalised = GenerationConfig { repetition_penalty: 2.0, ..greedy };
        assert_eq!(draw(&logits, &[3, 3], &penalised, &mut rng).0, 2);
    }
}
