//! Counts of what happened to texts on their way to tokens.

use std::fmt;

use serde::Serialize;

/// What happened to the rows of a data set on their way to tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct EncodeReport {
    /// Rows: pairs of completions, or single ones.
    pub rows: u64,
    /// Rows that became token sequences.
    pub kept: u64,
    /// Rows dropped because the prompt alone reaches `max_tokens`.
    pub prompts_too_long: u64,
    /// Pairs dropped because both sides became the same tokens, usually by truncation.
    pub identical: u64,
    /// Completions of kept rows that lost their end.
    pub truncated: u64,
    /// Tokens that truncation took from kept rows.
    pub truncated_tokens: u64,
    /// Completions of kept rows whose first characters would have merged with the end of the prompt into one token.
    pub boundary_mismatches: u64,
    /// Completions of kept rows before which the chat template writes something else than the generation prompt.
    pub template_mismatches: u64,
    /// Completions of kept rows without an end-of-sequence token, because the tokenizer has none.
    pub without_end: u64,
    /// Tokens of the prompts of kept rows, a prompt once per completion.
    pub prompt_tokens: u64,
    /// Tokens of the completions of kept rows.
    pub completion_tokens: u64,
    /// Length of the longest sequence.
    pub longest: u64,
}

impl EncodeReport {
    /// Adds the counts of other rows.
    pub fn merge(&mut self, other: &Self) {
        let sums = [
            (&mut self.rows, other.rows),
            (&mut self.kept, other.kept),
            (&mut self.prompts_too_long, other.prompts_too_long),
            (&mut self.identical, other.identical),
            (&mut self.truncated, other.truncated),
            (&mut self.truncated_tokens, other.truncated_tokens),
            (&mut self.boundary_mismatches, other.boundary_mismatches),
            (&mut self.template_mismatches, other.template_mismatches),
            (&mut self.without_end, other.without_end),
            (&mut self.prompt_tokens, other.prompt_tokens),
            (&mut self.completion_tokens, other.completion_tokens),
        ];
        for (sum, more) in sums {
            *sum += more;
        }
        self.longest = self.longest.max(other.longest);
    }

    /// What the user should know, one sentence each; empty if nothing was changed.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let mut warn = |count: u64, text: &str| {
            if count > 0 {
                warnings.push(format!("{count} {text}"));
            }
        };
        warn(self.prompts_too_long, "rows are dropped because the prompt alone reaches `max_tokens`; raise it, or shorten the prompts");
        warn(self.identical, "pairs are dropped because both sides became the same tokens, usually by truncation at `max_tokens`");
        let cut = format!("completions lost their end at `max_tokens`, {} tokens in all", self.truncated_tokens);
        warn(self.truncated, &cut);
        warn(
            self.boundary_mismatches,
            "completions would have merged with the end of their prompt into one token and were tokenised separately; end prompts where a \
             token ends, and begin completions with the space",
        );
        warn(
            self.template_mismatches,
            "completions follow something else than the generation prompt in the chat template; they were put behind the generation prompt, \
             where the model will write them",
        );
        warn(self.without_end, "completions have no end-of-sequence token, because the tokenizer names none (`eos_token`)");
        warnings
    }
}

impl fmt::Display for EncodeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of {} rows, {} prompt and {} completion tokens, longest sequence {}",
            self.kept, self.rows, self.prompt_tokens, self.completion_tokens, self.longest
        )?;
        self.warnings().iter().try_for_each(|warning| write!(f, "\n{warning}"))
    }
}
