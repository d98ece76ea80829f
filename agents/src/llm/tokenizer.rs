//! Text in and out: tokens, special tokens and chat templates of a model folder as Hugging Face writes it.
//!
//! Ids are those of `transformers`: `tokenizer.json` is read by the same library (`tokenizers`). Two differences, both on
//! purpose: `add_bos_token` and `add_eos_token` of `tokenizer_config.json` are obeyed although a `tokenizer.json` is there
//! (`transformers` 4 did, 5 does not), and limits of length that were left in `tokenizer.json` are ignored, since nothing is
//! cut without being counted (see [`encode`](super::encode)).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use steadfast_envs::text::Message;
use tokenizers::Tokenizer as Pipeline;
use twox_hash::xxhash3_128::Hasher as Xxh3;

use super::template::{ChatContext, ChatDate, ChatTemplate};
use crate::AgentError;

const TOKENIZER: &str = "tokenizer.json";
const CONFIG: &str = "tokenizer_config.json";
const SPECIAL_TOKENS: &str = "special_tokens_map.json";
const TEMPLATE: &str = "chat_template.jinja";
const GENERATION: &str = "generation_config.json";
/// Folder of further templates, one `NAME.jinja` each.
const MORE_TEMPLATES: &str = "additional_chat_templates";
/// Name of the template that is taken if nothing else is asked for.
const DEFAULT: &str = "default";
/// Keys of special tokens, in the order of [`Specials`]; templates see them under the same names.
const SPECIAL_KEYS: [&str; 4] = ["bos_token", "eos_token", "pad_token", "unk_token"];

/// A tokenizer with its special tokens and chat template. Clones share everything.
#[derive(Clone)]
pub struct Tokenizer {
    shared: Arc<Shared>,
    /// Position among the templates.
    template: Option<usize>,
    date: ChatDate,
}

struct Shared {
    pipeline: Pipeline,
    /// Where it was read, for errors.
    place: String,
    /// Files by name below the folder, as they were read or made.
    files: Vec<(String, Vec<u8>)>,
    /// Text and id of each of [`SPECIAL_KEYS`].
    specials: [Option<(String, u32)>; 4],
    /// What stands before and behind every text whose special tokens are added.
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    end_of_sequence: Vec<u32>,
    vocab_size: usize,
    /// By name.
    templates: Vec<(String, ChatTemplate)>,
    digest: u128,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("place", &self.shared.place).field("vocab_size", &self.vocab_size()).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads `tokenizer.json`, and `tokenizer_config.json`, `special_tokens_map.json`, `chat_template.jinja`,
    /// `additional_chat_templates/*.jinja`, `generation_config.json` where they exist.
    ///
    /// A key of `tokenizer_config.json` goes before the same key of `special_tokens_map.json`, and a template that is a file
    /// before one in `tokenizer_config.json`.
    ///
    /// # Errors
    /// [`AgentError::Model`] naming the file and the key: a file that is missing or damaged, a special token that is not in
    /// the vocabulary, a template that is no Jinja.
    pub fn load(folder: &Path) -> Result<Self, AgentError> {
        let mut files = Vec::new();
        for name in [TOKENIZER, CONFIG, SPECIAL_TOKENS, TEMPLATE, GENERATION] {
            if let Some(bytes) = read(folder, name)? {
                files.push((name.to_string(), bytes));
            }
        }
        if let Ok(entries) = std::fs::read_dir(folder.join(MORE_TEMPLATES)) {
            let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
            let mut names: Vec<String> = names.filter(|name| name.ends_with(".jinja")).collect();
            names.sort_unstable();
            for name in names {
                let name = format!("{MORE_TEMPLATES}/{name}");
                if let Some(bytes) = read(folder, &name)? {
                    files.push((name, bytes));
                }
            }
        }
        Self::from_files(&folder.display().to_string(), files)
    }

    /// As [`Tokenizer::load`], from the contents of the files by their names below the folder. `place` stands for the folder
    /// in errors. Files of other names are ignored.
    ///
    /// # Errors
    /// As [`Tokenizer::load`].
    pub fn from_files(place: &str, files: Vec<(String, Vec<u8>)>) -> Result<Self, AgentError> {
        let bytes = |name: &str| files.iter().find(|file| file.0 == name).map(|file| &*file.1);
        let fail = |name: &str, reason: String| AgentError::Model { place: format!("{place}/{name}"), reason };
        let object = |name: &str| -> Result<Map<String, Value>, AgentError> {
            match bytes(name).map(serde_json::from_slice) {
                None => Ok(Map::new()),
                Some(Ok(Value::Object(object))) => Ok(object),
                Some(Ok(_)) => Err(fail(name, "is not a JSON object".to_string())),
                Some(Err(error)) => Err(fail(name, format!("is no JSON: {error}"))),
            }
        };
        let source = bytes(TOKENIZER).ok_or_else(|| {
            fail(
                TOKENIZER,
                "does not exist; a tokenizer is needed in this form (`tokenizer.model` and `vocab.json` alone are not read, \
                 `AutoTokenizer.from_pretrained(..).save_pretrained(..)` of transformers writes it)"
                    .to_string(),
            )
        })?;
        let mut pipeline =
            guarded(|| Pipeline::from_bytes(source)).map_err(|reason| fail(TOKENIZER, format!("cannot be read: {reason}")))?;
        pipeline.with_padding(None);
        // Without a limit there is nothing that could fail.
        let _ = pipeline.with_truncation(None);
        // Texts of special tokens mean the tokens, also where `tokenizer.json` was saved in a state in which they did not.
        pipeline.set_encode_special_tokens(false);

        let config = object(CONFIG)?;
        let map = object(SPECIAL_TOKENS)?;
        let mut specials = [const { None }; 4];
        for (special, key) in specials.iter_mut().zip(SPECIAL_KEYS) {
            let (name, value) = match (config.get(key), map.get(key)) {
                (Some(value), _) if !value.is_null() => (CONFIG, value),
                (_, Some(value)) => (SPECIAL_TOKENS, value),
                _ => continue,
            };
            let text = match value {
                Value::Null => continue,
                Value::String(text) => text,
                Value::Object(fields) => match fields.get("content") {
                    Some(Value::String(text)) => text,
                    _ => return Err(fail(name, format!("`{key}` is an object without a text `content`"))),
                },
                other => return Err(fail(name, format!("`{key}` must be a text or an object with `content`, got {other}"))),
            };
            let id = pipeline.token_to_id(text).ok_or_else(|| {
                let remedy = format!("add it to `added_tokens` of {TOKENIZER}, or remove the key");
                fail(name, format!("`{key}` is `{text}`, which is not in the vocabulary of {TOKENIZER}; {remedy}"))
            })?;
            *special = Some((text.clone(), id));
        }

        let flag = |key: &str| match config.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(other) => Err(fail(CONFIG, format!("`{key}` must be true or false, got {other}"))),
        };
        let (mut prefix, mut suffix) = guarded(|| added_tokens(&pipeline)).map_err(|reason| fail(TOKENIZER, reason))?;
        for (key, special, side, at_end) in
            [("add_bos_token", &specials[0], &mut prefix, false), ("add_eos_token", &specials[1], &mut suffix, true)]
        {
            let Some(is_wanted) = flag(key)? else { continue };
            match special {
                Some((_, id)) if is_wanted && !side.contains(id) => side.insert(if at_end { side.len() } else { 0 }, *id),
                Some((_, id)) if !is_wanted => side.retain(|token| token != id),
                Some(_) => {}
                None if !is_wanted => {}
                None => return Err(fail(CONFIG, format!("`{key}` is true, but there is no such token"))),
            }
        }

        let mut end_of_sequence: Vec<u32> = specials[1].iter().map(|special| special.1).collect();
        let generation = object(GENERATION)?;
        let listed = match generation.get("eos_token_id") {
            None | Some(Value::Null) => &[],
            Some(Value::Array(items)) => items.as_slice(),
            Some(single) => std::slice::from_ref(single),
        };
        for item in listed {
            let id = item.as_u64().and_then(|id| u32::try_from(id).ok());
            let id = id.ok_or_else(|| fail(GENERATION, format!("`eos_token_id` must be a token id or a list of them, got {item}")))?;
            if !end_of_sequence.contains(&id) {
                end_of_sequence.push(id);
            }
        }

        let mut templates = Vec::new();
        let mut add = |name: &str, place: String, source: &str| -> Result<(), AgentError> {
            if templates.iter().all(|(known, _)| known != name) {
                templates.push((name.to_string(), ChatTemplate::new(&place, source)?));
            }
            Ok(())
        };
        for (name, bytes) in &files {
            let stem = match name.strip_prefix(MORE_TEMPLATES).and_then(|rest| rest.strip_prefix('/')?.strip_suffix(".jinja")) {
                Some(stem) => stem,
                None if name == TEMPLATE => DEFAULT,
                None => continue,
            };
            let source = std::str::from_utf8(bytes).map_err(|error| fail(name, format!("is not UTF-8: {error}")))?;
            add(stem, format!("{place}/{name}"), source)?;
        }
        let bad = |found: &Value| {
            fail(CONFIG, format!("`chat_template` must be a text or a list of objects with `name` and `template`, got {found}"))
        };
        match config.get("chat_template") {
            None | Some(Value::Null) => {}
            Some(Value::String(source)) => add(DEFAULT, format!("{place}/{CONFIG}, chat_template"), source)?,
            Some(Value::Array(items)) => {
                for item in items {
                    let field = |key: &str| item.get(key).and_then(Value::as_str).ok_or_else(|| bad(item));
                    let (name, source) = (field("name")?, field("template")?);
                    add(name, format!("{place}/{CONFIG}, chat_template `{name}`"), source)?;
                }
            }
            Some(other) => return Err(bad(other)),
        }

        let vocab_size = pipeline.get_vocab(true).values().copied().max().map_or(0, |id| id as usize + 1);
        if vocab_size == 0 {
            return Err(fail(TOKENIZER, "has no tokens".to_string()));
        }
        if let Some(id) = end_of_sequence.iter().find(|&&id| id as usize >= vocab_size) {
            // Such an id can still be meant: models have more rows than tokenizers have tokens.
            let reason = format!("`eos_token_id` {id} is not in the vocabulary of {TOKENIZER}, whose last id is {}", vocab_size - 1);
            return Err(fail(GENERATION, reason));
        }
        let template = templates.iter().position(|(name, _)| name == DEFAULT);
        let mut hasher = Xxh3::new();
        let mut hash = |part: &[u8]| {
            // Lengths keep the border between two parts.
            hasher.write(&(part.len() as u64).to_le_bytes());
            hasher.write(part);
        };
        hash(source);
        for special in &specials {
            hash(special.as_ref().map_or(&[][..], |(text, _)| text.as_bytes()));
        }
        for ids in [&prefix, &suffix] {
            hash(&ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>());
        }
        for (name, template) in &templates {
            hash(name.as_bytes());
            hash(template.source().as_bytes());
        }
        let digest = hasher.finish_128();
        let place = place.to_string();
        let shared = Shared { pipeline, place, files, specials, prefix, suffix, end_of_sequence, vocab_size, templates, digest };
        Ok(Self { shared: Arc::new(shared), template, date: ChatDate::default() })
    }

    /// One token per word, split at white space; ids are positions in `words`. For tasks whose texts are lists of symbols.
    ///
    /// `bos` is put before every text whose special tokens are added; `eos` and `pad` never are. Words that are none of
    /// `words` become `unknown`, or are an error if there is none.
    ///
    /// # Errors
    /// [`AgentError::Model`] naming the word: one that is empty, has white space or stands twice, or a special one that is
    /// not among `words`.
    pub fn from_words(words: &[String], unknown: Option<&str>, bos: Option<&str>, eos: &str, pad: &str) -> Result<Self, AgentError> {
        let fail = |reason: String| Err(AgentError::Model { place: "list of words".to_string(), reason });
        let mut ids = std::collections::HashMap::new();
        for (id, word) in words.iter().enumerate() {
            if word.is_empty() || word.chars().any(char::is_whitespace) {
                return fail(format!("word {id} is `{word}`; a word is not empty and has no white space"));
            }
            if let Some(earlier) = ids.insert(word.as_str(), id) {
                return fail(format!("`{word}` is word {earlier} and word {id}; each stands once"));
            }
        }
        let specials = [("bos_token", bos), ("eos_token", Some(eos)), ("pad_token", Some(pad)), ("unk_token", unknown)];
        let mut added = std::collections::BTreeMap::new();
        let mut config = Map::new();
        for (key, word) in specials.into_iter().filter_map(|(key, word)| Some((key, word?))) {
            let Some(&id) = ids.get(word) else { return fail(format!("the {key} `{word}` is not among the words")) };
            added.insert(id, word);
            config.insert(key.to_string(), json!(word));
        }
        // Within a longer word the text of a special one means nothing.
        let added = added.iter().map(|(id, word)| {
            json!({"id": id, "content": word, "single_word": true, "lstrip": false, "rstrip": false, "normalized": false, "special": true})
        });
        let post_processor = bos.map(|bos| {
            json!({
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [
                    {"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                    {"SpecialToken": {"id": bos, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}},
                ],
                "special_tokens": {bos: {"id": bos, "ids": [ids[bos]], "tokens": [bos]}},
            })
        });
        let vocab: Map<String, Value> = words.iter().enumerate().map(|(id, word)| (word.clone(), json!(id))).collect();
        let tokenizer = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added.collect::<Vec<_>>(),
            "normalizer": null,
            "pre_tokenizer": {"type": "WhitespaceSplit"},
            "post_processor": post_processor,
            "decoder": null,
            // A word that does not exist: its absence makes unknown words an error.
            "model": {"type": "WordLevel", "vocab": vocab, "unk_token": unknown.unwrap_or("")},
        });
        config.insert("tokenizer_class".to_string(), json!("PreTrainedTokenizerFast"));
        config.insert("clean_up_tokenization_spaces".to_string(), json!(false));
        let files = [(TOKENIZER, tokenizer), (CONFIG, Value::Object(config))];
        Self::from_files("words", files.map(|(name, value)| (name.to_string(), format!("{value:#}\n").into_bytes())).into())
    }

    /// Writes the files that [`Tokenizer::load`] reads and `transformers` loads. The folder is made if it does not exist.
    ///
    /// # Errors
    /// [`AgentError::Model`] naming the file that cannot be written.
    pub fn save(&self, folder: &Path) -> Result<(), AgentError> {
        for (name, bytes) in &self.shared.files {
            let path = folder.join(name);
            let made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
            made.and_then(|()| std::fs::write(&path, bytes))
                .map_err(|error| AgentError::Model { place: path.display().to_string(), reason: format!("cannot be written: {error}") })?;
        }
        Ok(())
    }

    /// The same with another chat template in place of all it had, which [`Tokenizer::save`] writes to
    /// `chat_template.jinja`.
    ///
    /// # Errors
    /// [`AgentError::Model`] with the line if it is no Jinja.
    pub fn with_chat_template(&self, source: &str) -> Result<Self, AgentError> {
        let kept = self.shared.files.iter().filter(|(name, _)| name != TEMPLATE && !name.starts_with(MORE_TEMPLATES));
        let mut files: Vec<_> = kept.cloned().collect();
        files.push((TEMPLATE.to_string(), source.as_bytes().to_vec()));
        Ok(Self { date: self.date, ..Self::from_files(&self.shared.place, files)? })
    }

    /// The same with another of its templates, by name; the one that is taken without asking is `default`.
    ///
    /// # Errors
    /// [`AgentError::Model`] with the names that there are.
    pub fn with_named_chat_template(&self, name: &str) -> Result<Self, AgentError> {
        let names = || self.chat_template_names().join(", ");
        let template = self.shared.templates.iter().position(|(known, _)| known == name).ok_or_else(|| AgentError::Model {
            place: self.shared.place.clone(),
            reason: format!("there is no chat template `{name}`; there is {}", if names().is_empty() { "none".into() } else { names() }),
        })?;
        Ok(Self { template: Some(template), ..self.clone() })
    }

    /// The same with another date for templates that print one.
    pub fn with_date(&self, date: ChatDate) -> Self {
        Self { date, ..self.clone() }
    }

    /// Highest token id plus 1: the fewest rows that the embedding of a model needs.
    pub fn vocab_size(&self) -> usize {
        self.shared.vocab_size
    }

    /// Checks that a model has a row for every token. More rows than tokens are usual and fine.
    ///
    /// # Errors
    /// [`AgentError::Model`] if it has not.
    pub fn check_vocabulary(&self, model_vocab_size: usize) -> Result<(), AgentError> {
        if self.vocab_size() <= model_vocab_size {
            return Ok(());
        }
        Err(AgentError::Model {
            place: format!("{}/{TOKENIZER}", self.shared.place),
            reason: format!(
                "its tokens have ids up to {}, but the model's vocabulary has {model_vocab_size} entries (ids up to {}); use the tokenizer \
                 that belongs to the model",
                self.vocab_size() - 1,
                model_vocab_size.saturating_sub(1)
            ),
        })
    }

    /// Token that begins a sequence.
    pub fn bos(&self) -> Option<u32> {
        self.shared.specials[0].as_ref().map(|special| special.1)
    }

    /// Token that ends a sequence.
    pub fn eos(&self) -> Option<u32> {
        self.shared.specials[1].as_ref().map(|special| special.1)
    }

    /// Token that fills up rows of unequal length.
    pub fn pad(&self) -> Option<u32> {
        self.shared.specials[2].as_ref().map(|special| special.1)
    }

    /// All tokens that end a completion: [`Tokenizer::eos`] first, then those of `generation_config.json`.
    pub fn end_of_sequence(&self) -> Vec<u32> {
        self.shared.end_of_sequence.clone()
    }

    /// Text of the token that ends a sequence.
    pub fn eos_text(&self) -> Option<&str> {
        self.shared.specials[1].as_ref().map(|special| &*special.0)
    }

    /// What is put before a text whose special tokens are added, usually the beginning-of-sequence token or nothing.
    pub(crate) fn prefix(&self) -> &[u32] {
        &self.shared.prefix
    }

    /// Where it was read, for errors.
    pub fn place(&self) -> &str {
        &self.shared.place
    }

    /// Token ids of a text; with special tokens as `tokenizer(text)` of transformers adds them. Texts of special tokens
    /// (`</s>`) become these tokens either way.
    ///
    /// # Errors
    /// [`AgentError::Model`] if the text has a word that is not in the vocabulary and there is no unknown token.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, AgentError> {
        let shared = &*self.shared;
        let encoded = guarded(|| shared.pipeline.encode_fast(text, false)).map_err(|reason| {
            let words = text.split_whitespace();
            let culprit = words.into_iter().find(|word| guarded(|| shared.pipeline.encode_fast(*word, false)).is_err());
            let reason = match culprit {
                Some(word) => {
                    let n = shared.pipeline.get_vocab_size(true);
                    let word = shorten(word);
                    format!("cannot encode `{word}`: it is none of the {n} tokens, and there is no token for unknown words; leave it out ({reason})")
                }
                None => format!("cannot encode a text: {reason}"),
            };
            AgentError::Model { place: format!("{}/{TOKENIZER}", shared.place), reason }
        })?;
        Ok(if add_special_tokens { [&*shared.prefix, encoded.get_ids(), &*shared.suffix].concat() } else { encoded.get_ids().to_vec() })
    }

    /// Text of token ids, without special tokens if they are to be skipped.
    ///
    /// # Errors
    /// [`AgentError::Model`] naming the first id that is not in the vocabulary.
    pub fn decode(&self, tokens: &[u32], skip_special_tokens: bool) -> Result<String, AgentError> {
        let fail = |reason: String| AgentError::Model { place: format!("{}/{TOKENIZER}", self.shared.place), reason };
        if let Some(token) = tokens.iter().find(|&&token| self.shared.pipeline.id_to_token(token).is_none()) {
            return Err(fail(format!("there is no token {token}; the vocabulary ends at {}", self.vocab_size() - 1)));
        }
        guarded(|| self.shared.pipeline.decode(tokens, skip_special_tokens))
            .map_err(|reason| fail(format!("cannot decode tokens: {reason}")))
    }

    /// Token as the vocabulary spells it (byte-level tokenizers write a space as `Ġ`); nothing if there is none with this id.
    pub fn token(&self, id: u32) -> Option<String> {
        self.shared.pipeline.id_to_token(id)
    }

    /// Id of a token as the vocabulary spells it.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.shared.pipeline.token_to_id(token)
    }

    /// True if conversations can be rendered.
    pub fn has_chat_template(&self) -> bool {
        self.template.is_some()
    }

    /// The template that renders conversations.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.template.map(|at| &self.shared.templates[at].1)
    }

    /// Names of all templates.
    pub fn chat_template_names(&self) -> Vec<&str> {
        self.shared.templates.iter().map(|(name, _)| &**name).collect()
    }

    /// The text of a conversation; at its end the beginning of an answer if that is asked for. Such a text has its special
    /// tokens already: encode it without adding any.
    ///
    /// # Errors
    /// [`AgentError::Model`] naming the template and the line if it fails or refuses, or if there is no template.
    pub fn render_chat(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, AgentError> {
        let template = self.chat_template().ok_or_else(|| {
            let names = self.chat_template_names();
            let remedy = if names.is_empty() {
                format!("put one into {TEMPLATE} beside it, or write prompts and completions as plain text")
            } else {
                format!("its templates are {}; choose one by name", names.join(", "))
            };
            AgentError::Model {
                place: self.shared.place.clone(),
                reason: format!("the tokenizer has no default chat template for conversations; {remedy}"),
            }
        })?;
        let specials = SPECIAL_KEYS.iter().zip(&self.shared.specials);
        let special_tokens = specials.filter_map(|(&key, special)| Some((key, &*special.as_ref()?.0))).collect();
        template.render(messages, &ChatContext { special_tokens, add_generation_prompt, date: self.date })
    }

    /// 128-bit digest of everything that changes token ids, for caches: `tokenizer.json`, special tokens, templates and the
    /// date they see.
    pub fn digest(&self) -> u128 {
        let mut hasher = Xxh3::new();
        hasher.write(&self.shared.digest.to_le_bytes());
        hasher.write(&self.template.map_or(u64::MAX, |at| at as u64).to_le_bytes());
        hasher.write(&self.date.unix_seconds().to_le_bytes());
        hasher.finish_128()
    }
}

/// Reads a file that may be missing.
fn read(folder: &Path, name: &str) -> Result<Option<Vec<u8>>, AgentError> {
    let path = folder.join(name);
    match std::fs::read(&path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(AgentError::Model { place: path.display().to_string(), reason: format!("cannot be read: {error}") }),
    }
}

/// What the post-processor puts before and behind a text.
fn added_tokens(pipeline: &Pipeline) -> tokenizers::Result<(Vec<u32>, Vec<u32>)> {
    // The first text that becomes a token shows where texts go.
    for probe in ["a", "0", " ", "."] {
        let Ok(bare) = pipeline.encode_fast(probe, false) else { continue };
        let bare = bare.get_ids();
        if bare.is_empty() {
            continue;
        }
        let full = pipeline.encode_fast(probe, true)?;
        let full = full.get_ids();
        return match full.windows(bare.len()).position(|window| window == bare) {
            Some(at) => Ok((full[..at].to_vec(), full[at + bare.len()..].to_vec())),
            None => Err("its post-processor changes the tokens of a text, which is not supported".into()),
        };
    }
    // No text of the probe is in the vocabulary: words without an unknown one. All that is added is taken to stand before.
    Ok((pipeline.encode_fast("", true)?.get_ids().to_vec(), Vec::new()))
}

/// Runs code of the `tokenizers` library: some of its parts panic over files that make no sense.
fn guarded<T>(run: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(outcome) => outcome.map_err(|error| error.to_string()),
        Err(_) => Err("its contents make no sense".to_string()),
    }
}

/// The beginning of a text that may be long.
fn shorten(text: &str) -> String {
    let mut shown: String = text.chars().take(40).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(bos: Option<&str>, unknown: Option<&str>) -> Tokenizer {
        let words: Vec<String> = ["<pad>", "<s>", "</s>", "<unk>", "red", "green", "blue"].map(str::to_string).into();
        Tokenizer::from_words(&words, unknown, bos, "</s>", "<pad>").unwrap()
    }

    fn message(error: Result<impl Sized, AgentError>) -> String {
        error.err().unwrap().to_string()
    }

    #[test]
    fn words_become_their_positions() {
        let tokenizer = words(Some("<s>"), Some("<unk>"));
        assert_eq!(tokenizer.encode("red  blue\npink </s>", true).unwrap(), [1, 4, 6, 3, 2]);
        assert_eq!(tokenizer.encode("green", false).unwrap(), [5]);
        assert_eq!(tokenizer.decode(&[1, 4, 6, 2], true).unwrap(), "red blue");
        assert_eq!(tokenizer.decode(&[1, 4, 6, 2], false).unwrap(), "<s> red blue </s>");
        assert_eq!((tokenizer.vocab_size(), tokenizer.bos(), tokenizer.eos(), tokenizer.pad()), (7, Some(1), Some(2), Some(0)));
        assert_eq!(tokenizer.encode("", true).unwrap(), [1]);
    }

    #[test]
    fn unknown_words_are_errors_without_an_unknown_token() {
        let shown = message(words(None, None).encode("red pink", true));
        assert!(shown.contains("cannot encode `pink`"), "{shown}");
    }

    #[test]
    fn words_that_cannot_be_tokens_are_named() {
        let make = |list: &[&str], eos: &str| {
            let list: Vec<String> = list.iter().map(|word| word.to_string()).collect();
            message(Tokenizer::from_words(&list, None, None, eos, eos))
        };
        assert!(make(&["a", "b c"], "a").contains("word 1 is `b c`"));
        assert!(make(&["a", "a"], "a").contains("word 0 and word 1"));
        assert!(make(&["a"], "end").contains("`end` is not among the words"));
    }

    #[test]
    fn saved_files_are_loaded_to_the_same_digest() {
        let folder = std::env::temp_dir().join(format!("steadfast-tokenizer-{}", std::process::id()));
        let tokenizer = words(Some("<s>"), None).with_chat_template("{% for m in messages %}{{ m.content }} {% endfor %}").unwrap();
        tokenizer.save(&folder).unwrap();
        let loaded = Tokenizer::load(&folder).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(loaded.digest(), tokenizer.digest());
        assert!(loaded.has_chat_template());
        assert_ne!(loaded.digest(), words(Some("<s>"), None).digest());
        assert_ne!(loaded.with_date(ChatDate::from_unix_seconds(0)).digest(), loaded.digest());
        let shown = message(Tokenizer::load(&folder));
        assert!(shown.contains("tokenizer.json") && shown.contains("does not exist"), "{shown}");
    }

    #[test]
    fn ids_beyond_the_model_are_refused() {
        assert!(words(None, None).check_vocabulary(7).is_ok());
        let shown = message(words(None, None).check_vocabulary(6));
        assert!(shown.contains("ids up to 6") && shown.contains("6 entries"), "{shown}");
        let shown = message(words(None, None).decode(&[4, 9], false));
        assert!(shown.contains("no token 9"), "{shown}");
    }

    fn with_files(more: &[(&str, &str)]) -> Result<Tokenizer, AgentError> {
        let mut files = words(None, None).shared.files.clone();
        files.retain(|(name, _)| more.iter().all(|(other, _)| other != name));
        files.extend(more.iter().map(|(name, text)| (name.to_string(), text.as_bytes().to_vec())));
        Tokenizer::from_files("m", files)
    }

    #[test]
    fn settings_are_read_in_all_their_spellings() {
        let tokenizer = with_files(&[
            (
                CONFIG,
                r#"{"eos_token": {"content": "</s>"}, "bos_token": null, "add_bos_token": true, "add_eos_token": true,
              "chat_template": [{"name": "rag", "template": "R{{ bos_token }}"}, {"name": "default", "template": "D"}]}"#,
            ),
            (SPECIAL_TOKENS, r#"{"bos_token": "<s>", "eos_token": "red"}"#),
            (GENERATION, r#"{"eos_token_id": [6, 2]}"#),
        ])
        .unwrap();
        assert_eq!(tokenizer.encode("red", true).unwrap(), [1, 4, 2]);
        assert_eq!(tokenizer.end_of_sequence(), [2, 6]);
        assert_eq!(tokenizer.render_chat(&[], false).unwrap(), "D");
        assert_eq!(tokenizer.with_named_chat_template("rag").unwrap().render_chat(&[], false).unwrap(), "R<s>");
        assert!(message(tokenizer.with_named_chat_template("tool")).contains("rag, default"));
        let file =
            with_files(&[(CONFIG, r#"{"chat_template": "C"}"#), (TEMPLATE, "F"), ("additional_chat_templates/x.jinja", "X")]).unwrap();
        assert_eq!(file.render_chat(&[], true).unwrap(), "F");
        assert_eq!(file.chat_template_names(), ["default", "x"]);
    }

    #[test]
    fn errors_name_file_and_key() {
        for (name, text, parts) in [
            (CONFIG, "[]", &["m/tokenizer_config.json", "not a JSON object"][..]),
            (CONFIG, "{", &["m/tokenizer_config.json", "no JSON", "line 1"]),
            (CONFIG, r#"{"pad_token": "[PAD]"}"#, &["`pad_token` is `[PAD]`", "not in the vocabulary"]),
            (CONFIG, r#"{"pad_token": 3}"#, &["`pad_token`", "got 3"]),
            (CONFIG, r#"{"eos_token": {}}"#, &["`eos_token`", "without a text `content`"]),
            (CONFIG, r#"{"add_bos_token": true}"#, &["`add_bos_token`", "no such token"]),
            (CONFIG, r#"{"add_bos_token": 1}"#, &["`add_bos_token` must be true or false"]),
            (CONFIG, r#"{"chat_template": 1}"#, &["`chat_template`", "got 1"]),
            (CONFIG, r#"{"chat_template": "{% if %}"}"#, &["m/tokenizer_config.json, chat_template, line 1"]),
            (TEMPLATE, "\n{{ x", &["m/chat_template.jinja, line 2"]),
            (GENERATION, r#"{"eos_token_id": -1}"#, &["m/generation_config.json", "`eos_token_id`", "-1"]),
            (GENERATION, r#"{"eos_token_id": 7}"#, &["m/generation_config.json", "7", "last id is 6"]),
            (TOKENIZER, "{}", &["m/tokenizer.json", "cannot be read"]),
        ] {
            let shown = message(with_files(&[(name, text)]));
            assert!(parts.iter().all(|part| shown.contains(part)), "{text}: {shown}");
        }
        let shown = message(words(None, None).render_chat(&[], true));
        assert!(shown.contains("no default chat template"), "{shown}");
    }
}
