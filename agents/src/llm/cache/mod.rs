//! Stores of past keys and values.
//!
//! Queries go to the store, which multiplies them with what it keeps: a store that compresses need not give back what it
//! was given.

mod dense;

pub use dense::DenseStore;

use crate::llm::model::{KeyBias, Span};

/// Constants on the logits of marked keys of one row, for one layer: `marks[position] * per_head[head]`; positions beyond
/// the marks are not marked.
#[derive(Debug, Clone, Copy)]
pub struct LayerBias<'a> {
    /// One per position from the row's beginning on.
    pub marks: &'a [bool],
    /// One per query head.
    pub per_head: &'a [f32],
}

/// The same for all layers.
#[derive(Debug, Clone, Copy)]
pub struct RowBias<'a>(pub &'a KeyBias);

impl<'a> RowBias<'a> {
    /// That of one layer.
    pub fn of_layer(&self, layer: usize) -> LayerBias<'a> {
        LayerBias { marks: &self.0.is_marked, per_head: &self.0.per_head[layer] }
    }
}

/// Past keys and values of several rows.
pub trait KvStore: Send + Sync {
    /// Tokens that are stored of a row, counted in the first layer.
    fn len(&self, row: usize) -> usize;

    /// True if there is no row.
    fn is_empty(&self) -> bool;

    /// Adds `n` tokens of a row; `keys` (already rotated) and `values`: `[n, kv head, head_dim]`.
    fn append(&mut self, layer: usize, row: usize, keys: &[f32], values: &[f32]);

    /// Attention of the newest `n` tokens of a row: `queries` and `out`: `[n, query head, head_dim]`.
    fn attend(&self, layer: usize, row: usize, queries: &[f32], bias: Option<LayerBias<'_>>, span: Span, out: &mut [f32]);

    /// Keeps these rows in this order. A row that is named several times is forked: what it holds is shared.
    fn select_rows(&mut self, rows: &[usize]);

    /// Forgets the tokens of a row from position `length` on.
    fn truncate(&mut self, row: usize, length: usize);

    /// Bytes of keys and values; what forks share counts once.
    fn bytes(&self) -> usize;
}
