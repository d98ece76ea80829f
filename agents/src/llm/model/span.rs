//! Which keys a query may see, and what is added to their logits.

/// Which keys a layer's queries may see, besides causality.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Span {
    /// All earlier ones.
    #[default]
    Full,
    /// Those in the query's own block of this many positions.
    Block(usize),
    /// The query's own and the `n - 1` before it.
    Sliding(usize),
}

impl Span {
    /// First key that the query at position `query` sees.
    pub fn first_key(self, query: usize) -> usize {
        match self {
            Self::Full => 0,
            Self::Block(size) => query / size * size,
            Self::Sliding(size) => (query + 1).saturating_sub(size),
        }
    }
}

/// A constant added to the logits of chosen keys, per query head: `bias[key, head] = is_marked[key] * per_head[head]`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct KeyBias {
    /// One flag per token of the packed batch (or of one row of a cache).
    pub is_marked: Vec<bool>,
    /// `[layer][query head]`.
    pub per_head: Vec<Vec<f32>>,
}
