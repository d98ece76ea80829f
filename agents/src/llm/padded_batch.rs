//! Batches as rectangles: for display, and for tools that want them.

use super::encode::{at_row, row_error};
use super::sequence::TokenSequence;
use super::tokenizer::Tokenizer;
use crate::AgentError;

/// On which side rows of a batch are filled up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PaddingSide {
    /// Before the prompt, as for generation elsewhere.
    Left,
    /// Behind the completion, as for training elsewhere.
    Right,
}

/// Sequences filled up to one length, `[row, position]`: for display and for other tools. Models of this crate take
/// sequences as they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PaddedBatch {
    /// Length of every row, that of the longest sequence.
    pub width: usize,
    /// Token ids, the padding token where a row is filled up.
    pub ids: Vec<u32>,
    /// True at the tokens of a sequence, false at padding.
    pub attention_mask: Vec<bool>,
    /// True at the tokens of a completion.
    pub completion_mask: Vec<bool>,
}

impl PaddedBatch {
    /// Fills up sequences with the token `pad`, which may be any, also one that sequences have.
    pub fn new(sequences: &[TokenSequence], side: PaddingSide, pad: u32) -> Self {
        let width = sequences.iter().map(|sequence| sequence.tokens.len()).max().unwrap_or(0);
        let size = width * sequences.len();
        let mut batch = Self { width, ids: vec![pad; size], attention_mask: vec![false; size], completion_mask: vec![false; size] };
        for (row, sequence) in sequences.iter().enumerate() {
            let len = sequence.tokens.len();
            let start = row * width + if side == PaddingSide::Left { width - len } else { 0 };
            batch.ids[start..start + len].copy_from_slice(&sequence.tokens);
            batch.attention_mask[start..start + len].fill(true);
            batch.completion_mask[start + sequence.prompt_len.min(len)..start + len].fill(true);
        }
        batch
    }

    /// Number of rows.
    pub fn n_rows(&self) -> usize {
        self.ids.len() / self.width.max(1)
    }

    /// The sequences without padding, whichever side it is on.
    ///
    /// # Errors
    /// [`AgentError::Model`] naming the row if its tokens or those of its completion are not one stretch, or if its
    /// completion does not end where the row does; [`AgentError::Shape`] if the arrays have different lengths.
    pub fn sequences(&self) -> Result<Vec<TokenSequence>, AgentError> {
        let shapes = [self.ids.len(), self.attention_mask.len(), self.completion_mask.len()];
        if shapes != [self.n_rows() * self.width; 3] {
            let expected = vec![self.n_rows(), self.width];
            return Err(AgentError::Shape { op: "padded batch".to_string(), expected, got: shapes.to_vec() });
        }
        let rows = self.ids.chunks(self.width.max(1)).zip(self.attention_mask.chunks(self.width.max(1)));
        let rows = rows.zip(self.completion_mask.chunks(self.width.max(1))).enumerate();
        rows.map(|(row, ((ids, attention), completion))| {
            let fail = |reason: &str| row_error(&format!("padded batch, row {row}"), reason);
            let start = attention.iter().position(|&is_token| is_token).unwrap_or(0);
            let len = attention[start..].iter().take_while(|&&is_token| is_token).count();
            if attention[start + len..].contains(&true) {
                return Err(fail("padding stands between tokens"));
            }
            let prompt_len = completion[start..start + len].iter().take_while(|&&is_completion| !is_completion).count();
            let n_completion = completion.iter().filter(|&&is_completion| is_completion).count();
            if n_completion != len - prompt_len || completion[start + prompt_len..start + len].contains(&false) {
                return Err(fail("the completion is not the end of the row's tokens"));
            }
            Ok(TokenSequence { tokens: ids[start..start + len].to_vec(), prompt_len })
        })
        .collect()
    }
}

/// A batch as the model sees it, for people: per row the text with all special tokens, then one line per token with its
/// position, id, part (`prompt`, `completion`, `padding`) and spelling. Padding has no position.
///
/// # Errors
/// [`AgentError::Model`] naming the row if a token is not in the vocabulary.
pub fn show(tokenizer: &Tokenizer, sequences: &[TokenSequence], side: PaddingSide) -> Result<String, AgentError> {
    use std::fmt::Write as _;
    let pad = tokenizer.pad().or(tokenizer.eos()).unwrap_or(0);
    let batch = PaddedBatch::new(sequences, side, pad);
    let mut out = String::new();
    for (row, sequence) in sequences.iter().enumerate() {
        let text = tokenizer.decode(&sequence.tokens, false).map_err(|error| at_row(&format!("row {row}"), error))?;
        let n_completion = sequence.completion().len();
        let n_padding = batch.width - sequence.tokens.len();
        // Writing to a string cannot fail.
        let _ = writeln!(out, "row {row}: {} prompt, {n_completion} completion, {n_padding} padding tokens", sequence.prompt_len);
        for line in text.split('\n') {
            let _ = writeln!(out, "  | {line}");
        }
        let _ = writeln!(out, "  position        id  part        token");
        let mut position = 0;
        for at in row * batch.width..(row + 1) * batch.width {
            let id = batch.ids[at];
            let (part, shown) = match (batch.attention_mask[at], batch.completion_mask[at]) {
                (false, _) => ("padding", "-".to_string()),
                (_, is_completion) => {
                    position += 1;
                    (if is_completion { "completion" } else { "prompt" }, (position - 1).to_string())
                }
            };
            let token = tokenizer.token(id).unwrap_or_default();
            let _ = writeln!(out, "  {shown:>8}  {id:>8}  {part:<10}  {}", token.escape_debug());
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_is_taken_off_again() {
        let sequences = [TokenSequence::new(&[1, 5], &[6]), TokenSequence::new(&[7], &[5, 6, 0, 2])];
        for side in [PaddingSide::Left, PaddingSide::Right] {
            let batch = PaddedBatch::new(&sequences, side, 0);
            assert_eq!((batch.width, batch.n_rows()), (5, 2));
            assert_eq!(batch.sequences().unwrap(), sequences);
        }
        let left = PaddedBatch::new(&sequences, PaddingSide::Left, 0);
        assert_eq!(left.ids, [0, 0, 1, 5, 6, 7, 5, 6, 0, 2]);
        let mut torn = left.clone();
        torn.attention_mask[7] = false;
        assert!(torn.sequences().unwrap_err().to_string().contains("row 1: padding stands between tokens"));
        let mut torn = left;
        torn.completion_mask[9] = false;
        assert!(torn.sequences().unwrap_err().to_string().contains("row 1: the completion is not the end"));
        assert_eq!(PaddedBatch::new(&[], PaddingSide::Left, 0).sequences().unwrap(), []);
    }

    #[test]
    fn a_shown_batch_has_a_line_per_token() {
        let words = ["<pad>", "<s>", "</s>", "user", "assistant", "red", "green", "blue"].map(str::to_string);
        let tokenizer = Tokenizer::from_words(&words, None, Some("<s>"), "</s>", "<pad>").unwrap();
        let sequences = [TokenSequence::new(&[1, 5], &[6, 2]), TokenSequence::new(&[1, 5], &[2])];
        let shown = show(&tokenizer, &sequences, PaddingSide::Right).unwrap();
        assert!(shown.contains("row 1: 2 prompt, 1 completion, 1 padding tokens\n  | <s> red </s>\n"), "{shown}");
        assert!(shown.contains("\n         2         6  completion  green\n"), "{shown}");
        assert!(shown.contains("\n         -         0  padding     <pad>\n"), "{shown}");
        assert!(show(&tokenizer, &[TokenSequence::new(&[99], &[1])], PaddingSide::Left).unwrap_err().to_string().contains("row 0"));
    }
}
