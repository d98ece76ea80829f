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
