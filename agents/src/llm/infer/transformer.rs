//! The forward pass of generation: new tokens of several rows through all layers, past keys and values from a store.

use super::packed::PackedLinear;
use super::{NewTokens, cover};
use crate::AgentError;
use crate::llm::cache::{KvStore, RowBias};
use crate::llm::model::{Decoder, DecoderConfig, DenseLinear, DenseNorm, DenseWeights, NormKind};
use crate::llm::ops::activation::activate_rows;
use crate::llm::ops::attention::RopeTable;
use crate::llm::ops::{Shared, each, moments, normalise};

struct Layer {
    attention_norm: DenseNorm,
    mlp_norm: DenseNorm,
    qkv: PackedLinear,
    out: PackedLinear,
    q_norm: Option<Vec<f32>>,
    k_norm: Option<Vec<f32>>,
    /// Gate and up side by side, or up alone.
    inner: PackedLinear,
    down: PackedLinear,
}

/// A decoder's weights, packed.
pub(crate) struct Transformer {
    config: DecoderConfig,
    embedding: Vec<f32>,
    positions: Option<Vec<f32>>,
    layers: Vec<Layer>,
    final_norm: DenseNorm,
    head: PackedLinear,
    /// Weights of all maps.
    weights: Vec<f32>,
    rope: Option<RopeTable>,
    buffers: Buffers,
}

/// Intermediate results, kept from pass to pass; one row per token.
#[derive(Default)]
struct Buffers {
    /// Position of each token in its row.
    positions: Vec<usize>,
    /// The residual stream.
    x: Vec<f32>,
    /// `x` normalised.
    normal: Vec<f32>,
    /// Queries, keys and values.
    rows: Vec<f32>,
    attended: Vec<f32>,
    /// What a block adds to the residual stream.
    added: Vec<f32>,
    inner: Vec<f32>,
    active: Vec<f32>,
    /// Of products of several rows.
    room: Vec<f32>,
    /// Queries, keys and values of several tokens, one kind after the other.
    split: Vec<f32>,
}

impl Transformer {
    /// Packs the weights of a decoder.
    pub fn new(decoder: &Decoder) -> Result<Self, AgentError> {
        Ok(Self::from_dense(decoder.config(), decoder.dense()?))
    }

    /// Packs plain weights.
    pub fn from_dense(config: &DecoderConfig, dense: DenseWeights) -> Self {
        let hidden = config.hidden_size;
        let layers = dense.layers.into_iter().map(|layer| Layer {
            qkv: PackedLinear::new(&[&layer.q, &layer.k, &layer.v], hidden),
            out: PackedLinear::new(&[&layer.o], config.n_heads * config.head_dim),
            inner: match &layer.gate {
                Some(gate) => PackedLinear::new(&[gate, &layer.up], hidden),
                None => PackedLinear::new(&[&layer.up], hidden),
            },
            down: PackedLinear::new(&[&layer.down], config.intermediate_size),
            attention_norm: layer.attention_norm,
            mlp_norm: layer.mlp_norm,
            q_norm: layer.q_norm,
            k_norm: layer.k_norm,
        });
        let mut layers: Vec<Layer> = layers.collect();
        let mut head = match dense.head {
            Some(head) => PackedLinear::new(&[&DenseLinear { weight: head, bias: None }], hidden),
            None => PackedLinear::new(&[&DenseLinear { weight: dense.embedding.clone(), bias: None }], hidden),
        };
        let maps = layers.iter_mut().flat_map(|layer| [&mut layer.qkv, &mut layer.out, &mut layer.inner, &mut layer.down]);
        let weights = PackedLinear::together(&mut maps.chain([&mut head]).collect::<Vec<_>>());
        Self {
            weights,
            config: config.clone(),
            embedding: dense.embedding,
            positions: dense.positions,
            layers,
            final_norm: dense.final_norm,
            head,
            rope: None,
            buffers: Buffers::default(),
        }
    }

    /// The shape.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Runs new tokens through the model and leaves the logits after the last one of each row in `logits`, `[row, vocab]`. Each row
    /// of the store is named at most once.
    pub fn advance(&mut self, new: &[NewTokens<'_>], store: &mut dyn KvStore, biases: Option<&[RowBias<'_>]>, logits: &mut Vec<f32>) {
        let starts: Vec<usize> = new.iter().map(|n| store.len(n.row)).collect();
        cover(&mut self.rope, &self.config, new.iter().zip(&starts).map(|(n, start)| start + n.tokens.len()).max().unwrap_or(0));
        let mut buffers = std::mem::take(&mut self.buffers);
        let b = &mut buffers;
        self.embed(new, &starts, b);
        let config = &self.config;
        let (hidden, query, key) = (config.hidden_size, config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim);
        let total = b.positions.len();
        b.normal.resize(total * hidden, 0.0);
        b.added.resize(total * hidden, 0.0);
        b.rows.resize(total * (query + 2 * key), 0.0);
        b.attended.resize(total * query, 0.0);
        b.active.resize(total * config.intermediate_size, 0.0);
        for (l, layer) in self.layers.iter().enumerate() {
            self.norm(&layer.attention_norm, &b.x, &mut b.normal);
            layer.qkv.apply(&self.weights, &b.normal, &mut b.rows, &mut b.room);
            self.turn(layer, b);
            self.attend(l, new, store, biases, b);
            layer.out.apply(&self.weights, &b.attended, &mut b.added, &mut b.room);
            if config.parallel_residual {
                self.norm(&layer.mlp_norm, &b.x, &mut b.normal);
                b.x.iter_mut().zip(&b.added).for_each(|(x, a)| *x += a);
            } else {
                b.x.iter_mut().zip(&b.added).for_each(|(x, a)| *x += a);
                self.norm(&layer.mlp_norm, &b.x, &mut b.normal);
            }
            b.inner.resize(total * layer.inner.output(), 0.0);
            layer.inner.apply(&self.weights, &b.normal, &mut b.inner, &mut b.room);
            activate_rows(&b.inner, config.activation, config.is_gated, config.intermediate_size, &mut b.active);
            layer.down.apply(&self.weights, &b.active, &mut b.added, &mut b.room);
            b.x.iter_mut().zip(&b.added).for_each(|(x, a)| *x += a);
        }
        // The last token of each row.
        let mut end = 0;
        for (i, n) in new.iter().enumerate() {
            end += n.tokens.len();
            b.added[i * hidden..(i + 1) * hidden].copy_from_slice(&b.x[(end - 1) * hidden..end * hidden]);
        }
        let last = new.len() * hidden;
        self.norm(&self.final_norm, &b.added[..last], &mut b.normal[..last]);
        logits.resize(new.len() * config.vocab_size, 0.0);
        self.head.apply(&self.weights, &b.normal[..last], logits, &mut b.room);
        self.buffers = buffers;
    }

    /// Embeds the new tokens and notes their positions.
    fn embed(&self, new: &[NewTokens<'_>], starts: &[usize], b: &mut Buffers) {
        let hidden = self.config.hidden_size;
        b.positions.clear();
        b.x.clear();
        for (n, start) in new.iter().zip(starts) {
            for (t, &token) in n.tokens.iter().enumerate() {
                let position = start + t;
                b.positions.push(position);
                let place = b.x.len();
                b.x.extend_from_slice(&self.embedding[token as usize * hidden..][..hidden]);
                if let Some(table) = &self.positions {
                    b.x[place..].iter_mut().zip(&table[position * hidden..]).for_each(|(x, p)| *x += p);
                }
            }
        }
    }

    /// Norms of single heads, and rotary positions.
    fn turn(&self, layer: &Layer, b: &mut Buffers) {
        let (config, d) = (&self.config, self.config.head_dim);
        if self.rope.is_none() && layer.q_norm.is_none() && layer.k_norm.is_none() {
            return;
        }
        let (turned, width) = ((config.n_heads + config.n_kv_heads) * d, (config.n_heads + 2 * config.n_kv_heads) * d);
        for (row, &position) in b.rows.chunks_exact_mut(width).zip(&b.positions) {
            for (h, head) in row[..turned].chunks_exact_mut(d).enumerate() {
                if let Some(weight) = if h < config.n_heads { &layer.q_norm } else { &layer.k_norm } {
                    let (_, inverse) = moments(head, false, config.norm_eps as f32);
                    head.iter_mut().zip(weight).for_each(|(x, w)| *x = *x * inverse * w);
                }
                if let Some(rope) = &self.rope {
                    rope.rotate(&mut head[..2 * rope.half], position, false);
                }
            }
        }
    }

    /// Hands keys and values of one layer to the store, and the queries, which attend row by row.
    fn attend(&self, l: usize, new: &[NewTokens<'_>], store: &mut dyn KvStore, biases: Option<&[RowBias<'_>]>, b: &mut Buffers) {
        let config = &self.config;
        let (query, key) = (config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim);
        let width = query + 2 * key;
        let firsts: Vec<usize> = new
            .iter()
            .scan(0, |end, n| {
                *end += n.tokens.len();
                Some(*end - n.tokens.len())
            })
            .collect();
        // A single token's parts stand in one piece as they are; those of several tokens are gathered.
        let (queries, stride): (&[f32], usize) = if new.iter().all(|n| n.tokens.len() == 1) {
            for (n, row) in new.iter().zip(b.rows.chunks_exact(width)) {
                let (_, rest) = row.split_at(query);
                store.append(l, n.row, &rest[..key], &rest[key..]);
            }
            (&b.rows, width)
        } else {
            let total = b.positions.len();
            b.split.resize(total * width, 0.0);
            let (queries, rest) = b.split.split_at_mut(total * query);
            let (keys, values) = rest.split_at_mut(total * key);
            for (t, row) in b.rows.chunks_exact(width).enumerate() {
                queries[t * query..(t + 1) * query].copy_from_slice(&row[..query]);
                keys[t * key..(t + 1) * key].copy_from_slice(&row[query..query + key]);
                values[t * key..(t + 1) * key].copy_from_slice(&row[query + key..]);
            }
            for (n, &first) in new.iter().zip(&firsts) {
                let place = first * key..(first + n.tokens.len()) * key;
                store.append(l, n.row, &keys[place.clone()], &values[place]);
            }
            (queries, query)
        };
        let (store, attended, span) = (&*store, Shared::new(&mut b.attended), config.spans[l]);
        each(new.len(), |i| {
            let (first, n) = (firsts[i], new[i].tokens.len());
            // SAFETY: each entry has tokens of its own.
            let out = unsafe { attended.slice(first * query..(first + n) * query) };
            let queries = &queries[first * stride..][..n * query];
            store.attend(l, new[i].row, queries, biases.map(|biases| biases[i].of_layer(l)), span, out);
        });
    }

    fn norm(&self, norm: &DenseNorm, x: &[f32], out: &mut [f32]) {
        let (width, is_centred, eps) = (self.config.hidden_size, self.config.norm == NormKind::Layer, self.config.norm_eps as f32);
        for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
            normalise(x, &norm.weight, norm.bias.as_deref(), is_centred, eps, out);
        }
    }
}
