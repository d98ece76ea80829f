//! Rows of files as token sequences, by all threads of the current pool.

use std::path::Path;

use steadfast_agents::llm::{EncodeConfig, EncodeReport, Encoder, TokenSequence, Tokenizer};

use crate::error::Result;
use crate::preference::{TextCompletion, TextPreference, TextPrompt};

/// Chosen and rejected of every pair, in the order of the rows; nothing for a pair that is left out, as the report says.
///
/// `rows`: pairs with their line in the file `path`, which errors name.
///
/// # Errors
/// As [`Encoder::pair`], that of the first row that fails.
pub fn encode_pairs(
    tokenizer: &Tokenizer,
    config: &EncodeConfig,
    path: &Path,
    rows: &[(u64, TextPreference)],
) -> Result<(Vec<Option<[TokenSequence; 2]>>, EncodeReport)> {
    let encoder = Encoder::new(tokenizer, config)?;
    Ok(Encoder::rows(rows.len(), |at, report| {
        let (line, row) = &rows[at];
        let pair = &row.pair;
        encoder.pair(pair.prompt.as_input(), pair.chosen.as_input(), pair.rejected.as_input(), &place(path, *line), report)
    })?)
}

/// Every completion behind its prompt, in the order of the rows; nothing for a row that is left out, as the report says.
///
/// `rows`: completions with their line in the file `path`, which errors name.
///
/// # Errors
/// As [`Encoder::completion`], that of the first row that fails.
pub fn encode_completions(
    tokenizer: &Tokenizer,
    config: &EncodeConfig,
    path: &Path,
    rows: &[(u64, TextCompletion)],
) -> Result<(Vec<Option<TokenSequence>>, EncodeReport)> {
    let encoder = Encoder::new(tokenizer, config)?;
    Ok(Encoder::rows(rows.len(), |at, report| {
        let (line, row) = &rows[at];
        encoder.completion(row.prompt.as_input(), row.completion.as_input(), &place(path, *line), report)
    })?)
}

/// The tokens that answers to every prompt start from, in the order of the rows; nothing for a prompt longer than
/// `max_tokens`, which is counted as too long.
///
/// `rows`: prompts with their line in the file `path`, which errors name.
///
/// # Errors
/// As [`Encoder::prompt`], that of the first row that fails.
pub fn encode_prompts(
    tokenizer: &Tokenizer,
    max_tokens: usize,
    path: &Path,
    rows: &[(u64, TextPrompt)],
) -> Result<(Vec<Option<Vec<u32>>>, EncodeReport)> {
    let encoder = Encoder::new(tokenizer, &EncodeConfig::default())?;
    Ok(Encoder::rows(rows.len(), |at, report| {
        let (line, row) = &rows[at];
        let tokens = encoder.prompt(row.prompt.as_input(), &place(path, *line))?;
        report.rows += 1;
        if tokens.len() > max_tokens {
            report.prompts_too_long += 1;
            return Ok(None);
        }
        report.kept += 1;
        report.prompt_tokens += tokens.len() as u64;
        report.longest = report.longest.max(tokens.len() as u64);
        Ok(Some(tokens))
    })?)
}

fn place(path: &Path, line: u64) -> String {
    format!("{}:{line}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preference::{Text, TextPair};

    fn tokenizer() -> Tokenizer {
        let words = ["<pad>", "</s>", "a", "b", "c"].map(str::to_string);
        Tokenizer::from_words(&words, None, None, "</s>", "<pad>").unwrap()
    }

    fn plain(text: &str) -> Text {
        Text::Plain(text.to_string())
    }

    #[test]
    fn rows_become_tokens_and_errors_name_file_and_line() {
        let tokenizer = tokenizer();
        let row = |chosen: &str| {
            let pair = TextPair { prompt: plain("a"), chosen: plain(chosen), rejected: plain(" c") };
            TextPreference { pair, ..Default::default() }
        };
        let path = Path::new("pairs.jsonl");
        let config = EncodeConfig::default();
        let (pairs, report) = encode_pairs(&tokenizer, &config, path, &[(1, row(" b")), (4, row(" b b"))]).unwrap();
        assert_eq!(pairs[1], Some([TokenSequence::new(&[2], &[3, 3, 1]), TokenSequence::new(&[2], &[4, 1])]));
        assert_eq!((report.kept, report.completion_tokens), (2, 9));
        let shown = encode_pairs(&tokenizer, &config, path, &[(1, row(" b")), (4, row(" x"))]).unwrap_err().to_string();
        assert!(shown.starts_with("pairs.jsonl:4: ") && shown.contains("cannot encode `x`"), "{shown}");
        let single = TextCompletion { prompt: plain("a"), completion: plain(" c"), ..Default::default() };
        let (rows, _) = encode_completions(&tokenizer, &config, path, &[(1, single)]).unwrap();
        assert_eq!(rows, [Some(TokenSequence::new(&[2], &[4, 1]))]);
        let prompt = |text: &str| TextPrompt { prompt: plain(text), ..Default::default() };
        let (rows, report) = encode_prompts(&tokenizer, 2, path, &[(1, prompt("a b")), (2, prompt("a b c"))]).unwrap();
        assert_eq!((rows, report.prompts_too_long), (vec![Some(vec![2, 3]), None], 1));
    }
}
