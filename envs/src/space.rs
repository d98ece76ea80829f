//! Sets of observations and actions.

/// A set of values that one agent can observe or do.
#[derive(Debug, Clone, PartialEq)]
pub enum Space {
    /// One of `n` numbered choices.
    Discrete {
        /// Number of choices.
        n: usize,
    },
    /// A vector between `low` and `high`, coordinate by coordinate; infinite limits mean unbounded.
    Box {
        /// Lower limits.
        low: Vec<f32>,
        /// Upper limits, as many as lower ones.
        high: Vec<f32>,
    },
    /// A sequence of up to `max_tokens` token ids below `vocab_size`.
    ///
    /// As an observation it is a row of `1 + max_tokens` numbers: the number of tokens, the tokens, zeros. Token ids are
    /// exact in single precision because a vocabulary has fewer than 2²⁴ entries. As an action it stands in the integer
    /// arrays of [`crate::Actions::Tokens`].
    Tokens {
        /// Number of different tokens, 1 to 2²⁴.
        vocab_size: usize,
        /// Most tokens of a sequence, at least 1.
        max_tokens: usize,
    },
}

impl Space {
    /// An unbounded vector space of `dim` coordinates.
    pub fn unbounded(dim: usize) -> Self {
        Self::interval(dim, f32::NEG_INFINITY, f32::INFINITY)
    }

    /// A vector space of `dim` coordinates with the same limits everywhere.
    pub fn interval(dim: usize, low: f32, high: f32) -> Self {
        Self::Box { low: vec![low; dim], high: vec![high; dim] }
    }

    /// Numbers that describe one element: 1 for a discrete space, the number of coordinates of a box, `1 + max_tokens` for
    /// a token sequence.
    pub fn width(&self) -> usize {
        match self {
            Self::Discrete { .. } => 1,
            Self::Box { low, .. } => low.len(),
            Self::Tokens { max_tokens, .. } => 1 + max_tokens,
        }
    }

    /// True for a discrete space.
    pub fn is_discrete(&self) -> bool {
        matches!(self, Self::Discrete { .. })
    }

    /// True for a space of token sequences.
    pub fn is_tokens(&self) -> bool {
        matches!(self, Self::Tokens { .. })
    }
}

impl std::fmt::Display for Space {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Discrete { n } => write!(f, "discrete({n})"),
            Self::Box { low, high } => match (low.first(), high.first()) {
                (Some(l), Some(h)) if low.iter().all(|x| x == l) && high.iter().all(|x| x == h) => {
                    write!(f, "box({}, {l}..{h})", low.len())
                }
                _ => write!(f, "box({})", low.len()),
            },
            Self::Tokens { vocab_size, max_tokens } => write!(f, "tokens({vocab_size}, at most {max_tokens})"),
        }
    }
}
