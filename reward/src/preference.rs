//! Preferences: two things, and which of them an annotator chose.
//!
//! A pair is kept in the order of its label: `chosen` is what the annotator preferred, rightly or not. What is known
//! about the truth ([`Truth`]) stands beside it and is never seen by a model.

/// A stretch of one agent's trajectory.
///
/// All segments of a data set have the same number of steps, save those that end with the end of the task
/// (`terminated`): nothing follows there, so the missing steps count as reward 0 in the true and in the learned sum.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Segment {
    /// Number of steps, at least 1.
    pub steps: usize,
    /// `[steps, observation_width]`: the observation before each step.
    pub observations: Vec<f32>,
    /// `[steps, action_width]`: the action of each step as the policy chose it, limited to the action space, even if a
    /// perturbation replaced it. A discrete action is one number, its index.
    pub actions: Vec<f32>,
    /// `[steps]`: the environment's own rewards; empty if they are not known.
    pub rewards: Vec<f32>,
    /// True if the task ended with the last step.
    pub terminated: bool,
    /// The policy that acted, in words such as `step 20000`; empty if it is not known.
    pub policy: String,
}

impl Segment {
    /// Undiscounted sum of the environment's rewards; nothing if they are not known.
    pub fn true_return(&self) -> Option<f64> {
        (!self.rewards.is_empty()).then(|| self.rewards.iter().map(|&r| f64::from(r)).sum())
    }
}

/// Two segments.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SegmentPair {
    /// The one that the annotator preferred.
    pub chosen: Segment,
    /// The other one.
    pub rejected: Segment,
}

pub use steadfast_envs::text::Message;

/// A text, plain or as a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Text {
    /// Plain text.
    Plain(String),
    /// Messages in their order.
    Conversation(Vec<Message>),
}

impl Default for Text {
    fn default() -> Self {
        Self::Plain(String::new())
    }
}

impl Text {
    /// The text as [`Encoder`](steadfast_agents::llm::Encoder) takes it.
    #[cfg(feature = "llm")]
    pub fn as_input(&self) -> steadfast_agents::llm::TextInput<'_> {
        match self {
            Self::Plain(text) => steadfast_agents::llm::TextInput::Plain(text),
            Self::Conversation(messages) => steadfast_agents::llm::TextInput::Messages(messages),
        }
    }

    /// True if there is not a single character besides white space.
    pub fn is_blank(&self) -> bool {
        match self {
            Self::Plain(text) => text.trim().is_empty(),
            Self::Conversation(messages) => messages.iter().all(|m| m.content.trim().is_empty()),
        }
    }
}

/// Two answers to a prompt.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TextPair {
    /// What both answer; blank if the data has no prompts.
    pub prompt: Text,
    /// The one that the annotator preferred.
    pub chosen: Text,
    /// The other one.
    pub rejected: Text,
}

/// A label with what is known about it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Preference<P> {
    /// Identifier, unique within a data set.
    pub id: String,
    /// The pair in the order of the label.
    pub pair: P,
    /// True if the annotator found both equally good; the order of the pair then means nothing.
    pub equal: bool,
    /// A margin by which the chosen one should win, subtracted from the learned margin; usually none.
    pub margin: Option<f32>,
    /// Who labelled, if that is known.
    pub annotator: Option<String>,
    /// What is known about the truth.
    pub truth: Truth,
    /// Log-probabilities of chosen and rejected under a reference model, if the data has them.
    pub reference_log_probs: Option<[f64; 2]>,
}

/// What is known about the truth of a label. No model sees it; it is for measuring and for oracle selection.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Truth {
    /// True if the label contradicts the truth.
    pub flipped: Option<bool>,
    /// True value of the chosen one.
    pub gold_chosen: Option<f64>,
    /// True value of the rejected one.
    pub gold_rejected: Option<f64>,
}

/// A single answer to a prompt, judged or not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TextCompletion {
    /// Identifier, unique within a data set.
    pub id: String,
    /// What it answers; blank if the completion is a whole text or conversation.
    pub prompt: Text,
    /// The answer.
    pub completion: Text,
    /// True if it is desirable, false if it is not, nothing if nobody judged.
    pub label: Option<bool>,
}

/// A prompt that waits for answers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TextPrompt {
    /// Identifier, unique within a data set.
    pub id: String,
    /// The prompt.
    pub prompt: Text,
}

/// A preference between segments.
pub type SegmentPreference = Preference<SegmentPair>;
/// A preference between texts.
pub type TextPreference = Preference<TextPair>;
