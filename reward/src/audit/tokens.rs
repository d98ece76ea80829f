//! Texts as the tokens of a language model, for an audit by transformer reward models.
//!
//! The models are those of [`crate::model::TransformerReward`]: a fresh head on the body of a language model, or a reward
//! model that has been trained before, fitted to the other folds.

use std::sync::atomic::{AtomicU64, Ordering};

use steadfast_agents::llm::{DecoderConfig, EncodeReport, Encoder};

use super::TextEncoder;
use crate::encoded::EncodedPair;
use crate::error::{Result, RewardError};
use crate::preference::{Text, TextPair};

/// Tokens of both answers to a prompt. Answers that are too long lose their end; two that become the same by that are judged
/// equal.
pub struct TokenEncoder<'a> {
    encoder: Encoder<'a>,
    config: &'a DecoderConfig,
    answers: AtomicU64,
    truncated: AtomicU64,
}

impl<'a> TokenEncoder<'a> {
    /// For models of shape `config`, which the encoder's tokenizer belongs to.
    pub fn new(encoder: Encoder<'a>, config: &'a DecoderConfig) -> Self {
        Self { encoder, config, answers: AtomicU64::new(0), truncated: AtomicU64::new(0) }
    }

    /// Share of the answers that lost their end, over all passes; 0 before the first.
    pub fn truncated_share(&self) -> f64 {
        let answers = self.answers.load(Ordering::Relaxed);
        self.truncated.load(Ordering::Relaxed) as f64 / answers.max(1) as f64
    }
}

impl TextEncoder for TokenEncoder<'_> {
    type Encoded = EncodedPair;
    type Buffers = ();

    fn encode(&self, pair: &TextPair, (): &mut ()) -> Result<EncodedPair> {
        let mut report = EncodeReport::default();
        let mut side = |text: &Text, which: &str| {
            let encoded = self.encoder.completion(pair.prompt.as_input(), text.as_input(), which, &mut report);
            let Some(sequence) = encoded.map_err(|error| RewardError::Data(error.to_string()))? else {
                let reason = "the prompt alone has as many tokens as the model may read; raise the limit or remove the row";
                return Err(RewardError::Data(reason.to_string()));
            };
            sequence.check_fits(self.config).map_err(|reason| RewardError::Data(format!("{which}: {reason}")))?;
            Ok(sequence)
        };
        let (chosen, rejected) = (side(&pair.chosen, "chosen")?, side(&pair.rejected, "rejected")?);
        self.answers.fetch_add(report.rows, Ordering::Relaxed);
        self.truncated.fetch_add(report.truncated, Ordering::Relaxed);
        Ok(EncodedPair { chosen, rejected, reference: None })
    }
}
