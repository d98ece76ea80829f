//! Generation's own passes through the model, without a tape.
//!
//! On the CPU weights are packed once and used many times: a matrix `[output, input]` is cut into panels of 16 outputs,
//! `[panel][input][16]`, in which one pass over the inputs serves one row of activations or many. Every output is one chain of
//! fused multiply-adds in the order of the inputs, so a row's result has the same bits whatever rows stand beside it, for any
//! number of threads and any set of vector instructions. On devices candle's operations do the work ([`device`]).

mod device;
mod engine;
mod packed;
mod transformer;

pub(crate) use engine::{Cache, Engine};
pub(crate) use transformer::Transformer;

use super::model::{DecoderConfig, Positions, RopeScaling, rope_frequencies};
use super::ops::attention::RopeTable;

/// New tokens of one row.
pub(crate) struct NewTokens<'a> {
    /// Row of the cache.
    pub row: usize,
    /// Tokens that follow what the cache holds of the row.
    pub tokens: &'a [u32],
}

/// Most tokens of a row, prompt and completion. Dynamically scaled positions end where their scaling would begin: keys that are
/// stored were turned by the unscaled angles.
fn context(config: &DecoderConfig) -> usize {
    match config.positions {
        Positions::Rope(rope) => match rope.scaling {
            RopeScaling::Dynamic { original_max_positions, .. } => original_max_positions.min(config.max_positions),
            _ => config.max_positions,
        },
        Positions::Learned => config.max_positions,
    }
}

/// Makes the table of rotary positions, if there are any, cover those below `n`.
fn cover(table: &mut Option<RopeTable>, config: &DecoderConfig, n: usize) {
    let Positions::Rope(rope) = &config.positions else { return };
    let known = table.as_ref().map_or(0, |table| table.cos.len() / table.half.max(1));
    if known < n {
        let n = n.max(2 * known).min(context(config).max(n));
        let (frequencies, factor) = rope_frequencies(rope, n);
        *table = Some(RopeTable::new(&frequencies, factor, n));
    }
}
