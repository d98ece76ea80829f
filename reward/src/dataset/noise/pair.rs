//! A pair before it is labelled: two things, what they are truly worth, and how long they are.

use crate::error::{Result, RewardError};
use crate::preference::{Segment, SegmentPair, Text, TextPair};

/// Two things of which one is preferred.
pub trait Compared {
    /// Makes the rejected one the chosen one and the other way round.
    fn exchange(&mut self);

    /// How long the chosen and the rejected one look to an annotator: steps of segments, characters of texts.
    fn lengths(&self) -> (usize, usize);

    /// How much of what a careless or malicious annotator goes by is in the chosen and in the rejected one; nothing if that is
    /// unknown.
    fn temptations(&self) -> Option<(f64, f64)> {
        None
    }
}

impl Compared for SegmentPair {
    fn exchange(&mut self) {
        std::mem::swap(&mut self.chosen, &mut self.rejected);
    }

    fn lengths(&self) -> (usize, usize) {
        (self.chosen.steps, self.rejected.steps)
    }
}

impl Compared for TextPair {
    fn exchange(&mut self) {
        std::mem::swap(&mut self.chosen, &mut self.rejected);
    }

    fn lengths(&self) -> (usize, usize) {
        let characters = |text: &Text| match text {
            Text::Plain(text) => text.chars().count(),
            Text::Conversation(messages) => messages.iter().map(|m| m.content.chars().count()).sum(),
        };
        (characters(&self.chosen), characters(&self.rejected))
    }
}

/// What one thing is truly worth, step by step.
#[derive(Debug, Clone, PartialEq)]
pub struct TrueRewards {
    /// True reward of each step; a single number for a thing that has no steps.
    pub rewards: Vec<f64>,
    /// Steps that count, at least as many as there are rewards; those beyond them have reward 0.
    pub steps: usize,
}

impl TrueRewards {
    /// Of a thing that has one true value and no steps.
    pub fn of_value(value: f64) -> Self {
        Self { rewards: vec![value], steps: 1 }
    }

    /// Of a thing whose steps are all there, such as the tokens of a text.
    pub fn of_steps(rewards: Vec<f64>) -> Self {
        Self { steps: rewards.len(), rewards }
    }

    /// Undiscounted sum, added up in the order of the steps.
    pub fn sum(&self) -> f64 {
        self.rewards.iter().sum()
    }

    /// `Σₜ discount^(steps−t) · rewardₜ` over t = 1..steps: the last step counts fully, the one before it times the
    /// discount, and so on.
    pub(super) fn myopic_sum(&self, discount: f64) -> f64 {
        self.myopic_sum_of_rewards(discount) * discount.powf(self.missing() as f64)
    }

    /// The same without the factor that stems from the missing steps.
    pub(super) fn myopic_sum_of_rewards(&self, discount: f64) -> f64 {
        self.rewards.iter().fold(0.0, |sum, reward| discount * sum + reward)
    }

    /// Steps without a reward.
    pub(super) fn missing(&self) -> usize {
        self.steps - self.rewards.len()
    }

    /// Says what makes these rewards useless, if anything does.
    fn fault(&self) -> Option<String> {
        if self.rewards.is_empty() {
            return Some("has no true rewards; only labels that are already there can be corrupted without them".to_string());
        }
        if let Some(step) = self.rewards.iter().position(|r| !r.is_finite()) {
            return Some(format!("has the true reward {} in step {}", self.rewards[step], step + 1));
        }
        if self.steps < self.rewards.len() {
            return Some(format!("has {} rewards for {} steps", self.rewards.len(), self.steps));
        }
        (!self.sum().is_finite()).then(|| "has true rewards whose sum is not finite".to_string())
    }
}

/// A pair before it is labelled. `pair.chosen` is the first, `pair.rejected` the second; neither means anything yet.
#[derive(Debug, Clone, PartialEq)]
pub struct UnlabelledPair<P> {
    /// Identifier, unique within a data set.
    pub id: String,
    /// The two things.
    pub pair: P,
    /// What the first is truly worth.
    pub first: TrueRewards,
    /// What the second is truly worth.
    pub second: TrueRewards,
    /// Who will label, if that is known.
    pub annotator: Option<String>,
}

impl UnlabelledPair<SegmentPair> {
    /// A pair of segments of a data set whose whole segments have `steps` steps.
    ///
    /// # Errors
    /// [`RewardError::Data`] naming the pair if a segment is longer, shorter without having ended with its task, or does
    /// not have one reward for each of its steps.
    pub fn of_segments(id: impl Into<String>, pair: SegmentPair, steps: usize) -> Result<Self> {
        let id = id.into();
        let rewards = |segment: &Segment| -> Result<TrueRewards> {
            let n = segment.steps;
            let fits = n == steps || (n < steps && segment.terminated);
            if !fits {
                let reason = format!("a segment of {n} steps in a data set of {steps} steps, which no end of the task explains");
                return Err(RewardError::Data(format!("pair `{id}`: {reason}")));
            }
            if segment.rewards.len() != n {
                let got = segment.rewards.len();
                return Err(RewardError::Data(format!("pair `{id}`: {got} true rewards for a segment of {n} steps")));
            }
            Ok(TrueRewards { rewards: segment.rewards.iter().map(|&r| f64::from(r)).collect(), steps })
        };
        let (first, second) = (rewards(&pair.chosen)?, rewards(&pair.rejected)?);
        Ok(Self { id, pair, first, second, annotator: None })
    }
}

impl<P> UnlabelledPair<P> {
    /// A pair of things that have one true value each.
    pub fn of_values(id: impl Into<String>, pair: P, first: f64, second: f64) -> Self {
        Self { id: id.into(), pair, first: TrueRewards::of_value(first), second: TrueRewards::of_value(second), annotator: None }
    }

    /// # Errors
    /// [`RewardError::Data`] naming the pair if true rewards are missing or not finite.
    pub(super) fn check(&self) -> Result<()> {
        for (which, rewards) in [("first", &self.first), ("second", &self.second)] {
            if let Some(fault) = rewards.fault() {
                return Err(RewardError::Data(format!("pair `{}`: the {which} one {fault}", self.id)));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preference::Message;

    #[test]
    fn missing_steps_count_as_zeros_at_the_end() {
        let short = TrueRewards { rewards: vec![1.0, 2.0], steps: 4 };
        let padded = TrueRewards::of_steps(vec![1.0, 2.0, 0.0, 0.0]);
        for discount in [0.0, 0.3, 0.7, 1.0] {
            assert!((short.myopic_sum(discount) - padded.myopic_sum(discount)).abs() < 1e-15);
        }
        // 0.5³ · 1 + 0.5² · 2.
        assert_eq!(short.myopic_sum(0.5), 0.625);
        assert_eq!(short.sum(), 3.0);
    }

    #[test]
    fn discount_of_one_gives_the_very_sum() {
        let rewards = TrueRewards::of_steps(vec![0.1, 1e17, -0.3, -1e17, 0.7]);
        assert_eq!(rewards.myopic_sum(1.0).to_bits(), rewards.sum().to_bits());
    }

    #[test]
    fn lengths_are_steps_and_characters() {
        let segment = |steps| Segment { steps, ..Segment::default() };
        let mut segments = SegmentPair { chosen: segment(3), rejected: segment(5) };
        assert_eq!(segments.lengths(), (3, 5));
        segments.exchange();
        assert_eq!(segments.lengths(), (5, 3));
        let message = |content: &str| Message { role: "assistant".into(), content: content.into() };
        let texts = TextPair {
            prompt: Text::Plain("ignored".into()),
            chosen: Text::Plain("größer".into()),
            rejected: Text::Conversation(vec![message("ab"), message("c")]),
        };
        assert_eq!(texts.lengths(), (6, 3));
    }

    #[test]
    fn faults_name_the_pair() {
        let segment =
            |steps: usize, rewards: usize, terminated| Segment { steps, rewards: vec![0.0; rewards], terminated, ..Segment::default() };
        let message = |chosen: Segment| {
            let pair = SegmentPair { chosen, rejected: segment(4, 4, false) };
            UnlabelledPair::of_segments("p7", pair, 4).and_then(|p| p.check()).map_err(|e| e.to_string())
        };
        assert_eq!(message(segment(4, 4, false)), Ok(()));
        assert_eq!(message(segment(2, 2, true)), Ok(()));
        assert!(message(segment(2, 2, false)).unwrap_err().starts_with("pair `p7`: a segment of 2 steps"));
        assert!(message(segment(5, 5, true)).unwrap_err().starts_with("pair `p7`: a segment of 5 steps"));
        assert_eq!(message(segment(4, 0, false)), Err("pair `p7`: 0 true rewards for a segment of 4 steps".to_string()));
        let mut nan = segment(4, 4, false);
        nan.rewards[2] = f32::NAN;
        assert_eq!(message(nan), Err("pair `p7`: the first one has the true reward NaN in step 3".to_string()));
        let values = |value| UnlabelledPair::of_values("q", (), 0.0, value);
        assert!(values(f64::INFINITY).check().unwrap_err().to_string().starts_with("pair `q`: the second one has"));
        let mut overflow = values(1.0);
        overflow.second = TrueRewards::of_steps(vec![1e308, 1e308]);
        assert!(overflow.check().unwrap_err().to_string().ends_with("sum is not finite"));
        overflow.second = TrueRewards { rewards: vec![1.0, 2.0], steps: 1 };
        assert!(overflow.check().unwrap_err().to_string().ends_with("has 2 rewards for 1 steps"));
        overflow.second = TrueRewards::of_steps(Vec::new());
        assert!(overflow.check().unwrap_err().to_string().contains("has no true rewards"));
    }
}
