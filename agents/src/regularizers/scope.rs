//! Which agents one adversary moves together.
//!
//! Rows of agents of one moment stand together. Source: Bukharin et al. 2023 (arXiv 2310.10810) for adversaries of each agent and of
//! the concatenated observation; the others answer partial compromise and sensors with a common bias.

use serde::{Deserialize, Serialize};

/// Whose observations share a budget or a perturbation, among agents who share a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Each agent has a ball of its own.
    Independent,
    /// One ball for the observations of all agents of a moment together.
    Joint,
    /// At most `scope_agents` agents of a moment, each in its own ball: those whose outputs change most after one step.
    KOfN,
    /// One perturbation that is added to the observations of all agents of a moment.
    Shared,
}

impl Scope {
    /// Rows of a ball when `members` rows belong to one moment.
    pub(super) fn rows_of_ball(self, members: usize) -> usize {
        if self == Self::Joint { members } else { 1 }
    }
}

/// Gives all rows `[row, features]` of a moment the values of its first row.
pub(super) fn copy_first(values: &mut [f32], features: usize, members: usize) {
    for moment in values.chunks_exact_mut(features * members) {
        let (first, others) = moment.split_at_mut(features);
        others.chunks_exact_mut(features).for_each(|row| row.copy_from_slice(first));
    }
}

/// Gives all rows `[row, features]` of a moment the sum over its rows.
pub(super) fn add_up(values: &mut [f32], features: usize, members: usize) {
    for moment in values.chunks_exact_mut(features * members) {
        let (first, others) = moment.split_at_mut(features);
        for row in others.chunks_exact(features) {
            first.iter_mut().zip(row).for_each(|(sum, v)| *sum += v);
        }
    }
    copy_first(values, features, members);
}

/// Marks in `is_kept` `[row]` the `k` rows of each moment with the greatest `strength` `[row]`; of equal ones the first.
pub(super) fn strongest(strength: &[f32], members: usize, k: usize, is_kept: &mut Vec<bool>) {
    is_kept.clear();
    for moment in strength.chunks_exact(members) {
        for (i, own) in moment.iter().enumerate() {
            let ahead = moment.iter().enumerate().filter(|(j, other)| *other > own || *other == own && *j < i).count();
            is_kept.push(ahead < k);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_moment_are_added_and_ranked() {
        let mut values = [1.0, 2.0, 10.0, 20.0, 5.0, 6.0, 7.0, 8.0];
        add_up(&mut values, 2, 2);
        assert_eq!(values, [11.0, 22.0, 11.0, 22.0, 12.0, 14.0, 12.0, 14.0]);
        let mut kept = Vec::new();
        strongest(&[0.1, 0.5, 0.3, 2.0, 2.0, 2.0], 3, 2, &mut kept);
        assert_eq!(kept, [false, true, true, true, true, false]);
    }
}
