//! An annotator who errs where it matters most: the clearest pairs are flipped.

use serde::{Deserialize, Serialize};

use crate::error::{Result, require};

/// In each batch B of consecutive pairs, the |B|^exponent pairs whose true values differ most get the wrong label.
///
/// The number is rounded, halves upwards. The last batch may be smaller and uses its own size; of a batch of one pair, that
/// pair is flipped. Where true values differ equally much, the earlier pair is flipped first. With 64 pairs per batch,
/// exponents 1/3, 1/2 and 2/3 flip 4, 8 and 16 of them: 6.25 %, 12.5 % and 25 %.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IrrationalNoiseConfig {
    /// Exponent p, 0 to 1; 1/3, 1/2 and 2/3 in the paper.
    pub exponent: f64,
    /// Pairs per batch |B|, at least 1. The paper does not name it; 64 gives the rate that it reports for p = 1/3.
    pub batch_size: usize,
}

impl Default for IrrationalNoiseConfig {
    fn default() -> Self {
        Self { exponent: 1.0 / 3.0, batch_size: 64 }
    }
}

impl IrrationalNoiseConfig {
    pub(super) fn validate(&self) -> Result<()> {
        require((0.0..=1.0).contains(&self.exponent), "exponent", "between 0 and 1", self.exponent)?;
        require(self.batch_size >= 1, "batch_size", "at least 1", self.batch_size)
    }

    /// Which pairs are flipped, given the differences of their true values.
    pub(super) fn flips(&self, gaps: &[f64]) -> Vec<bool> {
        let mut flips = vec![false; gaps.len()];
        for (batch, flips) in gaps.chunks(self.batch_size).zip(flips.chunks_mut(self.batch_size)) {
            let n = ((batch.len() as f64).powf(self.exponent) + 0.5).floor() as usize;
            let mut order: Vec<usize> = (0..batch.len()).collect();
            order.sort_by(|&a, &b| batch[b].abs().total_cmp(&batch[a].abs()));
            order[..n.min(batch.len())].iter().for_each(|&i| flips[i] = true);
        }
        flips
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_those_of_the_paper() {
        let gaps: Vec<f64> = (0..64).map(|i| f64::from(i * 37 % 64)).collect();
        for (exponent, expected) in [(0.0, 1), (1.0 / 3.0, 4), (0.5, 8), (2.0 / 3.0, 16), (1.0, 64)] {
            let flips = IrrationalNoiseConfig { exponent, batch_size: 64 }.flips(&gaps);
            assert_eq!(flips.iter().filter(|&&f| f).count(), expected);
        }
    }

    #[test]
    fn largest_gaps_of_each_batch_are_flipped_and_ties_go_to_the_earlier() {
        let gaps = [1.0, -3.0, 2.0, 3.0, 0.5, 0.5, 0.5];
        // Batches of 4, 3: 4^0.5 = 2 and 3^0.5 = 1.73, rounded to 2.
        let flips = IrrationalNoiseConfig { exponent: 0.5, batch_size: 4 }.flips(&gaps);
        assert_eq!(flips, [false, true, false, true, true, true, false]);
    }
}
