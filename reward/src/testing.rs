//! Made-up preferences whose truth is known, for tests and benchmarks.

use steadfast_envs::{Rng, SeedTree};

use crate::margin::sigmoid;
use crate::preference::{Text, TextPair, TextPreference, Truth};

/// Pairs of texts whose true value is a sum over their words.
///
/// Words are made of syllables and drawn by Zipf's law. A share of them is good or bad, by normally distributed values;
/// the value of a text is their sum over its tokens, standardised over texts of equal length.
#[derive(Debug, Clone, PartialEq)]
pub struct Lexicon {
    /// Number of pairs.
    pub pairs: usize,
    /// Mean number of words of a text; lengths spread by a quarter of it.
    pub words: usize,
    /// Number of different words.
    pub vocabulary: usize,
    /// Share of words that have a value.
    pub valued: f64,
    /// Standard deviation of a text's value, in units of the annotators' doubt. Infinite: annotators never err by themselves.
    pub scale: f64,
    /// Share of labels that are turned around afterwards.
    pub flips: f64,
    /// Seed of words, texts and labels.
    pub seed: u64,
}

impl Default for Lexicon {
    fn default() -> Self {
        Self { pairs: 1000, words: 100, vocabulary: 5000, valued: 0.2, scale: 4.0, flips: 0.15, seed: 0 }
    }
}

impl Lexicon {
    /// The pairs, one after the other. `truth.flipped` says whether the label contradicts the true values, be it by an
    /// annotator's doubt or because it was turned around.
    pub fn preferences(&self) -> impl Iterator<Item = TextPreference> + Send + use<> {
        let seeds = SeedTree::new(self.seed);
        let mut rng = seeds.child("words").rng();
        let words: Vec<String> = (0..self.vocabulary).map(|_| word(&mut rng)).collect();
        let values: Vec<f64> = words.iter().map(|_| if rng.unit() < self.valued { rng.normal() } else { 0.0 }).collect();
        let mut cumulative: Vec<f64> = Vec::with_capacity(words.len());
        let mut sum = 0.0;
        for rank in 0..words.len() {
            sum += 1.0 / (rank as f64 + 2.7);
            cumulative.push(sum);
        }
        // Mean and spread of one draw, from the law of the words themselves.
        let moment = |power: i32| {
            let terms = values.iter().enumerate().map(|(rank, v)| v.powi(power) / (rank as f64 + 2.7));
            terms.sum::<f64>() / sum
        };
        let (mean, spread) = (moment(1), (moment(2) - moment(1).powi(2)).sqrt().max(1e-12));
        let config = self.clone();
        let unit = spread * (config.words.max(1) as f64).sqrt();
        (0..self.pairs).map(move |i| {
            let mut rng = seeds.child("pair").index(i as u64).rng();
            let mut draw = || {
                let n = (config.words as f64 * (1.0 + 0.25 * rng.normal())).round().max(1.0) as usize;
                let (mut text, mut value) = (String::with_capacity(8 * n), 0.0);
                for position in 0..n {
                    let target = rng.unit() * sum;
                    let rank = cumulative.partition_point(|&c| c <= target).min(words.len() - 1);
                    if position > 0 {
                        text.push_str(if rng.below(12) == 0 { ". " } else { " " });
                    }
                    text.push_str(&words[rank]);
                    value += values[rank] - mean;
                }
                text.push('.');
                (text, value / unit)
            };
            let (mut chosen, mut rejected) = (draw(), draw());
            let gap = chosen.1 - rejected.1;
            let prefers_first =
                if config.scale.is_finite() { rng.unit() < f64::from(sigmoid((config.scale * gap) as f32)) } else { gap >= 0.0 };
            if prefers_first == (rng.unit() < config.flips) {
                std::mem::swap(&mut chosen, &mut rejected);
            }
            let truth = Truth { flipped: Some(chosen.1 < rejected.1), gold_chosen: Some(chosen.1), gold_rejected: Some(rejected.1) };
            let pair = TextPair { prompt: Text::default(), chosen: Text::Plain(chosen.0), rejected: Text::Plain(rejected.0) };
            TextPreference { id: format!("pair-{i}"), pair, truth, ..Default::default() }
        })
    }
}

/// One to three syllables.
fn word(rng: &mut Rng) -> String {
    const ONSETS: [&str; 16] = ["b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "st", "tr", "sh"];
    const VOWELS: [&str; 6] = ["a", "e", "i", "o", "u", "ea"];
    const CODAS: [&str; 8] = ["", "", "", "n", "r", "s", "t", "l"];
    (0..1 + rng.below(3)).map(|_| [ONSETS[rng.below(16)], VOWELS[rng.below(6)], CODAS[rng.below(8)]].concat()).collect()
}
