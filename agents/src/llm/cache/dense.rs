//! Keys and values in `f32`, as they came, in blocks of a few positions: rows that are forked share blocks until one of them
//! writes there, and blocks of rows that ended are used again (Kwon et al. 2023, arXiv 2309.06180).

use std::collections::HashMap;
use std::ops::Range;

use super::{KvStore, LayerBias};
use crate::llm::model::{DecoderConfig, Span};
use crate::llm::ops::{Shared, each, softmax};
use crate::llm::pages::zeros_in_large_pages;
use crate::nn::kernel::lane::{Lane, Vectorised, dispatch, isa};

/// Positions per block.
const PANEL: usize = 16;
/// Blocks whose products with a query are summed side by side.
const GROUP: usize = 4;
/// Queries of one head that one thread takes.
const QUERIES: usize = 16;
/// Most numbers that are asked of the system at once, if a block is not larger: 64 MiB.
const SLAB: usize = 1 << 24;

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

    /// Numbers of a block: keys `[kv head, coordinate, position]`, so that a query is multiplied with all of them at once, then
    /// values `[kv head, position, coordinate]`. What a head has of either stands together, so that few pages of memory are touched.
    fn block(self) -> usize {
        2 * PANEL * self.width()
    }

    fn keys(self, head: usize) -> Range<usize> {
        head * PANEL * self.dim..(head + 1) * PANEL * self.dim
    }

    fn values(self, head: usize) -> Range<usize> {
        (self.n + head) * PANEL * self.dim..(self.n + head + 1) * PANEL * self.dim
    }
}

/// The blocks of all rows.
#[derive(Debug)]
struct Pool {
    /// Numbers per block.
    block: usize,
    slabs: Vec<Vec<f32>>,
    /// Slab of each block, and where it begins there.
    places: Vec<(usize, usize)>,
    /// Rows that hold each block; none of a free one.
    holders: Vec<usize>,
    free: Vec<usize>,
    /// Blocks of the next slab.
    next: usize,
}

impl Pool {
    /// Begins with room for `blocks` when it is used first.
    fn new(block: usize, blocks: usize) -> Self {
        Self { block, slabs: Vec::new(), places: Vec::new(), holders: Vec::new(), free: Vec::new(), next: blocks.max(1) }
    }

    #[inline(always)]
    fn get(&self, id: usize) -> &[f32] {
        let (slab, start) = self.places[id];
        &self.slabs[slab][start..start + self.block]
    }

    fn get_mut(&mut self, id: usize) -> &mut [f32] {
        let (slab, start) = self.places[id];
        &mut self.slabs[slab][start..start + self.block]
    }

    /// A block for one row; what it holds is of no row.
    fn take(&mut self) -> usize {
        if self.free.is_empty() {
            let n = self.next.min((SLAB / self.block).max(1));
            let first = self.places.len();
            self.places.extend((0..n).map(|i| (self.slabs.len(), i * self.block)));
            self.holders.resize(first + n, 0);
            self.free.extend((first..first + n).rev());
            self.slabs.push(zeros_in_large_pages(n * self.block));
            // As many again as there are.
            self.next = self.places.len();
        }
        let Some(id) = self.free.pop() else { unreachable!("there are free blocks now") };
        self.holders[id] = 1;
        id
    }

    fn release(&mut self, id: usize) {
        self.holders[id] -= 1;
        if self.holders[id] == 0 {
            self.free.push(id);
        }
    }

    /// A block with the same numbers for one row, which gives up the other.
    fn replace(&mut self, id: usize) -> usize {
        let numbers = self.get(id).to_vec();
        let copy = self.take();
        self.get_mut(copy).copy_from_slice(&numbers);
        self.release(id);
        copy
    }
}

/// One layer of one row.
#[derive(Debug, Clone, Default)]
struct Row {
    positions: usize,
    blocks: Vec<usize>,
}

/// The store that keeps everything in `f32`.
#[derive(Debug)]
pub struct DenseStore {
    n_heads: usize,
    heads: Heads,
    pool: Pool,
    /// `[layer][row]`.
    layers: Vec<Vec<Row>>,
}

impl DenseStore {
    /// Room for `rows` rows, all empty.
    pub fn new(config: &DecoderConfig, rows: usize) -> Self {
        let heads = Heads { n: config.n_kv_heads, dim: config.head_dim };
        Self::with_heads(config.n_heads, heads, config.n_layers, rows)
    }

    fn with_heads(n_heads: usize, heads: Heads, layers: usize, rows: usize) -> Self {
        let pool = Pool::new(heads.block(), layers * rows);
        Self { n_heads, heads, pool, layers: vec![vec![Row::default(); rows]; layers] }
    }
}

/// Positions that a head sees.
struct Seen<'a> {
    pool: &'a Pool,
    blocks: &'a [usize],
    positions: Range<usize>,
    heads: Heads,
    head: usize,
}

impl Seen<'_> {
    /// Products of `query` with the keys of `N` blocks from `first` on, times `scale`, into `out`.
    #[inline(always)]
    fn scores_of_blocks<L: Lane, const N: usize>(&self, first: usize, query: &[f32], scale: f32, out: &mut [f32]) {
        let mut blocks: [&[f32]; N] = [&[]; N];
        for (n, keys) in blocks.iter_mut().enumerate() {
            *keys = &self.pool.get(self.blocks[first + n])[self.heads.keys(self.head)];
        }
        assert!(query.len() == self.heads.dim && out.len() >= N * PANEL, "a query has a coordinate for each of the keys");
        let mut lane = 0;
        while lane < PANEL {
            let mut sums = [L::splat(0.0); N];
            for (i, &q) in query.iter().enumerate() {
                for (keys, sum) in blocks.iter().zip(&mut sums) {
                    // SAFETY: each head has `PANEL` numbers for each coordinate; `lane + WIDTH` is at most a panel.
                    let keys = unsafe { L::load(keys.as_ptr().add(i * PANEL + lane)) };
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
        let (mut block, end) = (self.positions.start / PANEL, self.positions.end.div_ceil(PANEL));
        let mut found = [0.0; GROUP * PANEL];
        while block < end {
            let n = if end - block >= GROUP { GROUP } else { 1 };
            match n {
                GROUP => self.scores_of_blocks::<L, GROUP>(block, query, scale, &mut found),
                _ => self.scores_of_blocks::<L, 1>(block, query, scale, &mut found),
            }
            let first = block * PANEL;
            scores.extend_from_slice(&found[self.positions.start.max(first) - first..self.positions.end.min(first + n * PANEL) - first]);
            block += n;
        }
    }

    /// Values of a position.
    #[inline(always)]
    fn values(&self, position: usize) -> &[f32] {
        let values = &self.pool.get(self.blocks[position / PANEL])[self.heads.values(self.head)];
        &values[position % PANEL * self.heads.dim..][..self.heads.dim]
    }

    /// `weights` times the values, in `N` vectors from coordinate `first` on.
    #[inline(always)]
    fn weighted<L: Lane, const N: usize>(&self, weights: &[f32], first: usize, out: &mut [f32]) {
        let mut sums = [L::splat(0.0); N];
        let (mut position, mut done) = (self.positions.start, 0);
        while position < self.positions.end {
            let n_here = (PANEL - position % PANEL).min(self.positions.end - position);
            let values = &self.pool.get(self.blocks[position / PANEL])[self.heads.values(self.head)];
            let rows = values[position % PANEL * self.heads.dim..].chunks_exact(self.heads.dim);
            for (row, &weight) in rows.zip(&weights[done..done + n_here]) {
                let row = &row[first..];
                for (n, sum) in sums.iter_mut().enumerate() {
                    *sum = L::read(&row[n * L::WIDTH..]).mul_add(L::splat(weight), *sum);
                }
            }
            position += n_here;
            done += n_here;
        }
        for (n, sum) in sums.into_iter().enumerate() {
            sum.write(&mut out[first + n * L::WIDTH..]);
        }
    }
}

/// One query of one head: `out = softmax(scale * keys query + bias) values`.
struct Attend<'a> {
    seen: Seen<'a>,
    query: &'a [f32],
    scale: f32,
    /// Added to the scores of marked positions; `marks` begin at the first that is seen.
    bias: Option<(&'a [bool], f32)>,
    scores: &'a mut Vec<f32>,
    out: &'a mut [f32],
}

impl Vectorised for Attend<'_> {
    type Out = ();

    #[inline(always)]
    fn run<L: Lane>(self) {
        let Self { seen, query, scale, bias, scores, out } = self;
        scores.clear();
        seen.scores::<L>(query, scale, scores);
        if let Some((marks, added)) = bias {
            scores.iter_mut().zip(marks).filter(|(_, is_marked)| **is_marked).for_each(|(score, _)| *score += added);
        }
        softmax(scores);
        let (d, mut first) = (out.len(), 0);
        while first + 4 * L::WIDTH <= d {
            seen.weighted::<L, 4>(scores, first, out);
            first += 4 * L::WIDTH;
        }
        while first + L::WIDTH <= d {
            seen.weighted::<L, 1>(scores, first, out);
            first += L::WIDTH;
        }
        for i in first..d {
            let mut sum = 0.0_f32;
            for (position, &weight) in seen.positions.clone().zip(scores.iter()) {
                sum = seen.values(position)[i].mul_add(weight, sum);
            }
            out[i] = sum;
        }
    }
}

impl KvStore for DenseStore {
    fn len(&self, row: usize) -> usize {
        self.layers.first().map_or(0, |rows| rows[row].positions)
    }

    fn is_empty(&self) -> bool {
        self.layers.first().is_none_or(Vec::is_empty)
    }

    fn append(&mut self, layer: usize, row: usize, keys: &[f32], values: &[f32]) {
        let (heads, width, pool) = (self.heads, self.heads.width(), &mut self.pool);
        let row = &mut self.layers[layer][row];
        for (key, value) in keys.chunks_exact(width).zip(values.chunks_exact(width)) {
            let place = row.positions % PANEL;
            row.positions += 1;
            match row.blocks.last_mut() {
                Some(last) if place > 0 => {
                    if pool.holders[*last] > 1 {
                        *last = pool.replace(*last);
                    }
                }
                _ => row.blocks.push(pool.take()),
            }
            let Some(&last) = row.blocks.last() else { unreachable!("a row with positions has blocks") };
            let (block_keys, block_values) = pool.get_mut(last).split_at_mut(PANEL * width);
            block_keys[place..].iter_mut().step_by(PANEL).zip(key).for_each(|(place, &x)| *place = x);
            for (block_values, value) in block_values.chunks_exact_mut(PANEL * heads.dim).zip(value.chunks_exact(heads.dim)) {
                block_values[place * heads.dim..][..heads.dim].copy_from_slice(value);
            }
        }
    }

    fn attend(&self, layer: usize, row: usize, queries: &[f32], bias: Option<LayerBias<'_>>, span: Span, out: &mut [f32]) {
        let (heads, d, n_heads) = (self.heads, self.heads.dim, self.n_heads);
        let row = &self.layers[layer][row];
        let n = queries.len() / (n_heads * d);
        let total = row.positions;
        assert_eq!(out.len(), queries.len(), "there is one result per query");
        let (pieces, out) = (n.div_ceil(QUERIES), Shared::new(out));
        each(pieces * n_heads, |i| {
            let (piece, query_head) = (i / n_heads, i % n_heads);
            let head = query_head / (n_heads / heads.n);
            let mut scores = Vec::with_capacity(total.next_multiple_of(PANEL));
            for t in piece * QUERIES..((piece + 1) * QUERIES).min(n) {
                let position = total - n + t;
                let low = span.first_key(position);
                let place = (t * n_heads + query_head) * d..(t * n_heads + query_head + 1) * d;
                // SAFETY: each query head of each token writes its own part.
                let out = unsafe { out.slice(place.clone()) };
                let seen = Seen { pool: &self.pool, blocks: &row.blocks, positions: low..position + 1, heads, head };
                let bias = bias.map(|bias| (bias.marks.get(low..).unwrap_or(&[]), bias.per_head[query_head]));
                let scale = 1.0 / (d as f32).sqrt();
                dispatch(isa(), Attend { seen, query: &queries[place], scale, bias, scores: &mut scores, out });
            }
        });
    }

    fn select_rows(&mut self, rows: &[usize]) {
        let mut kept: HashMap<usize, usize> = HashMap::new();
        rows.iter().for_each(|row| *kept.entry(*row).or_default() += 1);
        for layer in &mut self.layers {
            for (row, Row { blocks, .. }) in layer.iter().enumerate() {
                match kept.get(&row) {
                    Some(times) => blocks.iter().for_each(|&block| self.pool.holders[block] += times - 1),
                    None => blocks.iter().for_each(|&block| self.pool.release(block)),
                }
            }
            *layer = rows.iter().map(|&row| layer[row].clone()).collect();
        }
    }

    fn truncate(&mut self, row: usize, length: usize) {
        for layer in &mut self.layers {
            let row = &mut layer[row];
            row.positions = row.positions.min(length);
            for block in row.blocks.drain(row.positions.div_ceil(PANEL)..) {
                self.pool.release(block);
            }
        }
    }

    fn bytes(&self) -> usize {
        size_of::<f32>() * self.pool.block * self.pool.holders.iter().filter(|holders| **holders > 0).count()
    }
}

#[cfg(test)]
mod tests {
    use steadfast_envs::Rng;

    use super::*;

    const WIDTH: usize = 6;

    /// One layer with four query heads on two heads of keys, of three coordinates each.
    fn store(rows: usize) -> DenseStore {
        DenseStore::with_heads(4, Heads { n: 2, dim: 3 }, 1, rows)
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
        // Five shared positions and two of a row of its own: a block each.
        let block = 4 * 2 * PANEL * WIDTH;
        assert_eq!(forked.bytes(), 2 * block);
        write(&mut forked, 2, 5, 7);
        assert_eq!(forked.bytes(), 3 * block, "who writes gets a block of its own");
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
        forked.select_rows(&[1]);
        assert_eq!((forked.bytes(), attend(&forked, 0, Span::Full)), (block, attend(&fresh(2), 0, Span::Full)));
    }

    #[test]
    fn many_blocks_are_as_one_and_are_used_again() {
        let n = 5 * PANEL + 3;
        let (keys, values) = (noise(n * WIDTH, 3), noise(n * WIDTH, 4));
        let mut store = store(3);
        // Row by row all at once, token by token, and forked in the middle of a block.
        store.append(0, 0, &keys, &values);
        for t in 0..n {
            store.append(0, 1, &keys[t * WIDTH..(t + 1) * WIDTH], &values[t * WIDTH..(t + 1) * WIDTH]);
        }
        let half = (2 * PANEL + 5) * WIDTH;
        store.append(0, 2, &keys[..half], &values[..half]);
        store.select_rows(&[0, 1, 2, 2]);
        store.append(0, 3, &keys[half..], &values[half..]);
        let mut plain = vec![0.0; 12];
        let queries = noise(12, 9);
        for (head, out) in plain.chunks_exact_mut(3).enumerate() {
            let part = |x: &[f32], t: usize| -> Vec<f64> { (0..3).map(|i| f64::from(x[t * WIDTH + head / 2 * 3 + i])).collect() };
            let dot =
                |t: usize| part(&keys, t).iter().zip(&queries[head * 3..]).map(|(k, q)| k * f64::from(*q)).sum::<f64>() / 3.0_f64.sqrt();
            let weights: Vec<f64> = (0..n).map(|t| dot(t).exp()).collect();
            for (i, out) in out.iter_mut().enumerate() {
                *out = ((0..n).map(|t| weights[t] * part(&values, t)[i]).sum::<f64>() / weights.iter().sum::<f64>()) as f32;
            }
        }
        for row in [0, 1, 3] {
            let found = attend(&store, row, Span::Full);
            assert!(found.iter().zip(&plain).all(|(a, b)| (a - b).abs() < 1e-5), "row {row}: {found:?} instead of {plain:?}");
        }
        // Two rows of six blocks; the forks share two of three and of six.
        assert_eq!(store.bytes(), 4 * 2 * PANEL * WIDTH * (6 + 6 + 3 + 4));
        let blocks = store.pool.places.len();
        store.select_rows(&[3]);
        for row in 0..3 {
            store.select_rows(&[0, 0]);
            store.append(0, 1, &keys, &values);
            store.select_rows(&[0]);
            assert_eq!(store.bytes(), 4 * 2 * PANEL * WIDTH * 6, "{row}");
        }
        assert_eq!(store.pool.places.len(), blocks, "no more memory is asked for");
    }
}
