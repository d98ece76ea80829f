//! The matrix product of small networks: register tiles, one order of summation, fused start and finish.
//!
//! `c[i][j] = finish(start[i][j] + a[i][0] b[0][j] + a[i][1] b[1][j] + ...)`, each step one fused multiply-add, always in
//! the order of the depth index. An element of `c` therefore depends neither on the tile it falls into nor on the width of
//! the vectors. With a strided `a` the same loop computes outputs, weight gradients (depth = rows of the batch, started
//! from the gradient so far) and input gradients (`b` = transposed weights).

use super::lane::{Isa, Lane, Vectorised, dispatch};
use super::math;

/// Columns are computed and written in groups of this many.
pub(in crate::nn) const COLUMN_GROUP: usize = 8;

/// What the sums start from.
#[derive(Clone, Copy)]
pub(in crate::nn) enum Start<'a> {
    /// Zero.
    Zero,
    /// A value per column.
    Bias(&'a [f32]),
    /// The present content of `c`.
    Accumulate,
}

/// What is done with a sum before it is stored.
#[derive(Clone, Copy)]
pub(in crate::nn) enum Finish<'a> {
    /// Nothing.
    Store,
    /// Hyperbolic tangent.
    Tanh,
    /// Times `slope` where not positive.
    Slope(f32),
    /// Times the derivative of tanh, given its output (row stride second).
    TanhDerivative(&'a [f32], usize),
    /// Times 1 or `slope` by the sign of the output (row stride second).
    SlopeDerivative(&'a [f32], usize, f32),
}

/// One product. Columns up to the next multiple of [`COLUMN_GROUP`] are read from `b` and written to `c`.
pub(in crate::nn) struct Product<'a> {
    /// Rows of `a` and `c`.
    pub rows: usize,
    /// Columns of `a`, rows of `b`.
    pub depth: usize,
    /// Columns of `b` and `c`.
    pub columns: usize,
    /// `a[i * a_row + k * a_depth]`.
    pub a: &'a [f32],
    /// Stride between rows of `a`.
    pub a_row: usize,
    /// Stride between columns of `a`.
    pub a_depth: usize,
    /// `b[k * b_depth + j]`.
    pub b: &'a [f32],
    /// Stride between rows of `b`.
    pub b_depth: usize,
    /// `c[i * c_row + j]`.
    pub c: &'a mut [f32],
    /// Stride between rows of `c`.
    pub c_row: usize,
    /// Before the first step.
    pub start: Start<'a>,
    /// After the last step.
    pub finish: Finish<'a>,
}

/// `columns` rounded up to whole groups.
pub(in crate::nn) fn whole_groups(columns: usize) -> usize {
    columns.next_multiple_of(COLUMN_GROUP)
}

impl Product<'_> {
    /// Computes `c`.
    #[inline]
    pub fn compute(self, isa: Isa) {
        if self.rows == 0 || self.columns == 0 {
            return;
        }
        let wide = whole_groups(self.columns);
        let (rows, depth) = (self.rows, self.depth);
        assert!(depth == 0 || (rows - 1) * self.a_row + (depth - 1) * self.a_depth < self.a.len(), "a is too short");
        assert!(depth == 0 || (depth - 1) * self.b_depth + wide <= self.b.len(), "b is too short");
        assert!((rows - 1) * self.c_row + wide <= self.c.len(), "c is too short");
        assert!(rows == 1 || self.c_row >= wide, "rows of c overlap");
        match self.start {
            Start::Bias(bias) => assert!(wide <= bias.len(), "bias is too short"),
            Start::Zero | Start::Accumulate => {}
        }
        match self.finish {
            Finish::TanhDerivative(h, h_row) | Finish::SlopeDerivative(h, h_row, _) => {
                assert!((rows - 1) * h_row + wide <= h.len(), "outputs are too short");
            }
            Finish::Store | Finish::Tanh | Finish::Slope(_) => {}
        }
        // One vector of eight per row: AVX-512 would fold the broadcasts into the products, which load at half the rate
        // (15 instead of 12 ns per row of 64 on Zen 4).
        let isa = if wide == COLUMN_GROUP { isa.min(Isa::Avx2) } else { isa };
        dispatch(isa, self);
    }
}

impl Vectorised for Product<'_> {
    type Out = ();

    #[inline(always)]
    fn run<L: Lane>(mut self) {
        let wide = whole_groups(self.columns);
        let vectors = wide / L::WIDTH;
        let mut done = 0;
        // SAFETY: `compute` has checked that all indices of `rows`, `depth` and `wide` columns are inside the slices.
        unsafe {
            if self.rows == 1 {
                // A single row waits for its own sums: as many vectors at once as there are.
                while vectors - done >= 8 {
                    tile::<L, 8, 1>(&mut self, 0, done * L::WIDTH);
                    done += 8;
                }
                while vectors - done >= 4 {
                    tile::<L, 4, 1>(&mut self, 0, done * L::WIDTH);
                    done += 4;
                }
            }
            if L::TILE == 4 {
                while vectors - done >= 4 {
                    panel::<L, 4, 6>(&mut self, done * L::WIDTH);
                    done += 4;
                }
                if vectors - done == 3 {
                    panel::<L, 3, 6>(&mut self, done * L::WIDTH);
                    done += 3;
                }
            }
            while vectors - done >= 2 {
                panel::<L, 2, 6>(&mut self, done * L::WIDTH);
                done += 2;
            }
            if vectors - done == 1 {
                panel::<L, 1, 12>(&mut self, done * L::WIDTH);
                done += 1;
            }
            if done * L::WIDTH < wide {
                panel::<L::Half, 1, 12>(&mut self, done * L::WIDTH);
            }
        }
    }
}

/// All rows of `V` vectors of columns from `column` on, in tiles of at most `R` rows of nearly equal height.
///
/// # Safety
/// The bounds checked by [`Product::compute`].
#[inline(always)]
unsafe fn panel<L: Lane, const V: usize, const R: usize>(p: &mut Product<'_>, column: usize) {
    let mut row = 0;
    let mut tiles = p.rows.div_ceil(R);
    while tiles > 0 {
        let height = (p.rows - row).div_ceil(tiles);
        // SAFETY: passed on; `height` is at most `R` because the rest is shared evenly.
        unsafe {
            match height {
                1 => tile::<L, V, 1>(p, row, column),
                2 => tile::<L, V, 2>(p, row, column),
                3 => tile::<L, V, 3>(p, row, column),
                4 => tile::<L, V, 4>(p, row, column),
                5 => tile::<L, V, 5>(p, row, column),
                6 => tile::<L, V, 6>(p, row, column),
                _ if R <= 6 => unreachable!("tiles of this panel have at most six rows"),
                7 => tile::<L, V, 7>(p, row, column),
                8 => tile::<L, V, 8>(p, row, column),
                9 => tile::<L, V, 9>(p, row, column),
                10 => tile::<L, V, 10>(p, row, column),
                11 => tile::<L, V, 11>(p, row, column),
                _ => tile::<L, V, 12>(p, row, column),
            }
        }
        row += height;
        tiles -= 1;
    }
}

/// One register tile of `R` rows and `V` vectors.
///
/// # Safety
/// The bounds checked by [`Product::compute`], and `row + R <= rows`, `column + V * WIDTH <= wide`.
#[inline(always)]
unsafe fn tile<L: Lane, const V: usize, const R: usize>(p: &mut Product<'_>, row: usize, column: usize) {
    // SAFETY: see above.
    unsafe {
        let c = p.c.as_mut_ptr().add(row * p.c_row + column);
        let mut sums = [[L::splat(0.0); V]; R];
        match p.start {
            Start::Zero => {}
            Start::Bias(bias) => {
                for v in 0..V {
                    let bias = L::load(bias.as_ptr().add(column + v * L::WIDTH));
                    for sum in &mut sums {
                        sum[v] = bias;
                    }
                }
            }
            Start::Accumulate => {
                for r in 0..R {
                    for v in 0..V {
                        sums[r][v] = L::load(c.add(r * p.c_row + v * L::WIDTH));
                    }
                }
            }
        }
        let (a_row, a_depth, b_depth) = (p.a_row, p.a_depth, p.b_depth);
        // Four rows per pointer: one pointer for all makes the addresses a chain of additions as long as the tile is high.
        let mut a: [*const f32; 3] = std::array::from_fn(|group| p.a.as_ptr().wrapping_add((row + 4 * group) * a_row));
        let mut b = p.b.as_ptr().wrapping_add(column);
        for _ in 0..p.depth {
            let mut factors = [L::splat(0.0); V];
            for v in 0..V {
                factors[v] = L::load(b.add(v * L::WIDTH));
            }
            for r in 0..R {
                let x = L::splat(*a[r / 4].add((r % 4) * a_row));
                for v in 0..V {
                    sums[r][v] = x.mul_add(factors[v], sums[r][v]);
                }
            }
            // The step after the last one may leave the slice; it is not dereferenced.
            for a in &mut a {
                *a = a.wrapping_add(a_depth);
            }
            b = b.wrapping_add(b_depth);
        }
        match p.finish {
            Finish::TanhDerivative(h, h_row) => {
                let h = h.as_ptr().add(row * h_row + column);
                let one = L::splat(1.0);
                for r in 0..R {
                    for v in 0..V {
                        let y = L::load(h.add(r * h_row + v * L::WIDTH));
                        sums[r][v].mul(y.neg_mul_add(y, one)).store(c.add(r * p.c_row + v * L::WIDTH));
                    }
                }
            }
            Finish::SlopeDerivative(h, h_row, slope) => {
                let h = h.as_ptr().add(row * h_row + column);
                let (zero, slope) = (L::splat(0.0), L::splat(slope));
                for r in 0..R {
                    for v in 0..V {
                        let y = L::load(h.add(r * h_row + v * L::WIDTH));
                        let x = sums[r][v];
                        y.select_greater(zero, x, x.mul(slope)).store(c.add(r * p.c_row + v * L::WIDTH));
                    }
                }
            }
            Finish::Store | Finish::Tanh | Finish::Slope(_) => {
                for r in 0..R {
                    for v in 0..V {
                        sums[r][v].store(c.add(r * p.c_row + v * L::WIDTH));
                    }
                }
            }
        }
        // In a second pass over the stored tile: a loop of this size over `sums` is not unrolled, and the compiler would then
        // keep `sums` in memory throughout.
        match p.finish {
            Finish::Tanh => revise::<L, V, R>(c, p.c_row, None),
            Finish::Slope(slope) => revise::<L, V, R>(c, p.c_row, Some(slope)),
            Finish::Store | Finish::TanhDerivative(..) | Finish::SlopeDerivative(..) => {}
        }
    }
}

/// Applies tanh, or a slope below zero, to a tile in memory. No closure does it: closures over lanes are not sure to be
/// inlined, and lose the vector instructions where they are not.
///
/// # Safety
/// `c` points to `R` rows of `V` vectors at stride `c_row`.
#[inline(always)]
unsafe fn revise<L: Lane, const V: usize, const R: usize>(c: *mut f32, c_row: usize, slope: Option<f32>) {
    for r in 0..R {
        let mut row = [L::splat(0.0); V];
        // SAFETY: see above.
        unsafe {
            for v in 0..V {
                let x = L::load(c.add(r * c_row + v * L::WIDTH));
                row[v] = match slope {
                    None => math::tanh(x),
                    Some(slope) => x.select_greater(L::splat(0.0), x, x.mul(L::splat(slope))),
                };
            }
            for v in 0..V {
                row[v].store(c.add(r * c_row + v * L::WIDTH));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{prop_assert, proptest};
    use steadfast_envs::Rng;

    fn noise(n: usize, rng: &mut Rng) -> Vec<f32> {
        (0..n).map(|_| rng.normal_f32()).collect()
    }

    proptest! {
        /// Every set of instructions gives the bits of the three plain loops.
        #[test]
        fn tiles_equal_plain_loops(rows in 1_usize..40, depth in 0_usize..20, columns in 1_usize..150, seed: u64, start in 0..3, transposed: bool) {
            let mut rng = Rng::from_seed(seed);
            let wide = whole_groups(columns);
            let a = noise(rows * depth, &mut rng);
            let (a_row, a_depth) = if transposed { (1, rows) } else { (depth, 1) };
            let b = noise(depth * wide, &mut rng);
            let bias = noise(wide, &mut rng);
            let before = noise(rows * wide, &mut rng);
            let mut expected = before.clone();
            for i in 0..rows {
                for j in 0..wide {
                    let mut sum = [0.0, bias[j], before[i * wide + j]][start as usize];
                    for k in 0..depth {
                        sum = a[i * a_row + k * a_depth].mul_add(b[k * wide + j], sum);
                    }
                    expected[i * wide + j] = sum;
                }
            }
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
                let mut c = before.clone();
                let start = [Start::Zero, Start::Bias(&bias), Start::Accumulate][start as usize];
                Product { rows, depth, columns, a: &a, a_row, a_depth, b: &b, b_depth: wide, c: &mut c, c_row: wide, start, finish: Finish::Store }
                    .compute(isa);
                prop_assert!(c.iter().zip(&expected).all(|(x, y)| x.to_bits() == y.to_bits()), "{:?}", isa);
            }
        }
    }
}
