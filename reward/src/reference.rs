//! Log-probabilities of completions under a reference policy: computed once, kept on disk.
//!
//! The reference of DPO and its kin does not change, so what it says of the data is known before the first step and the
//! model itself can be dropped. The numbers are kept in a file whose name and content are bound to a 128-bit hash of all
//! that they depend on: shape, parameters and device of the model, digest of the tokenizer, and every token of the data. A
//! file that is damaged or belongs to something else is computed anew, with a notice.
//!
//! File: 8 bytes `SFREFLP1`, the hash (16 bytes), the number of values (8), the values (4 each), and a hash of all that
//! (16); little-endian.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use steadfast_agents::AgentError;
use steadfast_agents::llm::{Decoder, TokenSequence};
use twox_hash::xxhash3_128::Hasher;

const MAGIC: &[u8; 8] = b"SFREFLP1";
/// Bytes before the values.
const HEADER: usize = 8 + 16 + 8;
/// Bytes after the values.
const FOOTER: usize = 16;

/// Sequences that go through the model together.
const BATCH: usize = 16;

/// Where reference log-probabilities are kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReferenceCache {
    /// Folder of the files, made where it is missing; nothing is kept on disk without one.
    pub folder: Option<PathBuf>,
    /// Digest of the tokenizer that made the tokens.
    pub tokenizer_digest: u128,
}

impl ReferenceCache {
    /// Log-probability of each completion under `decoder`, read or computed. What went wrong with the disk is appended to
    /// `notices`; it costs time and nothing else.
    ///
    /// # Errors
    /// Those of the model; [`AgentError::NonFinite`] for a log-probability that is not finite.
    pub fn log_probs(&self, decoder: &Decoder, sequences: &[&TokenSequence], notices: &mut Vec<String>) -> Result<Vec<f32>, AgentError> {
        let Some(folder) = &self.folder else { return compute(decoder, sequences) };
        let key = self.key(decoder, sequences)?;
        let path = folder.join(format!("reference-{key:032x}.bin"));
        match fs::read(&path) {
            Ok(bytes) => match parse(&bytes, key, sequences.len()) {
                Ok(values) => return Ok(values),
                Err(reason) => notices.push(format!("{}: {reason}; reference log-probabilities are computed again", path.display())),
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => notices.push(format!("cannot read {}: {error}; reference log-probabilities are computed again", path.display())),
        }
        let values = compute(decoder, sequences)?;
        if let Err(error) = store(folder, &path, &bytes_of(key, &values)) {
            notices.push(format!("cannot write {}: {error}; the next run will compute reference log-probabilities again", path.display()));
        }
        Ok(values)
    }

    /// Hash of everything that the numbers depend on.
    fn key(&self, decoder: &Decoder, sequences: &[&TokenSequence]) -> Result<u128, AgentError> {
        let mut hasher = Hasher::new();
        hasher.write(MAGIC);
        hasher.write(&self.tokenizer_digest.to_le_bytes());
        // The device decides the precision of a reference, and so do kernels.
        let device = if decoder.device().is_cpu() { "cpu" } else { "accelerator" };
        write_text(&mut hasher, device);
        write_text(&mut hasher, &format!("{:?}", decoder.config()));
        let mut bytes = Vec::new();
        for (name, shape, values) in decoder.parameters()? {
            write_text(&mut hasher, &name);
            shape.iter().for_each(|&n| hasher.write(&(n as u64).to_le_bytes()));
            bytes.clear();
            bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
            hasher.write(&bytes);
        }
        for sequence in sequences {
            bytes.clear();
            bytes.extend((sequence.tokens.len() as u64).to_le_bytes());
            bytes.extend((sequence.prompt_len as u64).to_le_bytes());
            bytes.extend(sequence.tokens.iter().flat_map(|t| t.to_le_bytes()));
            hasher.write(&bytes);
        }
        Ok(hasher.finish_128())
    }
}

/// Writes a text with its length, so that the border between two is part of the hash.
fn write_text(hasher: &mut Hasher, text: &str) {
    hasher.write(&(text.len() as u64).to_le_bytes());
    hasher.write(text.as_bytes());
}

fn compute(decoder: &Decoder, sequences: &[&TokenSequence]) -> Result<Vec<f32>, AgentError> {
    let mut values = Vec::with_capacity(sequences.len());
    for chunk in sequences.chunks(BATCH) {
        values.extend(decoder.log_probs(chunk, 1.0)?.iter().map(|statistics| statistics.log_prob()));
    }
    match values.iter().position(|v| !v.is_finite()) {
        Some(position) => {
            let tensor = "log-probability under the reference policy".to_string();
            Err(AgentError::NonFinite { tensor, value: values[position], update: 0, position })
        }
        None => Ok(values),
    }
}

fn bytes_of(key: u128, values: &[f32]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + 4 * values.len() + FOOTER);
    bytes.extend(MAGIC);
    bytes.extend(key.to_le_bytes());
    bytes.extend((values.len() as u64).to_le_bytes());
    bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    let check = Hasher::oneshot(&bytes);
    bytes.extend(check.to_le_bytes());
    bytes
}

/// The values of a file, or why they cannot be used.
fn parse(bytes: &[u8], key: u128, n: usize) -> Result<Vec<f32>, String> {
    let expected = HEADER + 4 * n + FOOTER;
    if bytes.len() != expected {
        return Err(format!("{} bytes where {expected} were expected", bytes.len()));
    }
    let (content, footer) = bytes.split_at(expected - FOOTER);
    if Hasher::oneshot(content).to_le_bytes() != footer {
        return Err("the content does not agree with its check sum".to_string());
    }
    let header: Vec<u8> = [&MAGIC[..], &key.to_le_bytes(), &(n as u64).to_le_bytes()].concat();
    if content[..HEADER] != header {
        return Err("it belongs to other data or another model".to_string());
    }
    let values = content[HEADER..].as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect::<Vec<f32>>();
    if values.iter().any(|v| !v.is_finite()) {
        return Err("it holds numbers that are not finite".to_string());
    }
    Ok(values)
}

/// Writes under a temporary name and renames, so that a reader sees all or nothing.
fn store(folder: &Path, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    fs::create_dir_all(folder)?;
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    let write = || {
        let mut file = fs::File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().inspect_err(|_| {
        // Nothing half-written may be left; failing to remove it is no worse than leaving it.
        let _ = fs::remove_file(&temporary);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_gives_back_what_was_written() {
        let values = [-1.5, 0.0, -1e-30, -3e7];
        assert_eq!(parse(&bytes_of(7, &values), 7, 4), Ok(values.to_vec()));
        assert_eq!(parse(&bytes_of(7, &[]), 7, 0), Ok(vec![]));
    }

    #[test]
    fn damaged_and_foreign_files_are_refused() {
        let bytes = bytes_of(7, &[-1.0, -2.0]);
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(parse(&damaged, 7, 2).is_err(), "byte {at}");
        }
        for n in 0..bytes.len() {
            assert!(parse(&bytes[..n], 7, 2).is_err(), "{n} bytes");
        }
        assert!(parse(&bytes, 8, 2).is_err_and(|e| e.contains("another model")));
        assert!(parse(&bytes, 7, 3).is_err());
        assert!(parse(&bytes_of(7, &[f32::NAN]), 7, 1).is_err());
    }

    #[test]
    fn a_stored_file_replaces_an_older_one_and_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let nested = folder.path().join("a/b");
        let path = nested.join("reference-0.bin");
        store(&nested, &path, b"old").unwrap();
        store(&nested, &path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(&nested).unwrap().count(), 1);
    }
}
