//! Worlds of text: an observation is a prompt, an action a whole completion.

mod message;

pub use message::Message;
