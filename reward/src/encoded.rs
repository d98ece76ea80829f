//! Preferences as token ids: what language models learn from.

use steadfast_agents::llm::{DecoderConfig, TokenSequence};

use crate::dataset::noise::Compared;
use crate::preference::Preference;

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
