//! Keys and values in `f32`, as they came.

use std::collections::HashSet;
use std::sync::Arc;

use super::{KvStore, LayerBias};
use crate::llm::model::{DecoderConfig, Span};
use crate::llm::ops::{Shared, add_scaled, dot, each, softmax};

/// Keys and values of a run of positions, `[position, kv head, head_dim]`.
#[derive(Debug, Clone, Default)]
struct Run {
    keys: Vec<f32>,
    values: Vec<f32>,
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
    n_kv_heads: usize,
    head_dim: usize,
    /// `[layer][row]`.
    layers: Vec<Vec<Row>>,
}

impl DenseStore {
    /// Room for `rows` rows, all empty.
    pub fn new(config: &DecoderConfig, rows: usize) -> Self {
        Self {
            n_heads: config.n_heads,
            n_kv_heads: config.n_kv_heads,
            head_dim: config.head_dim,
            layers: vec![vec![Row::default(); rows]; config.n_layers],
        }
    }

    fn width(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }
}

impl Row {
    fn len(&self, width: usize) -> usize {
        (self.shared.keys.len() + self.own.keys.len()) / width
    }

    /// Makes all that is there shared.
    fn share(&mut self) {
        if !self.own.keys.is_empty() {
            let join = |a: &[f32], b: &[f32]| [a, b].concat();
            let keys = join(&self.shared.keys, &self.own.keys);
            self.shared = Arc::new(Run { keys, values: join(&self.shared.values, &self.own.values) });
            self.own = Run::default();
        }
    }
}

impl KvStore for DenseStore {
    fn len(&self, row: usize) -> usize {
        self.layers.first().map_or(0, |rows| rows[row].len(self.width()))
    }

    fn is_empty(&self) -> bool {
        self.layers.first().is_none_or(Vec::is_empty)
    }

    fn append(&mut self, layer: usize, row: usize, keys: &[f32], values: &[f32]) {
        let own = &mut self.layers[layer][row].own;
        own.keys.extend_from_slice(keys);
        own.values.extend_from_slice(values);
    }

    fn attend(&self, layer: usize, row: usize, queries: &[f32], bias: Option<LayerBias<'_>>, span: Span, out: &mut [f32]) {
        let (d, width) = (self.head_dim, self.width());
        let row = &self.layers[layer][row];
        let n = queries.len() / (self.n_heads * d);
        let (total, shared) = (row.len(width), row.shared.keys.len() / width);
        let per_key = self.n_heads / self.n_kv_heads;
        let first = total - n;
        let out = Shared::new(out);
        each(n * self.n_heads, |i| {
            let (t, head) = (i / self.n_heads, i % self.n_heads);
            let position = first + t;
            let low = span.first_key(position);
            let column = head / per_key * d;
            let query = &queries[i * d..(i + 1) * d];
            let scale = 1.0 / (d as f32).sqrt();
            // The runs of the keys that are seen: shared ones, then the row's own.
            let runs = [(&*row.shared, low.min(shared)..shared.min(position + 1), 0), (&row.own, low.max(shared)..position + 1, shared)];
            let mut scores = Vec::with_capacity(position + 1 - low);
            for (run, seen, offset) in runs.clone() {
                for key in seen {
                    let place = (key - offset) * width + column;
                    let mut score = dot(query, &run.keys[place..place + d]) * scale;
                    if let Some(bias) = bias.filter(|bias| bias.marks.get(key) == Some(&true)) {
                        score += bias.per_head[head];
                    }
                    scores.push(score);
                }
            }
            softmax(&mut scores);
            // SAFETY: each query head of each token writes its own part.
            let out = unsafe { out.slice(i * d..(i + 1) * d) };
            out.fill(0.0);
            let mut scores = scores.iter();
            for (run, seen, offset) in runs {
                for (key, &p) in seen.zip(scores.by_ref()) {
                    let place = (key - offset) * width + column;
                    add_scaled(out, p, &run.values[place..place + d]);
                }
            }
        });
    }

    fn select_rows(&mut self, rows: &[usize]) {
        let mut seen = HashSet::new();
        let forked: HashSet<usize> = rows.iter().copied().filter(|row| !seen.insert(*row)).collect();
        for layer in &mut self.layers {
            forked.iter().for_each(|&row| layer[row].share());
            // Rows that are not forked are moved, not copied.
            *layer =
                rows.iter().map(|&row| if forked.contains(&row) { layer[row].clone() } else { std::mem::take(&mut layer[row]) }).collect();
        }
    }

    fn truncate(&mut self, row: usize, length: usize) {
        let width = self.width();
        for layer in &mut self.layers {
            let row = &mut layer[row];
            let shared = row.shared.keys.len();
            if length * width < shared {
                let cut = |x: &[f32]| x[..length * width].to_vec();
                row.own = Run { keys: cut(&row.shared.keys), values: cut(&row.shared.values) };
                row.shared = Arc::default();
            } else {
                row.own.keys.truncate(length * width - shared);
                row.own.values.truncate(length * width - shared);
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
        DenseStore { n_heads: 4, n_kv_heads: 2, head_dim: 3, layers: vec![vec![Row::default(); rows]] }
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
        // Five shared positions and two of a row of its own, keys and values.
        assert_eq!(forked.bytes(), 4 * 2 * 7 * WIDTH);
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
