//! Target networks: slow copies of networks, for the values that learning starts from.

use serde::{Deserialize, Serialize};

use crate::AgentError;
use crate::nn::Mlp;
use crate::ranges::Ranges;

/// How target networks follow the networks that learn.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TargetConfig {
    /// They follow every so many gradient steps, at least 1.
    pub every: usize,
    /// Share of the distance by which they then move, above 0, at most 1: copies with 1, Polyak averages with less.
    pub share: f64,
}

impl Default for TargetConfig {
    /// Copies, as Mnih et al. 2015 and PyMARL.
    fn default() -> Self {
        Self { every: 200, share: 1.0 }
    }
}

impl TargetConfig {
    /// Checks the ranges given with the fields.
    ///
    /// # Errors
    /// [`AgentError::Config`] for the first field out of its range.
    pub fn validate(&self) -> Result<(), AgentError> {
        let mut ranges = Ranges::default();
        ranges.count("target.every", self.every, usize::MAX);
        ranges.positive("target.share", self.share);
        ranges.fraction("target.share", self.share);
        ranges.finish()
    }

    /// Lets `target` follow `online` after gradient step `step`, counted from 1.
    pub fn follow(&self, step: u64, online: &Mlp, target: &mut Mlp) {
        if !step.is_multiple_of(self.every as u64) {
            return;
        }
        let share = self.share as f32;
        if share == 1.0 {
            target.parameters_mut().copy_from_slice(online.parameters());
        } else {
            target.parameters_mut().iter_mut().zip(online.parameters()).for_each(|(t, o)| *t += share * (o - *t));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::Activation;
    use steadfast_envs::Rng;

    #[test]
    fn targets_are_copied_or_follow_slowly() {
        let net = |seed| Mlp::new(2, &[3], 1, Activation::Relu, 1.0, 1.0, &mut Rng::from_seed(seed)).unwrap();
        let (online, first) = (net(1), net(2));
        let mut target = first.clone();
        let copies = TargetConfig { every: 3, share: 1.0 };
        copies.follow(2, &online, &mut target);
        assert_eq!(target.parameters(), first.parameters());
        copies.follow(3, &online, &mut target);
        assert_eq!(target.parameters(), online.parameters());
        let mut target = first.clone();
        for step in 1..=2 {
            TargetConfig { every: 1, share: 0.5 }.follow(step, &online, &mut target);
        }
        for ((t, o), f) in target.parameters().iter().zip(online.parameters()).zip(first.parameters()) {
            assert!((t - (0.75 * o + 0.25 * f)).abs() < 1e-6);
        }
    }
}
