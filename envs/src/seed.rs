//! Where every random number comes from.
//!
//! A [`SeedTree`] names a place in the run (run → purpose → slot → episode). The generator of a place depends on its
//! path alone, never on how many numbers were drawn elsewhere or on which thread draws them.

use rand::{Rng as _, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use crate::snapshot::{SnapshotReader, SnapshotWriter};
use crate::{EnvError, Result};

/// A node of the tree of seeds.
///
/// ```
/// use steadfast_envs::SeedTree;
/// let run = SeedTree::new(7);
/// let a = run.child("environment").index(3).seed();
/// assert_eq!(a, SeedTree::new(7).child("environment").index(3).seed());
/// assert_ne!(a, run.child("environment").index(4).seed());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeedTree {
    key: u64,
}

impl SeedTree {
    /// The root for a run's seed.
    pub fn new(seed: u64) -> Self {
        Self { key: mix(seed ^ 0x5EAD_FA57_0000_0001) }
    }

    /// The branch for a purpose, such as `"environment"` or `"network"`.
    pub fn child(&self, purpose: &str) -> Self {
        // FNV-1a over the name: stable across builds, which the standard hasher does not promise.
        let hash = purpose.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3));
        Self { key: mix(self.key ^ mix(hash)) }
    }

    /// The branch for a numbered thing: a slot, an episode, a member of an ensemble.
    pub fn index(&self, index: u64) -> Self {
        Self { key: mix(self.key.wrapping_add(mix(index ^ 0xA5A5_0000_5A5A_0000))) }
    }

    /// The seed of this node, for things that take one number.
    pub fn seed(&self) -> u64 {
        mix(self.key ^ 0x0F0F_F0F0_1234_ABCD)
    }

    /// The generator of this node.
    pub fn rng(&self) -> Rng {
        Rng::from_seed(self.seed())
    }
}

/// The finaliser of SplitMix64: a bijection whose output bits depend on every input bit.
fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The project's random generator: ChaCha with 8 rounds, whose position can be saved and restored exactly.
#[derive(Debug, Clone, PartialEq)]
pub struct Rng(ChaCha8Rng);

impl Rng {
    /// Generator for a 64-bit seed.
    pub fn from_seed(seed: u64) -> Self {
        let mut bytes = [0_u8; 32];
        let mut z = seed;
        for chunk in bytes.chunks_exact_mut(8) {
            z = mix(z);
            chunk.copy_from_slice(&z.to_le_bytes());
        }
        Self(ChaCha8Rng::from_seed(bytes))
    }

    /// Uniform 64-bit number.
    #[inline]
    pub fn next_u64(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Uniform in `[0, 1)` with 53 random bits.
    #[inline]
    pub fn unit(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
    }

    /// Uniform in `[0, 1)` with 24 random bits.
    #[inline]
    pub fn unit_f32(&mut self) -> f32 {
        (self.0.next_u32() >> 8) as f32 * (1.0 / (1_u32 << 24) as f32)
    }

    /// Uniform in `[low, high)`.
    #[inline]
    pub fn uniform(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Uniform in `0..n`; `n` must not be 0. Bias below `n / 2^64`.
    #[inline]
    pub fn below(&mut self, n: usize) -> usize {
        debug_assert!(n > 0, "a draw from an empty range has no value");
        ((u128::from(self.0.next_u64()) * n as u128) >> 64) as usize
    }

    /// Standard normal.
    #[inline]
    pub fn normal(&mut self) -> f64 {
        StandardNormal.sample(&mut self.0)
    }

    /// Standard normal in single precision.
    #[inline]
    pub fn normal_f32(&mut self) -> f32 {
        StandardNormal.sample(&mut self.0)
    }

    /// A draw from the standard Gumbel distribution.
    pub fn gumbel_f32(&mut self) -> f32 {
        // The open interval keeps both logarithms finite.
        let uniform = (self.unit() + f64::EPSILON).min(1.0 - f64::EPSILON);
        -(-uniform.ln()).ln() as f32
    }

    /// Random order of `items` (Fisher–Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }

    /// Writes seed and position.
    pub fn snapshot(&self, out: &mut SnapshotWriter) {
        for chunk in self.0.get_seed().chunks_exact(8) {
            out.u64(u64::from_le_bytes(chunk.try_into().expect("chunks of eight bytes")));
        }
        let position = self.0.get_word_pos();
        out.u64(position as u64);
        out.u64((position >> 64) as u64);
    }

    /// Reads what [`Rng::snapshot`] wrote.
    ///
    /// # Errors
    /// [`EnvError::Snapshot`] if the snapshot ends early.
    pub fn restore(input: &mut SnapshotReader<'_>) -> Result<Self, EnvError> {
        let mut seed = [0_u8; 32];
        for chunk in seed.chunks_exact_mut(8) {
            chunk.copy_from_slice(&input.u64()?.to_le_bytes());
        }
        let low = input.u64()?;
        let high = input.u64()?;
        let mut rng = ChaCha8Rng::from_seed(seed);
        rng.set_word_pos(u128::from(low) | (u128::from(high) << 64));
        Ok(Self(rng))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restored_generator_continues_the_stream() {
        let mut rng = SeedTree::new(3).child("test").rng();
        for _ in 0..13 {
            rng.unit_f32();
        }
        let mut words = SnapshotWriter::default();
        rng.snapshot(&mut words);
        let words = words.into_words();
        let mut again = Rng::restore(&mut SnapshotReader::new("rng", &words)).unwrap();
        for _ in 0..100 {
            assert_eq!(rng.normal().to_bits(), again.normal().to_bits());
            assert_eq!(rng.below(17), again.below(17));
        }
    }

    #[test]
    fn siblings_and_depths_differ() {
        let root = SeedTree::new(0);
        let mut seeds: Vec<u64> = (0..1000).map(|i| root.child("a").index(i).seed()).collect();
        seeds.extend((0..1000).map(|i| root.child("b").index(i).seed()));
        seeds.extend((0..1000).map(|i| root.child("a").index(0).index(i).seed()));
        seeds.push(root.seed());
        let n = seeds.len();
        seeds.sort_unstable();
        seeds.dedup();
        assert_eq!(seeds.len(), n);
    }

    #[test]
    fn draws_have_the_right_moments() {
        let mut rng = Rng::from_seed(1);
        let n = 200_000;
        let (mut mean, mut var, mut uniform) = (0.0, 0.0, 0.0);
        let mut counts = [0_usize; 5];
        for _ in 0..n {
            let x = rng.normal();
            mean += x;
            var += x * x;
            uniform += rng.uniform(-1.0, 3.0);
            counts[rng.below(5)] += 1;
        }
        assert!((mean / n as f64).abs() < 0.01);
        assert!((var / n as f64 - 1.0).abs() < 0.02);
        assert!((uniform / n as f64 - 1.0).abs() < 0.02);
        assert!(counts.iter().all(|&c| (c as f64 / n as f64 - 0.2).abs() < 0.01));
    }
}
