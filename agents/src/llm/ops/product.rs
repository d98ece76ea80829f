//! Matrix products over plain slices, by the `gemm` crate.

use super::pieces::{Shared, each};

/// A matrix in a slice: element `(i, j)` stands at `i * row + j * column`.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    pub data: &'a [f32],
    pub row: usize,
    pub column: usize,
}

impl<'a> Matrix<'a> {
    /// Row-major with `width` numbers per row.
    pub fn rows(data: &'a [f32], width: usize) -> Self {
        Self { data, row: width, column: 1 }
    }

    /// The transposed matrix.
    pub fn transposed(self) -> Self {
        Self { row: self.column, column: self.row, ..self }
    }

    fn holds(&self, rows: usize, columns: usize) -> bool {
        rows == 0 || columns == 0 || (rows - 1) * self.row + (columns - 1) * self.column < self.data.len()
    }
}

/// `out[m, n] (+)= scale * left[m, k] right[k, n]`, row-major with `out_row` numbers from row to row; on one thread.
pub(super) fn product(out: &mut [f32], out_row: usize, [m, n, k]: [usize; 3], left: Matrix<'_>, right: Matrix<'_>, adds: bool, scale: f32) {
    if m == 0 || n == 0 {
        return;
    }
    assert!((m - 1) * out_row + n <= out.len(), "the product must fit its place");
    assert!(left.holds(m, k) && right.holds(k, n), "the factors must have the sizes of the product");
    // SAFETY: all elements that are read or written lie in their slices, as asserted.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            out_row as isize,
            adds,
            left.data.as_ptr(),
            left.column as isize,
            left.row as isize,
            right.data.as_ptr(),
            right.column as isize,
            right.row as isize,
            1.0_f32,
            scale,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// As [`product`], with the rows of the result shared among threads. Each thread packs the right factor for itself, so there
/// are no more pieces than threads. A row has the same bits in any piece of at least 64 rows: how its sum is cut depends on
/// `k` alone.
pub(super) fn parallel_product(out: &mut [f32], out_row: usize, [m, n, k]: [usize; 3], left: Matrix<'_>, right: Matrix<'_>, adds: bool) {
    let length = out.len();
    let shared = Shared::new(out);
    let pieces = (m / 128).clamp(1, rayon::current_num_threads());
    let size = m / pieces / 64 * 64;
    each(pieces, |i| {
        let rows = i * size..if i + 1 == pieces { m } else { (i + 1) * size };
        let end = if rows.end == m { length } else { rows.end * out_row };
        // SAFETY: pieces are disjoint ranges of rows.
        let out = unsafe { shared.slice(rows.start * out_row..end) };
        let left = Matrix { data: &left.data[(rows.start * left.row).min(left.data.len())..], ..left };
        product(out, out_row, [rows.len(), n, k], left, right, adds, 1.0);
    });
}

#[cfg(test)]
mod tests {
    use steadfast_envs::Rng;

    use super::*;

    #[test]
    fn products_have_the_same_bits_on_any_number_of_threads() {
        let mut rng = Rng::from_seed(3);
        let mut noise = |n: usize| -> Vec<f32> { (0..n).map(|_| rng.normal_f32()).collect() };
        // Rows that leave a remainder of one, and sums of more than one block.
        for [m, n, k] in [[257, 33, 48], [641, 7, 1100], [130, 96, 5], [1000, 64, 600]] {
            let (left, right) = (noise(m * k), noise(n * k));
            let run = |threads: usize, is_transposed: bool| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let left = if is_transposed { Matrix { data: &left, row: 1, column: m } } else { Matrix::rows(&left, k) };
                let mut out = vec![0.5; m * n];
                pool.install(|| parallel_product(&mut out, n, [m, n, k], left, Matrix::rows(&right, k).transposed(), true));
                out
            };
            for is_transposed in [false, true] {
                let one = run(1, is_transposed);
                assert!([2, 3, 5, 8].iter().all(|&threads| run(threads, is_transposed) == one), "{m} {n} {k}");
            }
        }
    }
}
