//! Exact state of worlds and generators as a list of 64-bit words, ready for a checkpoint.

use crate::{EnvError, Result};

/// Collects the words of a snapshot. Floats are kept bit for bit.
#[derive(Debug, Default, Clone)]
pub struct SnapshotWriter {
    words: Vec<u64>,
}

impl SnapshotWriter {
    /// Appends a word.
    pub fn u64(&mut self, value: u64) {
        self.words.push(value);
    }

    /// Appends a double.
    pub fn f64(&mut self, value: f64) {
        self.words.push(value.to_bits());
    }

    /// Appends a truth value.
    pub fn bool(&mut self, value: bool) {
        self.words.push(u64::from(value));
    }

    /// Appends doubles, with their number in front.
    pub fn f64s(&mut self, values: &[f64]) {
        self.words.push(values.len() as u64);
        self.words.extend(values.iter().map(|v| v.to_bits()));
    }

    /// Appends singles, with their number in front.
    pub fn f32s(&mut self, values: &[f32]) {
        self.words.push(values.len() as u64);
        self.words.extend(values.iter().map(|v| u64::from(v.to_bits())));
    }

    /// The words.
    pub fn into_words(self) -> Vec<u64> {
        self.words
    }
}

/// Reads the words of a snapshot in the order in which they were written.
#[derive(Debug)]
pub struct SnapshotReader<'a> {
    place: &'a str,
    words: &'a [u64],
    next: usize,
}

impl<'a> SnapshotReader<'a> {
    /// Reader over `words`; `place` names the object in errors.
    pub fn new(place: &'a str, words: &'a [u64]) -> Self {
        Self { place, words, next: 0 }
    }

    fn fail(&self, reason: String) -> EnvError {
        EnvError::Snapshot { place: self.place.to_string(), reason }
    }

    /// Next word.
    ///
    /// # Errors
    /// [`EnvError::Snapshot`] at the end of the words.
    pub fn u64(&mut self) -> Result<u64> {
        let word = self.words.get(self.next).copied().ok_or_else(|| self.fail(format!("it ends after {} words", self.words.len())))?;
        self.next += 1;
        Ok(word)
    }

    /// Next double.
    ///
    /// # Errors
    /// As [`SnapshotReader::u64`].
    pub fn f64(&mut self) -> Result<f64> {
        Ok(f64::from_bits(self.u64()?))
    }

    /// Next truth value.
    ///
    /// # Errors
    /// [`EnvError::Snapshot`] at the end, or if the word is neither 0 nor 1.
    pub fn bool(&mut self) -> Result<bool> {
        match self.u64()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(self.fail(format!("word {} must be 0 or 1, got {other}", self.next - 1))),
        }
    }

    fn length(&mut self, expected: usize) -> Result<()> {
        let got = self.u64()?;
        if got == expected as u64 {
            Ok(())
        } else {
            Err(self.fail(format!("expected {expected} values at word {}, got {got}", self.next - 1)))
        }
    }

    /// Fills `out` with doubles.
    ///
    /// # Errors
    /// [`EnvError::Snapshot`] if another number of doubles was written.
    pub fn f64s(&mut self, out: &mut [f64]) -> Result<()> {
        self.length(out.len())?;
        for value in out {
            *value = self.f64()?;
        }
        Ok(())
    }

    /// Fills `out` with singles.
    ///
    /// # Errors
    /// [`EnvError::Snapshot`] if another number of singles was written, or a word is no single.
    pub fn f32s(&mut self, out: &mut [f32]) -> Result<()> {
        self.length(out.len())?;
        for value in out {
            let word = self.u64()?;
            let bits = u32::try_from(word).map_err(|_| self.fail(format!("word {} is no 32-bit float", self.next - 1)))?;
            *value = f32::from_bits(bits);
        }
        Ok(())
    }

    /// Confirms that everything was read.
    ///
    /// # Errors
    /// [`EnvError::Snapshot`] if words are left.
    pub fn finish(self) -> Result<()> {
        if self.next == self.words.len() { Ok(()) } else { Err(self.fail(format!("{} words are left over", self.words.len() - self.next))) }
    }
}
