//! Generation in candle's operations, where the weights are: on a GPU, in `bf16`.
//!
//! Rows of a batch end together: shorter ones begin with room that nobody looks at. Keys and values are one tensor per layer,
//! `[row, kv head, position, head_dim]`, so that a token of all rows is a few large products.

use std::collections::HashMap;

use candle_core::{D, DType, Device, Tensor};

use super::{NewTokens, cover};
use crate::AgentError;
use crate::llm::cache::RowBias;
use crate::llm::model::{Decoder, DecoderConfig, DenseLinear, DenseNorm, NormKind, Span};
use crate::llm::ops::activation::activate_plain;
use crate::llm::ops::attention::{RopeTable, rotate_plain};
use crate::llm::ops::linear::linear_plain;
use crate::llm::ops::norm::norm_plain;

struct Linear {
    /// `[input, output]`.
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    fn apply(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        linear_plain(x, &self.weight, self.bias.as_ref(), true)
    }
}

struct Norm {
    weight: Tensor,
    bias: Option<Tensor>,
}

struct Layer {
    attention_norm: Norm,
    mlp_norm: Norm,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    q_norm: Option<Tensor>,
    k_norm: Option<Tensor>,
    gate: Option<Linear>,
    up: Linear,
    down: Linear,
}

/// A decoder's weights on its device.
pub(crate) struct DeviceTransformer {
    config: DecoderConfig,
    device: Device,
    kind: DType,
    embedding: Tensor,
    positions: Option<Tensor>,
    layers: Vec<Layer>,
    final_norm: Norm,
    head: Linear,
    rope: Option<RopeTable>,
}

/// Keys and values of several rows on a device.
pub(crate) struct DeviceCache {
    /// One per layer, once there is something: keys and values, `[slot, kv head, position, head_dim]`. The positions of a row
    /// are the last ones of its slot.
    layers: Vec<Option<(Tensor, Tensor)>>,
    /// Slot and number of tokens of each row.
    rows: Vec<Option<(usize, usize)>>,
}

/// Puts tensors on a device.
struct Loader<'a> {
    device: &'a Device,
    kind: DType,
}

impl Loader<'_> {
    fn tensor(&self, values: &[f32], shape: &[usize]) -> candle_core::Result<Tensor> {
        Tensor::from_slice(values, shape, self.device)?.to_dtype(self.kind)
    }

    fn vector(&self, values: &[f32]) -> candle_core::Result<Tensor> {
        self.tensor(values, &[values.len()])
    }

    fn linear(&self, map: &DenseLinear, input: usize) -> candle_core::Result<Linear> {
        let weight = self.tensor(&map.weight, &[map.weight.len() / input, input])?.t()?.contiguous()?;
        Ok(Linear { weight, bias: map.bias.as_deref().map(|b| self.vector(b)).transpose()? })
    }

    fn norm(&self, norm: &DenseNorm) -> candle_core::Result<Norm> {
        Ok(Norm { weight: self.vector(&norm.weight)?, bias: norm.bias.as_deref().map(|b| self.vector(b)).transpose()? })
    }
}

impl DeviceTransformer {
    /// Copies the weights of a decoder to where the decoder is.
    ///
    /// # Errors
    /// [`AgentError::State`] if it has a scalar head; [`AgentError::Tensor`] if the device fails.
    pub fn new(decoder: &Decoder) -> Result<Self, AgentError> {
        let (config, dense, device) = (decoder.config().clone(), decoder.dense()?, decoder.device().clone());
        let kind = if device.is_cpu() { DType::F32 } else { DType::BF16 };
        let load = Loader { device: &device, kind };
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let mut layers = Vec::with_capacity(dense.layers.len());
        for layer in &dense.layers {
            layers.push(Layer {
                attention_norm: load.norm(&layer.attention_norm)?,
                mlp_norm: load.norm(&layer.mlp_norm)?,
                q: load.linear(&layer.q, hidden)?,
                k: load.linear(&layer.k, hidden)?,
                v: load.linear(&layer.v, hidden)?,
                o: load.linear(&layer.o, config.n_heads * config.head_dim)?,
                q_norm: layer.q_norm.as_deref().map(|w| load.vector(w)).transpose()?,
                k_norm: layer.k_norm.as_deref().map(|w| load.vector(w)).transpose()?,
                gate: layer.gate.as_ref().map(|gate| load.linear(gate, hidden)).transpose()?,
                up: load.linear(&layer.up, hidden)?,
                down: load.linear(&layer.down, inner)?,
            });
        }
        let embedding = load.tensor(&dense.embedding, &[config.vocab_size, hidden])?;
        let weight = match &dense.head {
            Some(head) => load.tensor(head, &[config.vocab_size, hidden])?.t()?.contiguous()?,
            None => embedding.t()?.contiguous()?,
        };
        let positions = dense.positions.as_deref().map(|p| load.tensor(p, &[p.len() / hidden, hidden])).transpose()?;
        let final_norm = load.norm(&dense.final_norm)?;
        Ok(Self { config, kind, embedding, positions, layers, final_norm, head: Linear { weight, bias: None }, rope: None, device })
    }

    /// The shape.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// An empty cache for `rows` rows.
    pub fn cache(&self, rows: usize) -> DeviceCache {
        DeviceCache { layers: self.layers.iter().map(|_| None).collect(), rows: vec![None; rows] }
    }

    /// As [`super::Transformer::advance`]. The rows are either new ones, or all that there are, in their order.
    ///
    /// # Errors
    /// [`AgentError::Tensor`] if the device fails.
    pub fn advance(
        &mut self,
        new: &[NewTokens<'_>],
        cache: &mut DeviceCache,
        biases: Option<&[RowBias<'_>]>,
    ) -> Result<Vec<f32>, AgentError> {
        let config = &self.config;
        let (rows, n) = (new.len(), new.iter().map(|new| new.tokens.len()).max().unwrap_or(0));
        let starts: Vec<usize> = new.iter().map(|new| cache.rows[new.row].map_or(0, |(_, length)| length)).collect();
        let is_new = starts.iter().all(|&start| start == 0);
        assert!(is_new || new.iter().enumerate().all(|(i, new)| cache.rows[new.row].is_some_and(|(slot, _)| slot == i)), "rows in order");
        cover(&mut self.rope, config, new.iter().zip(&starts).map(|(new, start)| start + new.tokens.len()).max().unwrap_or(0));
        let before = if is_new { 0 } else { cache.width() };
        let batch = Batch::new(new, &starts, n, before);

        let ids = Tensor::from_slice(&batch.tokens, rows * n, &self.device)?;
        let mut x = self.embedding.index_select(&ids, 0)?;
        if let Some(table) = &self.positions {
            x = (x + table.index_select(&Tensor::from_slice(&batch.positions, rows * n, &self.device)?, 0)?)?;
        }
        let turns = self.rope.as_ref().map(|rope| self.turns(rope, &batch)).transpose()?;
        let mut masks: HashMap<Span, Tensor> = HashMap::new();
        let mut found = Vec::with_capacity(self.layers.len());
        for (l, layer) in self.layers.iter().enumerate() {
            let span = config.spans[l];
            let mut added = match masks.get(&span) {
                Some(mask) => mask.clone(),
                None => Tensor::from_vec(batch.mask(span), (rows, 1, n, before + n), &self.device)?,
            };
            masks.entry(span).or_insert_with(|| added.clone());
            if let Some(biases) = biases {
                let bias = Tensor::from_vec(batch.bias(biases, l, config.n_heads), (rows, config.n_heads, 1, before + n), &self.device)?;
                added = added.broadcast_add(&bias)?;
            }
            let past = if is_new { None } else { cache.layers[l].as_ref() };
            let (attended, keys, values) = self.attend(layer, &x, [rows, n], turns.as_ref(), &added, past)?;
            found.push((keys, values));
            if config.parallel_residual {
                x = ((&x + attended)? + self.feed(layer, &x)?)?;
            } else {
                x = (x + attended)?;
                x = (&x + self.feed(layer, &x)?)?;
            }
        }
        cache.take(new, &starts, found, is_new)?;
        let last = x.reshape((rows, n, config.hidden_size))?.narrow(1, n - 1, 1)?.squeeze(1)?;
        let logits = self.head.apply(&self.norm(&last, &self.final_norm)?)?;
        Ok(logits.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
    }

    fn norm(&self, x: &Tensor, norm: &Norm) -> candle_core::Result<Tensor> {
        norm_plain(x, &norm.weight, norm.bias.as_ref(), self.config.norm_eps, self.config.norm == NormKind::Layer)
    }

    fn feed(&self, layer: &Layer, x: &Tensor) -> candle_core::Result<Tensor> {
        let x = self.norm(x, &layer.mlp_norm)?;
        let up = layer.up.apply(&x)?;
        let active = match &layer.gate {
            Some(gate) => activate_plain(&gate.apply(&x)?, Some(&up), self.config.activation)?,
            None => activate_plain(&up, None, self.config.activation)?,
        };
        layer.down.apply(&active)
    }

    /// Cosines and sines of all tokens, `[row, 1, token, half]`.
    fn turns(&self, rope: &RopeTable, batch: &Batch<'_>) -> candle_core::Result<(Tensor, Tensor)> {
        let pick = |table: &[f32]| {
            let rows = batch.positions.iter().flat_map(|&p| &table[p as usize * rope.half..(p as usize + 1) * rope.half]);
            let values: Vec<f32> = rows.copied().collect();
            Tensor::from_vec(values, (batch.new.len(), 1, batch.n, rope.half), &self.device)?.to_dtype(self.kind)
        };
        Ok((pick(&rope.cos)?, pick(&rope.sin)?))
    }

    /// Attention of the new tokens: what it adds to `x`, and keys and values of old and new positions.
    fn attend(
        &self,
        layer: &Layer,
        x: &Tensor,
        [rows, n]: [usize; 2],
        turns: Option<&(Tensor, Tensor)>,
        added: &Tensor,
        past: Option<&(Tensor, Tensor)>,
    ) -> candle_core::Result<(Tensor, Tensor, Tensor)> {
        let (config, d) = (&self.config, self.config.head_dim);
        let (heads, kv) = (config.n_heads, config.n_kv_heads);
        let x = self.norm(x, &layer.attention_norm)?;
        // [row, head, token, head_dim]
        let part = |map: &Linear, heads: usize, norm: Option<&Tensor>, is_turned: bool| {
            let mut part = map.apply(&x)?.reshape((rows, n, heads, d))?;
            if let Some(weight) = norm {
                part = norm_plain(&part, weight, None, config.norm_eps, false)?;
            }
            let part = part.transpose(1, 2)?;
            match turns.filter(|_| is_turned) {
                Some((cos, sin)) => rotate_plain(&part, cos, sin),
                None => part.contiguous(),
            }
        };
        let q = part(&layer.q, heads, layer.q_norm.as_ref(), true)?;
        let (mut k, mut v) = (part(&layer.k, kv, layer.k_norm.as_ref(), true)?, part(&layer.v, kv, None, false)?);
        if let Some((keys, values)) = past {
            k = Tensor::cat(&[keys, &k], 2)?;
            v = Tensor::cat(&[values, &v], 2)?;
        }
        let total = k.dim(2)?;
        // Queries that share keys stand below each other.
        let q = q.reshape((rows, kv, heads / kv * n, d))?;
        let scores = (q.matmul(&k.transpose(2, 3)?.contiguous()?)?.to_dtype(DType::F32)? / (d as f64).sqrt())?;
        let scores = scores.reshape((rows, heads, n, total))?.broadcast_add(added)?;
        let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
        let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?.to_dtype(self.kind)?;
        let result = weights.reshape((rows, kv, heads / kv * n, total))?.matmul(&v)?;
        let result = result.reshape((rows, heads, n, d))?.transpose(1, 2)?.reshape((rows * n, heads * d))?;
        Ok((layer.o.apply(&result)?, k, v))
    }
}

/// New tokens of several rows, filled up at their beginnings.
struct Batch<'a> {
    new: &'a [NewTokens<'a>],
    starts: &'a [usize],
    /// Tokens per row.
    n: usize,
    /// Positions that the cache has per row.
    before: usize,
    /// `[row, token]`.
    tokens: Vec<u32>,
    /// As `tokens`.
    positions: Vec<u32>,
}

impl<'a> Batch<'a> {
    fn new(new: &'a [NewTokens<'a>], starts: &'a [usize], n: usize, before: usize) -> Self {
        let (mut tokens, mut positions) = (vec![0; new.len() * n], vec![0; new.len() * n]);
        for (i, (new, start)) in new.iter().zip(starts).enumerate() {
            let first = (i + 1) * n - new.tokens.len();
            tokens[first..(i + 1) * n].copy_from_slice(new.tokens);
            (0..new.tokens.len()).for_each(|t| positions[first + t] = (start + t) as u32);
        }
        Self { new, starts, n, before, tokens, positions }
    }

    /// Position of a column of keys of a row, unless it only fills up.
    fn position(&self, row: usize, column: usize) -> Option<usize> {
        let length = self.starts[row] + self.new[row].tokens.len();
        (column + length).checked_sub(self.before + self.n)
    }

    /// What is added to the scores, `[row, query, key]`: 0 or minus infinity. Queries that only fill up see themselves.
    fn mask(&self, span: Span) -> Vec<f32> {
        let total = self.before + self.n;
        let mut mask = vec![f32::NEG_INFINITY; self.new.len() * self.n * total];
        for (i, of_query) in mask.chunks_exact_mut(total).enumerate() {
            let (row, column) = (i / self.n, self.before + i % self.n);
            match self.position(row, column) {
                None => of_query[column] = 0.0,
                Some(position) => {
                    // Columns of visible keys end with the query's own.
                    let visible = position + 1 - span.first_key(position);
                    of_query[column + 1 - visible..=column].fill(0.0);
                }
            }
        }
        mask
    }

    /// Bias of the keys of one layer, `[row, head, key]`.
    fn bias(&self, biases: &[RowBias<'_>], layer: usize, heads: usize) -> Vec<f32> {
        let total = self.before + self.n;
        let mut all = Vec::with_capacity(self.new.len() * heads * total);
        for (row, bias) in biases.iter().enumerate() {
            let bias = bias.of_layer(layer);
            for &of_head in &bias.per_head[..heads] {
                let is_marked = |column| self.position(row, column).is_some_and(|p| bias.marks.get(p) == Some(&true));
                all.extend((0..total).map(|column| if is_marked(column) { of_head } else { 0.0 }));
            }
        }
        all
    }
}

impl DeviceCache {
    fn width(&self) -> usize {
        self.layers.first().and_then(Option::as_ref).map_or(0, |(keys, _)| keys.dims()[2])
    }

    /// Takes keys and values of all layers: of new rows, in slots behind the others, or of all rows in place of what was.
    fn take(&mut self, new: &[NewTokens<'_>], starts: &[usize], found: Vec<(Tensor, Tensor)>, is_new: bool) -> candle_core::Result<()> {
        let slots = if is_new { self.rows.iter().flatten().count() } else { 0 };
        for (layer, (keys, values)) in self.layers.iter_mut().zip(found) {
            *layer = Some(match layer.take().filter(|_| is_new) {
                None => (keys, values),
                Some((old_keys, old_values)) => (below(&old_keys, &keys)?, below(&old_values, &values)?),
            });
        }
        for (i, (new, start)) in new.iter().zip(starts).enumerate() {
            self.rows[new.row] = Some((slots + i, start + new.tokens.len()));
        }
        Ok(())
    }

    /// As [`crate::llm::cache::KvStore::select_rows`]; all rows must hold something.
    ///
    /// # Errors
    /// [`AgentError::Tensor`] if the device fails.
    pub fn select_rows(&mut self, rows: &[usize]) -> Result<(), AgentError> {
        let chosen: Vec<(usize, usize)> = rows.iter().filter_map(|&row| self.rows[row]).collect();
        assert_eq!(chosen.len(), rows.len(), "a row without tokens cannot be chosen");
        let longest = chosen.iter().map(|&(_, length)| length).max().unwrap_or(0);
        let slots: Vec<u32> = chosen.iter().map(|&(slot, _)| slot as u32).collect();
        for layer in &mut self.layers {
            let Some((keys, values)) = layer.take().filter(|_| !chosen.is_empty()) else { continue };
            let ids = Tensor::from_slice(&slots, slots.len(), keys.device())?;
            let pick = |x: &Tensor| x.narrow(2, x.dim(2)? - longest, longest)?.contiguous()?.index_select(&ids, 0);
            *layer = Some((pick(&keys)?, pick(&values)?));
        }
        self.rows = chosen.iter().enumerate().map(|(i, &(_, length))| Some((i, length))).collect();
        Ok(())
    }
}

/// Rows below rows, filled up at the beginnings of their positions.
fn below(above: &Tensor, rows: &Tensor) -> candle_core::Result<Tensor> {
    let width = above.dim(2)?.max(rows.dim(2)?);
    let fill = |x: &Tensor| x.pad_with_zeros(2, width - x.dim(2)?, 0);
    Tensor::cat(&[fill(above)?, fill(rows)?], 0)
}
