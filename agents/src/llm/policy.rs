//! A decoder as a policy: it reads the prompt of each slot and writes a completion.

use steadfast_envs::{ActMode, ActionBatch, ActionsMut, EnvError, ObservationBatch, Policy, Rng, read_tokens};

use super::drawn::DrawnText;
use super::generate::{Finish, GenerationConfig, Generator};
use super::model::Decoder;
use super::sequence::TokenSequence;
use crate::AgentError;

/// Writes completions with the weights that were packed last.
///
/// The log-probability of each token is recorded as it was drawn: under the full softmax at the sampling temperature. In
/// [`ActMode::Greedy`] the most likely tokens are taken, whatever the settings of drawing are.
pub struct TextPolicy {
    generator: Generator,
    generation: GenerationConfig,
    end_of_sequence: Vec<u32>,
    /// Room for the prompts of all slots.
    prompts: Vec<Vec<u32>>,
    /// What was written since recording began, in the order `[time, slot]`; nothing if it is not recorded.
    recorded: Option<Vec<DrawnText>>,
}

impl TextPolicy {
    /// Packs the weights of `decoder`. Completions end with one of `end_of_sequence`.
    ///
    /// # Errors
    /// What packing reports.
    pub fn new(decoder: &Decoder, generation: GenerationConfig, end_of_sequence: Vec<u32>) -> Result<Self, AgentError> {
        Ok(Self { generator: Generator::new(decoder)?, generation, end_of_sequence, prompts: Vec::new(), recorded: None })
    }

    /// Packs the weights again after they changed.
    ///
    /// # Errors
    /// As [`TextPolicy::new`].
    pub fn refresh(&mut self, decoder: &Decoder) -> Result<(), AgentError> {
        self.generator.refresh(decoder)
    }

    /// Keeps all completions from now on.
    pub fn start_recording(&mut self) {
        self.recorded = Some(Vec::new());
    }

    /// What was written since [`TextPolicy::start_recording`], in the order `[time, slot]`; the recording ends.
    pub fn stop_recording(&mut self) -> Vec<DrawnText> {
        self.recorded.take().unwrap_or_default()
    }

    /// How completions are drawn.
    pub fn generation(&self) -> &GenerationConfig {
        &self.generation
    }

    /// Tokens that end a completion.
    pub fn end_of_sequence(&self) -> &[u32] {
        &self.end_of_sequence
    }
}

impl Policy for TextPolicy {
    fn reset(&mut self, _slot: usize) {}

    fn act(
        &mut self,
        observations: &ObservationBatch<'_>,
        rngs: &mut [Rng],
        mode: ActMode,
        out: &mut ActionBatch<'_>,
    ) -> steadfast_envs::Result<()> {
        let fail = |reason: String| Err(EnvError::Policy(reason));
        let ActionsMut::Tokens(rows) = &mut out.actions else {
            return fail("a language model writes texts, but the world wants other actions".to_string());
        };
        if observations.n_agents != 1 {
            return fail(format!("a language model acts for one agent per slot, got {}", observations.n_agents));
        }
        self.prompts.resize_with(observations.n_slots, Vec::new);
        for (prompt, row) in self.prompts.iter_mut().zip(observations.observations.chunks_exact(observations.width)) {
            read_tokens(row, prompt)?;
        }
        let prompts: Vec<&[u32]> = self.prompts.iter().map(Vec::as_slice).collect();
        let generation = GenerationConfig {
            max_new_tokens: self.generation.max_new_tokens.min(rows.width),
            greedy: self.generation.greedy || mode == ActMode::Greedy,
            ..self.generation.clone()
        };
        let completions = self
            .generator
            .generate(&prompts, &generation, &self.end_of_sequence, &[], rngs)
            .map_err(|error| EnvError::Policy(error.to_string()))?;
        for (slot, completion) in completions.iter().enumerate() {
            let n = completion.tokens.len();
            if n > rows.width || completion.log_probs.len() != n {
                return fail(format!("{n} tokens with {} log-probabilities for slot {slot}", completion.log_probs.len()));
            }
            let start = slot * rows.width;
            rows.tokens[start..start + n].copy_from_slice(&completion.tokens);
            rows.tokens[start + n..start + rows.width].fill(0);
            rows.log_probs[start..start + n].copy_from_slice(&completion.log_probs);
            rows.log_probs[start + n..start + rows.width].fill(0.0);
            rows.lengths[slot] = n as u32;
            out.log_probs[slot] = completion.log_probs.iter().map(|&l| f64::from(l)).sum::<f64>() as f32;
        }
        if let Some(recorded) = &mut self.recorded {
            recorded.extend(self.prompts.iter().zip(completions).map(|(prompt, completion)| DrawnText {
                sequence: TokenSequence::new(prompt, &completion.tokens),
                has_ended: completion.finish == Finish::EndOfSequence,
                log_probs: completion.log_probs,
            }));
        }
        Ok(())
    }
}
