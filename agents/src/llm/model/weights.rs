//! Checkpoints: which tensors a family has, reading a folder that `transformers` wrote, and writing one that it loads.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;
use std::io::Write;
use std::path::{Component, Path, PathBuf};

use super::config_json::{classifier_labels, generation_eos};
use super::safetensors_file::{self, SafetensorsFile, model_error, write_atomically};
use super::{DecoderConfig, Family, NormKind, Positions};
use crate::AgentError;

/// How a tensor starts where no checkpoint is read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum TensorInit {
    /// Normal numbers of mean 0 and this deviation.
    Normal(f64),
    /// All 1.
    Ones,
    /// All 0.
    Zeros,
}

/// A tensor of a checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorSpec {
    /// Its name as `transformers` writes it.
    pub name: String,
    /// Sizes of the axes as written: `[output, input]`, but `[input, output]` for the projections of GPT-2.
    pub shape: Vec<usize>,
    /// How it starts.
    pub init: TensorInit,
}

/// Which head a checkpoint is read for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// Logits over the vocabulary.
    LanguageModel,
    /// `score.weight`, `[1, hidden]`, which must be there.
    Scalar,
    /// A scalar head that does not come from the checkpoint: before the training of a reward model only.
    FreshScalar,
}

/// Gets each tensor that is read.
pub type TakeTensor<'a> = dyn FnMut(&TensorSpec, Vec<f32>) -> Result<(), AgentError> + 'a;

/// Name of the scalar head's weight in all families.
pub const SCORE: &str = "score.weight";

/// What a family calls its parts.
pub(super) struct Names {
    /// In front of all names but the heads'.
    pub backbone: &'static str,
    pub embedding: &'static str,
    pub positions: &'static str,
    pub layers: &'static str,
    pub final_norm: &'static str,
    pub head: &'static str,
}

impl Names {
    pub fn of(family: Family) -> Self {
        match family {
            Family::GptNeox => Self {
                backbone: "gpt_neox.",
                embedding: "embed_in",
                positions: "",
                layers: "layers",
                final_norm: "final_layer_norm",
                head: "embed_out.weight",
            },
            Family::Gpt2 => Self {
                backbone: "transformer.",
                embedding: "wte",
                positions: "wpe",
                layers: "h",
                final_norm: "ln_f",
                head: "lm_head.weight",
            },
            _ => Self {
                backbone: "model.",
                embedding: "embed_tokens",
                positions: "",
                layers: "layers",
                final_norm: "norm",
                head: "lm_head.weight",
            },
        }
    }

    /// The embedding's full name.
    pub fn embedding(&self) -> String {
        format!("{}{}.weight", self.backbone, self.embedding)
    }

    /// In front of the names of one layer.
    pub fn layer(&self, layer: usize) -> String {
        format!("{}{}.{layer}", self.backbone, self.layers)
    }
}

/// All tensors of a decoder, in the order of their names.
///
/// `scalar_head` has `score.weight` in place of the language-model head, which a tied model has not either. Deviations are
/// those of `transformers`; the scalar head's is `1 / (hidden + 1)`, as OpenRLHF has it, so that rewards start near 0.
#[must_use]
pub fn expected_tensors(config: &DecoderConfig, scalar_head: bool) -> Vec<TensorSpec> {
    let names = Names::of(config.family);
    let hidden = config.hidden_size;
    let normal = TensorInit::Normal(config.initializer_range);
    let mut specs = Vec::new();
    let mut add = |name: String, shape: Vec<usize>, init| specs.push(TensorSpec { name, shape, init });
    let (query, key) = (config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim);
    add(names.embedding(), vec![config.vocab_size, hidden], normal);
    if matches!(config.positions, Positions::Learned) {
        add(format!("{}{}.weight", names.backbone, names.positions), vec![config.max_positions, hidden], normal);
    }
    let mut norm = |name: String| {
        add(format!("{name}.weight"), vec![hidden], TensorInit::Ones);
        if config.norm == NormKind::Layer {
            add(format!("{name}.bias"), vec![hidden], TensorInit::Zeros);
        }
    };
    norm(format!("{}{}", names.backbone, names.final_norm));
    let (first_norm, second_norm) = match config.family {
        Family::Gpt2 => ("ln_1", "ln_2"),
        _ => ("input_layernorm", "post_attention_layernorm"),
    };
    for layer in 0..config.n_layers {
        norm(format!("{}.{first_norm}", names.layer(layer)));
        norm(format!("{}.{second_norm}", names.layer(layer)));
    }
    // Projections that add to the residual stream start smaller in GPT-2, by the number of additions.
    let residual = match config.family {
        Family::Gpt2 => TensorInit::Normal(config.initializer_range / (2.0 * config.n_layers as f64).sqrt()),
        _ => normal,
    };
    let width = config.intermediate_size;
    for layer in 0..config.n_layers {
        let prefix = names.layer(layer);
        let mut linear = |name: &str, input: usize, output: usize, has_bias: bool, init| {
            let shape = if config.family == Family::Gpt2 { vec![input, output] } else { vec![output, input] };
            add(format!("{prefix}.{name}.weight"), shape, init);
            if has_bias {
                add(format!("{prefix}.{name}.bias"), vec![output], TensorInit::Zeros);
            }
        };
        match config.family {
            Family::Gpt2 => {
                linear("attn.c_attn", hidden, query + 2 * key, config.qkv_bias, normal);
                linear("attn.c_proj", query, hidden, config.output_bias, residual);
                linear("mlp.c_fc", hidden, width, config.mlp_bias, normal);
                linear("mlp.c_proj", width, hidden, config.mlp_bias, residual);
            }
            Family::GptNeox => {
                linear("attention.query_key_value", hidden, query + 2 * key, config.qkv_bias, normal);
                linear("attention.dense", query, hidden, config.output_bias, normal);
                linear("mlp.dense_h_to_4h", hidden, width, config.mlp_bias, normal);
                linear("mlp.dense_4h_to_h", width, hidden, config.mlp_bias, normal);
            }
            _ => {
                linear("self_attn.q_proj", hidden, query, config.qkv_bias, normal);
                linear("self_attn.k_proj", hidden, key, config.qkv_bias, normal);
                linear("self_attn.v_proj", hidden, key, config.qkv_bias, normal);
                linear("self_attn.o_proj", query, hidden, config.output_bias, normal);
                linear("mlp.gate_proj", hidden, width, config.mlp_bias, normal);
                linear("mlp.up_proj", hidden, width, config.mlp_bias, normal);
                linear("mlp.down_proj", width, hidden, config.mlp_bias, normal);
                if config.qk_norm {
                    add(format!("{prefix}.self_attn.q_norm.weight"), vec![config.head_dim], TensorInit::Ones);
                    add(format!("{prefix}.self_attn.k_norm.weight"), vec![config.head_dim], TensorInit::Ones);
                }
            }
        }
    }
    if scalar_head {
        add(SCORE.into(), vec![1, hidden], TensorInit::Normal(1.0 / (hidden as f64 + 1.0)));
    } else if !config.tie_embeddings {
        add(names.head.into(), vec![config.vocab_size, hidden], normal);
    }
    specs.sort_by(|a, b| a.name.cmp(&b.name));
    specs
}

/// A folder as `transformers` writes it, opened: its configuration is read, its tensors are located.
#[derive(Debug)]
pub struct Checkpoint {
    folder: PathBuf,
    config: DecoderConfig,
    /// Outputs of a classifier, if `config.json` says that it is one.
    labels: Option<usize>,
    files: Vec<SafetensorsFile>,
    /// File and entry of each name.
    places: HashMap<String, (usize, usize)>,
}

impl Checkpoint {
    /// Opens `config.json` and `model.safetensors`, or the files that `model.safetensors.index.json` lists. Ids under
    /// `eos_token_id` of a `generation_config.json` replace those of `config.json`, as they do in `generate`.
    ///
    /// Files must lie in the folder. Symbolic links may point out of it only to the `blobs` beside `snapshots`, which is how
    /// the Hugging Face cache keeps its files.
    ///
    /// # Errors
    /// [`AgentError::Model`] naming the file, and the key or tensor.
    pub fn open(folder: &Path) -> Result<Self, AgentError> {
        if !folder.is_dir() {
            return Err(model_error(folder, "is not a folder; a folder with `config.json` and `model.safetensors` is needed"));
        }
        let config_path = located(folder, "config.json", "config.json")?;
        let text = read_text(&config_path)?;
        let place = config_path.display().to_string();
        let mut config = DecoderConfig::from_json(&text, &place)?;
        let labels = classifier_labels(&text, &place)?;
        if folder.join("generation_config.json").exists() {
            let path = located(folder, "generation_config.json", "generation_config.json")?;
            let ids = generation_eos(&read_text(&path)?, &path.display().to_string())?;
            if !ids.is_empty() {
                config.eos_token_ids = ids;
            }
        }
        let (files, listed) = open_files(folder)?;
        let mut places = HashMap::new();
        for (file_index, file) in files.iter().enumerate() {
            for (entry_index, entry) in file.entries.iter().enumerate() {
                if let Some((other, _)) = places.insert(entry.name.clone(), (file_index, entry_index)) {
                    let other: &SafetensorsFile = &files[other];
                    return Err(file.error(&entry.name, format_args!("is also in {}; remove one of them", other.path().display())));
                }
            }
        }
        for (name, file_index) in listed {
            if places.get(&name).is_none_or(|(at, _)| *at != file_index) {
                let index = folder.join(INDEX);
                let file = files[file_index].path().display();
                return Err(model_error(&index, format_args!("places tensor `{name}` in {file}, which does not hold it")));
            }
        }
        Ok(Self { folder: folder.into(), config, labels, files, places })
    }

    /// The shape of the model.
    #[must_use]
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Whether the folder holds a model with a scalar head: it has `score.weight`, or calls itself a classifier.
    #[must_use]
    pub fn has_scalar_head(&self) -> bool {
        self.labels.is_some() || self.places.contains_key(SCORE)
    }

    /// Reads all tensors for a head, one at a time, in the order of [`expected_tensors`]; `take` gets each. With
    /// [`Head::FreshScalar`] the head's own weight is left out. Gives the names of tensors in the files that are not used,
    /// sorted, apart from buffers that older versions wrote along (masks, rotary frequencies).
    ///
    /// All names, types and shapes are checked before the first tensor is read.
    ///
    /// # Errors
    /// [`AgentError::Model`] naming file and tensor: missing, of another shape or type, under two names, a scalar head that is
    /// not there, a head that is tied by `config.json` but has weights of its own, numbers that are not finite; or what `take`
    /// says.
    pub fn load(&self, head: Head, take: &mut TakeTensor<'_>) -> Result<Vec<String>, AgentError> {
        let names = Names::of(self.config.family);
        if head == Head::Scalar {
            self.check_scalar_head()?;
        }
        let mut specs = expected_tensors(&self.config, head != Head::LanguageModel);
        if head == Head::FreshScalar {
            specs.retain(|spec| spec.name != SCORE);
        }
        let mut used = vec![Vec::new(); self.files.len()];
        for (file, used) in self.files.iter().zip(&mut used) {
            used.resize(file.entries.len(), false);
        }
        let mut found = Vec::with_capacity(specs.len());
        let mut missing = Vec::new();
        for spec in &specs {
            let Some((file, entry)) = self.find(&names, &spec.name)? else {
                missing.push(spec.name.as_str());
                continue;
            };
            used[file][entry] = true;
            self.check_entry(file, entry, spec)?;
            found.push((file, entry));
        }
        if let Some(first) = missing.first() {
            let more = match missing.len() - 1 {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            let mut reason = format!("has no tensor `{first}`{more}, which `config.json` asks for");
            if head == Head::LanguageModel && missing == [names.head] {
                reason += match self.has_scalar_head() {
                    true => ": this is a reward model, which has no language-model head",
                    false => ": set `tie_word_embeddings` if the head is the embedding",
                };
            }
            return Err(self.error(reason));
        }
        if self.config.tie_embeddings && head == Head::LanguageModel {
            self.check_tied_head(&names, &mut used)?;
        }
        for (spec, (file, entry)) in specs.iter().zip(found) {
            let file = &self.files[file];
            take(spec, file.read(&file.entries[entry])?)?;
        }
        let unused = self.files.iter().zip(&used).flat_map(|(file, used)| file.entries.iter().zip(used));
        let mut unused: Vec<String> =
            unused.filter(|(entry, is_used)| !**is_used && !is_buffer(&entry.name)).map(|(entry, _)| entry.name.clone()).collect();
        unused.sort();
        Ok(unused)
    }

    fn error(&self, reason: impl Display) -> AgentError {
        let path = if self.files.len() == 1 { self.files[0].path().to_path_buf() } else { self.folder.join(INDEX) };
        model_error(&path, reason)
    }

    fn check_scalar_head(&self) -> Result<(), AgentError> {
        if self.places.contains_key(SCORE) {
            return Ok(());
        }
        Err(self.error(format_args!(
            "has no tensor `{SCORE}`: it is not a reward model, and scores of a fresh head would be noise; train one first"
        )))
    }

    /// File and entry of a tensor under its full name or, as the bare model and old GPT-2 files have it, without the
    /// backbone's prefix.
    fn find(&self, names: &Names, name: &str) -> Result<Option<(usize, usize)>, AgentError> {
        let full = self.places.get(name);
        let bare = name.strip_prefix(names.backbone).and_then(|bare| Some((bare, self.places.get(bare)?)));
        match (full, bare) {
            (Some(_), Some((bare, _))) => {
                Err(self.error(format_args!("has the same tensor as `{name}` and as `{bare}`; remove one of them")))
            }
            (full, bare) => Ok(full.or(bare.map(|(_, place)| place)).copied()),
        }
    }

    fn check_entry(&self, file: usize, entry: usize, spec: &TensorSpec) -> Result<(), AgentError> {
        let file = &self.files[file];
        let entry = &file.entries[entry];
        if entry.shape != spec.shape {
            let reason = match self.labels {
                Some(labels) if spec.name == SCORE && labels != 1 => format!(
                    "has shape {:?}: only classifiers with one output (`num_labels` 1) are reward models, this one has {labels}",
                    entry.shape
                ),
                _ => format!("has shape {:?}, but `config.json` asks for {:?}", entry.shape, spec.shape),
            };
            return Err(file.error(&entry.name, reason));
        }
        if !matches!(entry.dtype.as_str(), "F32" | "F16" | "BF16") {
            let reason = format!("has type {}; supported: F32, F16, BF16. Convert the checkpoint to one of them", entry.dtype);
            return Err(file.error(&entry.name, reason));
        }
        Ok(())
    }

    /// A head that is written along with a tied embedding must be the same.
    fn check_tied_head(&self, names: &Names, used: &mut [Vec<bool>]) -> Result<(), AgentError> {
        let Some((file, entry)) = self.places.get(names.head).copied() else { return Ok(()) };
        used[file][entry] = true;
        let spec =
            TensorSpec { name: names.head.into(), shape: vec![self.config.vocab_size, self.config.hidden_size], init: TensorInit::Zeros };
        self.check_entry(file, entry, &spec)?;
        let Some((embedding_file, embedding_entry)) = self.find(names, &names.embedding())? else { return Ok(()) };
        let embedding = &self.files[embedding_file];
        let embedding = embedding.read(&embedding.entries[embedding_entry])?;
        let file = &self.files[file];
        let head = file.read(&file.entries[entry])?;
        if head.iter().zip(&embedding).any(|(a, b)| a.to_bits() != b.to_bits()) {
            let reason =
                format!("differs from `{}`, but `config.json` has `tie_word_embeddings`; set it to false to keep both", names.embedding());
            return Err(file.error(names.head, reason));
        }
        Ok(())
    }
}

/// Buffers that are computed, not learned, and that versions of the library wrote along.
fn is_buffer(name: &str) -> bool {
    ["rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias"]
        .iter()
        .any(|end| name.ends_with(end))
}

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The opened files, and under which file's number each name is listed, if there is an index.
fn open_files(folder: &Path) -> Result<(Vec<SafetensorsFile>, BTreeMap<String, usize>), AgentError> {
    if folder.join(SINGLE).exists() {
        let file = SafetensorsFile::open(&located(folder, SINGLE, SINGLE)?)?;
        return Ok((vec![file], BTreeMap::new()));
    }
    let index = folder.join(INDEX);
    if !index.exists() {
        let is_there = |name: &str| folder.join(name).exists();
        let reason = if is_there("adapter_model.safetensors") || is_there("adapter_config.json") {
            "holds an adapter without its base model; merge it into the base model first"
        } else if is_there("pytorch_model.bin") || is_there("pytorch_model.bin.index.json") {
            "holds weights as `pytorch_model.bin` only, which can run code when read; save it again as safetensors"
        } else {
            "has neither `model.safetensors` nor `model.safetensors.index.json`"
        };
        return Err(model_error(folder, reason));
    }
    let weight_map = parse_index(&read_text(&located(folder, INDEX, INDEX)?)?).map_err(|reason| model_error(&index, reason))?;
    let mut numbers: BTreeMap<&str, usize> = BTreeMap::new();
    let mut files = Vec::new();
    let mut listed = BTreeMap::new();
    for (name, shard) in &weight_map {
        let number = match numbers.get(shard.as_str()) {
            Some(number) => *number,
            None => {
                let path = located(folder, shard, &format!("{INDEX}: tensor `{name}`"))?;
                files.push(SafetensorsFile::open(&path)?);
                numbers.insert(shard, files.len() - 1);
                files.len() - 1
            }
        };
        listed.insert(name.clone(), number);
    }
    Ok((files, listed))
}

/// The `weight_map` of an index. Errors are reasons without the file.
fn parse_index(text: &str) -> Result<BTreeMap<String, String>, String> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index = serde_json::from_str(text).map_err(|error| format!("is not an index of tensors: {error}"))?;
    if index.weight_map.is_empty() {
        return Err("lists no tensors under `weight_map`".into());
    }
    Ok(index.weight_map)
}

/// The path of a file of a checkpoint, checked to lie in its folder. `origin` says who names it.
fn located(folder: &Path, name: &str, origin: &str) -> Result<PathBuf, AgentError> {
    let path = folder.join(name);
    let mut components = Path::new(name).components();
    if name.is_empty() || !components.all(|component| matches!(component, Component::Normal(_))) || name.contains('\\') {
        return Err(model_error(folder, format_args!("{origin}: the file `{}` does not lie in the folder", name.escape_debug())));
    }
    let real = match path.canonicalize() {
        Ok(real) => real,
        Err(error) => return Err(model_error(&path, format_args!("cannot be opened ({origin}): {error}"))),
    };
    let home = folder.canonicalize().map_err(|error| model_error(folder, error))?;
    let blobs = match home.parent() {
        Some(snapshots) if snapshots.file_name().is_some_and(|name| name == "snapshots") => {
            snapshots.parent().map(|cache| cache.join("blobs"))
        }
        _ => None,
    };
    if real.starts_with(&home) || blobs.is_some_and(|blobs| real.starts_with(blobs)) {
        return Ok(path);
    }
    Err(model_error(&path, format_args!("is a link that leaves the folder ({origin}); copy the file into it")))
}

fn read_text(path: &Path) -> Result<String, AgentError> {
    let bytes = std::fs::read(path).map_err(|error| model_error(path, format_args!("cannot be read: {error}")))?;
    String::from_utf8(bytes).map_err(|_| model_error(path, "is not UTF-8"))
}

/// Writes `model.safetensors` and `config.json` into a folder, which is made if it is not there. `get` gives each tensor of
/// [`expected_tensors`] by its name. Each file is written under a temporary name and renamed when it is whole.
///
/// # Errors
/// [`AgentError::Model`] naming the file if it cannot be written, or if the configuration cannot be said in `config.json`;
/// [`AgentError::Shape`] if `get` gives another number of values than the tensor has; or what `get` says.
pub fn save_checkpoint(
    folder: &Path,
    config: &DecoderConfig,
    scalar_head: bool,
    get: &mut dyn FnMut(&str) -> Result<Vec<f32>, AgentError>,
) -> Result<(), AgentError> {
    let text = config.to_json(scalar_head)?;
    std::fs::create_dir_all(folder).map_err(|error| model_error(folder, format_args!("cannot be made: {error}")))?;
    let specs = expected_tensors(config, scalar_head);
    let tensors: Vec<(&str, &[usize])> = specs.iter().map(|spec| (spec.name.as_str(), spec.shape.as_slice())).collect();
    safetensors_file::write(&folder.join(SINGLE), &tensors, get)?;
    let path = folder.join("config.json");
    write_atomically(&path, &mut |file| {
        file.write_all(text.as_bytes()).map_err(|error| model_error(&path, format_args!("cannot be written: {error}")))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_index_is_a_panic(text in ".{0,200}", map in proptest::collection::btree_map(".{0,8}", ".{0,8}", 0..4)) {
            let _ = parse_index(&text);
            let text = serde_json::json!({ "metadata": {}, "weight_map": map }).to_string();
            prop_assert_eq!(parse_index(&text).is_ok(), !map.is_empty());
        }

        #[test]
        fn accepted_names_have_no_way_out(name in "[./a\\\\]{0,9}") {
            let folder = std::env::temp_dir();
            if let Ok(path) = located(&folder, &name, "test") {
                prop_assert!(path.starts_with(&folder) && !name.contains(".."), "{name}");
            }
        }
    }
}
