//! Keys and values in `f32`, as they came.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use super::{KvStore, LayerBias};
use crate::llm::model::{DecoderConfig, Span};
use crate::llm::ops::{Shared, each, softmax};
use crate::nn::kernel::lane::{Lane, Vectorised, dispatch, isa};

/// Positions per panel of keys.
const PANEL: usize = 16;
/// Panels whose products with a query are summed side by side.
const GROUP: usize = 4;
/// Queries of one head that one thread takes.
const QUERIES: usize = 16;

/// Heads of keys and values.
#[derive(Debug, Clone, Copy)]
struct Heads {
    n: usize,
    /// Coordinates of each.
    dim: usize,
}

impl Heads {
    fn width(self) -> usize {
        self.n * self.dim
    }

    /// Where the values of a head begin at a position.
    fn value(self, position: usize, head: usize) -> usize {
        (position / PANEL * self.n + head) * PANEL * self.dim + position % PANEL * self.dim
    }
}

/// Keys and values of a run of positions. What a head has in a panel stands together, so that few pages of memory are touched.
#[derive(Debug, Clone, Default)]
struct Run {
    positions: usize,
    /// `[panel, kv head, coordinate, position in the panel]`: a query is multiplied with the keys of a panel at once.
    keys: Vec<f32>,
    /// `[panel, kv head, position in the panel, coordinate]`.
    values: Vec<f32>,
}

impl Run {
    /// Adds positions; `keys` and `values` as in [`KvStore::append`].
    fn push(&mut self, keys: &[f32], values: &[f32], heads: Heads) {
        let width = heads.width();
        for (key, value) in keys.chunks_exact(width).zip(values.chunks_exact(width)) {
            let position = self.positions;
            self.positions += 1;
            self.fit(heads);
            let panel = &mut self.keys[position / PANEL * PANEL * width..][..PANEL * width];
            panel[position % PANEL..].iter_mut().step_by(PANEL).zip(key).for_each(|(place, &x)| *place = x);
            for (head, value) in value.chunks_exact(heads.dim).enumerate() {
                self.values[heads.value(position, head)..][..heads.dim].copy_from_slice(value);
            }
        }
    }

    /// Forgets positions from `length` on; what is left of them in the last panel is never read.
    fn truncate(&mut self, length: usize, heads: Heads) {
        self.positions = self.positions.min(length);
        self.fit(heads);
    }

    /// Adds all positions of another run.
    fn extend(&mut self, other: &Self, heads: Heads) {
        let width = heads.width();
        let (mut key, mut value) = (vec![0.0; width], vec![0.0; width]);
        for position in 0..other.positions {
            let panel = &other.keys[position / PANEL * PANEL * width..][..PANEL * width];
            key.iter_mut().zip(panel[position % PANEL..].iter().step_by(PANEL)).for_each(|(x, &place)| *x = place);
            for (head, value) in value.chunks_exact_mut(heads.dim).enumerate() {
                value.copy_from_slice(&other.values[heads.value(position, head)..][..heads.dim]);
            }
            self.push(&key, &value, heads);
        }
    }

    /// Whole panels for the positions.
    fn fit(&mut self, heads: Heads) {
        let numbers = self.positions.div_ceil(PANEL) * PANEL * heads.width();
        self.keys.resize(numbers, 0.0);
        self.values.resize(numbers, 0.0);
    }
}

/// One layer of one row: what it shares with its siblings, and its own.
#[derive(Debug, Clone, Default)]
struct Row {
    shared: Arc<Run>,
    own: Run,
}

/// The store that keeps everything in `f32`.
#[derive(Debug)]
pub struct DenseStore {
    n_heads: usize,
    heads: Heads,
    /// `[layer][row]`.
    layers: Vec<Vec<Row>>,
}

impl DenseStore {
    /// Room for `rows` rows, all empty.
    pub fn new(config: &DecoderConfig, rows: usize) -> Self {
        Self {
            n_heads: config.n_heads,
            heads: Heads { n: config.n_kv_heads, dim: config.head_dim },
            layers: vec![vec![Row::default(); rows]; config.n_layers],
        }
    }
}

impl Row {
    fn len(&self) -> usize {
        self.shared.positions + self.own.positions
    }

    /// Makes all that is there shared.
    fn share(&mut self, heads: Heads) {
        if self.own.positions > 0 {
            let mut whole = Run::clone(&self.shared);
            whole.extend(&self.own, heads);
            self.shared = Arc::new(whole);
            self.own = Run::default();
        }
    }
}

/// Positions of a run that a head sees.
struct Seen<'a> {
    run: &'a Run,
    positions: Range<usize>,
    heads: Heads,
    head: usize,
}

impl Seen<'_> {
    /// Products of `query` with the keys of `N` panels, times `scale`, into `out`.
    #[inline(always)]
    fn scores_of_panels<L: Lane, const N: usize>(&self, panel: usize, query: &[f32], scale: f32, out: &mut [f32]) {
        let stride = PANEL * self.heads.width();
        let start = panel * stride + self.head * self.heads.dim * PANEL;
        assert!(start + (N - 1) * stride + query.len() * PANEL <= self.run.keys.len() && out.len() >= N * PANEL, "panels lie in the run");
        let mut lane = 0;
        while lane < PANEL {
            let mut sums = [L::splat(0.0); N];
            for (i, &q) in query.iter().enumerate() {
                for (n, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: the panels end within the keys, as asserted; `lane + WIDTH` is at most a panel.
                    let keys = unsafe { L::load(self.run.keys.as_ptr().add(start + n * stride + i * PANEL + lane)) };
                    *sum = keys.mul_add(L::splat(q), *sum);
                }
            }
            for (n, sum) in sums.into_iter().enumerate() {
                sum.mul(L::splat(scale)).write(&mut out[n * PANEL + lane..]);
            }
            lane += L::WIDTH;
        }
    }

    /// Scores of the positions that are seen, added to `scores`.
    #[inline(always)]
    fn scores<L: Lane>(&self, query: &[f32], scale: f32, scores: &mut Vec<f32>) {
        if self.positions.is_empty() {
            return;
        }
        let (mut panel, end) = (self.positions.start / PANEL, self.positions.end.div_ceil(PANEL));
        let mut found = [0.0; GROUP * PANEL];
        while panel < end {
            let n = if end - panel >= GROUP { GROUP } else { 1 };
            match n {
                GROUP => self.scores_of_panels::<L, GROUP>(panel, query, scale, &mut found),
                _ => self.scores_of_panels::<L, 1>(panel, query, scale, &mut found),
            }
            let first = panel * PANEL;
            scores.extend_from_slice(&found[self.positions.start.max(first) - first..self.positions.end.min(first + n * PANEL) - first]);
            panel += n;
        }
    }

    /// Adds `weights` times the values to `N` vectors of sums.
    #[inline(always)]
    fn add_values<L: Lane, const N: usize>(&self, weights: &[f32], first: usize, sums: &mut [L; N]) {
        for (position, &weight) in self.positions.clone().zip(weights) {
            let row = &self.run.values[self.heads.value(position, self.head) + first..];
            for (n, sum) in sums.iter_mut().enumerate() {
                *sum = L::read(&row[n * L::WIDTH..]).mul_add(L::splat(weight), *sum);
            }
        }
    }

    /// One coordinate of the values.
    fn coordinate(&self, i: usize) -> impl Iterator<Item = f32> {
        self.positions.clone().map(move |position| self.run.values[self.heads.value(position, self.head) + i])
    }
}

/// One query of one head: `out = softmax(scale * keys query + bias) values`.
struct Attend<'a> {
    seen: [Seen<'a>; 2],
    query: &'a [f32],
    scale: f32,
    /// Added to the scores of marked positions; `marks` begin at the first that is seen.
    bias: Option<(&'a [bool], f32)>,
    scores: &'a mut Vec<f32>,
    out: &'a mut [f32],
}

impl Attend<'_> {
    #[inline(always)]
    fn values<L: Lane, const N: usize>(seen: &[Seen<'_>; 2], scores: &[f32], first: usize, out: &mut [f32]) {
        let (shared, own) = scores.split_at(seen[0].positions.len());
        let mut sums = [L::splat(0.0); N];
        seen[0].add_values(shared, first, &mut sums);
        seen[1].add_values(own, first, &mut sums);
        for (n, sum) in sums.into_iter().enumerate() {
            sum.write(&mut out[first + n * L::WIDTH..]);
        }
    }
}

impl Vectorised for Attend<'_> {
    type Out = ();

    #[inline(always)]
    fn run<L: Lane>(self) {
        let Self { seen, query, scale, bias, scores, out } = self;
        scores.clear();
        for part in &seen {
            part.scores::<L>(query, scale, scores);
        }
        if let Some((marks, added)) = bias {
            scores.iter_mut().zip(marks).filter(|(_, is_marked)| **is_marked).for_each(|(score, _)| *score += added);
        }
        softmax(scores);
        let (d, mut first) = (out.len(), 0);
        while first + 4 * L::WIDTH <= d {
            Self::values::<L, 4>(&seen, scores, first, out);
            first += 4 * L::WIDTH;
        }
        while first + L::WIDTH <= d {
            Self::values::<L, 1>(&seen, scores, first, out);
            first += L::WIDTH;
        }
        for i in first..d {
            let values = seen.iter().flat_map(|part| part.coordinate(i));
            out[i] = values.zip(scores.iter()).fold(0.0, |sum, (v, &p)| v.mul_add(p, sum));
        }
    }
}

impl KvStore for DenseStore {
    fn len(&self, row: usize) -> usize {
        self.layers.first().map_or(0, |rows| rows[row].len())
    }

    fn is_empty(&self) -> bool {
        self.layers.first().is_none_or(Vec::is_empty)
    }

    fn append(&mut self, layer: usize, row: usize, keys: &[f32], values: &[f32]) {
        self.layers[layer][row].own.push(keys, values, self.heads);
    }

    fn attend(&self, layer: usize, row: usize, queries: &[f32], bias: Option<LayerBias<'_>>, span: Span, out: &mut [f32]) {
        let (heads, d, n_heads) = (self.heads, self.heads.dim, self.n_heads);
        let row = &self.layers[layer][row];
        let n = queries.len() / (n_heads * d);
        let (total, shared) = (row.len(), row.shared.positions);
        assert_eq!(out.len(), queries.len(), "there is one result per query");
        let (blocks, out) = (n.div_ceil(QUERIES), Shared::new(out));
        each(blocks * n_heads, |i| {
            let (block, query_head) = (i / n_heads, i % n_heads);
            let head = query_head / (n_heads / heads.n);
            let mut scores = Vec::with_capacity(total.next_multiple_of(PANEL));
            for t in block * QUERIES..((block + 1) * QUERIES).min(n) {
                let position = total - n + t;
                let low = span.first_key(position);
                let place = (t * n_heads + query_head) * d..(t * n_heads + query_head + 1) * d;
                // SAFETY: each query head of each token writes its own part.
                let out = unsafe { out.slice(place.clone()) };
                let seen = [
                    Seen { run: &row.shared, positions: low.min(shared)..shared.min(position + 1), heads, head },
                    Seen { run: &row.own, positions: low.max(shared) - shared..(position + 1).max(shared) - shared, heads, head },
                ];
                let bias = bias.map(|bias| (bias.marks.get(low..).unwrap_or(&[]), bias.per_head[query_head]));
                let scale = 1.0 / (d as f32).sqrt();
                dispatch(isa(), Attend { seen, query: &queries[place], scale, bias, scores: &mut scores, out });
            }
        });
    }

    fn select_rows(&mut self, rows: &[usize]) {
        let heads = self.heads;
        let mut seen = HashSet::new();
        let forked: HashSet<usize> = rows.iter().copied().filter(|row| !seen.insert(*row)).collect();
        for layer in &mut self.layers {
            forked.iter().for_each(|&row| layer[row].share(heads));
            // Rows that are not forked are moved, not copied.
            *layer =
                rows.iter().map(|&row| if forked.contains(&row) { layer[row].clone() } else { std::mem::take(&mut layer[row]) }).collect();
        }
    }

    fn truncate(&mut self, row: usize, length: usize) {
        let heads = self.heads;
        for layer in &mut self.layers {
            let row = &mut layer[row];
            let shared = row.shared.positions;
            if length < shared {
                row.own = Run::clone(&row.shared);
                row.own.truncate(length, heads);
                row.shared = Arc::default();
            } else {
                row.own.truncate(length - shared, heads);
            }
        }
    }

    fn bytes(&self) -> usize {
        let mut counted = HashSet::new();
        let size = |run: &Run| 4 * (run.keys.len() + run.values.len());
        let of_row = |row: &Row| size(&row.own) + if counted.insert(Arc::as_ptr(&row.shared)) { size(&row.shared) } else { 0 };
        self.layers.iter().flatten().map(of_row).sum()
    }
}

#[cfg(test)]
mod tests {
    use steadfast_envs::Rng;

    use super::*;

    const WIDTH: usize = 6;

    /// One layer with four query heads on two heads of keys, of three coordinates each.
    fn store(rows: usize) -> DenseStore {
        DenseStore { n_heads: 4, heads: Heads { n: 2, dim: 3 }, layers: vec![vec![Row::default(); rows]] }
    }

    fn noise(n: usize, seed: u64) -> Vec<f32> {
        let mut rng = Rng::from_seed(seed);
        (0..n).map(|_| rng.normal_f32()).collect()
    }

    fn attend(store: &DenseStore, row: usize, span: Span) -> Vec<f32> {
        let mut out = vec![0.0; 12];
        store.attend(0, row, &noise(12, 9), None, span, &mut out);
        out
    }

    #[test]
    fn forks_and_cut_rows_are_as_rows_that_were_written_anew() {
        let (keys, values) = (noise(7 * WIDTH, 1), noise(7 * WIDTH, 2));
        let write = |store: &mut DenseStore, row: usize, from: usize, to: usize| {
            store.append(0, row, &keys[from * WIDTH..to * WIDTH], &values[from * WIDTH..to * WIDTH]);
        };
        let fresh = |n: usize| {
            let mut store = store(1);
            write(&mut store, 0, 0, n);
            store
        };
        let mut forked = store(2);
        write(&mut forked, 0, 0, 5);
        write(&mut forked, 1, 0, 2);
        forked.select_rows(&[0, 1, 0]);
        // Five shared positions and two of a row of its own: a panel each of keys and of values.
        assert_eq!(forked.bytes(), 4 * 2 * 2 * PANEL * WIDTH);
        write(&mut forked, 2, 5, 7);
        assert_eq!([0, 1, 2].map(|row| forked.len(row)), [5, 2, 7]);
        for span in [Span::Full, Span::Sliding(3), Span::Block(4)] {
            assert_eq!(attend(&forked, 2, span), attend(&fresh(7), 0, span), "{span:?}");
            assert_eq!(attend(&forked, 0, span), attend(&fresh(5), 0, span), "{span:?}");
        }
        for length in [6, 5, 3] {
            forked.truncate(2, length);
            assert_eq!(attend(&forked, 2, Span::Full), attend(&fresh(length), 0, Span::Full));
        }
        // The sibling keeps what it has.
        assert_eq!(attend(&forked, 0, Span::Full), attend(&fresh(5), 0, Span::Full));
    }
}
