//! What made a run.

use serde::{Deserialize, Serialize};

use super::FORMAT_VERSION;
use crate::config::ExperimentConfig;

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
}

impl Manifest {
    /// The manifest of a run that starts now.
    pub fn new(config: &ExperimentConfig, threads: usize) -> Self {
        let features = [
            ("llm", cfg!(feature = "llm")),
            ("cuda", cfg!(feature = "cuda")),
            ("mujoco", cfg!(feature = "mujoco")),
            ("gym", cfg!(feature = "gym")),
        ];
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self {
            format_version: FORMAT_VERSION,
            steadfast_version: env!("CARGO_PKG_VERSION").to_string(),
            commit: env!("STEADFAST_COMMIT").to_string(),
            features: features.iter().filter(|(_, on)| *on).map(|(name, _)| (*name).to_string()).collect(),
            is_release: !cfg!(debug_assertions),
            seed: config.seed,
            device: "cpu".to_string(),
            instruction_sets: instruction_sets(),
            threads,
            platform: format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH),
            started_unix_seconds: now.map_or(0, |d| d.as_secs()),
        }
    }

    /// As JSON.
    pub fn to_json(&self) -> String {
        let text = serde_json::to_string_pretty(self).expect("a manifest consists of numbers and strings");
        text + "\n"
    }
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
