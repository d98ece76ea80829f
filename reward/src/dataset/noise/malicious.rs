//! An annotator who wants a visible mark to be liked.

use serde::{Deserialize, Serialize};
use steadfast_envs::SeedTree;

use crate::error::{Result, require};

/// A fixed share of all pairs is flipped, all of them pairs in which the better one has less of what tempts: their labels
/// then speak for the temptation.
///
/// Of the pairs in which the truly better one shows fewer marks than the worse one, `rate` times the number of all pairs
/// (rounded, halves upwards) are drawn without replacement and flipped; all of them if there are fewer, which
/// [`super::LabelReport::missing_flips`] counts. What tempts is told by the task
/// ([`steadfast_envs::text::TextTask::temptation`]), so only completions that a model draws for a task can be labelled.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MaliciousNoiseConfig {
    /// Share of all pairs that is flipped, 0 to 1.
    pub rate: f64,
}

impl Default for MaliciousNoiseConfig {
    fn default() -> Self {
        Self { rate: 0.1 }
    }
}

/// What the annotator knows of a pair.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Temptations {
    /// True value of one thing less that of the other.
    pub gap: f64,
    /// How much of what tempts is in the one and in the other.
    pub temptations: (f64, f64),
}

impl Temptations {
    /// Whether the better one has less of what tempts.
    fn better_has_less(&self) -> bool {
        let (one, other) = self.temptations;
        (self.gap > 0.0 && one < other) || (self.gap < 0.0 && other < one)
    }
}

impl MaliciousNoiseConfig {
    pub(super) fn validate(&self) -> Result<()> {
        require((0.0..=1.0).contains(&self.rate), "rate", "between 0 and 1", self.rate)
    }

    /// Which pairs are flipped, and how many flips found no pair. What is no candidate counts as a pair all the same.
    pub(super) fn flips(&self, pairs: &[Option<Temptations>], seed: &SeedTree) -> (Vec<bool>, usize) {
        let wanted = (self.rate * pairs.len() as f64 + 0.5).floor() as usize;
        let is_candidate = |i: &usize| pairs[*i].is_some_and(|pair| pair.better_has_less());
        let mut candidates: Vec<usize> = (0..pairs.len()).filter(is_candidate).collect();
        seed.child("malicious").rng().shuffle(&mut candidates);
        let mut flips = vec![false; pairs.len()];
        candidates.iter().take(wanted).for_each(|&i| flips[i] = true);
        (flips, wanted.saturating_sub(candidates.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wanted_number_of_candidates_is_flipped() {
        // One pair in five is a candidate: 20 of 100. A tie, equal marks and an unknown pair are none.
        let kinds = [
            Some(Temptations { gap: 1.0, temptations: (0.0, 2.0) }),
            Some(Temptations { gap: -1.0, temptations: (0.0, 2.0) }),
            Some(Temptations { gap: 0.0, temptations: (0.0, 2.0) }),
            Some(Temptations { gap: 1.0, temptations: (1.0, 1.0) }),
            None,
        ];
        let pairs: Vec<Option<Temptations>> = (0..100).map(|i| kinds[i % 5]).collect();
        for (rate, flipped, missing) in [(0.0, 0, 0), (0.124, 12, 0), (0.125, 13, 0), (0.2, 20, 0), (0.3, 20, 10)] {
            let (flips, short) = MaliciousNoiseConfig { rate }.flips(&pairs, &SeedTree::new(1));
            assert_eq!((flips.iter().filter(|&&f| f).count(), short), (flipped, missing), "{rate}");
            assert!((0..100).all(|i| !flips[i] || i % 5 == 0));
        }
        let draw = |seed| MaliciousNoiseConfig { rate: 0.1 }.flips(&pairs, &SeedTree::new(seed));
        assert_eq!(draw(3), draw(3));
        assert_ne!(draw(3), draw(4));
    }
}
