//! A matrix in panels, and its product with rows of activations.

use crate::llm::model::DenseLinear;
use crate::llm::ops::{Shared, in_pieces_of};
use crate::nn::kernel::lane::{Lane, Vectorised, dispatch, isa};

/// Outputs per panel.
const PANEL: usize = 16;

/// A packed linear map.
pub(super) struct PackedLinear {
    panels: Vec<f32>,
    bias: Option<Vec<f32>>,
    input: usize,
    output: usize,
}

impl PackedLinear {
    /// Packs maps of the same input one below the other: their outputs stand side by side.
    pub fn new(maps: &[&DenseLinear], input: usize) -> Self {
        let output: usize = maps.iter().map(|map| map.weight.len() / input).sum();
        let mut packed = Self { panels: vec![0.0; output.div_ceil(PANEL) * PANEL * input], bias: None, input, output };
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

    /// `y[row] = W x[row] + b` for all rows; `x`: `[row, input]`, `y`: `[row, output]`.
    pub fn apply(&self, x: &[f32], y: &mut [f32]) {
        let rows = x.len() / self.input;
        assert_eq!(y.len(), rows * self.output, "outputs must have room");
        let shared = Shared::new(y);
        let panels = self.output.div_ceil(PANEL);
        // Panels are handed out in groups of four, the widest tile.
        let group = |groups: std::ops::Range<usize>| {
            let range = groups.start * 4..(groups.end * 4).min(panels);
            dispatch(isa(), Product { map: self, x, rows, panels: range, y: &shared });
        };
        in_pieces_of(16, panels.div_ceil(4), group);
    }
}

struct Product<'a> {
    map: &'a PackedLinear,
    x: &'a [f32],
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
        let most = if is_wide { 8 } else { 6 };
        // A few panels are kept in the cache while all rows pass.
        let mut panel = self.panels.start;
        while panel < self.panels.end {
            let n = (self.panels.end - panel).min(4);
            let mut row = 0;
            while row < self.rows {
                let left = self.rows - row;
                let rows = if left >= most {
                    most
                } else if left >= 4 {
                    4
                } else {
                    1
                };
                match (is_wide, n, rows) {
                    (true, 4, 1) => self.tile::<L, 1, 4, 1>(panel, row, [0]),
                    (true, 4, 4) => self.tile::<L, 1, 4, 4>(panel, row, [0]),
                    (true, 4, _) => {
                        self.tile::<L, 1, 2, 8>(panel, row, [0]);
                        self.tile::<L, 1, 2, 8>(panel + 2, row, [0]);
                    }
                    (false, 4, 1) => self.halves::<L, 4, 1>(panel, row),
                    _ => {
                        for panel in panel..panel + n {
                            match (is_wide, rows) {
                                (true, 1) => self.tile::<L, 1, 1, 1>(panel, row, [0]),
                                (true, 4) => self.tile::<L, 1, 1, 4>(panel, row, [0]),
                                (true, _) => self.tile::<L, 1, 1, 8>(panel, row, [0]),
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
        self.tile::<L, 2, P, R>(panel, row, [0, PANEL / 2]);
    }

    /// The vectors at `offsets` of `P` panels by `R` rows.
    #[inline(always)]
    fn tile<L: Lane, const V: usize, const P: usize, const R: usize>(&self, panel: usize, row: usize, offsets: [usize; V]) {
        let input = self.map.input;
        let stride = PANEL * input;
        assert!((panel + P) * stride <= self.map.panels.len() && (row + R) * input <= self.x.len(), "a tile lies in its matrices");
        let mut sums = [[[L::splat(0.0); V]; P]; R];
        let weights = &self.map.panels[panel * stride..];
        let x = &self.x[row * input..(row + R) * input];
        for i in 0..input {
            for p in 0..P {
                let mut w = [L::splat(0.0); V];
                for v in 0..V {
                    // SAFETY: the panel ends within the matrix, as asserted; an offset and the width are at most 16 together.
                    w[v] = unsafe { L::load(weights.as_ptr().add(p * stride + i * PANEL + offsets[v])) };
                }
                for r in 0..R {
                    // SAFETY: `x` has `R` rows of `input`.
                    let x = L::splat(unsafe { *x.as_ptr().add(r * input + i) });
                    for v in 0..V {
                        sums[r][p][v] = w[v].mul_add(x, sums[r][p][v]);
                    }
                }
            }
        }
        for r in 0..R {
            for p in 0..P {
                for v in 0..V {
                    let mut lanes = [0.0_f32; PANEL];
                    sums[r][p][v].write(&mut lanes);
                    let first = (panel + p) * PANEL + offsets[v];
                    // The last panel may end before its second half begins.
                    let n = L::WIDTH.min(self.map.output.saturating_sub(first));
                    if n == 0 {
                        continue;
                    }
                    let place = (row + r) * self.map.output + first;
                    // SAFETY: each panel's columns are written by the piece of work that has the panel.
                    let y = unsafe { self.y.slice(place..place + n) };
                    match &self.map.bias {
                        Some(bias) => {
                            for ((y, sum), b) in y.iter_mut().zip(&lanes).zip(&bias[first..]) {
                                *y = sum + b;
                            }
                        }
                        None => y.copy_from_slice(&lanes[..n]),
                    }
                }
            }
        }
    }
}
