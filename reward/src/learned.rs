//! A reward model in the place of the environment's reward.
//!
//! Preferences fix a reward up to a factor and, for segments of equal length, an offset per step. How both are chosen
//! matters to the learner:
//!
//! | `normalization` | reward of a step |
//! |---|---|
//! | `none` | r |
//! | `scale` | r / s, with s the deviation of r over the steps of the training segments |
//! | `standardize` | (r − m) / s, with m the mean |
//!
//! Dividing changes nothing but units. Subtracting a mean is harmless only where all episodes have the same length: in a
//! task that can terminate, an offset per step pays for surviving (if it is positive) or for ending early (if it is
//! negative), and so changes which policy is best. Hence `scale` is the default.

use serde::{Deserialize, Serialize};
use steadfast_envs::{EnvError, RewardFn, Space, Transition};

use crate::dataset::segments::clamp_action;
use crate::error::{Result, RewardError};
use crate::model::{ActionKind, MlpReward};
use crate::preference::Segment;

/// A deviation below this counts as none: the model is constant and is left at its own scale.
const MIN_DEVIATION: f64 = 1e-8;

/// How learned rewards are brought to a scale.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RewardNormalization {
    /// Not at all.
    None,
    /// Divided by their deviation over the steps of the training segments.
    #[default]
    Scale,
    /// The same after their mean was subtracted. Changes the task where episodes can terminate.
    Standardize,
}

/// A reward model as the reward that a learner sees: `(r − shift) / scale`.
///
/// Continuous actions are clamped to their space first, as the environment does it and as segments store them.
#[derive(Debug, Clone)]
pub struct LearnedReward {
    model: MlpReward,
    action_space: Space,
    shift: f64,
    scale: f64,
    action: Vec<f32>,
}

impl LearnedReward {
    /// The reward of `model` for agents that act in `action_space`, normalised over the steps of `segments`.
    ///
    /// # Errors
    /// [`RewardError::Data`] if the model is for other actions, a segment does not fit it, a reward is not finite, or there
    /// is no segment where one is needed.
    pub fn new<'a>(
        model: MlpReward,
        action_space: &Space,
        normalization: RewardNormalization,
        segments: impl IntoIterator<Item = &'a Segment>,
    ) -> Result<Self> {
        let mut learned = Self::with_scale(model, action_space, 0.0, 1.0)?;
        if normalization == RewardNormalization::None {
            return Ok(learned);
        }
        let [mean, deviation] = learned.statistics(segments)?;
        if deviation > MIN_DEVIATION {
            learned.scale = deviation;
        }
        if normalization == RewardNormalization::Standardize {
            learned.shift = mean;
        }
        Ok(learned)
    }

    /// The same with a known shift and scale, such as those of a saved one.
    ///
    /// # Errors
    /// [`RewardError::Data`] if the model is for other actions; [`RewardError::Config`] if the shift is not finite or the
    /// scale not a finite number above 0.
    pub fn with_scale(model: MlpReward, action_space: &Space, shift: f64, scale: f64) -> Result<Self> {
        if action_space.is_tokens() {
            return Err(RewardError::Data("a reward model of segments cannot judge texts".to_string()));
        }
        let (expected, got) = (model.spec().action, ActionKind::of(action_space));
        if expected != got {
            return Err(RewardError::Data(format!("the reward model was made for actions {expected:?}, the environment has {got:?}")));
        }
        crate::error::require(shift.is_finite(), "shift", "a finite number", shift)?;
        crate::error::require(scale.is_finite() && scale > 0.0, "scale", "a finite number above 0", scale)?;
        let action = vec![0.0; expected.width()];
        Ok(Self { model, action_space: action_space.clone(), shift, scale, action })
    }

    /// What is subtracted from the model's reward.
    pub fn shift(&self) -> f64 {
        self.shift
    }

    /// What the model's reward is divided by.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// Mean and population deviation of the model's rewards over all steps.
    fn statistics<'a>(&mut self, segments: impl IntoIterator<Item = &'a Segment>) -> Result<[f64; 2]> {
        let (mut rewards, mut all) = (Vec::new(), Vec::new());
        for segment in segments {
            self.model.spec().check(segment).map_err(RewardError::Data)?;
            rewards.resize(segment.steps, 0.0);
            self.model.rewards(&segment.observations, &segment.actions, &mut rewards)?;
            all.extend(rewards.iter().map(|&r| f64::from(r)));
        }
        if all.is_empty() {
            return Err(RewardError::Data("the scale of a learned reward needs at least one segment".to_string()));
        }
        let mean = all.iter().sum::<f64>() / all.len() as f64;
        let deviation = (all.iter().map(|r| (r - mean) * (r - mean)).sum::<f64>() / all.len() as f64).sqrt();
        if !deviation.is_finite() {
            return Err(RewardError::Data("the reward model gives rewards that are not finite".to_string()));
        }
        Ok([mean, deviation])
    }
}

impl RewardFn for LearnedReward {
    fn reward(&mut self, transition: &Transition<'_>) -> Result<f32, EnvError> {
        match (self.model.spec().action, transition.action_index) {
            (ActionKind::Discrete { .. }, Some(index)) => self.action[0] = index as f32,
            (ActionKind::Continuous { width }, None) if transition.action.len() == width => {
                self.action.copy_from_slice(transition.action);
                clamp_action(&self.action_space, &mut self.action);
            }
            (kind, index) => {
                let got = index.map_or_else(|| format!("{} numbers", transition.action.len()), |i| format!("index {i}"));
                return Err(EnvError::Reward(format!("the model was made for actions {kind:?}, got {got}")));
            }
        }
        let mut reward = [0.0];
        self.model.rewards(transition.observation, &self.action, &mut reward).map_err(|error| EnvError::Reward(error.to_string()))?;
        Ok(((f64::from(reward[0]) - self.shift) / self.scale) as f32)
    }
}
