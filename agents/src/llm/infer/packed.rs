//! A matrix in panels, and its product with rows of activations.

use crate::llm::model::DenseLinear;
use crate::llm::ops::{Shared, in_pieces_of};
use crate::llm::pages::zeros_in_large_pages;
use crate::nn::kernel::lane::{Isa, Lane, Vectorised, dispatch, isa, prefetch};

/// Outputs per panel.
const PANEL: usize = 16;
/// Inputs by which weights are asked for ahead of their use: the processor's own prefetching stops at the end of each page.
const AHEAD: usize = 32;

/// A packed linear map, which first holds its panels and then knows where they stand among those of others.
pub(super) struct PackedLinear {
    panels: Vec<f32>,
    /// First number among the weights of all maps.
    first: usize,
    bias: Option<Vec<f32>>,
    input: usize,
    output: usize,
}

impl PackedLinear {
    /// Packs maps of the same input one below the other: their outputs stand side by side.
    pub fn new(maps: &[&DenseLinear], input: usize) -> Self {
        let output: usize = maps.iter().map(|map| map.weight.len() / input).sum();
        let mut packed = Self { panels: vec![0.0; output.div_ceil(PANEL) * PANEL * input], first: 0, bias: None, input, output };
        let rows = maps.iter().flat_map(|map| map.weight.chunks_exact(input));
        for (o, row) in rows.enumerate() {
            packed.set_row(o, row);
        }
        if maps.iter().any(|map| map.bias.is_some()) {
            let bias = |map: &&DenseLinear| map.bias.clone().unwrap_or_else(|| vec![0.0; map.weight.len() / input]);
            packed.bias = Some(maps.iter().flat_map(bias).collect());
        }
        packed
    }

    fn set_row(&mut self, o: usize, row: &[f32]) {
        let start = o / PANEL * PANEL * self.input + o % PANEL;
        for (i, &w) in row.iter().enumerate() {
            self.panels[start + i * PANEL] = w;
        }
    }

    pub fn output(&self) -> usize {
        self.output
    }

    /// Moves the panels of all maps into one memory, which [`PackedLinear::apply`] wants to see from then on.
    pub fn together(maps: &mut [&mut Self]) -> Vec<f32> {
        let mut weights = zeros_in_large_pages(maps.iter().map(|map| map.panels.len()).sum());
        let mut first = 0;
        for map in maps {
            let panels = std::mem::take(&mut map.panels);
            weights[first..first + panels.len()].copy_from_slice(&panels);
            map.first = first;
            first += panels.len();
        }
        weights
    }

    /// `y[row] = W x[row] + b` for all rows; `x`: `[row, input]`, `y`: `[row, output]`; `weights` of all maps; `room` is kept from call
    /// to call.
    pub fn apply(&self, weights: &[f32], x: &[f32], y: &mut [f32], room: &mut Vec<f32>) {
        let rows = x.len() / self.input;
        assert_eq!(y.len(), rows * self.output, "outputs must have room");
        let shared = Shared::new(y);
        let panels = self.output.div_ceil(PANEL);
        let weights = &weights[self.first..self.first + panels * PANEL * self.input];
        turn(x, self.input, if isa() == Isa::Avx512 { rows / BATCH } else { 0 }, room);
        let turned = room.as_slice();
        // Panels are handed out in groups of four, the widest tile.
        let group = |groups: std::ops::Range<usize>| {
            let range = groups.start * 4..(groups.end * 4).min(panels);
            dispatch(isa(), Product { map: self, weights, x, turned, rows, panels: range, y: &shared });
        };
        in_pieces_of(16, panels.div_ceil(4), group);
    }
}

/// Rows that pass over the weights together, with 32 registers: the weights are too many for the nearer caches.
const BATCH: usize = 16;

/// The first rows of `x` `[row, input]` in batches, `[batch, input, row of the batch]`, so that a tile reads one stream and not one per
/// row.
fn turn(x: &[f32], input: usize, batches: usize, turned: &mut Vec<f32>) {
    turned.resize(batches * BATCH * input, 0.0);
    for (to, from) in turned.chunks_exact_mut(BATCH * input).zip(x.chunks_exact(BATCH * input)) {
        for (r, row) in from.chunks_exact(input).enumerate() {
            to[r..].iter_mut().step_by(BATCH).zip(row).for_each(|(to, &x)| *to = x);
        }
    }
}

struct Product<'a> {
    map: &'a PackedLinear,
    /// Panels of the map.
    weights: &'a [f32],
    x: &'a [f32],
    turned: &'a [f32],
    rows: usize,
    panels: std::ops::Range<usize>,
    y: &'a Shared,
}

impl Vectorised for Product<'_> {
    type Out = ();

    // No closures from here on: they would be compiled without the vector instructions.
    #[inline(always)]
    fn run<L: Lane>(self) {
        // With 32 registers of a whole panel's width tiles have sixteen sums; with 16 registers of half its width more than
        // twelve would be spilled.
        let is_wide = L::WIDTH == PANEL;
        // A few panels are kept in the cache while all rows pass.
        let mut panel = self.panels.start;
        while panel < self.panels.end {
            let n = (self.panels.end - panel).min(4);
            let mut row = 0;
            while row < self.rows {
                let left = self.rows - row;
                let rows = match left {
                    BATCH.. if is_wide && !self.turned.is_empty() => BATCH,
                    8.. if is_wide => 8,
                    6.. if !is_wide => 6,
                    4.. => 4,
                    _ => 1,
                };
                match (is_wide, n, rows) {
                    (true, 4, 1) => self.tile::<L, 1, 4, 1, false>(panel, row, [0]),
                    (true, 4, 4) => self.tile::<L, 1, 4, 4, false>(panel, row, [0]),
                    (true, 4, 8) => {
                        self.tile::<L, 1, 2, 8, false>(panel, row, [0]);
                        self.tile::<L, 1, 2, 8, false>(panel + 2, row, [0]);
                    }
                    (false, 4, 1) => self.halves::<L, 4, 1>(panel, row),
                    _ => {
                        for panel in panel..panel + n {
                            match (is_wide, rows) {
                                (true, 1) => self.tile::<L, 1, 1, 1, false>(panel, row, [0]),
                                (true, 4) => self.tile::<L, 1, 1, 4, false>(panel, row, [0]),
                                (true, 8) => self.tile::<L, 1, 1, 8, false>(panel, row, [0]),
                                (true, _) => self.tile::<L, 1, 1, BATCH, true>(panel, row, [0]),
                                (false, 1) => self.halves::<L, 1, 1>(panel, row),
                                (false, 4) => self.halves::<L, 1, 4>(panel, row),
                                (false, _) => self.halves::<L, 1, 6>(panel, row),
                            }
                        }
                    }
                }
                row += rows;
            }
            panel += n;
        }
    }
}

impl Product<'_> {
    /// `P` panels by `R` rows, each panel as two vectors.
    #[inline(always)]
    fn halves<L: Lane, const P: usize, const R: usize>(&self, panel: usize, row: usize) {
        self.tile::<L, 2, P, R, false>(panel, row, [0, PANEL / 2]);
    }

    /// The vectors at `offsets` of `P` panels by `R` rows, a whole batch of which may be read as it was turned.
    #[inline(always)]
    fn tile<L: Lane, const V: usize, const P: usize, const R: usize, const TURNED: bool>(
        &self,
        panel: usize,
        row: usize,
        offsets: [usize; V],
    ) {
        let input = self.map.input;
        let stride = PANEL * input;
        let source = if TURNED { self.turned } else { self.x };
        assert!((panel + P) * stride <= self.weights.len() && (row + R) * input <= source.len(), "a tile lies in its matrices");
        let mut sums = [[[L::splat(0.0); V]; P]; R];
        let weights = &self.weights[panel * stride..];
        let x = &source[row * input..(row + R) * input];
        for i in 0..input {
            for p in 0..P {
                prefetch(weights.as_ptr().wrapping_add(p * stride + (i + AHEAD) * PANEL));
                let mut w = [L::splat(0.0); V];
                for v in 0..V {
                    // SAFETY: the panel ends within the matrix, as asserted; an offset and the width are at most 16 together.
                    w[v] = unsafe { L::load(weights.as_ptr().add(p * stride + i * PANEL + offsets[v])) };
                }
                for r in 0..R {
                    // SAFETY: `x` has `R` rows of `input`.
                    let x = L::splat(unsafe { *x.as_ptr().add(if TURNED { i * R + r } else { r * input + i }) });
                    for v in 0..V {
                        sums[r][p][v] = w[v].mul_add(x, sums[r][p][v]);
                    }
                }
            }
        }
        for r in 0..R {
            for p in 0..P {
                for v in 0..V {
                    let first = (panel + p) * PANEL + offsets[v];
                    // The last panel may end before its second half begins.
                    let n = L::WIDTH.min(self.map.output.saturating_sub(first));
                    if n == 0 {
                        continue;
                    }
                    let place = (row + r) * self.map.output + first;
                    // SAFETY: each panel's columns are written by the piece of work that has the panel.
                    let y = unsafe { self.y.slice(place..place + n) };
                    if n == L::WIDTH {
                        sums[r][p][v].write(y);
                    } else {
                        let mut lanes = [0.0_f32; PANEL];
                        sums[r][p][v].write(&mut lanes);
                        y.copy_from_slice(&lanes[..n]);
                    }
                    if let Some(bias) = &self.map.bias {
                        for (y, b) in y.iter_mut().zip(&bias[first..]) {
                            *y += b;
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use steadfast_envs::Rng;

    use super::*;
    use crate::nn::kernel::set_isa;

    #[test]
    fn products_are_those_of_plain_loops_for_every_number_of_rows() {
        let (mut rng, mut room) = (Rng::from_seed(1), Vec::new());
        let mut noise = |n: usize| -> Vec<f32> { (0..n).map(|_| rng.normal_f32()).collect() };
        // Outputs that fill panels and groups of them, and that do not; inputs fewer than are asked for ahead.
        for (input, output, has_bias) in [(40, 64, false), (33, 150, true), (7, 16, true), (5, 3, false)] {
            let map = DenseLinear { weight: noise(output * input), bias: has_bias.then(|| noise(output)) };
            let (mut other, mut packed) = (PackedLinear::new(&[&map], input), PackedLinear::new(&[&map], input));
            let weights = PackedLinear::together(&mut [&mut other, &mut packed]);
            for rows in [1, 3, 4, 7, 8, 15, 16, 17, 32, 45] {
                let x = noise(rows * input);
                let sum = |row: usize, o: usize| {
                    let products = (0..input).map(|i| f64::from(x[row * input + i]) * f64::from(map.weight[o * input + i]));
                    products.sum::<f64>() + map.bias.as_ref().map_or(0.0, |bias| f64::from(bias[o]))
                };
                for isa in [Isa::Portable, Isa::Avx2, Isa::Avx512] {
                    if !set_isa(Some(isa)) {
                        continue;
                    }
                    let mut y = vec![f32::NAN; rows * output];
                    packed.apply(&weights, &x, &mut y, &mut room);
                    for (i, y) in y.iter().enumerate() {
                        let exact = sum(i / output, i % output);
                        assert!((f64::from(*y) - exact).abs() < 1e-4, "{isa:?} {rows} rows, place {i}: {y} instead of {exact}");
                    }
                }
                set_isa(None);
            }
        }
    }
}
