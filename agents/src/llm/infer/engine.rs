//! Which passes generation goes through: over packed weights, or on a device.

use super::device::{DeviceCache, DeviceTransformer};
use super::{NewTokens, Transformer, context};
use crate::AgentError;
use crate::llm::cache::{DenseStore, KvStore, RowBias};
use crate::llm::model::{Decoder, DecoderConfig};

/// A decoder's weights, ready for generation.
pub(crate) enum Engine {
    /// Packed, in memory.
    Packed(Box<Transformer>),
    /// Where the decoder is.
    Device(Box<DeviceTransformer>),
}

/// Past keys and values of several rows.
pub(crate) enum Cache {
    Packed(DenseStore),
    Device(DeviceCache),
}

impl Engine {
    /// Takes the weights of a decoder; `is_plain` makes candle's operations do the work on the CPU, too.
    ///
    /// # Errors
    /// [`AgentError::State`] if it has a scalar head; [`AgentError::Tensor`] if the device fails.
    pub fn new(decoder: &Decoder, is_plain: bool) -> Result<Self, AgentError> {
        Ok(match decoder.device().is_cpu() && !is_plain {
            true => Self::Packed(Box::new(Transformer::new(decoder)?)),
            false => Self::Device(Box::new(DeviceTransformer::new(decoder)?)),
        })
    }

    /// The shape.
    pub fn config(&self) -> &DecoderConfig {
        match self {
            Self::Packed(transformer) => transformer.config(),
            Self::Device(transformer) => transformer.config(),
        }
    }

    /// Most tokens of a row, prompt and completion.
    pub fn context(&self) -> usize {
        context(self.config())
    }

    /// Room for `rows` rows, all empty.
    pub fn cache(&self, rows: usize) -> Cache {
        match self {
            Self::Packed(transformer) => Cache::Packed(DenseStore::new(transformer.config(), rows)),
            Self::Device(transformer) => Cache::Device(transformer.cache(rows)),
        }
    }

    /// Runs new tokens through the model and leaves the logits after the last one of each row in `logits`, `[row, vocab]`, which keeps
    /// its memory. The rows are either new ones, or all that there are, in their order.
    ///
    /// # Errors
    /// [`AgentError::Tensor`] if the device fails.
    pub fn advance(
        &mut self,
        new: &[NewTokens<'_>],
        cache: &mut Cache,
        biases: Option<&[RowBias<'_>]>,
        logits: &mut Vec<f32>,
    ) -> Result<(), AgentError> {
        match (self, cache) {
            (Self::Packed(transformer), Cache::Packed(store)) => {
                transformer.advance(new, store, biases, logits);
                Ok(())
            }
            (Self::Device(transformer), Cache::Device(cache)) => {
                *logits = transformer.advance(new, cache, biases)?;
                Ok(())
            }
            _ => unreachable!("a cache is made by the engine that uses it"),
        }
    }
}

impl Cache {
    /// Keeps these rows in this order; one that is named several times is forked.
    ///
    /// # Errors
    /// [`AgentError::Tensor`] if the device fails.
    pub fn select_rows(&mut self, rows: &[usize]) -> Result<(), AgentError> {
        match self {
            Self::Packed(store) => {
                store.select_rows(rows);
                Ok(())
            }
            Self::Device(cache) => cache.select_rows(rows),
        }
    }
}
