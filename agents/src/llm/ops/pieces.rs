//! Work in pieces, each computed by one thread. Where a border could change a bit, borders depend on sizes alone. So results
//! have the same bits for any number of threads.

use std::ops::Range;

use rayon::prelude::*;

/// Rows of a piece of work.
pub(super) const PIECE: usize = 256;

/// A pointer that threads may share because they write to different places behind it.
#[derive(Clone, Copy)]
pub(in crate::llm) struct Shared(*mut f32);

// SAFETY: users of `Shared` write to disjoint places; each such use says which.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    pub fn new(data: &mut [f32]) -> Self {
        Self(data.as_mut_ptr())
    }

    /// # Safety
    /// `range` lies in the slice that `self` was made of, which is still borrowed, and no other thread touches it.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn slice<'a>(&self, range: Range<usize>) -> &'a mut [f32] {
        // SAFETY: by contract.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(range.start), range.len()) }
    }
}

/// Runs `work` for every piece of [`PIECE`] of `0..n`, on the threads of the current pool if there are several.
pub(super) fn in_pieces(n: usize, work: impl Fn(Range<usize>) + Sync) {
    in_pieces_of(PIECE, n, work);
}

/// The same for pieces of `size`.
pub(in crate::llm) fn in_pieces_of(size: usize, n: usize, work: impl Fn(Range<usize>) + Sync) {
    let pieces = n.div_ceil(size);
    let piece = |i: usize| work(i * size..((i + 1) * size).min(n));
    if pieces > 1 && rayon::current_num_threads() > 1 {
        (0..pieces).into_par_iter().with_max_len(1).for_each(piece);
    } else {
        (0..pieces).for_each(piece);
    }
}

/// Runs `work` for `0..n`, each on one thread.
pub(in crate::llm) fn each(n: usize, work: impl Fn(usize) + Sync) {
    if n > 1 && rayon::current_num_threads() > 1 {
        (0..n).into_par_iter().with_max_len(1).for_each(&work);
    } else {
        (0..n).for_each(&work);
    }
}
