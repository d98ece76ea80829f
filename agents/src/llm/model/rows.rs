//! Which hidden states of a packed batch a head reads.

use candle_core::{Device, Tensor};

use super::ScorePositions;
use crate::AgentError;
use crate::llm::sequence::TokenSequence;

/// Tokens that are read at once where no gradient is asked for.
const TOKENS_AT_ONCE: usize = 4096;

/// Runs of sequences that are read at once, each with the number of tokens before it.
pub(super) fn pieces<'a, 'b>(sequences: &'a [&'b TokenSequence]) -> Vec<(usize, &'a [&'b TokenSequence])> {
    let mut pieces = Vec::new();
    let (mut start, mut tokens, mut before) = (0, 0, 0);
    for (i, sequence) in sequences.iter().enumerate() {
        if i > start && tokens + sequence.tokens.len() > TOKENS_AT_ONCE {
            pieces.push((before, &sequences[start..i]));
            (before, start, tokens) = (before + tokens, i, 0);
        }
        tokens += sequence.tokens.len();
    }
    if start < sequences.len() {
        pieces.push((before, &sequences[start..]));
    }
    pieces
}

/// Rows of the packed hidden states that a head reads.
pub(super) struct Rows(pub Vec<u32>);

impl Rows {
    /// Where each sequence's completion tokens are predicted.
    pub fn of_completions(sequences: &[&TokenSequence]) -> Result<Vec<Self>, AgentError> {
        Self::of_scores(sequences, ScorePositions::BeforeCompletion)
    }

    pub fn of_scores(sequences: &[&TokenSequence], positions: ScorePositions) -> Result<Vec<Self>, AgentError> {
        let mut first = 0;
        let rows = sequences.iter().enumerate().map(|(i, sequence)| {
            let n = sequence.tokens.len();
            let rows = match positions {
                ScorePositions::Last if n == 0 => return Err(unfit(i, "it has no tokens")),
                ScorePositions::Last => first + n - 1..first + n,
                ScorePositions::BeforeCompletion => {
                    sequence.check().map_err(|reason| unfit(i, &reason))?;
                    first + sequence.prompt_len - 1..first + n - 1
                }
            };
            first += n;
            Ok(Self(rows.map(|row| row as u32).collect()))
        });
        rows.collect()
    }

    pub fn join(rows: &[Self]) -> Self {
        Self(rows.iter().flat_map(|rows| &rows.0).copied().collect())
    }

    pub fn gather(&self, from: &[f32], width: usize) -> Vec<f32> {
        self.0.iter().flat_map(|&row| &from[row as usize * width..][..width]).copied().collect()
    }

    pub fn scatter(&self, from: &[f32], width: usize, to: &mut [f32]) {
        for (&row, from) in self.0.iter().zip(from.chunks_exact(width)) {
            to[row as usize * width..][..width].copy_from_slice(from);
        }
    }

    pub fn tensor(&self, device: &Device) -> candle_core::Result<Tensor> {
        Tensor::from_slice(&self.0, self.0.len(), device)
    }

    pub fn pick(&self, from: &Tensor) -> candle_core::Result<Tensor> {
        from.index_select(&self.tensor(from.device())?, 0)
    }
}

/// Error for a sequence that cannot be read.
pub(super) fn unfit(index: usize, reason: &str) -> AgentError {
    AgentError::Model { place: format!("sequence {index}"), reason: reason.to_string() }
}
