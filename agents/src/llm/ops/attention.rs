//! Rotary positions and causal attention over packed sequences, as one node: `o = softmax(q kᵀ / sqrt(d) + bias) v` per
//! sequence and head, in blocks of queries, so that scores of one block of one head are all that exists of them at a time.
//! The way back computes the probabilities again.
//!
//! Rotation: Su et al. 2021 (arXiv 2104.09864), rotate-half layout. Grouped queries: Ainslie et al. 2023 (arXiv 2305.13245).

use std::ops::Range;
use std::sync::Arc;

use candle_core::{D, DType, Result, Tensor};

use super::kernel::{dot, rotate, softmax, softmax_backward};
use super::pieces::{Shared, each};
use super::product::{Matrix, product};
use super::tape::Operation;
use crate::llm::model::Span;

/// Queries per block.
const BLOCK: usize = 64;

/// Cosines and sines of rotary positions.
#[derive(Debug, Clone)]
pub(crate) struct RopeTable {
    /// `[position, rotary_dim / 2]`, times the attention factor.
    pub cos: Vec<f32>,
    /// As `cos`.
    pub sin: Vec<f32>,
    /// Half of the coordinates that turn.
    pub half: usize,
}

impl RopeTable {
    /// Angles are products of `f32`, as elsewhere; cosines and sines are rounded once.
    pub fn new(frequencies: &[f32], factor: f32, positions: usize) -> Self {
        let mut table = Self { cos: Vec::new(), sin: Vec::new(), half: frequencies.len() };
        for position in 0..positions {
            for &frequency in frequencies {
                let (sin, cos) = f64::from(position as f32 * frequency).sin_cos();
                table.cos.push(cos as f32 * factor);
                table.sin.push(sin as f32 * factor);
            }
        }
        table
    }

    /// Rotates the head `x` at `position`; `back` applies the transposed map, which gradients go through.
    pub fn rotate(&self, x: &mut [f32], position: usize, back: bool) {
        let place = position * self.half..(position + 1) * self.half;
        let (left, right) = x.split_at_mut(self.half);
        rotate(left, right, &self.cos[place.clone()], &self.sin[place], back);
    }
}

/// Constants added to the logits of keys: `marks[token] * per_head[head]`.
#[derive(Debug, Clone)]
pub(crate) struct HeadBias {
    /// One per token of the packed batch.
    pub marks: Arc<Vec<bool>>,
    /// One per query head.
    pub per_head: Vec<f32>,
}

/// How queries, keys and values stand in a row, and how they attend.
#[derive(Debug, Clone)]
pub(crate) struct Attention {
    pub head_dim: usize,
    /// First column of each query head.
    pub queries: Vec<usize>,
    /// First column of each head of keys; `queries.len()` is a multiple of their number.
    pub keys: Vec<usize>,
    /// First column of each head of values.
    pub values: Vec<usize>,
    /// Tokens of each sequence.
    pub sequences: Arc<Vec<Range<usize>>>,
    /// Table of each sequence; empty without rotary positions.
    pub ropes: Vec<Arc<RopeTable>>,
    pub span: Span,
    pub bias: Option<HeadBias>,
}

/// Scores of one block of queries.
struct Block {
    queries: Range<usize>,
    keys: Range<usize>,
}

impl Attention {
    fn width(&self) -> usize {
        self.queries.len() * self.head_dim
    }

    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    fn blocks(&self, n: usize) -> impl Iterator<Item = Block> {
        let span = self.span;
        (0..n.div_ceil(BLOCK)).map(move |i| {
            let queries = i * BLOCK..((i + 1) * BLOCK).min(n);
            Block { keys: span.first_key(queries.start)..queries.end, queries }
        })
    }

    /// A head's rows of a sequence, rotated: `[token, head_dim]`.
    fn gather(&self, rows: &[f32], columns: usize, sequence: usize, column: usize, out: &mut Vec<f32>) {
        out.clear();
        for (position, token) in self.sequences[sequence].clone().enumerate() {
            let start = out.len();
            out.extend_from_slice(&rows[token * columns + column..][..self.head_dim]);
            if let Some(rope) = self.ropes.get(sequence) {
                rope.rotate(&mut out[start..start + 2 * rope.half], position, false);
            }
        }
    }

    /// Probabilities of a block, `[query, key]`; 0 where a key is not visible.
    fn probabilities(&self, block: &Block, first_token: usize, head: usize, queries: &[f32], keys: &[f32], out: &mut Vec<f32>) {
        let (d, n_keys) = (self.head_dim, block.keys.len());
        out.resize(block.queries.len() * n_keys, 0.0);
        let left = Matrix::rows(&queries[block.queries.start * d..], d);
        let right = Matrix::rows(&keys[block.keys.start * d..], d).transposed();
        product(out, n_keys, [block.queries.len(), n_keys, d], left, right, false, self.scale());
        for (row, query) in out.chunks_exact_mut(n_keys).zip(block.queries.clone()) {
            let visible = self.span.first_key(query).max(block.keys.start) - block.keys.start..query + 1 - block.keys.start;
            if let Some(bias) = &self.bias {
                let first = first_token + block.keys.start;
                for (score, &is_marked) in row[visible.clone()].iter_mut().zip(&bias.marks[first + visible.start..]) {
                    *score += if is_marked { bias.per_head[head] } else { 0.0 };
                }
            }
            row[..visible.start].fill(0.0);
            row[visible.end..].fill(0.0);
            softmax(&mut row[visible]);
        }
    }

    fn attend(&self, rows: &[f32], columns: usize, out: &mut [f32]) {
        let (d, width, per_key) = (self.head_dim, self.width(), self.queries.len() / self.keys.len());
        let shared = Shared::new(out);
        each(self.sequences.len() * self.keys.len(), |i| {
            let (s, group) = (i / self.keys.len(), i % self.keys.len());
            let tokens = self.sequences[s].clone();
            let (mut keys, mut queries, mut scores, mut result) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
            self.gather(rows, columns, s, self.keys[group], &mut keys);
            for head in group * per_key..(group + 1) * per_key {
                self.gather(rows, columns, s, self.queries[head], &mut queries);
                for block in self.blocks(tokens.len()) {
                    self.probabilities(&block, tokens.start, head, &queries, &keys, &mut scores);
                    let (n, n_keys) = (block.queries.len(), block.keys.len());
                    let values = Matrix::rows(&rows[(tokens.start + block.keys.start) * columns + self.values[group]..], columns);
                    result.resize(n * d, 0.0);
                    product(&mut result, d, [n, d, n_keys], Matrix::rows(&scores, n_keys), values, false, 1.0);
                    for (row, query) in result.chunks_exact(d).zip(block.queries) {
                        let place = (tokens.start + query) * width + head * d;
                        // SAFETY: a head's columns in a sequence's rows are written by this piece of work alone.
                        unsafe { shared.slice(place..place + d) }.copy_from_slice(row);
                    }
                }
            }
        });
    }

    fn attend_backward(&self, rows: &[f32], columns: usize, result: &[f32], grad: &[f32], out: &mut [f32]) {
        let (d, width, per_key) = (self.head_dim, self.width(), self.queries.len() / self.keys.len());
        let shared = Shared::new(out);
        each(self.sequences.len() * self.keys.len(), |i| {
            let (s, group) = (i / self.keys.len(), i % self.keys.len());
            let tokens = self.sequences[s].clone();
            let n = tokens.len();
            let (mut keys, mut queries, mut scores) = (Vec::new(), Vec::new(), Vec::new());
            let (mut key_grad, mut value_grad) = (vec![0.0_f32; n * d], vec![0.0_f32; n * d]);
            let (mut query_grad, mut slopes) = (vec![0.0_f32; n * d], Vec::new());
            self.gather(rows, columns, s, self.keys[group], &mut keys);
            for head in group * per_key..(group + 1) * per_key {
                self.gather(rows, columns, s, self.queries[head], &mut queries);
                for block in self.blocks(n) {
                    self.probabilities(&block, tokens.start, head, &queries, &keys, &mut scores);
                    let (b, n_keys) = (block.queries.len(), block.keys.len());
                    let first = (tokens.start + block.queries.start) * width + head * d;
                    let out_grad = Matrix::rows(&grad[first..], width);
                    let probabilities = Matrix::rows(&scores, n_keys);
                    let key_place = block.keys.start * d..block.keys.end * d;
                    product(&mut value_grad[key_place.clone()], d, [n_keys, d, b], probabilities.transposed(), out_grad, true, 1.0);
                    let values = Matrix::rows(&rows[(tokens.start + block.keys.start) * columns + self.values[group]..], columns);
                    slopes.resize(b * n_keys, 0.0);
                    product(&mut slopes, n_keys, [b, n_keys, d], out_grad, values.transposed(), false, 1.0);
                    for (i, (slopes, p)) in slopes.chunks_exact_mut(n_keys).zip(scores.chunks_exact(n_keys)).enumerate() {
                        let place = first + i * width..first + i * width + d;
                        softmax_backward(p, slopes, dot(&grad[place.clone()], &result[place]));
                    }
                    let slopes = Matrix::rows(&slopes, n_keys);
                    let keys = Matrix::rows(&keys[key_place.start..], d);
                    let query_place = block.queries.start * d..block.queries.end * d;
                    product(&mut query_grad[query_place.clone()], d, [b, d, n_keys], slopes, keys, false, self.scale());
                    let queries = Matrix::rows(&queries[query_place.start..], d);
                    product(&mut key_grad[key_place], d, [n_keys, d, b], slopes.transposed(), queries, true, self.scale());
                }
                self.scatter(&shared, columns, s, self.queries[head], &mut query_grad, true);
            }
            self.scatter(&shared, columns, s, self.keys[group], &mut key_grad, true);
            self.scatter(&shared, columns, s, self.values[group], &mut value_grad, false);
        });
    }

    /// The reverse of `gather`, for gradients.
    fn scatter(&self, out: &Shared, columns: usize, sequence: usize, column: usize, head: &mut [f32], is_rotated: bool) {
        let rope = self.ropes.get(sequence).filter(|_| is_rotated);
        for ((position, token), head) in self.sequences[sequence].clone().enumerate().zip(head.chunks_exact_mut(self.head_dim)) {
            if let Some(rope) = rope {
                rope.rotate(&mut head[..2 * rope.half], position, true);
            }
            let place = token * columns + column;
            // SAFETY: the columns of one head in the rows of one sequence belong to one piece of work.
            unsafe { out.slice(place..place + self.head_dim) }.copy_from_slice(head);
        }
    }
}

/// From rows of queries, keys and values, whose columns are all some head's, to `[token, query head, head_dim]`.
impl Operation for Attention {
    fn output_width(&self, _: usize) -> usize {
        self.width()
    }

    fn forward(&self, rows: &[f32], out: &mut [f32]) {
        self.attend(rows, rows.len() / (out.len() / self.width()), out);
    }

    fn backward(&self, rows: &[f32], result: &[f32], grad: &[f32], rows_grad: &mut [f32], adds: bool) {
        assert!(!adds, "nothing else reads queries, keys and values");
        self.attend_backward(rows, rows.len() / (result.len() / self.width()), result, grad, rows_grad);
    }
}

/// The same in candle's operations, sequence by sequence. `queries`, `keys`, `values`: `[token, head, head_dim]`, not rotated.
pub(crate) fn attention_plain(queries: &Tensor, keys: &Tensor, values: &Tensor, how: &Attention) -> Result<Tensor> {
    let device = queries.device();
    let (n_heads, n_kv) = (how.queries.len(), how.keys.len());
    let mut results = Vec::with_capacity(how.sequences.len());
    for (s, tokens) in how.sequences.iter().enumerate() {
        let n = tokens.len();
        // [token, head, head_dim] -> [head, token, head_dim]
        let part = |x: &Tensor| x.narrow(0, tokens.start, n)?.transpose(0, 1)?.contiguous();
        let (mut q, mut k, v) = (part(queries)?, part(keys)?, part(values)?);
        if let Some(rope) = how.ropes.get(s) {
            let kind = q.dtype();
            let table = |x: &[f32]| Tensor::from_slice(&x[..n * rope.half], (n, rope.half), device)?.to_dtype(kind);
            let (cos, sin) = (table(&rope.cos)?, table(&rope.sin)?);
            q = rotate_plain(&q, &cos, &sin)?;
            k = rotate_plain(&k, &cos, &sin)?;
        }
        let repeat = |x: Tensor| {
            let x = x.unsqueeze(1)?.expand((n_kv, n_heads / n_kv, n, how.head_dim))?;
            x.reshape((n_heads, n, how.head_dim))?.contiguous()
        };
        let (k, v) = (repeat(k)?, repeat(v)?);
        let scores = (q.matmul(&k.transpose(1, 2)?.contiguous()?)?.to_dtype(DType::F32)? * f64::from(how.scale()))?;
        let mut added = vec![f32::NEG_INFINITY; n * n];
        for query in 0..n {
            added[query * n + how.span.first_key(query)..=query * n + query].fill(0.0);
        }
        let mut scores = scores.broadcast_add(&Tensor::from_vec(added, (1, n, n), device)?)?;
        if let Some(bias) = &how.bias {
            let marks: Vec<f32> = bias.marks[tokens.clone()].iter().map(|&m| f32::from(u8::from(m))).collect();
            let heads = Tensor::from_slice(&bias.per_head, (n_heads, 1, 1), device)?;
            scores = scores.broadcast_add(&heads.broadcast_mul(&Tensor::from_vec(marks, (1, 1, n), device)?)?)?;
        }
        let largest = scores.max_keepdim(D::Minus1)?.detach();
        let weights = scores.broadcast_sub(&largest)?.exp()?;
        let probabilities = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?.to_dtype(v.dtype())?;
        results.push(probabilities.matmul(&v)?.transpose(0, 1)?.reshape((n, n_heads * how.head_dim))?);
    }
    Tensor::cat(&results, 0)
}

/// `x`: `[..., token, head_dim]`; `cos`, `sin`: `[..., token, half]`, the leading axes broadcast. Coordinates beyond twice the
/// half pass.
pub(crate) fn rotate_plain(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let (half, width) = (cos.dim(D::Minus1)?, x.dim(D::Minus1)?);
    let (a, b) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
    let left = (a.broadcast_mul(cos)? - b.broadcast_mul(sin)?)?;
    let right = (b.broadcast_mul(cos)? + a.broadcast_mul(sin)?)?;
    match width - 2 * half {
        0 => Tensor::cat(&[left, right], D::Minus1),
        rest => Tensor::cat(&[left, right, x.narrow(D::Minus1, 2 * half, rest)?], D::Minus1),
    }
}
