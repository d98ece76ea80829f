//! A transformer reward model in the place of a text environment's reward.
//!
//! Rewards are `(r − mean) / deviation` with the mean and deviation of the model's rewards over given sequences, such as the
//! training data, since preferences fix neither. An episode of text has a fixed number of steps, so that the offset changes no
//! policy. The two numbers are kept in the model's folder, in `reward_normalization.json`.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use steadfast_agents::AgentError;
use steadfast_agents::llm::{Decoder, Device, TokenSequence};
use steadfast_envs::{EnvError, RewardFn, Transition, TransitionBatch, read_tokens};

use crate::error::{Result, RewardError, require};
use crate::model::transformer::rewards;

/// A deviation below this counts as none: the model is constant and is left at its own scale.
const MIN_DEVIATION: f64 = 1e-8;
/// Sequences that go through the model together.
const BATCH: usize = 32;
/// File beside the model.
const FILE: &str = "reward_normalization.json";

/// Mean and deviation of a model's rewards.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RewardScale {
    /// Subtracted from rewards.
    pub mean: f64,
    /// Divides what is left, above 0.
    pub deviation: f64,
}

impl Default for RewardScale {
    fn default() -> Self {
        Self { mean: 0.0, deviation: 1.0 }
    }
}

impl RewardScale {
    /// Mean and population deviation of the rewards of `sequences`; of a constant model, the deviation is 1.
    ///
    /// # Errors
    /// [`RewardError::Data`] for no sequences or rewards that are not finite; those of the model.
    pub fn fit(decoder: &Decoder, sequences: &[&TokenSequence]) -> Result<Self> {
        if sequences.is_empty() {
            return Err(RewardError::Data("the scale of a learned reward needs at least one sequence".to_string()));
        }
        let all: Vec<f64> = rewards(decoder, sequences, BATCH)?.into_iter().map(f64::from).collect();
        let mean = all.iter().sum::<f64>() / all.len() as f64;
        let deviation = (all.iter().map(|r| (r - mean) * (r - mean)).sum::<f64>() / all.len() as f64).sqrt();
        if !deviation.is_finite() {
            return Err(RewardError::Data("the reward model gives rewards that are not finite".to_string()));
        }
        Ok(Self { mean, deviation: if deviation > MIN_DEVIATION { deviation } else { 1.0 } })
    }

    /// Writes the numbers into the folder of a model, under a temporary name that is renamed.
    ///
    /// # Errors
    /// [`RewardError::File`] if that fails.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let path = folder.join(FILE);
        let temporary = folder.join(format!("{FILE}.{}.tmp", std::process::id()));
        let text = serde_json::to_string_pretty(self).map_err(|error| RewardError::Data(format!("the scale of rewards: {error}")))?;
        let written = fs::write(&temporary, text + "\n").and_then(|()| fs::rename(&temporary, &path));
        written.map_err(|source| RewardError::File { action: "write", path, source })
    }

    /// The numbers of a model's folder; nothing if it has none.
    ///
    /// # Errors
    /// [`RewardError::File`] if the file cannot be read, [`RewardError::Content`] if it does not hold two usable numbers.
    pub fn load(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(RewardError::File { action: "read", path, source }),
        };
        let scale = serde_json::from_str::<Self>(&text).map_err(|error| error.to_string()).and_then(|scale| {
            scale.check().map_err(|error| error.to_string())?;
            Ok(scale)
        });
        scale.map(Some).map_err(|reason| RewardError::Content { path, reason })
    }

    fn check(&self) -> Result<()> {
        require(self.mean.is_finite(), "mean", "a finite number", self.mean)?;
        require(self.deviation > 0.0 && self.deviation.is_finite(), "deviation", "a finite number above 0", self.deviation)
    }
}

/// A reward model that rewards completions in the rollout engine: of the prompt in the observation, and the tokens of the
/// action.
pub struct TextReward {
    decoder: Decoder,
    scale: RewardScale,
}

impl TextReward {
    /// The reward of `decoder`, which has a scalar head, brought to `scale`.
    ///
    /// # Errors
    /// [`AgentError::Model`] without a scalar head; [`RewardError::Config`] for a scale that is not usable.
    pub fn new(decoder: Decoder, scale: RewardScale) -> Result<Self> {
        scale.check()?;
        if !decoder.has_scalar_head() {
            let reason = "no `score.weight`: this is a language model, not a reward model; train one from it first".to_string();
            return Err(AgentError::Model { place: "reward model".to_string(), reason }.into());
        }
        Ok(Self { decoder, scale })
    }

    /// The same from a folder, with the scale that is kept there; without one, rewards stay as they are.
    ///
    /// # Errors
    /// As [`TextReward::new`]; those of [`Decoder::load`] and [`RewardScale::load`].
    pub fn load(folder: &Path, device: &Device) -> Result<Self> {
        let decoder = Decoder::load(folder, device)?;
        Self::new(decoder, RewardScale::load(folder)?.unwrap_or_default()).map_err(|error| match error {
            RewardError::Agent(AgentError::Model { reason, .. }) => {
                AgentError::Model { place: folder.display().to_string(), reason }.into()
            }
            other => other,
        })
    }

    /// Rewards of whole sequences.
    ///
    /// # Errors
    /// Those of the model; [`AgentError::Model`] naming the first sequence that it cannot read.
    pub fn rewards(&self, sequences: &[&TokenSequence]) -> Result<Vec<f32>, AgentError> {
        for (i, sequence) in sequences.iter().enumerate() {
            let check = sequence.check_fits(self.decoder.config());
            check.map_err(|reason| AgentError::Model { place: format!("sequence {}", i + 1), reason })?;
        }
        let RewardScale { mean, deviation } = self.scale;
        Ok(rewards(&self.decoder, sequences, BATCH)?.into_iter().map(|r| ((f64::from(r) - mean) / deviation) as f32).collect())
    }

    fn sequence(transition: &Transition<'_>) -> Result<TokenSequence, EnvError> {
        if transition.tokens.is_empty() {
            return Err(EnvError::Reward("the reward model rewards token sequences, and the action has no tokens".to_string()));
        }
        let mut prompt = Vec::new();
        read_tokens(transition.observation, &mut prompt)?;
        Ok(TokenSequence::new(&prompt, transition.tokens))
    }

    fn of(&self, sequences: &[TokenSequence]) -> Result<Vec<f32>, EnvError> {
        let rewards = self.rewards(&sequences.iter().collect::<Vec<_>>()).map_err(|error| EnvError::Reward(error.to_string()))?;
        match rewards.iter().position(|r| !r.is_finite()) {
            Some(i) => Err(EnvError::Reward(format!("the reward model gives {} for completion {}", rewards[i], i + 1))),
            None => Ok(rewards),
        }
    }
}

impl RewardFn for TextReward {
    fn reward(&mut self, transition: &Transition<'_>) -> Result<f32, EnvError> {
        Ok(self.of(&[Self::sequence(transition)?])?[0])
    }

    fn reward_batch(&mut self, transitions: &TransitionBatch<'_>, rewards: &mut [f32]) -> Result<(), EnvError> {
        let sequences = (0..transitions.len()).map(|i| Self::sequence(&transitions.get(i))).collect::<Result<Vec<_>, EnvError>>()?;
        rewards.copy_from_slice(&self.of(&sequences)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(RewardScale::load(folder.path()).unwrap(), None);
        let scale = RewardScale { mean: -0.1, deviation: 1.0 / 3.0 };
        scale.save(folder.path()).unwrap();
        assert_eq!(RewardScale::load(folder.path()).unwrap(), Some(scale));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        for bad in ["", "{}", "{\"mean\": 0.0, \"deviation\": 0.0}", "{\"mean\": 0, \"deviation\": 1, \"x\": 2}"] {
            fs::write(folder.path().join(FILE), bad).unwrap();
            assert!(matches!(RewardScale::load(folder.path()), Err(RewardError::Content { .. })), "{bad}");
        }
    }
}
