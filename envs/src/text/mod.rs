//! Worlds of text: an observation is a prompt, an action a whole completion.
//!
//! Tasks with a known gold reward need no download: their texts are symbols drawn from a known process, on which a small
//! language model is trained from nothing. [`TopicLexicon`], [`SalientCopy`] and [`ShortcutStyle`] are such tasks;
//! [`PromptsEnv`] takes its prompts from a file and leaves the reward to a reward model.
//!
//! Observations are rows as [`crate::write_tokens`] writes them. An episode has one step: the completion ends it.

mod lexicon;
mod message;
mod prompts;
mod salient;
mod shortcut;
mod task;

pub use lexicon::{SoftOptimum, TopicLexicon, TopicLexiconConfig};
pub use message::Message;
pub use prompts::{EncodedPrompts, PromptsConfig, PromptsEnv};
pub use salient::{SalientCopy, SalientCopyConfig};
pub use shortcut::{ShortcutStyle, ShortcutStyleConfig};
pub use task::{BOS, EOS, PAD, TextEnv, TextTask, words_of};
