//! `config.json` of the six families, as `transformers` 4 and 5 write it, to and from [`DecoderConfig`].
//!
//! Reading takes both spellings of a key where they changed (`rope_scaling` and `rope_theta`, or `rope_parameters`), fills
//! a missing key with the value that the family's class has, and refuses what would change the result and is not built
//! here. Keys without influence on the forward pass (dropout, caches, data types) are passed over. Writing uses the older
//! spelling, which both read.
//!
//! The file is long because each family's keys, their defaults and what is refused are one table, which is read together.

use serde_json::{Map, Value, json};

use super::rope::yarn_magnitude;
use super::{Activation, DecoderConfig, Family, NormKind, Positions, RopeConfig, RopeScaling, Span};
use crate::AgentError;

/// Bounds against nonsense sizes, so that no product overflows and no list of layers grows without end.
const MOST_LAYERS: usize = 4096;
const MOST_WIDTH: usize = 1 << 22;
const MOST_ROWS: usize = 1 << 30;

impl Family {
    const ALL: [Self; 6] = [Self::Llama, Self::Mistral, Self::Qwen2, Self::Qwen3, Self::GptNeox, Self::Gpt2];

    /// The value of `model_type`.
    #[must_use]
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::GptNeox => "gpt_neox",
            Self::Gpt2 => "gpt2",
        }
    }

    /// Name of the class in `transformers`.
    fn architecture(self, scalar_head: bool) -> String {
        let stem = match self {
            Self::Llama => "Llama",
            Self::Mistral => "Mistral",
            Self::Qwen2 => "Qwen2",
            Self::Qwen3 => "Qwen3",
            Self::GptNeox => "GPTNeoX",
            Self::Gpt2 => "GPT2",
        };
        match (scalar_head, self) {
            (true, _) => format!("{stem}ForSequenceClassification"),
            (false, Self::Gpt2) => format!("{stem}LMHeadModel"),
            (false, _) => format!("{stem}ForCausalLM"),
        }
    }

    /// Whether rotary positions cover a part of each head by `rotary_pct`.
    fn has_partial_rotation(self) -> bool {
        self == Self::GptNeox
    }
}

/// The keys of one JSON object, with the place for errors.
struct Keys<'a> {
    map: &'a Map<String, Value>,
    place: &'a str,
    /// Names of the objects around it, such as `rope_scaling.`.
    prefix: &'static str,
}

impl<'a> Keys<'a> {
    fn error(&self, key: &str, reason: impl std::fmt::Display) -> AgentError {
        AgentError::Model { place: self.place.into(), reason: format!("`{}{key}` {reason}", self.prefix) }
    }

    /// A key that is there and not null.
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn wrong(&self, key: &str, expected: &str, got: &Value) -> AgentError {
        let mut got = got.to_string();
        if let Some((end, _)) = got.char_indices().nth(60) {
            got.truncate(end);
            got.push('…');
        }
        self.error(key, format_args!("must be {expected}, got {got}"))
    }

    fn size(&self, key: &str, most: usize) -> Result<Option<usize>, AgentError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        // Some writers give whole numbers as 2048.0.
        let whole = value.as_u64().or_else(|| value.as_f64().filter(|f| f.fract() == 0.0 && (1.0..=1e15).contains(f)).map(|f| f as u64));
        match whole {
            Some(size) if size >= 1 && size <= most as u64 => Ok(Some(size as usize)),
            _ => Err(self.wrong(key, &format!("a whole number from 1 to {most}"), value)),
        }
    }

    fn required_size(&self, key: &str, most: usize) -> Result<usize, AgentError> {
        self.size(key, most)?.ok_or_else(|| self.error(key, "is missing; is this the configuration of a model?"))
    }

    fn number(&self, key: &str) -> Result<Option<f64>, AgentError> {
        self.get(key).map(|value| value.as_f64().filter(|f| f.is_finite()).ok_or_else(|| self.wrong(key, "a number", value))).transpose()
    }

    fn positive(&self, key: &str) -> Result<Option<f64>, AgentError> {
        match self.number(key)? {
            Some(number) if number <= 0.0 => Err(self.error(key, format_args!("must be above 0, got {number}"))),
            number => Ok(number),
        }
    }

    fn required_positive(&self, key: &str) -> Result<f64, AgentError> {
        self.positive(key)?.ok_or_else(|| self.error(key, "is missing, which this kind of scaling needs"))
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool, AgentError> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.wrong(key, "true or false", value)),
        }
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>, AgentError> {
        self.get(key).map(|value| value.as_str().ok_or_else(|| self.wrong(key, "a string", value))).transpose()
    }

    /// Refuses a flag that has another value than the one that is built here.
    fn only(&self, key: &str, supported: bool) -> Result<(), AgentError> {
        if self.flag(key, supported)? == supported {
            return Ok(());
        }
        Err(self.error(key, format_args!("is {}, which is not supported; only {supported} is", !supported)))
    }

    /// Ids of one token or of several; -1 means none, as some files have it. `default` stands for a key that is absent.
    fn token_ids(&self, key: &str, default: Option<u32>) -> Result<Vec<u32>, AgentError> {
        let one = |value: &Value| match value.as_i64() {
            Some(-1) => Ok(None),
            Some(id) => u32::try_from(id).map(Some).map_err(|_| self.wrong(key, "a token id", value)),
            None => Err(self.wrong(key, "a token id or a list of them", value)),
        };
        match self.map.get(key) {
            None => Ok(default.into_iter().collect()),
            Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Array(values)) => values.iter().filter_map(|value| one(value).transpose()).collect(),
            Some(value) => Ok(one(value)?.into_iter().collect()),
        }
    }

    fn token_id(&self, key: &str, default: Option<u32>) -> Result<Option<u32>, AgentError> {
        let ids = self.token_ids(key, default)?;
        match ids.as_slice() {
            [] => Ok(None),
            [id] => Ok(Some(*id)),
            _ => Err(self.error(key, "must be one token id")),
        }
    }

    fn object(&self, key: &'static str, prefix: &'static str) -> Result<Option<Keys<'a>>, AgentError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value {
            Value::Object(map) if map.is_empty() => Ok(None),
            Value::Object(map) => Ok(Some(Keys { map, place: self.place, prefix })),
            _ => Err(self.wrong(key, "an object", value)),
        }
    }
}

fn parse_object(text: &str, place: &str) -> Result<Map<String, Value>, AgentError> {
    match serde_json::from_str(text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(AgentError::Model { place: place.into(), reason: "must be a JSON object".into() }),
        Err(error) => Err(AgentError::Model { place: place.into(), reason: format!("is not JSON: {error}") }),
    }
}

/// The ids under `eos_token_id` of a `generation_config.json`, which count for generation where they are given.
///
/// # Errors
/// [`AgentError::Model`] naming `place` if the text is not a JSON object or the ids are none.
pub(super) fn generation_eos(text: &str, place: &str) -> Result<Vec<u32>, AgentError> {
    let map = parse_object(text, place)?;
    Keys { map: &map, place, prefix: "" }.token_ids("eos_token_id", None)
}

/// Number of outputs that a `config.json` of a classifier names, if its `architectures` say that it is one.
///
/// # Errors
/// [`AgentError::Model`] naming `place` and the key.
pub(super) fn classifier_labels(text: &str, place: &str) -> Result<Option<usize>, AgentError> {
    let map = parse_object(text, place)?;
    let keys = Keys { map: &map, place, prefix: "" };
    let is_classifier = match keys.get("architectures") {
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).any(|name| name.ends_with("ForSequenceClassification")),
        _ => false,
    };
    if !is_classifier {
        return Ok(None);
    }
    let named = keys.get("id2label").and_then(Value::as_object).map(Map::len);
    // Two is the number that a classifier has when its configuration names none.
    Ok(Some(keys.size("num_labels", MOST_ROWS)?.or(named).unwrap_or(2)))
}

impl DecoderConfig {
    /// Reads the text of a `config.json`; `place` is the file's name for errors.
    ///
    /// # Errors
    /// [`AgentError::Model`] naming `place` and the key: not JSON, an unknown `model_type`, a missing or impossible size, or
    /// a value that is not supported (quantised weights, other attention, unknown activations or rotary scalings).
    pub fn from_json(text: &str, place: &str) -> Result<Self, AgentError> {
        let map = parse_object(text, place)?;
        let keys = Keys { map: &map, place, prefix: "" };
        let known = || Family::ALL.map(Family::model_type).join(", ");
        let model_type =
            keys.text("model_type")?.ok_or_else(|| keys.error("model_type", format_args!("is missing; supported: {}", known())))?;
        let family = Family::ALL
            .into_iter()
            .find(|family| family.model_type() == model_type)
            .ok_or_else(|| keys.error("model_type", format_args!("`{model_type}` is not supported; supported: {}", known())))?;
        for key in ["quantization_config", "compression_config"] {
            if keys.get(key).is_some() {
                return Err(keys.error(key, "is given: quantised weights are not supported; use the unquantised checkpoint"));
            }
        }
        keys.only("is_encoder_decoder", false)?;
        for key in ["num_experts", "num_local_experts", "n_routed_experts"] {
            if keys.get(key).is_some_and(|value| value.as_u64() != Some(0) && value.as_u64() != Some(1)) {
                return Err(keys.error(key, "is given: mixtures of experts are not supported"));
            }
        }
        let config = match family {
            Family::Gpt2 => gpt2(&keys)?,
            Family::GptNeox => gpt_neox(&keys)?,
            _ => llama_like(family, &keys)?,
        };
        config.check(place)?;
        Ok(config)
    }

    /// Checks sizes against each other.
    ///
    /// # Errors
    /// [`AgentError::Model`] naming `place` and the key.
    pub fn check(&self, place: &str) -> Result<(), AgentError> {
        let fail = |reason: String| Err(AgentError::Model { place: place.into(), reason });
        let sizes = [
            ("vocab_size", self.vocab_size, MOST_ROWS),
            ("hidden_size", self.hidden_size, MOST_WIDTH),
            ("num_hidden_layers", self.n_layers, MOST_LAYERS),
            ("num_attention_heads", self.n_heads, MOST_WIDTH),
            ("num_key_value_heads", self.n_kv_heads, MOST_WIDTH),
            ("head_dim", self.head_dim, MOST_WIDTH),
            ("intermediate_size", self.intermediate_size, MOST_WIDTH),
            ("max_position_embeddings", self.max_positions, MOST_ROWS),
        ];
        for (key, size, most) in sizes {
            if size == 0 || size > most {
                return fail(format!("`{key}` must be from 1 to {most}, got {size}"));
            }
        }
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            return fail(format!("`num_key_value_heads` ({}) must divide `num_attention_heads` ({})", self.n_kv_heads, self.n_heads));
        }
        if self.n_heads.saturating_mul(self.head_dim) > MOST_WIDTH {
            return fail(format!("`num_attention_heads` ({}) times `head_dim` ({}) is above {MOST_WIDTH}", self.n_heads, self.head_dim));
        }
        if self.spans.len() != self.n_layers {
            return fail(format!("{} layers have {} attention spans", self.n_layers, self.spans.len()));
        }
        if self.spans.iter().any(|span| matches!(span, Span::Block(0) | Span::Sliding(0))) {
            return fail("`sliding_window` must be at least 1".into());
        }
        if !(self.norm_eps.is_finite() && self.norm_eps >= 0.0) {
            return fail(format!("the norm's epsilon must be finite and at least 0, got {}", self.norm_eps));
        }
        if !(self.initializer_range.is_finite() && self.initializer_range >= 0.0) {
            return fail(format!("`initializer_range` must be finite and at least 0, got {}", self.initializer_range));
        }
        if let Positions::Rope(rope) = self.positions {
            if rope.rotary_dim < 2 || rope.rotary_dim > self.head_dim || !rope.rotary_dim.is_multiple_of(2) {
                return fail(format!(
                    "{} of the {} coordinates of a head cannot be rotated: must be even, from 2",
                    rope.rotary_dim, self.head_dim
                ));
            }
            if !(rope.theta.is_finite() && rope.theta > 1.0) {
                return fail(format!("`rope_theta` must be above 1, got {}", rope.theta));
            }
        }
        Ok(())
    }

    /// The text of a `config.json` that `transformers` loads, for a language-model head or a scalar head (`num_labels: 1`).
    ///
    /// With a scalar head `transformers` needs `pad_token_id` to find the last token of padded rows: set it, to a token that
    /// ends no text, before writing.
    ///
    /// # Errors
    /// [`AgentError::Model`] if a value cannot be said in such a file: block spans, several window lengths, or parts that the
    /// family's class does not have.
    pub fn to_json(&self, scalar_head: bool) -> Result<String, AgentError> {
        self.check("config.json")?;
        let refuse = |what: &str| {
            let reason = format!("{what} cannot be written for the family `{}`", self.family.model_type());
            Err(AgentError::Model { place: "config.json".into(), reason })
        };
        let window = self.written_window()?;
        let mut map = Map::new();
        let mut set = |key: &str, value: Value| {
            map.insert(key.into(), value);
        };
        set("architectures", json!([self.family.architecture(scalar_head)]));
        set("model_type", json!(self.family.model_type()));
        set("torch_dtype", json!("float32"));
        set("vocab_size", json!(self.vocab_size));
        set("tie_word_embeddings", json!(self.tie_embeddings));
        set("initializer_range", json!(self.initializer_range));
        set("use_cache", json!(true));
        set("bos_token_id", json!(self.bos_token_id));
        set("pad_token_id", json!(self.pad_token_id));
        set(
            "eos_token_id",
            match self.eos_token_ids.as_slice() {
                [] => Value::Null,
                [id] => json!(id),
                ids => json!(ids),
            },
        );
        if scalar_head {
            set("num_labels", json!(1));
            set("id2label", json!({ "0": "LABEL_0" }));
            set("label2id", json!({ "LABEL_0": 0 }));
        }
        let activation = match self.activation {
            Activation::Silu => "silu",
            Activation::Gelu => "gelu",
            Activation::GeluTanh => "gelu_new",
            Activation::Relu => "relu",
        };
        if self.family == Family::Gpt2 {
            if !matches!(self.positions, Positions::Learned) || self.norm != NormKind::Layer || self.is_gated || self.parallel_residual {
                return refuse("this kind of positions, norm or feed-forward part");
            }
            if !(self.qkv_bias && self.output_bias && self.mlp_bias) || self.qk_norm || self.n_kv_heads != self.n_heads {
                return refuse("this combination of biases and heads");
            }
            if self.n_heads * self.head_dim != self.hidden_size {
                return refuse("a head size that is not `hidden_size` over the number of heads");
            }
            set("n_embd", json!(self.hidden_size));
            set("n_layer", json!(self.n_layers));
            set("n_head", json!(self.n_heads));
            set("n_positions", json!(self.max_positions));
            set("n_ctx", json!(self.max_positions));
            set("n_inner", json!(self.intermediate_size));
            set("layer_norm_epsilon", json!(self.norm_eps));
            set("activation_function", json!(activation));
            return Ok(written(&map));
        }
        set("hidden_size", json!(self.hidden_size));
        set("num_hidden_layers", json!(self.n_layers));
        set("num_attention_heads", json!(self.n_heads));
        set("intermediate_size", json!(self.intermediate_size));
        set("max_position_embeddings", json!(self.max_positions));
        set("hidden_act", json!(activation));
        let Positions::Rope(rope) = self.positions else { return refuse("learned positions") };
        let scaling = written_scaling(&rope.scaling);
        if self.family == Family::GptNeox {
            if self.norm != NormKind::Layer || self.is_gated || self.qk_norm || !self.mlp_bias || self.n_kv_heads != self.n_heads {
                return refuse("this kind of norm, feed-forward part or heads");
            }
            if self.qkv_bias != self.output_bias || self.n_heads * self.head_dim != self.hidden_size {
                return refuse("this combination of biases or this head size");
            }
            set("layer_norm_eps", json!(self.norm_eps));
            set("attention_bias", json!(self.qkv_bias));
            set("use_parallel_residual", json!(self.parallel_residual));
            set("rotary_pct", json!(rope.rotary_dim as f64 / self.head_dim as f64));
            set("rotary_emb_base", json!(rope.theta));
            // The class reads the base only under the name above, other readers under this one.
            set("rope_theta", json!(rope.theta));
            set("rope_scaling", scaling);
            return Ok(written(&map));
        }
        if self.norm != NormKind::Rms || !self.is_gated || self.parallel_residual || rope.rotary_dim != self.head_dim {
            return refuse("this kind of norm, feed-forward part or rotation");
        }
        let has_qk_norm = self.family == Family::Qwen3;
        let biases = (self.qkv_bias, self.output_bias, self.mlp_bias);
        let fits = match self.family {
            Family::Llama => self.qkv_bias == self.output_bias,
            Family::Qwen2 => biases == (true, false, false),
            Family::Qwen3 => self.qkv_bias == self.output_bias && !self.mlp_bias,
            _ => biases == (false, false, false),
        };
        if !fits || self.qk_norm != has_qk_norm {
            return refuse("this combination of biases and head norms");
        }
        set("num_key_value_heads", json!(self.n_kv_heads));
        set("head_dim", json!(self.head_dim));
        set("rms_norm_eps", json!(self.norm_eps));
        set("rope_theta", json!(rope.theta));
        set("rope_scaling", scaling);
        match self.family {
            Family::Llama => {
                set("attention_bias", json!(self.qkv_bias));
                set("mlp_bias", json!(self.mlp_bias));
            }
            Family::Mistral => set("sliding_window", json!(window)),
            _ => {
                if self.family == Family::Qwen3 {
                    set("attention_bias", json!(self.qkv_bias));
                }
                let first = self.spans.iter().position(|span| *span != Span::Full).unwrap_or(self.n_layers);
                let kinds = self.spans.iter().map(|span| if *span == Span::Full { "full_attention" } else { "sliding_attention" });
                set("layer_types", json!(kinds.collect::<Vec<_>>()));
                set("use_sliding_window", json!(window.is_some()));
                set("sliding_window", json!(window));
                set("max_window_layers", json!(first));
            }
        }
        Ok(written(&map))
    }

    /// The one window length of the sliding spans, where the family can say which layers have it.
    fn written_window(&self) -> Result<Option<usize>, AgentError> {
        let refuse = |reason: &str| Err(AgentError::Model { place: "config.json".into(), reason: reason.into() });
        let mut window = None;
        for span in &self.spans {
            match (span, window) {
                (Span::Full, _) => {}
                (Span::Block(_), _) => return refuse("block spans cannot be written in a file that `transformers` reads"),
                (Span::Sliding(size), None) => window = Some(*size),
                (Span::Sliding(size), Some(other)) if *size == other => {}
                (Span::Sliding(_), Some(_)) => return refuse("sliding windows of several lengths cannot be written"),
            }
        }
        match self.family {
            Family::Qwen2 | Family::Qwen3 => Ok(window),
            Family::Mistral if self.spans.iter().all(|span| *span == self.spans[0]) => Ok(window),
            _ if window.is_none() => Ok(None),
            _ => refuse("sliding windows in these layers cannot be written for this family"),
        }
    }
}

fn written(map: &Map<String, Value>) -> String {
    let mut text = format!("{:#}", Value::Object(map.clone()));
    text.push('\n');
    text
}

fn written_scaling(scaling: &RopeScaling) -> Value {
    match *scaling {
        RopeScaling::None => Value::Null,
        RopeScaling::Linear { factor } => json!({ "rope_type": "linear", "factor": factor }),
        RopeScaling::Dynamic { factor, .. } => json!({ "rope_type": "dynamic", "factor": factor }),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => json!({
            "rope_type": "llama3", "factor": factor, "low_freq_factor": low_freq_factor, "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_max_positions,
        }),
        RopeScaling::Yarn { factor, beta_fast, beta_slow, original_max_positions, attention_factor, truncate } => {
            let mut value = json!({
                "rope_type": "yarn", "factor": factor, "beta_fast": beta_fast, "beta_slow": beta_slow,
                "original_max_position_embeddings": original_max_positions,
            });
            if let Some(attention_factor) = attention_factor {
                value["attention_factor"] = json!(attention_factor);
            }
            if !truncate {
                value["truncate"] = json!(false);
            }
            value
        }
    }
}

fn activation(keys: &Keys<'_>, key: &str, default: &str) -> Result<Activation, AgentError> {
    match keys.text(key)?.unwrap_or(default) {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu" | "gelu_python" => Ok(Activation::Gelu),
        // Three spellings of the same formula.
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Activation::GeluTanh),
        "relu" => Ok(Activation::Relu),
        other => Err(keys.error(key, format_args!("`{other}` is not supported; supported: silu, gelu, gelu_new, gelu_pytorch_tanh, relu"))),
    }
}

/// Rotation of a head of `head_dim` coordinates.
fn rope(keys: &Keys<'_>, family: Family, head_dim: usize, max_positions: usize) -> Result<RopeConfig, AgentError> {
    let (theta_key, part_key, default_part) =
        if family.has_partial_rotation() { ("rotary_emb_base", "rotary_pct", 0.25) } else { ("rope_theta", "partial_rotary_factor", 1.0) };
    let scaled = match keys.object("rope_scaling", "rope_scaling.")? {
        Some(scaled) => Some(scaled),
        None => keys.object("rope_parameters", "rope_parameters.")?,
    };
    let inner = |key: &str| scaled.as_ref().map_or(Ok(None), |scaled| scaled.positive(key));
    let theta = match inner("rope_theta")? {
        Some(theta) => theta,
        None => keys.positive(theta_key)?.or(keys.positive("rope_theta")?).unwrap_or(10_000.0),
    };
    let part = match inner("partial_rotary_factor")? {
        Some(part) => part,
        None => keys.positive(part_key)?.unwrap_or(default_part),
    };
    if part > 1.0 || (!family.has_partial_rotation() && part != 1.0) {
        return Err(keys.error("partial_rotary_factor", format_args!("{part} is not supported for `{}`", family.model_type())));
    }
    // Truncated, as the classes do.
    let rotary_dim = (head_dim as f64 * part) as usize;
    let scaling = match scaled {
        Some(scaled) => rope_scaling(keys, &scaled, rotary_dim, max_positions)?,
        None => RopeScaling::None,
    };
    Ok(RopeConfig { theta, rotary_dim, scaling })
}

fn rope_scaling(keys: &Keys<'_>, scaled: &Keys<'_>, rotary_dim: usize, max_positions: usize) -> Result<RopeScaling, AgentError> {
    if let Some((key, _)) = scaled.map.iter().find(|(_, value)| value.is_object()) {
        return Err(scaled.error(key, "differs by kind of layer, which is not supported"));
    }
    let kind = match scaled.text("rope_type")? {
        Some(kind) => Some(kind),
        None => scaled.text("type")?,
    };
    let original = || match keys.size("original_max_position_embeddings", MOST_ROWS)? {
        Some(original) => Ok::<_, AgentError>(original),
        None => Ok(scaled.size("original_max_position_embeddings", MOST_ROWS)?.unwrap_or(max_positions)),
    };
    match kind.unwrap_or("default") {
        "default" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor: scaled.required_positive("factor")? }),
        "dynamic" => {
            let factor = scaled.required_positive("factor")?;
            if factor < 1.0 || rotary_dim < 4 {
                return Err(scaled.error("factor", "must be at least 1, with at least 4 rotated coordinates, for dynamic scaling"));
            }
            Ok(RopeScaling::Dynamic { factor, original_max_positions: max_positions })
        }
        "llama3" => {
            let (low_freq_factor, high_freq_factor) =
                (scaled.required_positive("low_freq_factor")?, scaled.required_positive("high_freq_factor")?);
            if low_freq_factor >= high_freq_factor {
                let reason = format!("({low_freq_factor}) must be below `high_freq_factor` ({high_freq_factor})");
                return Err(scaled.error("low_freq_factor", reason));
            }
            let factor = scaled.required_positive("factor")?;
            Ok(RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions: original()? })
        }
        "yarn" => {
            let original_max_positions = original()?;
            let factor = match scaled.positive("factor")? {
                Some(factor) => factor,
                None => max_positions as f64 / original_max_positions as f64,
            };
            let (beta_fast, beta_slow) = (scaled.positive("beta_fast")?.unwrap_or(32.0), scaled.positive("beta_slow")?.unwrap_or(1.0));
            if beta_fast < beta_slow {
                return Err(scaled.error("beta_fast", format_args!("({beta_fast}) must not be below `beta_slow` ({beta_slow})")));
            }
            let attention_factor = match (scaled.positive("attention_factor")?, scaled.number("mscale")?, scaled.number("mscale_all_dim")?)
            {
                (Some(given), _, _) => Some(given),
                (None, Some(mscale), Some(all)) if mscale != 0.0 && all != 0.0 => {
                    Some(yarn_magnitude(factor, mscale) / yarn_magnitude(factor, all))
                }
                _ => None,
            };
            let truncate = scaled.flag("truncate", true)?;
            Ok(RopeScaling::Yarn { factor, beta_fast, beta_slow, original_max_positions, attention_factor, truncate })
        }
        other => {
            let reason = format!("`{other}` is not supported; supported: default, linear, dynamic, llama3, yarn");
            Err(scaled.error(if scaled.get("rope_type").is_some() { "rope_type" } else { "type" }, reason))
        }
    }
}

/// `hidden / heads`, which must be whole.
fn even_heads(keys: &Keys<'_>, hidden_size: usize, n_heads: usize, key: &str) -> Result<usize, AgentError> {
    if hidden_size.is_multiple_of(n_heads) {
        return Ok(hidden_size / n_heads);
    }
    Err(keys.error(key, format_args!("({n_heads}) must divide the hidden size ({hidden_size})")))
}

fn llama_like(family: Family, keys: &Keys<'_>) -> Result<DecoderConfig, AgentError> {
    let hidden_size = keys.required_size("hidden_size", MOST_WIDTH)?;
    let n_layers = keys.required_size("num_hidden_layers", MOST_LAYERS)?;
    let n_heads = keys.required_size("num_attention_heads", MOST_WIDTH)?;
    // Classes whose number of key heads is not the number of query heads when the key is absent; null always means equal.
    let absent_kv_heads = match family {
        Family::Mistral if !keys.map.contains_key("num_key_value_heads") => 8,
        Family::Qwen2 | Family::Qwen3 if !keys.map.contains_key("num_key_value_heads") => 32,
        _ => n_heads,
    };
    let n_kv_heads = keys.size("num_key_value_heads", MOST_WIDTH)?.unwrap_or(absent_kv_heads);
    let head_dim = match keys.size("head_dim", MOST_WIDTH)? {
        Some(head_dim) => head_dim,
        None if family == Family::Qwen3 => 128,
        None => even_heads(keys, hidden_size, n_heads, "num_attention_heads")?,
    };
    let absent_positions = match family {
        Family::Llama => 2048,
        Family::Mistral => 131_072,
        _ => 32_768,
    };
    let max_positions = keys.size("max_position_embeddings", MOST_ROWS)?.unwrap_or(absent_positions);
    let attention_bias = match family {
        Family::Llama | Family::Qwen3 => keys.flag("attention_bias", false)?,
        _ => false,
    };
    let spans = match family {
        Family::Llama => vec![Span::Full; n_layers],
        Family::Mistral => {
            let window = if keys.map.contains_key("sliding_window") { keys.size("sliding_window", MOST_ROWS)? } else { Some(4096) };
            vec![window.map_or(Span::Full, Span::Sliding); n_layers]
        }
        _ => qwen_spans(keys, n_layers)?,
    };
    let default_eos = matches!(family, Family::Llama | Family::Mistral);
    Ok(DecoderConfig {
        family,
        vocab_size: keys.required_size("vocab_size", MOST_ROWS)?,
        hidden_size,
        n_layers,
        n_heads,
        n_kv_heads,
        head_dim,
        intermediate_size: keys.required_size("intermediate_size", MOST_WIDTH)?,
        max_positions,
        norm: NormKind::Rms,
        norm_eps: keys.positive("rms_norm_eps")?.unwrap_or(1e-6),
        positions: Positions::Rope(rope(keys, family, head_dim, max_positions)?),
        activation: activation(keys, "hidden_act", "silu")?,
        is_gated: true,
        tie_embeddings: keys.flag("tie_word_embeddings", false)?,
        qkv_bias: family == Family::Qwen2 || attention_bias,
        output_bias: attention_bias,
        mlp_bias: family == Family::Llama && keys.flag("mlp_bias", false)?,
        qk_norm: family == Family::Qwen3,
        parallel_residual: false,
        spans,
        bos_token_id: keys.token_id("bos_token_id", default_eos.then_some(1))?,
        eos_token_ids: keys.token_ids("eos_token_id", default_eos.then_some(2))?,
        pad_token_id: keys.token_id("pad_token_id", None)?,
        initializer_range: keys.number("initializer_range")?.unwrap_or(0.02),
    })
}

/// Layers with a window: those that `layer_types` names, else those from `max_window_layers` on.
fn qwen_spans(keys: &Keys<'_>, n_layers: usize) -> Result<Vec<Span>, AgentError> {
    let is_used = keys.flag("use_sliding_window", false)?;
    let window = match (is_used, keys.map.contains_key("sliding_window")) {
        (false, _) => None,
        (true, true) => keys.size("sliding_window", MOST_ROWS)?,
        (true, false) => Some(4096),
    };
    let Some(types) = keys.get("layer_types") else {
        let first = match keys.get("max_window_layers") {
            None => 28,
            Some(value) => value.as_u64().ok_or_else(|| keys.wrong("max_window_layers", "a whole number", value))?,
        };
        return Ok((0..n_layers)
            .map(|layer| if layer as u64 >= first { window.map_or(Span::Full, Span::Sliding) } else { Span::Full })
            .collect());
    };
    let names = types.as_array().ok_or_else(|| keys.wrong("layer_types", "a list", types))?;
    if names.len() != n_layers {
        return Err(keys.error("layer_types", format_args!("has {} entries for {n_layers} layers", names.len())));
    }
    let span = |(layer, name): (usize, &Value)| match name.as_str() {
        Some("full_attention") => Ok(Span::Full),
        Some("sliding_attention") => match window {
            Some(window) => Ok(Span::Sliding(window)),
            None => Err(keys.error(
                "layer_types",
                format_args!("gives layer {layer} a window, but `sliding_window` or `use_sliding_window` is not set"),
            )),
        },
        _ => Err(keys.error("layer_types", format_args!("has {name} at layer {layer}; supported: full_attention, sliding_attention"))),
    };
    names.iter().enumerate().map(span).collect()
}

fn gpt_neox(keys: &Keys<'_>) -> Result<DecoderConfig, AgentError> {
    let hidden_size = keys.required_size("hidden_size", MOST_WIDTH)?;
    let n_layers = keys.required_size("num_hidden_layers", MOST_LAYERS)?;
    let n_heads = keys.required_size("num_attention_heads", MOST_WIDTH)?;
    let head_dim = even_heads(keys, hidden_size, n_heads, "num_attention_heads")?;
    let max_positions = keys.size("max_position_embeddings", MOST_ROWS)?.unwrap_or(2048);
    let attention_bias = keys.flag("attention_bias", true)?;
    Ok(DecoderConfig {
        family: Family::GptNeox,
        vocab_size: keys.required_size("vocab_size", MOST_ROWS)?,
        hidden_size,
        n_layers,
        n_heads,
        n_kv_heads: n_heads,
        head_dim,
        intermediate_size: keys.required_size("intermediate_size", MOST_WIDTH)?,
        max_positions,
        norm: NormKind::Layer,
        norm_eps: keys.positive("layer_norm_eps")?.unwrap_or(1e-5),
        positions: Positions::Rope(rope(keys, Family::GptNeox, head_dim, max_positions)?),
        activation: activation(keys, "hidden_act", "gelu")?,
        is_gated: false,
        tie_embeddings: keys.flag("tie_word_embeddings", false)?,
        qkv_bias: attention_bias,
        output_bias: attention_bias,
        mlp_bias: true,
        qk_norm: false,
        parallel_residual: keys.flag("use_parallel_residual", true)?,
        spans: vec![Span::Full; n_layers],
        bos_token_id: keys.token_id("bos_token_id", Some(0))?,
        eos_token_ids: keys.token_ids("eos_token_id", Some(2))?,
        pad_token_id: keys.token_id("pad_token_id", None)?,
        initializer_range: keys.number("initializer_range")?.unwrap_or(0.02),
    })
}

fn gpt2(keys: &Keys<'_>) -> Result<DecoderConfig, AgentError> {
    keys.only("scale_attn_weights", true)?;
    keys.only("scale_attn_by_inverse_layer_idx", false)?;
    keys.only("add_cross_attention", false)?;
    // The class answers to both spellings of its sizes.
    let size = |own: &str, general: &str, most: usize| match keys.size(own, most)? {
        Some(size) => Ok(size),
        None => keys.size(general, most)?.ok_or_else(|| keys.error(own, "is missing; is this the configuration of a model?")),
    };
    let hidden_size = size("n_embd", "hidden_size", MOST_WIDTH)?;
    let n_layers = size("n_layer", "num_hidden_layers", MOST_LAYERS)?;
    let n_heads = size("n_head", "num_attention_heads", MOST_WIDTH)?;
    let max_positions = match keys.size("n_positions", MOST_ROWS)? {
        Some(max_positions) => max_positions,
        None => keys.size("max_position_embeddings", MOST_ROWS)?.unwrap_or(1024),
    };
    Ok(DecoderConfig {
        family: Family::Gpt2,
        vocab_size: keys.required_size("vocab_size", MOST_ROWS)?,
        hidden_size,
        n_layers,
        n_heads,
        n_kv_heads: n_heads,
        head_dim: even_heads(keys, hidden_size, n_heads, "n_head")?,
        intermediate_size: keys.size("n_inner", MOST_WIDTH)?.unwrap_or(4 * hidden_size),
        max_positions,
        norm: NormKind::Layer,
        norm_eps: keys.positive("layer_norm_epsilon")?.unwrap_or(1e-5),
        positions: Positions::Learned,
        activation: activation(keys, "activation_function", "gelu_new")?,
        is_gated: false,
        tie_embeddings: keys.flag("tie_word_embeddings", true)?,
        qkv_bias: true,
        output_bias: true,
        mlp_bias: true,
        qk_norm: false,
        parallel_residual: false,
        spans: vec![Span::Full; n_layers],
        bos_token_id: keys.token_id("bos_token_id", Some(50_256))?,
        eos_token_ids: keys.token_ids("eos_token_id", Some(50_256))?,
        pad_token_id: keys.token_id("pad_token_id", None)?,
        initializer_range: keys.number("initializer_range")?.unwrap_or(0.02),
    })
}
