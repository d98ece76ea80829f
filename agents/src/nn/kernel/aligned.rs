//! A growable array of `f32` that starts on a cache line.

use std::ops::{Deref, DerefMut};

/// Floats in a cache line of 64 bytes.
const LINE: usize = 16;

/// Array of `f32` whose first element is aligned to 64 bytes.
///
/// The alignment costs at most 15 unused floats in front; no `unsafe` is needed.
#[derive(Debug, Default)]
pub(in crate::nn) struct Aligned {
    data: Vec<f32>,
    start: usize,
    len: usize,
}

impl Aligned {
    /// Zeros.
    pub fn zeros(len: usize) -> Self {
        let data = vec![0.0_f32; len + LINE - 1];
        let misplaced = (data.as_ptr() as usize / size_of::<f32>()) % LINE;
        Self { start: (LINE - misplaced) % LINE, data, len }
    }

    /// At least `len` elements; the content is lost (all zero) if the array has to grow. Returns whether it grew.
    pub fn grow(&mut self, len: usize) -> bool {
        let grows = len > self.len;
        if grows {
            *self = Self::zeros(len);
        }
        grows
    }
}

impl Clone for Aligned {
    fn clone(&self) -> Self {
        let mut copy = Self::zeros(self.len);
        copy.copy_from_slice(self);
        copy
    }
}

impl Deref for Aligned {
    type Target = [f32];
    #[inline]
    fn deref(&self) -> &[f32] {
        &self.data[self.start..self.start + self.len]
    }
}

impl DerefMut for Aligned {
    #[inline]
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.data[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_on_a_cache_line_and_copies() {
        for len in [0, 1, 15, 16, 17, 1000] {
            let mut a = Aligned::zeros(len);
            assert_eq!(a.as_ptr() as usize % 64, 0);
            assert_eq!(a.len(), len);
            a.iter_mut().enumerate().for_each(|(i, v)| *v = i as f32);
            let b = a.clone();
            assert_eq!(b.as_ptr() as usize % 64, 0);
            assert_eq!(&a[..], &b[..]);
        }
    }
}
