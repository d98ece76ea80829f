//! A linear reward over hashed n-grams of text: small, fast, and trained while the file is read.
//!
//! It knows words, not meaning; it finds what wrong labels contradict in the choice of words, marks and length. Its
//! parameters are one weight and one sum of squared gradients per place (Adagrad; Duchi et al. 2011), so that a rare word
//! is learned from as fast as a frequent one. Only places that occur in a batch are touched.

mod features;
mod words;

use serde::{Deserialize, Serialize};
use steadfast_agents::StateDict;

pub use features::{FeatureBuffers, SparseDifference, TextFeatures};

use super::{BatchLoss, RewardModel};
use crate::audit::TextEncoder;
use crate::error::{Result, RewardError, require};
use crate::margin::LossValue;
use crate::preference::TextPair;

/// Settings of a linear reward over hashed features.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HashedTextConfig {
    /// Base-two logarithm of the number of weights, 8 to 26.
    pub bits: u32,
    /// Shortest character n-grams inside words, at least 1; 0 leaves out character n-grams.
    pub shortest_n_gram: usize,
    /// Longest character n-grams inside words, between `shortest_n_gram` and 16.
    pub longest_n_gram: usize,
    /// What the sums of squared gradients begin with, above 0: the larger, the less a word that is seen once is believed.
    pub initial_squares: f64,
}

impl Default for HashedTextConfig {
    fn default() -> Self {
        Self { bits: 18, shortest_n_gram: 3, longest_n_gram: 5, initial_squares: 1.0 }
    }
}

impl HashedTextConfig {
    /// Checks the ranges given with the fields.
    ///
    /// # Errors
    /// [`RewardError::Config`] for the first field out of its range.
    pub fn validate(&self) -> Result<()> {
        require((8..=26).contains(&self.bits), "bits", "between 8 and 26", self.bits)?;
        let longest = self.longest_n_gram;
        require((self.shortest_n_gram..=16).contains(&longest), "longest_n_gram", "between shortest_n_gram and 16", longest)?;
        let squares = self.initial_squares;
        require(squares > 0.0 && squares.is_finite(), "initial_squares", "a finite number above 0", squares)
    }

    /// What turns pairs into the model's input.
    ///
    /// # Errors
    /// As [`HashedTextConfig::validate`].
    pub fn features(&self) -> Result<TextFeatures> {
        self.validate()?;
        Ok(TextFeatures::new(self.bits, self.shortest_n_gram, self.longest_n_gram))
    }
}

/// A weight and the sum of its squared gradients, side by side so that a step touches one cache line.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Weight {
    value: f32,
    squares: f32,
}

/// A linear reward over hashed features of text.
#[derive(Debug, Clone)]
pub struct HashedTextReward {
    weights: Vec<Weight>,
    initial_squares: f32,
    margins: Vec<f32>,
    losses: Vec<LossValue>,
}

impl HashedTextReward {
    /// A reward of zero for every text.
    ///
    /// # Errors
    /// As [`HashedTextConfig::validate`].
    pub fn new(config: &HashedTextConfig) -> Result<Self> {
        let width = config.features()?.width();
        let initial_squares = config.initial_squares as f32;
        Ok(Self {
            weights: vec![Weight { value: 0.0, squares: initial_squares }; width],
            initial_squares,
            margins: Vec::new(),
            losses: Vec::new(),
        })
    }

    fn margin(&self, pair: &SparseDifference) -> Result<f32> {
        let mut sum = 0.0_f32;
        for (&i, &x) in pair.indices.iter().zip(&pair.values) {
            let Some(weight) = self.weights.get(i as usize) else {
                return Err(RewardError::Data(format!("a text has feature {i}, the model {}", self.weights.len())));
            };
            sum += weight.value * x;
        }
        Ok(sum)
    }
}

impl RewardModel<SparseDifference> for HashedTextReward {
    fn margins(&mut self, pairs: &[&SparseDifference], out: &mut [f32]) -> Result<()> {
        for (out, pair) in out.iter_mut().zip(pairs) {
            *out = self.margin(pair)?;
        }
        Ok(())
    }

    fn step(&mut self, pairs: &[&SparseDifference], loss: &mut BatchLoss<'_>, learning_rate: f32) -> Result<()> {
        let mut margins = std::mem::take(&mut self.margins);
        let mut losses = std::mem::take(&mut self.losses);
        margins.clear();
        margins.resize(pairs.len(), 0.0);
        losses.clear();
        losses.resize(pairs.len(), LossValue::default());
        self.margins(pairs, &mut margins)?;
        loss(&margins, &mut losses);
        // Pair by pair, each with its own square: a sum over the batch first would touch every place three times.
        for (pair, loss) in pairs.iter().zip(&losses).filter(|(_, loss)| loss.slope != 0.0) {
            for (&i, &x) in pair.indices.iter().zip(&pair.values) {
                let gradient = loss.slope * x;
                let weight = &mut self.weights[i as usize];
                weight.squares += gradient * gradient;
                weight.value -= learning_rate * gradient / weight.squares.sqrt();
            }
        }
        self.margins = margins;
        self.losses = losses;
        Ok(())
    }

    /// Untrained weights are zero; no number is drawn.
    fn reset(&mut self, _seed: u64) {
        self.weights.fill(Weight { value: 0.0, squares: self.initial_squares });
    }

    fn state(&self) -> StateDict {
        let mut state = StateDict::default();
        let column = |pick: fn(&Weight) -> f32| self.weights.iter().map(pick).collect::<Vec<f32>>();
        state.put_f32("score.weight", &[1, self.weights.len()], &column(|w| w.value));
        state.put_f32("optimizer.squares", &[1, self.weights.len()], &column(|w| w.squares));
        state
    }

    fn load_state(&mut self, state: &StateDict) -> Result<()> {
        let values = state.f32("score.weight", self.weights.len())?;
        let squares = state.f32("optimizer.squares", self.weights.len())?;
        for ((weight, &value), &squares) in self.weights.iter_mut().zip(values).zip(squares) {
            *weight = Weight { value, squares };
        }
        Ok(())
    }
}

impl TextEncoder for TextFeatures {
    type Encoded = SparseDifference;
    type Buffers = FeatureBuffers;

    fn encode(&self, pair: &TextPair, buffers: &mut FeatureBuffers) -> Result<SparseDifference> {
        Ok(self.difference(pair, buffers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preference::{Message, Text};

    fn pair(prompt: &str, chosen: &str, rejected: &str) -> TextPair {
        let text = |text: &str| Text::Plain(text.to_string());
        TextPair { prompt: text(prompt), chosen: text(chosen), rejected: text(rejected) }
    }

    fn encode(pair: &TextPair) -> SparseDifference {
        HashedTextConfig::default().features().unwrap().difference(pair, &mut FeatureBuffers::default())
    }

    fn dense(vector: &SparseDifference) -> std::collections::BTreeMap<u32, f32> {
        let mut places = std::collections::BTreeMap::new();
        vector.indices.iter().zip(&vector.values).for_each(|(&i, &x)| *places.entry(i).or_default() += x);
        places
    }

    /// Weights that were learned yesterday must fit the texts of today.
    #[test]
    fn places_and_signs_are_fixed() {
        let found = encode(&pair("", "a cat", ""));
        let listed: Vec<(u32, f32)> = found.indices.iter().copied().zip(found.values.iter().map(|x| (x * 1e4).round() / 1e4)).collect();
        assert_eq!(listed, FIXED);
    }

    #[test]
    fn turning_a_pair_around_changes_the_sign() {
        let (a, b) = ("The cat sat. On the mat!", "a dog, a bone and a cat");
        let (forward, backward) = (dense(&encode(&pair("cat and dog", a, b))), dense(&encode(&pair("cat and dog", b, a))));
        assert_eq!(forward.keys().collect::<Vec<_>>(), backward.keys().collect::<Vec<_>>());
        assert!(forward.values().zip(backward.values()).all(|(x, y)| (x + y).abs() < 1e-6));
        assert!(encode(&pair("", a, a)).indices.is_empty());
    }

    #[test]
    fn each_kind_has_its_length() {
        // One text against nothing: what remains is the text's own vector.
        let text = "one two three two one one";
        let squares = |config: HashedTextConfig| {
            let vector = config.features().unwrap().difference(&pair("", text, ""), &mut FeatureBuffers::default());
            let hashed = |i: &u32| *i < 1 << config.bits;
            vector.indices.iter().zip(&vector.values).filter(|(i, _)| hashed(i)).map(|(_, x)| x * x).sum::<f32>()
        };
        // 24 bits: no two features share a place.
        let words = HashedTextConfig { bits: 24, shortest_n_gram: 0, ..Default::default() };
        assert!((squares(words.clone()) - (1.0 + 0.25)).abs() < 1e-5);
        assert!((squares(HashedTextConfig { shortest_n_gram: 3, ..words }) - (1.0 + 0.25 + 0.25)).abs() < 1e-5);
    }

    #[test]
    fn buffers_do_not_remember() {
        let features = HashedTextConfig::default().features().unwrap();
        let mut buffers = FeatureBuffers::default();
        let long = (0..3000).map(|i| format!("word{i} ")).collect::<String>();
        features.difference(&pair(&long, &long, "x"), &mut buffers);
        let short = pair("p", "some text", "other text");
        assert_eq!(features.difference(&short, &mut buffers), encode(&short));
    }

    #[test]
    fn conversations_are_their_messages() {
        let message = |content: &str| Message { role: "assistant".to_string(), content: content.to_string() };
        let talk = TextPair { chosen: Text::Conversation(vec![message("good day"), message("sir")]), ..pair("", "", "no") };
        let plain = pair("", "good day sir", "no");
        // No word pair crosses from one message into the next.
        assert!(encode(&talk).indices.len() < encode(&plain).indices.len());
        let one = TextPair { chosen: Text::Conversation(vec![message("good day sir")]), ..pair("", "", "no") };
        assert_eq!(encode(&one), encode(&plain));
    }

    #[test]
    fn length_and_the_prompt_count() {
        let width = HashedTextConfig::default().features().unwrap().width() as u32;
        let found = dense(&encode(&pair("red blue", "red red green", "yellow")));
        let log_ratio = |a: f32, b: f32| 0.25 * ((1.0 + a).ln() - (1.0 + b).ln());
        assert!((found[&(width - 3)] - log_ratio(3.0, 1.0)).abs() < 1e-6);
        assert!((found[&(width - 2)] - log_ratio(11.0, 6.0)).abs() < 1e-6);
        assert!((found[&(width - 1)] - 0.25 * 2.0 / 3.0).abs() < 1e-6);
    }

    /// Two places by hand: weight −η·g/√(s₀ + g²), then from the new margin.
    #[test]
    fn a_step_is_adagrad() {
        let mut model = HashedTextReward::new(&HashedTextConfig { bits: 8, ..Default::default() }).unwrap();
        let input = SparseDifference { indices: vec![3, 200], values: vec![2.0, -1.0] };
        let mut seen = Vec::new();
        for _ in 0..2 {
            let mut loss = |margins: &[f32], out: &mut [LossValue]| {
                seen.push(margins[0]);
                out[0].slope = -0.5;
            };
            model.step(&[&input], &mut loss, 0.1).unwrap();
        }
        let first = [0.1 * 1.0 / 2.0_f32.sqrt(), -0.1 * 0.5 / 1.25_f32.sqrt()];
        assert_eq!(seen[0], 0.0);
        assert!((seen[1] - (2.0 * first[0] - first[1])).abs() < 1e-6);
        let second = [first[0] + 0.1 / 3.0_f32.sqrt(), first[1] - 0.05 / 1.5_f32.sqrt()];
        let mut margin = [0.0];
        model.margins(&[&input], &mut margin).unwrap();
        assert!((margin[0] - (2.0 * second[0] - second[1])).abs() < 1e-6);
    }

    #[test]
    fn a_state_is_everything() {
        let config = HashedTextConfig { bits: 8, ..Default::default() };
        let input = config.features().unwrap().difference(&pair("", "up up", "down"), &mut FeatureBuffers::default());
        let step = |model: &mut HashedTextReward| {
            let mut loss = |margins: &[f32], out: &mut [LossValue]| out[0].slope = margins[0] - 1.0;
            model.step(&[&input], &mut loss, 0.3).unwrap();
        };
        let mut model = HashedTextReward::new(&config).unwrap();
        let untrained = model.state();
        step(&mut model);
        let mut other = HashedTextReward::new(&config).unwrap();
        other.load_state(&model.state()).unwrap();
        step(&mut model);
        step(&mut other);
        assert_eq!(model.state(), other.state());
        other.reset(1);
        assert_eq!(other.state(), untrained);
        let smaller = HashedTextReward::new(&HashedTextConfig { bits: 9, ..config }).unwrap();
        assert!(other.load_state(&smaller.state()).is_err());
    }

    #[test]
    fn a_vector_of_a_larger_model_is_refused() {
        let mut model = HashedTextReward::new(&HashedTextConfig { bits: 8, ..Default::default() }).unwrap();
        let foreign = SparseDifference { indices: vec![1 << 9], values: vec![1.0] };
        assert!(matches!(model.margins(&[&foreign], &mut [0.0]), Err(RewardError::Data(_))));
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        for config in [
            HashedTextConfig { bits: 7, ..Default::default() },
            HashedTextConfig { bits: 27, ..Default::default() },
            HashedTextConfig { longest_n_gram: 2, ..Default::default() },
            HashedTextConfig { longest_n_gram: 17, ..Default::default() },
            HashedTextConfig { initial_squares: 0.0, ..Default::default() },
        ] {
            assert!(config.validate().is_err(), "{config:?}");
        }
    }

    /// Computed from the definition by another program: words `a` and `cat`, their pair, the n-grams `|a|`, `|ca`, `|cat`,
    /// `|cat|`, `cat`, `cat|`, `at|`, two lengths.
    #[allow(clippy::approx_constant, reason = "digits of the other program, not a constant of ours")]
    const FIXED: &[(u32, f32)] = &[
        (48575, 0.7071),
        (89393, -0.7071),
        (152615, -0.5),
        (52274, 0.189),
        (193217, 0.189),
        (49424, 0.189),
        (207014, 0.189),
        (242593, 0.189),
        (235985, 0.189),
        (118821, -0.189),
        (262144, 0.2747),
        (262145, 0.4024),
    ];
}
