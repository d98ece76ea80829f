//! Frequencies of rotary positions.
//!
//! Coordinate pair `i` of the `rotary_dim` first coordinates of a head turns by `position * frequency[i]`, with
//! `frequency[i] = theta^(-2i / rotary_dim)` before scaling. The scalings are those of `transformers` 5.24
//! (`modeling_rope_utils.py`); a golden test compares each.

use std::f64::consts::PI;

use super::{RopeConfig, RopeScaling};

/// Angle per position of each pair of coordinates, `[rotary_dim / 2]`, and the factor of all cosines and sines.
///
/// `max_positions` is the length for which they are meant; only [`RopeScaling::Dynamic`] depends on it, and only beyond
/// its `original_max_positions`. Powers and scalings are computed in `f64` and rounded once.
#[must_use]
pub fn rope_frequencies(rope: &RopeConfig, max_positions: usize) -> (Vec<f32>, f32) {
    let dim = rope.rotary_dim as f64;
    let powers = |base: f64| (0..rope.rotary_dim / 2).map(move |i| base.powf(-2.0 * i as f64 / dim));
    let rounded = |frequencies: &mut dyn Iterator<Item = f64>| frequencies.map(|f| f as f32).collect();
    match rope.scaling {
        RopeScaling::None => (rounded(&mut powers(rope.theta)), 1.0),
        RopeScaling::Linear { factor } => (rounded(&mut powers(rope.theta).map(|f| f / factor)), 1.0),
        RopeScaling::Dynamic { factor, original_max_positions } => {
            let growth = max_positions.max(original_max_positions) as f64 / original_max_positions as f64;
            let base = rope.theta * (factor * growth - (factor - 1.0)).powf(dim / (dim - 2.0));
            (rounded(&mut powers(base)), 1.0)
        }
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
            let scale = |frequency: f64| {
                // Turns over the original context: few are scaled, many are kept.
                let turns = original_max_positions as f64 * frequency / (2.0 * PI);
                if turns < low_freq_factor {
                    frequency / factor
                } else if turns > high_freq_factor {
                    frequency
                } else {
                    let kept = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    (1.0 - kept) * frequency / factor + kept * frequency
                }
            };
            (rounded(&mut powers(rope.theta).map(scale)), 1.0)
        }
        RopeScaling::Yarn { factor, beta_fast, beta_slow, original_max_positions, attention_factor, truncate } => {
            // The coordinate (not the pair) that makes this many turns over the original context.
            let coordinate = |turns: f64| dim * (original_max_positions as f64 / (turns * 2.0 * PI)).ln() / (2.0 * rope.theta.ln());
            let (low, high) = (coordinate(beta_fast), coordinate(beta_slow));
            let (low, high) = if truncate { (low.floor(), high.ceil()) } else { (low, high) };
            let (low, mut high) = (low.max(0.0), high.min(dim - 1.0));
            if low == high {
                high += 0.001;
            }
            let scale = |(pair, frequency): (usize, f64)| {
                let scaled = ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
                frequency / factor * scaled + frequency * (1.0 - scaled)
            };
            let attention = attention_factor.unwrap_or(yarn_magnitude(factor, 1.0));
            (rounded(&mut powers(rope.theta).enumerate().map(scale)), attention as f32)
        }
    }
}

/// YaRN's factor of cosines and sines for a context that grew by `factor`.
pub(super) fn yarn_magnitude(factor: f64, weight: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_frequencies_are_powers_of_the_base() {
        let rope = RopeConfig { theta: 10_000.0, rotary_dim: 8, scaling: RopeScaling::None };
        assert_eq!(rope_frequencies(&rope, 64), (vec![1.0, 0.1, 0.01, 0.001], 1.0));
    }

    #[test]
    fn dynamic_scaling_changes_nothing_within_the_trained_context() {
        let plain = RopeConfig { theta: 10_000.0, rotary_dim: 8, scaling: RopeScaling::None };
        let dynamic = RopeConfig { scaling: RopeScaling::Dynamic { factor: 4.0, original_max_positions: 64 }, ..plain };
        assert_eq!(rope_frequencies(&dynamic, 64), rope_frequencies(&plain, 64));
        assert!(rope_frequencies(&dynamic, 128).0[3] < rope_frequencies(&plain, 128).0[3]);
    }
}
