//! Preferences as token ids: what language models learn from.

use steadfast_agents::AgentError;
use steadfast_agents::llm::{DecoderConfig, EncodeReport, Encoder, TokenSequence};

use crate::dataset::noise::Compared;
use crate::preference::{Preference, TextCompletion, TextPreference};

/// Two completions as token ids, usually of one prompt.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EncodedPair {
    /// The one that the annotator preferred.
    pub chosen: TokenSequence,
    /// The other one.
    pub rejected: TokenSequence,
    /// Log-probabilities of the chosen and the rejected completion under a reference policy, if the data has them.
    pub reference: Option<[f32; 2]>,
}

/// A preference between completions.
pub type EncodedPreference = Preference<EncodedPair>;

impl EncodedPreference {
    /// A preference between texts as tokens, with all that is known about it; nothing if the pair is left out, which `report`
    /// counts. `place` names the row in errors, as `pairs.jsonl:12`.
    ///
    /// # Errors
    /// Those of [`Encoder::pair`].
    pub fn encode(encoder: &Encoder<'_>, row: &TextPreference, place: &str, report: &mut EncodeReport) -> Result<Option<Self>, AgentError> {
        let pair = &row.pair;
        let encoded = encoder.pair(pair.prompt.as_input(), pair.chosen.as_input(), pair.rejected.as_input(), place, report)?;
        Ok(encoded.map(|[chosen, rejected]| Self {
            id: row.id.clone(),
            pair: EncodedPair { chosen, rejected, reference: row.reference_log_probs.map(|both| both.map(|x| x as f32)) },
            equal: row.equal,
            margin: row.margin,
            annotator: row.annotator.clone(),
            truth: row.truth,
            reference_log_probs: row.reference_log_probs,
        }))
    }
}

impl EncodedPair {
    /// Checks that both have a prompt and a completion, and that they differ.
    ///
    /// # Errors
    /// The reason, in words that fit behind the pair's identifier.
    pub fn check(&self) -> Result<(), String> {
        self.chosen.check().map_err(|reason| format!("the chosen answer: {reason}"))?;
        self.rejected.check().map_err(|reason| format!("the rejected answer: {reason}"))?;
        if self.chosen == self.rejected {
            return Err("both answers are the same tokens; one may have been cut where they begin to differ".to_string());
        }
        Ok(())
    }

    /// The same, and that a model of this shape can read both.
    ///
    /// # Errors
    /// As [`EncodedPair::check`].
    pub fn check_fits(&self, config: &DecoderConfig) -> Result<(), String> {
        self.check()?;
        self.chosen.check_fits(config).map_err(|reason| format!("the chosen answer: {reason}"))?;
        self.rejected.check_fits(config).map_err(|reason| format!("the rejected answer: {reason}"))
    }
}

impl Compared for EncodedPair {
    fn exchange(&mut self) {
        std::mem::swap(&mut self.chosen, &mut self.rejected);
        if let Some(reference) = &mut self.reference {
            reference.swap(0, 1);
        }
    }

    fn lengths(&self) -> (usize, usize) {
        (self.chosen.completion().len(), self.rejected.completion().len())
    }
}

/// A completion that was found good or bad, by itself.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EncodedAnswer {
    /// Identifier, unique within a data set.
    pub id: String,
    /// Prompt and completion.
    pub sequence: TokenSequence,
    /// True if it was found good.
    pub desirable: bool,
    /// Log-probability of the completion under a reference policy, if the data has it.
    pub reference: Option<f32>,
}

impl EncodedAnswer {
    /// A judged completion as tokens; nothing if it is left out, which `report` counts. `place` names the row in errors.
    ///
    /// # Errors
    /// Those of [`Encoder::completion`]; [`AgentError::Model`] for a row that nobody judged.
    pub fn encode(encoder: &Encoder<'_>, row: &TextCompletion, place: &str, report: &mut EncodeReport) -> Result<Option<Self>, AgentError> {
        let Some(desirable) = row.label else {
            let reason = "it has no `label`; true or false says whether the completion is a good one".to_string();
            return Err(AgentError::Model { place: place.to_string(), reason });
        };
        let sequence = encoder.completion(row.prompt.as_input(), row.completion.as_input(), place, report)?;
        Ok(sequence.map(|sequence| Self { id: row.id.clone(), sequence, desirable, reference: None }))
    }
}
