//! The backbone: from embedded tokens to the last hidden states, over fused or plain operations.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};

use super::decoder::Decoder;
use super::parameters::Values;
use super::rows::unfit;
use super::weights::Names;
use super::{DecoderConfig, Family, KeyBias, NormKind, Positions, RopeScaling, Span, rope_frequencies};
use crate::AgentError;
use crate::llm::ops::activation::{Activate, activate_plain};
use crate::llm::ops::attention::{Attention, HeadBias, RopeTable, attention_plain};
use crate::llm::ops::linear::{Linear, LinearPart, linear_plain};
use crate::llm::ops::norm::{Norm, norm_plain};
use crate::llm::ops::surrogate::surrogate;
use crate::llm::ops::tape::{Activations, Buffer, Tape, Weight, read};
use crate::llm::sequence::TokenSequence;

/// What attention is asked for beyond the configuration.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Steering {
    /// Spans of the layers in place of those of the configuration.
    pub spans: Option<Vec<Span>>,
    /// Constants added to the logits of marked keys, with one mark per token of all sequences.
    pub key_bias: Option<KeyBias>,
}

impl Steering {
    /// The same for a batch that begins at a later token.
    pub(super) fn starting_at(&self, first: usize) -> Self {
        let mut later = self.clone();
        if let Some(bias) = &mut later.key_bias {
            bias.is_marked.drain(..first.min(bias.is_marked.len()));
        }
        later
    }

    fn check(&self, config: &DecoderConfig, tokens: usize) -> Result<(), AgentError> {
        let wrong = |op: &str, expected: Vec<usize>, got: Vec<usize>| Err(AgentError::Shape { op: op.to_string(), expected, got });
        if let Some(spans) = self.spans.as_ref().filter(|spans| spans.len() != config.n_layers) {
            return wrong("spans per layer", vec![config.n_layers], vec![spans.len()]);
        }
        if let Some(bias) = &self.key_bias {
            if bias.is_marked.len() < tokens {
                return wrong("marks of keys", vec![tokens], vec![bias.is_marked.len()]);
            }
            if bias.per_head.len() != config.n_layers || bias.per_head.iter().any(|heads| heads.len() != config.n_heads) {
                let got = vec![bias.per_head.len(), bias.per_head.first().map_or(0, Vec::len)];
                return wrong("bias per layer and query head", vec![config.n_layers, config.n_heads], got);
            }
        }
        Ok(())
    }
}

/// Sequences one behind the other.
pub(super) struct Packed {
    pub tokens: Vec<u32>,
    pub sequences: Arc<Vec<Range<usize>>>,
}

impl Packed {
    pub fn of(sequences: &[&TokenSequence], config: &DecoderConfig) -> Result<Self, AgentError> {
        Self::new(&sequences.iter().map(|s| s.tokens.as_slice()).collect::<Vec<_>>(), config)
    }

    pub fn new(sequences: &[&[u32]], config: &DecoderConfig) -> Result<Self, AgentError> {
        let (mut tokens, mut ranges) = (Vec::new(), Vec::with_capacity(sequences.len()));
        if sequences.is_empty() {
            return Err(AgentError::Shape { op: "sequences of a batch".to_string(), expected: vec![1], got: vec![0] });
        }
        for (i, sequence) in sequences.iter().enumerate() {
            if sequence.is_empty() {
                return Err(unfit(i, "it has no tokens"));
            }
            if sequence.len() > config.max_positions {
                let reason = format!("{} tokens, but the model has {} positions; shorten it", sequence.len(), config.max_positions);
                return Err(unfit(i, &reason));
            }
            if let Some(token) = sequence.iter().find(|&&t| t as usize >= config.vocab_size) {
                let reason = format!("token {token}, but the model's vocabulary ends at {}; use its own tokenizer", config.vocab_size);
                return Err(unfit(i, &reason));
            }
            ranges.push(tokens.len()..tokens.len() + sequence.len());
            tokens.extend_from_slice(sequence);
        }
        Ok(Self { tokens, sequences: Arc::new(ranges) })
    }

    /// Position of each token in its sequence.
    pub fn positions(&self) -> Vec<u32> {
        self.sequences.iter().flat_map(|range| 0..range.len() as u32).collect()
    }
}

/// Marks of all tokens, and what they add in each layer and query head.
struct PackedBias {
    marks: Arc<Vec<bool>>,
    per_head: Vec<Vec<f32>>,
}

/// What is known of each token at some depth, `[token, feature]`, on the tape of the operations in use.
#[derive(Clone)]
pub(super) enum States {
    /// Candle's.
    Plain(Tensor),
    /// Ours, over buffers in memory.
    Fused(Activations),
}

impl States {
    fn plus(self, added: &Self, tape: &Tape) -> Result<Self, AgentError> {
        Ok(match (self, added) {
            (Self::Plain(x), Self::Plain(added)) => Self::Plain((x + added)?),
            (Self::Fused(x), Self::Fused(added)) => Self::Fused(tape.add(x, added)),
            _ => unreachable!("a pass uses one kind of operations"),
        })
    }

    /// The numbers on the CPU in `f32`.
    pub fn read<R>(&self, f: impl FnOnce(&[f32]) -> R) -> Result<R, AgentError> {
        match self {
            Self::Plain(x) => Ok(read(&x.detach().to_dtype(DType::F32)?.to_device(&Device::Cpu)?, |x| Ok(f(x)))?),
            Self::Fused(x) => Ok(f(x.values())),
        }
    }
}

/// One pass over one batch.
pub(super) struct Forward<'a> {
    decoder: &'a Decoder,
    packed: Packed,
    spans: Vec<Span>,
    key_bias: Option<PackedBias>,
    ropes: Vec<Arc<RopeTable>>,
    /// True if a gradient will be asked for.
    is_training: bool,
    /// Of the fused operations.
    tape: Tape,
    /// What plain operations have read so far.
    variables: RefCell<HashMap<String, Var>>,
}

/// The batch, gradients of parameters by name, and the gradient by the embedded tokens.
type PlainGradients = (Packed, Vec<(String, Tensor)>, Tensor);

/// A matrix by name, or the part of one.
struct Projection {
    name: String,
    output: usize,
    has_bias: bool,
}

impl<'a> Forward<'a> {
    pub fn new(decoder: &'a Decoder, packed: Packed, steering: &Steering, is_training: bool) -> Result<Self, AgentError> {
        let config = decoder.config();
        steering.check(config, packed.tokens.len())?;
        let spans = steering.spans.clone().unwrap_or_else(|| config.spans.clone());
        let bias = |bias: &KeyBias| PackedBias { marks: Arc::new(bias.is_marked.clone()), per_head: bias.per_head.clone() };
        let key_bias = steering.key_bias.as_ref().map(bias);
        let ropes = match &config.positions {
            Positions::Learned => Vec::new(),
            Positions::Rope(rope) => {
                let mut tables: HashMap<usize, Arc<RopeTable>> = HashMap::new();
                let longest = packed.sequences.iter().map(Range::len).max().unwrap_or(0);
                let lengths = packed.sequences.iter().map(|range| match rope.scaling {
                    // The base depends on the length of the text itself.
                    RopeScaling::Dynamic { original_max_positions, .. } if range.len() > original_max_positions => range.len(),
                    RopeScaling::Dynamic { original_max_positions, .. } => longest.min(original_max_positions),
                    _ => longest,
                });
                let table = |length: usize| {
                    let (frequencies, factor) = rope_frequencies(rope, length);
                    Arc::new(RopeTable::new(&frequencies, factor, length))
                };
                lengths.map(|length| tables.entry(length).or_insert_with(|| table(length)).clone()).collect()
            }
        };
        let tape = Tape::new(decoder.pool(), is_training && !decoder.is_plain());
        Ok(Self { decoder, packed, spans, key_bias, ropes, is_training, tape, variables: RefCell::default() })
    }

    fn config(&self) -> &DecoderConfig {
        self.decoder.config()
    }

    /// A parameter as a tensor that the tape of plain operations knows.
    pub fn tensor(&self, name: &str) -> Result<Tensor, AgentError> {
        if let Some(variable) = self.variables.borrow().get(name) {
            return Ok(variable.as_tensor().clone());
        }
        let parameter = self.decoder.named(name)?;
        let variable = match &parameter.values {
            Values::Host { value, .. } => Var::from_slice(value, parameter.spec.shape.as_slice(), &Device::Cpu)?,
            Values::Device { compute, .. } => compute.clone(),
        };
        let tensor = variable.as_tensor().clone();
        if !self.is_training {
            return Ok(tensor.detach());
        }
        self.variables.borrow_mut().insert(name.to_string(), variable);
        Ok(tensor)
    }

    /// Room for a gradient by hidden states of the fused operations.
    pub fn buffer(&self, n: usize) -> Buffer {
        self.tape.buffer(n)
    }

    /// Goes back through candle's tape. Gives the batch, gradients of the parameters by name, and that of the embedded tokens.
    pub fn backward_plain(self, hidden: &Tensor, grad: Tensor, embedded: &Tensor) -> Result<PlainGradients, AgentError> {
        let store = surrogate(hidden, grad)?.backward()?;
        let variables = self.variables.into_inner();
        let named = variables.into_iter().filter_map(|(name, variable)| Some((name, store.get(&variable)?.clone()))).collect();
        let of_embedded = store.get(embedded).cloned().ok_or_else(|| AgentError::Tensor("embedded tokens got no gradient".to_string()))?;
        Ok((self.packed, named, of_embedded))
    }

    /// Goes back through our tape, where gradients of weights are added to their sums. Gives the batch, and the gradient of the
    /// embedded tokens.
    pub fn backward_fused(self, hidden: &Activations, grad: Buffer, embedded: &Activations) -> (Packed, Rc<Buffer>) {
        (self.packed, self.tape.backward(hidden, grad, embedded))
    }

    fn weight(&self, name: &str) -> Result<Weight, AgentError> {
        let mut weight = self.decoder.named(name)?.weight()?;
        if !self.is_training {
            weight.gradient = None;
        }
        Ok(weight)
    }

    /// Embedded tokens, `[token, hidden]`.
    pub fn embed(&self) -> Result<States, AgentError> {
        let config = self.config();
        let names = Names::of(config.family);
        let mut tables = vec![(names.embedding(), self.packed.tokens.clone())];
        if matches!(config.positions, Positions::Learned) {
            tables.push((format!("{}{}.weight", names.backbone, names.positions), self.packed.positions()));
        }
        if !self.decoder.is_plain() {
            let width = config.hidden_size;
            let mut x = self.tape.buffer(self.packed.tokens.len() * width);
            for (i, (name, rows)) in tables.iter().enumerate() {
                let table = self.decoder.named(name)?.weight()?.value;
                for (x, &row) in x.chunks_exact_mut(width).zip(rows) {
                    let row = &table[row as usize * width..][..width];
                    match i {
                        0 => x.copy_from_slice(row),
                        _ => x.iter_mut().zip(row).for_each(|(x, row)| *x += row),
                    }
                }
            }
            return Ok(States::Fused(self.tape.input(x, width)));
        }
        let mut x: Option<Tensor> = None;
        for (name, rows) in &tables {
            let rows = self.rows_of(name, rows)?;
            x = Some(match x {
                Some(x) => (x + rows)?,
                None => rows,
            });
        }
        let x = x.ok_or_else(|| AgentError::Tensor("there is no table of embeddings".to_string()))?;
        // Its gradient is asked for by the tensor itself.
        Ok(States::Plain(if self.is_training { Var::from_tensor(&x)?.as_tensor().clone() } else { x }))
    }

    fn rows_of(&self, name: &str, rows: &[u32]) -> Result<Tensor, AgentError> {
        let width = self.config().hidden_size;
        Ok(match &self.decoder.named(name)?.values {
            Values::Host { value, .. } => {
                let picked: Vec<f32> = rows.iter().flat_map(|&row| &value[row as usize * width..][..width]).copied().collect();
                Tensor::from_vec(picked, (rows.len(), width), &Device::Cpu)?
            }
            Values::Device { compute, .. } => {
                compute.as_tensor().detach().index_select(&Tensor::from_slice(rows, rows.len(), self.decoder.device())?, 0)?
            }
        })
    }

    /// Last hidden states after the final norm, `[token, hidden]`.
    pub fn hidden(&self, embedded: &States) -> Result<States, AgentError> {
        let config = self.config();
        let names = Names::of(config.family);
        let (first_norm, second_norm) = match config.family {
            Family::Gpt2 => ("ln_1", "ln_2"),
            _ => ("input_layernorm", "post_attention_layernorm"),
        };
        let mut x = embedded.clone();
        for layer in 0..config.n_layers {
            let prefix = names.layer(layer);
            let attended = self.attend(layer, &prefix, self.norm(&x, &format!("{prefix}.{first_norm}"))?)?;
            if config.parallel_residual {
                let fed = self.feed(&prefix, self.norm(&x, &format!("{prefix}.{second_norm}"))?)?;
                x = x.plus(&attended, &self.tape)?.plus(&fed, &self.tape)?;
            } else {
                x = x.plus(&attended, &self.tape)?;
                let fed = self.feed(&prefix, self.norm(&x, &format!("{prefix}.{second_norm}"))?)?;
                x = x.plus(&fed, &self.tape)?;
            }
        }
        self.norm(&x, &format!("{}{}", names.backbone, names.final_norm))
    }

    fn norm(&self, x: &States, name: &str) -> Result<States, AgentError> {
        let config = self.config();
        let is_centred = config.norm == NormKind::Layer;
        let (weight, bias) = (format!("{name}.weight"), format!("{name}.bias"));
        match x {
            States::Plain(x) => {
                let bias = if is_centred { Some(self.tensor(&bias)?) } else { None };
                Ok(States::Plain(norm_plain(x, &self.tensor(&weight)?, bias.as_ref(), config.norm_eps, is_centred)?))
            }
            States::Fused(x) => {
                let biases = if is_centred { vec![self.weight(&bias)?] } else { Vec::new() };
                let norm = self.fused_norm(config.hidden_size, vec![(0, 0)], vec![self.weight(&weight)?], biases, is_centred);
                Ok(States::Fused(self.tape.apply(norm, x)))
            }
        }
    }

    fn fused_norm(
        &self,
        width: usize,
        stretches: Vec<(usize, usize)>,
        weights: Vec<Weight>,
        biases: Vec<Weight>,
        is_centred: bool,
    ) -> Norm {
        Norm { tokens: self.packed.tokens.len(), width, stretches, weights, biases, eps: self.config().norm_eps as f32, is_centred }
    }

    /// Linear maps of `x` side by side. Takes `x` so that its room is free again when nothing else needs it.
    fn project(&self, x: States, projections: &[Projection]) -> Result<States, AgentError> {
        let is_transposed = self.config().family == Family::Gpt2;
        let name = |p: &Projection, part: &str| format!("{}.{part}", p.name);
        match x {
            States::Plain(x) => {
                let mut parts = Vec::with_capacity(projections.len());
                for p in projections {
                    let bias = if p.has_bias { Some(self.tensor(&name(p, "bias"))?) } else { None };
                    parts.push(linear_plain(&x, &self.tensor(&name(p, "weight"))?, bias.as_ref(), is_transposed)?);
                }
                Ok(States::Plain(if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(&parts, 1)? }))
            }
            States::Fused(x) => {
                let part = |p: &Projection| {
                    let bias = if p.has_bias { Some(self.weight(&name(p, "bias"))?) } else { None };
                    Ok(LinearPart { weight: self.weight(&name(p, "weight"))?, bias, output: p.output, is_transposed })
                };
                let parts = projections.iter().map(part).collect::<Result<_, AgentError>>()?;
                Ok(States::Fused(self.tape.apply(Linear { parts, input: x.width() }, &x)))
            }
        }
    }

    fn attend(&self, layer: usize, prefix: &str, x: States) -> Result<States, AgentError> {
        let config = self.config();
        let (d, n_heads, n_kv) = (config.head_dim, config.n_heads, config.n_kv_heads);
        let (query, key) = (n_heads * d, n_kv * d);
        let one = |name: &str, output, has_bias| Projection { name: format!("{prefix}.{name}"), output, has_bias };
        let (input, output) = match config.family {
            Family::Gpt2 => (vec![one("attn.c_attn", query + 2 * key, config.qkv_bias)], "attn.c_proj"),
            Family::GptNeox => (vec![one("attention.query_key_value", query + 2 * key, config.qkv_bias)], "attention.dense"),
            _ => {
                let parts = [("self_attn.q_proj", query), ("self_attn.k_proj", key), ("self_attn.v_proj", key)];
                (parts.map(|(name, output)| one(name, output, config.qkv_bias)).into(), "self_attn.o_proj")
            }
        };
        let rows = self.project(x, &input)?;
        // GPT-NeoX keeps query, key and value of a head side by side.
        let columns = |kind: usize, first: usize, n: usize| {
            let column = |head: usize| if config.family == Family::GptNeox { (3 * head + kind) * d } else { first + head * d };
            (0..n).map(column).collect::<Vec<_>>()
        };
        let (queries, keys, values) = (columns(0, 0, n_heads), columns(1, query, n_kv), columns(2, query + key, n_kv));
        let bias = |bias: &PackedBias| HeadBias { marks: bias.marks.clone(), per_head: bias.per_head[layer].clone() };
        let bias = self.key_bias.as_ref().map(bias);
        let norms = [format!("{prefix}.self_attn.q_norm.weight"), format!("{prefix}.self_attn.k_norm.weight")];
        let how = Attention {
            head_dim: d,
            queries,
            keys,
            values,
            sequences: self.packed.sequences.clone(),
            ropes: self.ropes.clone(),
            span: self.spans[layer],
            bias,
        };
        let result = match rows {
            States::Plain(rows) => {
                let heads = |columns: &[usize]| {
                    let parts: Vec<Tensor> = columns.iter().map(|&c| rows.narrow(1, c, d)).collect::<candle_core::Result<_>>()?;
                    Tensor::stack(&parts, 1)
                };
                let (mut q, mut k, v) = (heads(&how.queries)?, heads(&how.keys)?, heads(&how.values)?);
                if config.qk_norm {
                    q = norm_plain(&q, &self.tensor(&norms[0])?, None, config.norm_eps, false)?;
                    k = norm_plain(&k, &self.tensor(&norms[1])?, None, config.norm_eps, false)?;
                }
                States::Plain(attention_plain(&q, &k, &v, &how)?)
            }
            States::Fused(mut rows) => {
                if config.qk_norm {
                    let weights = vec![self.weight(&norms[0])?, self.weight(&norms[1])?];
                    let stretches = how.queries.iter().map(|&c| (c, 0)).chain(how.keys.iter().map(|&c| (c, 1))).collect();
                    rows = self.tape.apply(self.fused_norm(d, stretches, weights, Vec::new(), false), &rows);
                }
                States::Fused(self.tape.apply(how, &rows))
            }
        };
        self.project(result, &[one(output, config.hidden_size, config.output_bias)])
    }

    fn feed(&self, prefix: &str, x: States) -> Result<States, AgentError> {
        let config = self.config();
        let (up, down) = match config.family {
            Family::Gpt2 => ("mlp.c_fc", "mlp.c_proj"),
            Family::GptNeox => ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
            _ => ("mlp.up_proj", "mlp.down_proj"),
        };
        let width = config.intermediate_size;
        let one = |name: &str, output| Projection { name: format!("{prefix}.{name}"), output, has_bias: config.mlp_bias };
        let inner = if config.is_gated { vec![one("mlp.gate_proj", width), one(up, width)] } else { vec![one(up, width)] };
        let x = match self.project(x, &inner)? {
            States::Plain(x) => {
                let gated = if config.is_gated { Some(x.narrow(1, width, width)?) } else { None };
                States::Plain(activate_plain(&x.narrow(1, 0, width)?, gated.as_ref(), config.activation)?)
            }
            States::Fused(x) => {
                let activate = Activate { activation: config.activation, is_gated: config.is_gated, width };
                States::Fused(self.tape.apply(activate, &x))
            }
        };
        self.project(x, &[one(down, config.hidden_size)])
    }
}
