//! Text in and out.
use std::path::Path;

use steadfast_envs::text::Message;

use crate::AgentError;

/// A tokenizer with its special tokens and chat template.
#[derive(Clone)]
pub struct Tokenizer {}

#[allow(unused_variables)]
impl Tokenizer {
    /// Reads `tokenizer.json`, and `tokenizer_config.json`, `special_tokens_map.json`, `chat_template.jinja`, `generation_config.json` where they exist.
    pub fn load(folder: &Path) -> Result<Self, AgentError> {
        unimplemented!("helper `text`")
    }
    /// One token per word, split at white space; ids are positions in `words`. For tasks whose texts are lists of symbols.
    pub fn from_words(words: &[String], unknown: Option<&str>, bos: Option<&str>, eos: &str, pad: &str) -> Result<Self, AgentError> {
        unimplemented!("helper `text`")
    }
    /// Writes the files that [`Tokenizer::load`] reads and `transformers` loads.
    pub fn save(&self, folder: &Path) -> Result<(), AgentError> {
        unimplemented!("helper `text`")
    }
    pub fn vocab_size(&self) -> usize {
        unimplemented!("helper `text`")
    }
    pub fn bos(&self) -> Option<u32> {
        unimplemented!("helper `text`")
    }
    pub fn eos(&self) -> Option<u32> {
        unimplemented!("helper `text`")
    }
    pub fn pad(&self) -> Option<u32> {
        unimplemented!("helper `text`")
    }
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, AgentError> {
        unimplemented!("helper `text`")
    }
    pub fn decode(&self, tokens: &[u32], skip_special_tokens: bool) -> Result<String, AgentError> {
        unimplemented!("helper `text`")
    }
    pub fn has_chat_template(&self) -> bool {
        unimplemented!("helper `text`")
    }
    pub fn render_chat(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, AgentError> {
        unimplemented!("helper `text`")
    }
    /// 128-bit digest of everything that changes token ids, for caches.
    pub fn digest(&self) -> u128 {
        unimplemented!("helper `text`")
    }
}
