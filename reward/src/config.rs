//! What a reward is learned from, and how: the `[reward]` table of a configuration.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::dataset::NoiseConfig;
use crate::error::{Result, require};
use crate::fit::FitConfig;
use crate::learned::RewardNormalization;
use crate::margin::LossConfig;
use crate::model::mlp::MlpRewardConfig;

/// What the annotator says about two segments of exactly equal true return.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ties {
    /// Either one, at random.
    #[default]
    Random,
    /// That they are equal: the loss then counts half in each direction.
    Equal,
    /// Nothing: such pairs are left out.
    Drop,
}

/// A reward that is learned from preferences between trajectory segments and takes the place of the environment's own.
///
/// Training goes in `stages`. Each begins by letting the policy act, cutting what it did into segments, comparing pairs of
/// them by their true return, with the errors of `noise`, and fitting a new reward to all pairs so far. The environment's
/// own reward is used for nothing else; evaluations still report it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RewardConfig {
    /// Preference file (JSONL or Parquet) whose segment pairs are used instead of collected ones; `stages` must be 1, and
    /// `pairs`, `segments` and `ties` mean nothing then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// Times that pairs are collected and the reward is fitted, evenly over the run, the first before training; 1 to 10000.
    pub stages: usize,
    /// Labelled pairs per stage, at least 1.
    pub pairs: usize,
    /// Segments that are collected per stage and paired at random, at least 2. From twice `pairs` on each is in one pair at
    /// most, so that held-out pairs show nothing of the others. They cost environment steps beyond
    /// `total_steps`, logged as `reward/environment_steps`.
    pub segments: usize,
    /// Steps per segment, 1 to 100000.
    pub segment_steps: usize,
    /// Pairs per stage with true labels, of other segments, at least 0. Nothing is learned from them: they measure.
    pub test_pairs: usize,
    /// Who labels, and with what errors, one of `[reward.noise.NAME]`; `none` where a `file` has the labels.
    pub noise: NoiseConfig,
    /// What the annotator says about segments of exactly equal true return: `random`, `equal` or `drop`.
    pub ties: Ties,
    /// The loss that is minimised, one of `[reward.loss.NAME]`.
    pub loss: LossConfig,
    /// The network.
    pub model: MlpRewardConfig,
    /// Passes, steps and selection.
    pub fit: FitConfig,
    /// How the learned reward is scaled before the policy learns from it: `none`, `scale` or `standardize`.
    pub normalization: RewardNormalization,
}

impl Default for RewardConfig {
    fn default() -> Self {
        Self {
            file: None,
            stages: 5,
            pairs: 200,
            segments: 400,
            segment_steps: 25,
            test_pairs: 200,
            noise: NoiseConfig::default(),
            ties: Ties::default(),
            loss: LossConfig::default(),
            model: MlpRewardConfig::default(),
            fit: FitConfig::default(),
            normalization: RewardNormalization::default(),
        }
    }
}

impl RewardConfig {
    /// Checks the ranges given with the fields.
    ///
    /// # Errors
    /// [`crate::RewardError::Config`] for the first field out of its range, its name relative to this table.
    pub fn validate(&self) -> Result<()> {
        require((1..=10_000).contains(&self.stages), "stages", "between 1 and 10000", self.stages)?;
        let is_one = self.file.is_none() || self.stages == 1;
        require(is_one, "stages", "1 where `file` gives the pairs", self.stages)?;
        let is_left_alone = self.file.is_none() || matches!(self.noise, NoiseConfig::None(_));
        require(is_left_alone, "noise", "`none` where `file` gives the labels, which are used as they are", self.noise.name())?;
        require((1..=10_000_000).contains(&self.pairs), "pairs", "between 1 and 10000000", self.pairs)?;
        require((2..=10_000_000).contains(&self.segments), "segments", "between 2 and 10000000", self.segments)?;
        require((1..=100_000).contains(&self.segment_steps), "segment_steps", "between 1 and 100000", self.segment_steps)?;
        require(self.test_pairs <= 10_000_000, "test_pairs", "at most 10000000", self.test_pairs)?;
        let within = |table: &str, result: Result<()>| {
            result.map_err(|error| match error {
                crate::RewardError::Config { field, expected, got } => {
                    crate::RewardError::Config { field: format!("{table}.{field}"), expected, got }
                }
                other => other,
            })
        };
        within(&format!("noise.{}", self.noise.name()), self.noise.validate())?;
        within(&format!("loss.{}", self.loss.name()), self.loss.build().map(drop))?;
        within("model", self.model.validate())?;
        within("fit", self.fit.validate())
    }
}
