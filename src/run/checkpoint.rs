//! Checkpoints: everything that an exact continuation needs, complete or absent.
//!
//! A checkpoint is a directory that is written under a temporary name, brought to the disk and then renamed. It holds
//! safetensors files and `progress.json`, which gives the sizes and checksums of the others and the lengths of the
//! logs at that moment.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use steadfast_agents::StateDict;

use super::{FORMAT_VERSION, arrays};
use crate::failure::{Failure, Result};

const LEARNER: &str = "learner.safetensors";
const ENGINE: &str = "engine.safetensors";
const REWARD: &str = "reward.safetensors";
const PROGRESS: &str = "progress.json";

/// Where the run stood.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// [`FORMAT_VERSION`] of the writer.
    pub format_version: u32,
    /// Version of the program that wrote it.
    #[serde(default)]
    pub steadfast_version: String,
    /// Joint environment steps so far.
    pub step: u64,
    /// Updates so far.
    pub update: u64,
    /// Lengths of the logs in bytes, by name.
    pub logs: BTreeMap<String, u64>,
    /// The other files of the checkpoint, by name.
    pub files: BTreeMap<String, FileSum>,
}

/// What a file must look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSum {
    /// Length.
    pub bytes: u64,
    /// CRC-32C of the content.
    pub crc32c: u32,
}

/// A complete checkpoint in memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    /// Where the run stood.
    pub progress: Progress,
    /// State of the learner.
    pub learner: StateDict,
    /// State of the rollout engine and of what the experiment itself remembers.
    pub engine: StateDict,
    /// State of the learned reward, if the run learns one.
    pub reward: Option<StateDict>,
}

impl Checkpoint {
    /// What tells the learner of this checkpoint from others: the checksum of its file.
    pub fn fingerprint(&self) -> String {
        self.progress.files.get(LEARNER).map_or_else(String::new, |sum| format!("{:08x}", sum.crc32c))
    }
}

/// Why a checkpoint cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// A file is missing or cannot be read.
    #[error("{file}: {reason}")]
    File {
        /// Name within the checkpoint.
        file: &'static str,
        /// The system's or the parser's reason.
        reason: String,
    },
    /// A file does not have the recorded length or checksum.
    #[error("{file} is damaged: expected {expected_bytes} bytes with checksum {expected_crc:08x}, got {bytes} bytes with {crc:08x}")]
    Damaged {
        /// Name within the checkpoint.
        file: &'static str,
        /// Recorded length.
        expected_bytes: u64,
        /// Recorded checksum.
        expected_crc: u32,
        /// Found length.
        bytes: u64,
        /// Found checksum.
        crc: u32,
    },
    /// Another version of the program wrote it.
    #[error(
        "it has format version {found}, written by steadfast {writer}; this program, steadfast {}, reads version {FORMAT_VERSION}",
        env!("CARGO_PKG_VERSION")
    )]
    Version {
        /// The version found.
        found: u64,
        /// Version of the program that wrote it.
        writer: String,
    },
    /// A log of the run is shorter than it was when the checkpoint was taken.
    #[error("{file} has {bytes} bytes, but had {expected_bytes} when the checkpoint was taken")]
    ShortLog {
        /// Name within the run directory.
        file: String,
        /// Length at the checkpoint.
        expected_bytes: u64,
        /// Length now.
        bytes: u64,
    },
}

impl CheckpointError {
    /// What helps against this error in particular.
    pub fn remedy(&self) -> Option<&'static str> {
        match self {
            Self::Version { .. } => Some("use the version of steadfast that wrote it"),
            _ => None,
        }
    }
}

/// Directory name of a checkpoint.
pub fn name(step: u64) -> String {
    format!("step-{step:012}")
}

/// Steps of all checkpoints in `directory`, oldest first. Temporary directories are not counted.
pub fn list(directory: &Path) -> Vec<u64> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut steps: Vec<u64> = entries.filter_map(|e| e.file_name().to_str()?.strip_prefix("step-")?.parse().ok()).collect();
    steps.sort_unstable();
    steps
}

/// Writes a checkpoint below `directory` and removes all but the newest `keep`.
///
/// # Errors
/// [`Failure::Run`] naming the file; older checkpoints are then still there.
pub fn save(directory: &Path, checkpoint: &Checkpoint, keep: usize) -> Result<PathBuf> {
    let step = checkpoint.progress.step;
    let temporary = directory.join(format!(".{}.tmp", name(step)));
    let target = directory.join(name(step));
    let result = write(&temporary, checkpoint).and_then(|()| {
        // A damaged checkpoint of the same step, passed over on resuming, makes room.
        if target.exists() {
            fs::remove_dir_all(&target).map_err(|e| Failure::file("replace", &target, e))?;
        }
        fs::rename(&temporary, &target).map_err(|e| Failure::file("write", &target, e))?;
        sync_directory(directory)
    });
    if let Err(failure) = result {
        let _ = fs::remove_dir_all(&temporary);
        return Err(failure);
    }
    let steps = list(directory);
    for old in &steps[..steps.len().saturating_sub(keep.max(1))] {
        if *old != step {
            let path = directory.join(name(*old));
            fs::remove_dir_all(&path).map_err(|e| Failure::file("remove", &path, e))?;
        }
    }
    Ok(target)
}

fn write(temporary: &Path, checkpoint: &Checkpoint) -> Result<()> {
    if temporary.exists() {
        fs::remove_dir_all(temporary).map_err(|e| Failure::file("remove", temporary, e))?;
    }
    fs::create_dir_all(temporary).map_err(|e| Failure::file("create", temporary, e))?;
    let mut progress = Progress {
        format_version: FORMAT_VERSION,
        steadfast_version: env!("CARGO_PKG_VERSION").to_string(),
        files: BTreeMap::new(),
        ..checkpoint.progress.clone()
    };
    let reward = checkpoint.reward.as_ref().map(|state| (REWARD, state));
    for (file, state) in [(LEARNER, &checkpoint.learner), (ENGINE, &checkpoint.engine)].into_iter().chain(reward) {
        let bytes = arrays::to_bytes(state).map_err(|reason| Failure::run(format!("cannot save {file}: {reason}")))?;
        progress.files.insert(file.to_string(), FileSum { bytes: bytes.len() as u64, crc32c: crc32c::crc32c(&bytes) });
        write_file(&temporary.join(file), &bytes)?;
    }
    let text = serde_json::to_string_pretty(&progress).expect("progress consists of numbers and plain names");
    write_file(&temporary.join(PROGRESS), format!("{text}\n").as_bytes())?;
    sync_directory(temporary)
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || {
        let mut file = File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|e| Failure::file("write", path, e))
}

/// Makes renames in a directory durable. Systems that cannot open directories keep the rename's own guarantee.
fn sync_directory(path: &Path) -> Result<()> {
    match File::open(path) {
        Ok(directory) => directory.sync_all().map_err(|e| Failure::file("write", path, e)),
        Err(_) => Ok(()),
    }
}

/// Reads a checkpoint and checks that it is complete.
///
/// # Errors
/// [`CheckpointError`] naming the file and what is wrong with it.
pub fn load(path: &Path) -> Result<Checkpoint, CheckpointError> {
    let read = |file: &'static str| fs::read(path.join(file)).map_err(|e| CheckpointError::File { file, reason: e.to_string() });
    let progress = parse_progress(&read(PROGRESS)?)?;
    let state = |file: &'static str| {
        let bytes = read(file)?;
        let expected = progress
            .files
            .get(file)
            .ok_or_else(|| CheckpointError::File { file: PROGRESS, reason: format!("it does not mention {file}") })?;
        let (length, crc) = (bytes.len() as u64, crc32c::crc32c(&bytes));
        if (length, crc) != (expected.bytes, expected.crc32c) {
            return Err(CheckpointError::Damaged {
                file,
                expected_bytes: expected.bytes,
                expected_crc: expected.crc32c,
                bytes: length,
                crc,
            });
        }
        arrays::from_bytes(&bytes).map_err(|reason| CheckpointError::File { file, reason })
    };
    let reward = progress.files.contains_key(REWARD).then(|| state(REWARD)).transpose()?;
    Ok(Checkpoint { learner: state(LEARNER)?, engine: state(ENGINE)?, reward, progress })
}

fn parse_progress(bytes: &[u8]) -> Result<Progress, CheckpointError> {
    let fail = |reason: String| CheckpointError::File { file: PROGRESS, reason };
    // The version first: a newer program may have added fields that this one does not know.
    let value: serde_json::Value = serde_json::from_slice(bytes).map_err(|e| fail(e.to_string()))?;
    match value.get("format_version").and_then(serde_json::Value::as_u64) {
        Some(found) if found == u64::from(FORMAT_VERSION) => serde_json::from_value(value).map_err(|e| fail(e.to_string())),
        Some(found) => {
            let writer = value.get("steadfast_version").and_then(serde_json::Value::as_str).unwrap_or("of an unknown version");
            Err(CheckpointError::Version { found, writer: writer.to_string() })
        }
        None => Err(fail("it has no `format_version`".to_string())),
    }
}

/// The newest complete checkpoint in `directory`, and the reasons why newer ones were passed over.
pub fn newest(directory: &Path) -> (Option<Checkpoint>, Vec<(u64, CheckpointError)>) {
    newest_that(directory, |_| Ok(()))
}

/// The newest complete checkpoint of the run in `run` that its logs reach back to, as [`newest`].
pub fn newest_with_logs(run: &Path, directory: &Path) -> (Option<Checkpoint>, Vec<(u64, CheckpointError)>) {
    newest_that(directory, |checkpoint| {
        for (file, &expected_bytes) in &checkpoint.progress.logs {
            // A missing log has nothing in it.
            let bytes = fs::metadata(run.join(file)).map_or(0, |m| m.len());
            if bytes < expected_bytes {
                return Err(CheckpointError::ShortLog { file: file.clone(), expected_bytes, bytes });
            }
        }
        Ok(())
    })
}

fn newest_that(
    directory: &Path,
    is_usable: impl Fn(&Checkpoint) -> Result<(), CheckpointError>,
) -> (Option<Checkpoint>, Vec<(u64, CheckpointError)>) {
    let mut passed_over = Vec::new();
    for step in list(directory).into_iter().rev() {
        match load(&directory.join(name(step))).and_then(|c| is_usable(&c).map(|()| c)) {
            Ok(checkpoint) => return (Some(checkpoint), passed_over),
            Err(error) => passed_over.push((step, error)),
        }
    }
    (None, passed_over)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn example(step: u64) -> Checkpoint {
        let mut learner = StateDict::default();
        learner.put_f32("policy.0.weight", &[2], &[1.0, 2.0]);
        let mut engine = StateDict::default();
        engine.put_u64("words", &[1, 2, 3]);
        let progress =
            Progress { step, update: step / 10, logs: BTreeMap::from([("metrics.jsonl".to_string(), 17)]), ..Default::default() };
        Checkpoint { progress, learner, engine, reward: None }
    }

    #[test]
    fn checkpoints_are_pruned_and_read_back() {
        let directory = tempfile::tempdir().unwrap();
        for step in [10, 20, 30] {
            save(directory.path(), &example(step), 2).unwrap();
        }
        assert_eq!(list(directory.path()), [20, 30]);
        let found = newest(directory.path()).0.unwrap();
        assert_eq!((found.progress.step, found.learner, found.engine), (30, example(30).learner, example(30).engine));
    }

    #[test]
    fn a_torn_checkpoint_is_passed_over() {
        let directory = tempfile::tempdir().unwrap();
        save(directory.path(), &example(10), 5).unwrap();
        let newer = save(directory.path(), &example(20), 5).unwrap();
        fs::create_dir(directory.path().join(".step-000000000030.tmp")).unwrap();
        let file = newer.join(LEARNER);
        let bytes = fs::read(&file).unwrap();
        fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
        let (found, passed_over) = newest(directory.path());
        assert_eq!(found.unwrap().progress.step, 10);
        assert_eq!(passed_over[0].0, 20);
        assert!(passed_over[0].1.to_string().contains("learner.safetensors is damaged"), "{}", passed_over[0].1);
        // Saving the same step again replaces the torn one.
        save(directory.path(), &example(20), 5).unwrap();
        assert_eq!(newest(directory.path()).0.unwrap().progress.step, 20);
    }

    #[test]
    fn another_version_is_named() {
        let error = parse_progress(br#"{"format_version": 99, "steadfast_version": "7.1.0", "new_field": 1}"#).unwrap_err();
        assert_eq!(error, CheckpointError::Version { found: 99, writer: "7.1.0".to_string() });
    }

    proptest! {
        #[test]
        fn arbitrary_progress_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..100), cut in 0_usize..400) {
            let _ = parse_progress(&bytes);
            let text = serde_json::to_string(&Progress { format_version: FORMAT_VERSION, ..example(3).progress }).unwrap();
            let _ = parse_progress(&text.as_bytes()[..cut.min(text.len())]);
        }
    }
}
