//! What made a run.

use serde::{Deserialize, Serialize};

use super::FORMAT_VERSION;
use super::directory::RunDirectory;
use super::log::write_whole;
use crate::config::Experiment;
use crate::failure::Result;

/// Name of the file.
pub const MANIFEST: &str = "manifest.json";

/// Content of `manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the files in the run directory.
    pub format_version: u32,
    /// Version of the program.
    pub steadfast_version: String,
    /// Commit that the program was built from; empty if it was built outside a checkout.
    pub commit: String,
    /// Features of the build.
    pub features: Vec<String>,
    /// True for an optimised build.
    pub is_release: bool,
    /// Seed of the run.
    pub seed: u64,
    /// Where the numbers were computed.
    pub device: String,
    /// Instruction sets of the processor that matter for the kernels.
    pub instruction_sets: Vec<String>,
    /// Worker threads.
    pub threads: usize,
    /// Operating system and architecture.
    pub platform: String,
    /// Seconds since 1970 at the first start.
    pub started_unix_seconds: u64,
    /// Every time that the run was continued.
    #[serde(default)]
    pub resumed: Vec<Resumption>,
}

/// What continued a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resumption {
    /// Seconds since 1970.
    pub unix_seconds: u64,
    /// Version of the program.
    pub steadfast_version: String,
    /// Commit that the program was built from; empty if it was built outside a checkout.
    pub commit: String,
    /// Instruction sets of the processor.
    pub instruction_sets: Vec<String>,
    /// Worker threads.
    pub threads: usize,
}

impl Manifest {
    /// The manifest of a run that starts now.
    pub fn new(config: &Experiment, threads: usize) -> Self {
        let features = [
            ("llm", cfg!(feature = "llm")),
            ("cuda", cfg!(feature = "cuda")),
            ("mujoco", cfg!(feature = "mujoco")),
            ("gym", cfg!(feature = "gym")),
            ("zstd", cfg!(feature = "zstd")),
        ];
        Self {
            format_version: FORMAT_VERSION,
            steadfast_version: env!("CARGO_PKG_VERSION").to_string(),
            commit: env!("STEADFAST_COMMIT").to_string(),
            features: features.iter().filter(|(_, on)| *on).map(|(name, _)| (*name).to_string()).collect(),
            is_release: !cfg!(debug_assertions),
            seed: config.seed(),
            device: config.device().to_string(),
            instruction_sets: instruction_sets(),
            threads,
            platform: format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH),
            started_unix_seconds: now(),
            resumed: Vec::new(),
        }
    }

    /// The manifest of a run, if it has one that can be read.
    pub fn read(run: &RunDirectory) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(run.file(MANIFEST)).ok()?).ok()
    }

    /// Writes it into a run directory.
    ///
    /// # Errors
    /// [`crate::failure::Failure::Run`] naming the file.
    pub fn write(&self, run: &RunDirectory) -> Result<()> {
        let text = serde_json::to_string_pretty(self).expect("a manifest consists of numbers and strings");
        write_whole(&run.file(MANIFEST), format!("{text}\n").as_bytes())
    }

    /// Notes that `by`, the manifest of this very process, continues the run. Returns what differs from the process that
    /// wrote the run before, in words: the numbers may then differ from those of an uninterrupted run.
    pub fn resume(&mut self, by: &Self) -> Vec<String> {
        let last = self.resumed.last();
        let version = last.map_or(&self.steadfast_version, |r| &r.steadfast_version);
        let commit = last.map_or(&self.commit, |r| &r.commit);
        let sets = last.map_or(&self.instruction_sets, |r| &r.instruction_sets);
        let differences = [
            ("version", version.clone(), by.steadfast_version.clone()),
            ("commit", commit.clone(), by.commit.clone()),
            ("instruction sets", sets.join(" "), by.instruction_sets.join(" ")),
        ];
        let in_words = |(what, before, now): (&str, String, String)| {
            let text = |value: String| if value.is_empty() { "none".to_string() } else { value };
            (before != now).then(|| format!("{what} was {}, is {}", text(before), text(now)))
        };
        let differences = differences.into_iter().filter_map(in_words).collect();
        self.resumed.push(Resumption {
            unix_seconds: by.started_unix_seconds,
            steadfast_version: by.steadfast_version.clone(),
            commit: by.commit.clone(),
            instruction_sets: by.instruction_sets.clone(),
            threads: by.threads,
        });
        differences
    }
}

/// Seconds since 1970; 0 if the clock stands before that.
fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

#[cfg(target_arch = "x86_64")]
fn instruction_sets() -> Vec<String> {
    let found = [
        ("avx2", std::arch::is_x86_feature_detected!("avx2")),
        ("fma", std::arch::is_x86_feature_detected!("fma")),
        ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
    ];
    found.iter().filter(|(_, has)| *has).map(|(name, _)| (*name).to_string()).collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn instruction_sets() -> Vec<String> {
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ExperimentConfig;

    #[test]
    fn a_resumption_is_compared_with_the_last_writer() {
        let mut manifest = Manifest::new(&ExperimentConfig::default().into(), 1);
        let same = manifest.clone();
        assert!(manifest.resume(&same).is_empty());
        let other = Manifest { commit: "abc".to_string(), ..same.clone() };
        let differences = manifest.resume(&other);
        assert_eq!(differences.len(), 1);
        assert!(differences[0].starts_with("commit was ") && differences[0].ends_with(", is abc"), "{differences:?}");
        assert!(manifest.resume(&other).is_empty());
        assert_eq!(manifest.resumed.len(), 3);
        // Manifests without the list are read.
        let mut value = serde_json::to_value(&same).unwrap();
        value.as_object_mut().unwrap().remove("resumed");
        assert_eq!(serde_json::from_value::<Manifest>(value).unwrap(), same);
    }
}
