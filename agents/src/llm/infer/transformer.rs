//! The forward pass of generation: new tokens of several rows through all layers, past keys and values from a store.

use super::packed::PackedLinear;
use crate::AgentError;
use crate::llm::cache::{KvStore, RowBias};
use crate::llm::model::{Decoder, DecoderConfig, DenseLinear, DenseNorm, DenseWeights, NormKind, Positions, RopeScaling, rope_frequencies};
use crate::llm::ops::activation::activate_rows;
use crate::llm::ops::attention::RopeTable;
use crate::llm::ops::moments;

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
    rope: Option<RopeTable>,
}

/// New tokens of one row of a store.
pub(crate) struct NewTokens<'a> {
    /// Row of the store.
    pub row: usize,
    /// Tokens that follow what the store holds of the row.
    pub tokens: &'a [u32],
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
        let layers = layers.collect();
        let head = match dense.head {
            Some(head) => PackedLinear::new(&[&DenseLinear { weight: head, bias: None }], hidden),
            None => PackedLinear::new(&[&DenseLinear { weight: dense.embedding.clone(), bias: None }], hidden),
        };
        Self {
            config: config.clone(),
            embedding: dense.embedding,
            positions: dense.positions,
            layers,
            final_norm: dense.final_norm,
            head,
            rope: None,
        }
    }

    /// The shape.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Most tokens of a row, prompt and completion. Dynamically scaled positions end where their scaling would begin: keys
    /// that are stored were turned by the unscaled angles.
    pub fn context(&self) -> usize {
        match self.config.positions {
            Positions::Rope(rope) => match rope.scaling {
                RopeScaling::Dynamic { original_max_positions, .. } => original_max_positions.min(self.config.max_positions),
                _ => self.config.max_positions,
            },
            Positions::Learned => self.config.max_positions,
        }
    }

    /// Makes tables for positions below `n`.
    fn prepare(&mut self, n: usize) {
        let Positions::Rope(rope) = &self.config.positions else { return };
        let known = self.rope.as_ref().map_or(0, |table| table.cos.len() / table.half.max(1));
        if known < n {
            let n = n.max(2 * known).min(self.context().max(n));
            let (frequencies, factor) = rope_frequencies(rope, n);
            self.rope = Some(RopeTable::new(&frequencies, factor, n));
        }
    }

    /// Runs new tokens through the model and gives the logits after the last one of each row, `[row, vocab]`.
    pub fn advance(&mut self, new: &[NewTokens<'_>], store: &mut dyn KvStore, biases: Option<&[RowBias<'_>]>) -> Vec<f32> {
        let config = self.config.clone();
        let (hidden, d) = (config.hidden_size, config.head_dim);
        let starts: Vec<usize> = new.iter().map(|n| store.len(n.row)).collect();
        self.prepare(new.iter().zip(&starts).map(|(n, start)| start + n.tokens.len()).max().unwrap_or(0));
        let total: usize = new.iter().map(|n| n.tokens.len()).sum();
        // Position of each token, and the entry of `new` that it belongs to.
        let places: Vec<(usize, usize)> =
            new.iter().enumerate().flat_map(|(i, n)| (0..n.tokens.len()).map(move |t| (i, t))).map(|(i, t)| (i, starts[i] + t)).collect();
        let mut x = Vec::with_capacity(total * hidden);
        for (&token, &(_, position)) in new.iter().flat_map(|n| n.tokens).zip(&places) {
            let start = x.len();
            x.extend_from_slice(&self.embedding[token as usize * hidden..][..hidden]);
            if let Some(table) = &self.positions {
                x[start..].iter_mut().zip(&table[position * hidden..]).for_each(|(x, p)| *x += p);
            }
        }
        let (query, key) = (config.n_heads * d, config.n_kv_heads * d);
        let mut normal = vec![0.0; total * hidden];
        let mut rows = vec![0.0; total * (query + 2 * key)];
        let mut attended = vec![0.0; total * query];
        let mut added = vec![0.0; total * hidden];
        let mut inner = Vec::new();
        let mut active = vec![0.0; total * config.intermediate_size];
        for (l, layer) in self.layers.iter().enumerate() {
            self.norm(&layer.attention_norm, &x, &mut normal);
            layer.qkv.apply(&normal, &mut rows);
            for (row, &(_, position)) in rows.chunks_exact_mut(query + 2 * key).zip(&places) {
                let (heads, _) = row.split_at_mut(query + key);
                for (h, head) in heads.chunks_exact_mut(d).enumerate() {
                    if let Some(weight) = if h < config.n_heads { &layer.q_norm } else { &layer.k_norm } {
                        let (_, inverse) = moments(head, false, config.norm_eps as f32);
                        head.iter_mut().zip(weight).for_each(|(x, w)| *x = *x * inverse * w);
                    }
                    if let Some(rope) = &self.rope {
                        rope.rotate(&mut head[..2 * rope.half], position, false);
                    }
                }
            }
            let mut first = 0;
            for (i, n) in new.iter().enumerate() {
                let range = first..first + n.tokens.len();
                first = range.end;
                let width = query + 2 * key;
                let part = |from: usize, size: usize| -> Vec<f32> {
                    rows[range.start * width..range.end * width]
                        .chunks_exact(width)
                        .flat_map(|row| &row[from..from + size])
                        .copied()
                        .collect()
                };
                store.append(l, n.row, &part(query, key), &part(query + key, key));
                let bias = biases.map(|biases| biases[i].of_layer(l));
                store.attend(l, n.row, &part(0, query), bias, config.spans[l], &mut attended[range.start * query..range.end * query]);
            }
            layer.out.apply(&attended, &mut added);
            if config.parallel_residual {
                self.norm(&layer.mlp_norm, &x, &mut normal);
                x.iter_mut().zip(&added).for_each(|(x, a)| *x += a);
            } else {
                x.iter_mut().zip(&added).for_each(|(x, a)| *x += a);
                self.norm(&layer.mlp_norm, &x, &mut normal);
            }
            inner.resize(total * layer.inner.output(), 0.0);
            layer.inner.apply(&normal, &mut inner);
            activate_rows(&inner, config.activation, config.is_gated, config.intermediate_size, &mut active);
            layer.down.apply(&active, &mut added);
            x.iter_mut().zip(&added).for_each(|(x, a)| *x += a);
        }
        let mut last = Vec::with_capacity(new.len() * hidden);
        let mut end = 0;
        for n in new {
            end += n.tokens.len();
            last.extend_from_slice(&x[(end - 1) * hidden..end * hidden]);
        }
        let mut normal = vec![0.0; last.len()];
        self.norm(&self.final_norm, &last, &mut normal);
        let mut logits = vec![0.0; new.len() * config.vocab_size];
        self.head.apply(&normal, &mut logits);
        logits
    }

    fn norm(&self, norm: &DenseNorm, x: &[f32], out: &mut [f32]) {
        let (width, is_centred) = (self.config.hidden_size, self.config.norm == NormKind::Layer);
        for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
            let (mean, inverse) = moments(x, is_centred, self.config.norm_eps as f32);
            for ((out, x), w) in out.iter_mut().zip(x).zip(&norm.weight) {
                *out = (x - mean) * inverse * w;
            }
            if let Some(bias) = &norm.bias {
                out.iter_mut().zip(bias).for_each(|(out, b)| *out += b);
            }
        }
    }
}
