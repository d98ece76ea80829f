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

    #[inline(always)]
    fn run<L: Lane>(self) {
        // A few panels are kept in the cache while all rows pass.
        let mut panel = self.panels.start;
        while panel < self.panels.end {
            let n = (self.panels.end - panel).min(4);
            let mut row = 0;
            while row < self.rows {
                let left = self.rows - row;
                match (n, left) {
                    (4, 1..4) => self.tile::<L, 4, 1>(panel, row),
                    (4, 4..8) => self.tile::<L, 4, 4>(panel, row),
                    (4, _) => {
                        self.tile::<L, 2, 8>(panel, row);
                        self.tile::<L, 2, 8>(panel + 2, row);
                    }
                    (_, 8..) => (0..n).for_each(|p| self.tile::<L, 1, 8>(panel + p, row)),
                    (_, 4..) => (0..n).for_each(|p| self.tile::<L, 1, 4>(panel + p, row)),
                    _ => (0..n).for_each(|p| self.tile::<L, 1, 1>(panel + p, row)),
                }
                row += match left {
                    8.. => 8,
                    4.. => 4,
                    _ => 1,
                };
            }
            panel += n;
        }
    }
}

impl Product<'_> {
    /// `P` panels by `R` rows. A panel is one vector of AVX-512 or two of eight.
    #[inline(always)]
    fn tile<L: Lane, const P: usize, const R: usize>(&self, panel: usize, row: usize) {
        if L::WIDTH == PANEL {
            self.half_tile::<L, P, R>(panel, row, 0);
        } else {
            self.half_tile::<L, P, R>(panel, row, 0);
            self.half_tile::<L, P, R>(panel, row, L::WIDTH);
        }
    }

    #[inline(always)]
    fn half_tile<L: Lane, const P: usize, const R: usize>(&self, panel: usize, row: usize, offset: usize) {
        let input = self.map.input;
        let stride = PANEL * input;
        assert!((panel + P) * stride <= self.map.panels.len() && (row + R) * input <= self.x.len(), "a tile lies in its matrices");
        let mut sums = [[L::splat(0.0); P]; R];
        let weights = &self.map.panels[panel * stride + offset..];
        let x = &self.x[row * input..(row + R) * input];
        for i in 0..input {
            for p in 0..P {
                // SAFETY: the panel ends within the matrix, as asserted; `offset + WIDTH` is at most 16.
                let w = unsafe { L::load(weights.as_ptr().add(p * stride + i * PANEL)) };
                for r in 0..R {
                    // SAFETY: `x` has `R` rows of `input`.
                    let x = unsafe { *x.as_ptr().add(r * input + i) };
                    sums[r][p] = w.mul_add(L::splat(x), sums[r][p]);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (p, sum) in sums.iter().enumerate() {
                let mut lanes = [0.0_f32; PANEL];
                sum.write(&mut lanes);
                let first = (panel + p) * PANEL + offset;
                let n = L::WIDTH.min(self.map.output.saturating_sub(first));
                let place = (row + r) * self.map.output + first;
                // SAFETY: each panel's columns are written by the piece of work that has the panel.
                let y = unsafe { self.y.slice(place..place + n) };
                match &self.map.bias {
                    Some(bias) => y.iter_mut().zip(&lanes).zip(&bias[first..]).for_each(|((y, sum), b)| *y = sum + b),
                    None => y.copy_from_slice(&lanes[..n]),
                }
            }
        }
    }
}
