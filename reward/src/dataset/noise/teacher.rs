//! B-Pref's annotator, who can be stochastic, myopic, mistaken, skipping and undecided at once.

use serde::{Deserialize, Serialize};
use steadfast_envs::Rng;

use super::myopic::MyopicNoiseConfig;
use super::pair::TrueRewards;
use super::stochastic::sigmoid;
use crate::error::{Result, RewardError, require};

/// The annotator of Lee et al. 2021 (arXiv 2111.03026). The defaults are its oracle, who makes no errors; the paper's other
/// annotators change one of `beta = 1`, `discount = 0.9`, `mistake = 0.1`, `skip = 0.1`, `equal = 0.1`.
///
/// With R the undiscounted sums of true rewards, S = Σₜ discount^(m−t) · rₜ, and `share(ε)` = ε · average return of an
/// episode · m / steps of an episode, a pair is labelled in this order:
///
/// 1. skipped if share(skip) > 0 and max(R₁, R₂) ≤ share(skip): neither shows anything worth judging;
/// 2. the first is preferred with probability σ(beta · (S₁ − S₂)), or if S₁ > S₂ where beta is infinite (then without the
///    steps that both lack, as under `myopic`);
/// 3. flipped with probability `mistake`;
/// 4. found equal if |R₁ − R₂| < share(equal), whatever was decided before.
///
/// Skipped pairs leave the data set. Departure: where beta is infinite and S₁ = S₂ the order is drawn, while the original
/// prefers the first.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TeacherConfig {
    /// Rationality β per unit of reward, above 0. `inf` is without randomness.
    pub beta: f64,
    /// Weight of a step against the step after it, 0 to 1.
    pub discount: f64,
    /// Probability that the label is flipped, 0 to 1.
    pub mistake: f64,
    /// Pairs are skipped whose larger sum is at most this share of an average segment's return; at least 0.
    pub skip: f64,
    /// Pairs are equal whose sums differ by less than this share of an average segment's return; at least 0.
    pub equal: f64,
}

impl Default for TeacherConfig {
    fn default() -> Self {
        Self { beta: f64::INFINITY, discount: 1.0, mistake: 0.0, skip: 0.0, equal: 0.0 }
    }
}

/// What `skip` and `equal` are shares of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReturnScale {
    /// Average undiscounted true return of an episode, at least 0.
    pub average_return: f64,
    /// Steps of a whole episode, above 0.
    pub episode_steps: f64,
}

/// What an annotator says about a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    First,
    Second,
    Equal,
    Skipped,
}

impl Verdict {
    pub(super) fn of(prefers_first: bool) -> Self {
        if prefers_first { Self::First } else { Self::Second }
    }
}

impl TeacherConfig {
    pub(super) fn validate(&self) -> Result<()> {
        require(self.beta > 0.0, "beta", "above 0 (`inf` is without randomness)", self.beta)?;
        require((0.0..=1.0).contains(&self.discount), "discount", "between 0 and 1", self.discount)?;
        require((0.0..=1.0).contains(&self.mistake), "mistake", "between 0 and 1", self.mistake)?;
        let is_share = |x: f64| x >= 0.0 && x.is_finite();
        require(is_share(self.skip), "skip", "a finite number of at least 0", self.skip)?;
        require(is_share(self.equal), "equal", "a finite number of at least 0", self.equal)
    }

    /// The return of an average step, of which `skip` and `equal` take their shares; 0 if neither is used.
    ///
    /// # Errors
    /// [`RewardError::Data`] if it is needed and not known, or negative, where both would silently do nothing.
    pub(super) fn return_per_step(&self, scale: Option<&ReturnScale>) -> Result<f64> {
        if self.skip == 0.0 && self.equal == 0.0 {
            return Ok(0.0);
        }
        let Some(scale) = scale else {
            let reason = "`skip` and `equal` of the teacher are shares of the average return, which is not known here";
            return Err(RewardError::Data(reason.to_string()));
        };
        let per_step = scale.average_return / scale.episode_steps;
        let is_usable = scale.average_return >= 0.0 && scale.episode_steps > 0.0 && per_step.is_finite();
        if !is_usable {
            return Err(RewardError::Data(format!(
                "`skip` and `equal` of the teacher are shares of the average return, which must be at least 0 (got {} over {} steps)",
                scale.average_return, scale.episode_steps
            )));
        }
        Ok(per_step)
    }

    /// `tied_order` stands in where the annotator has nothing to order by.
    pub(super) fn judge(
        &self,
        first: &TrueRewards,
        second: &TrueRewards,
        return_per_step: f64,
        tied_order: bool,
        rng: &mut Rng,
    ) -> Verdict {
        let average = return_per_step * first.steps.max(second.steps) as f64;
        let (sum_first, sum_second) = (first.sum(), second.sum());
        let threshold = self.skip * average;
        if threshold > 0.0 && sum_first.max(sum_second) <= threshold {
            return Verdict::Skipped;
        }
        // Both are drawn whether needed or not, so that a pair's mistake is the same under every beta.
        let (draw, slip) = (rng.unit(), rng.unit());
        let prefers_first = if self.beta.is_infinite() {
            let gap = MyopicNoiseConfig { discount: self.discount }.gap(first, second);
            if gap == 0.0 { tied_order } else { gap > 0.0 }
        } else {
            draw < sigmoid(self.beta * (first.myopic_sum(self.discount) - second.myopic_sum(self.discount)))
        };
        if (sum_first - sum_second).abs() < self.equal * average {
            return Verdict::Equal;
        }
        Verdict::of(prefers_first != (slip < self.mistake))
    }
}
