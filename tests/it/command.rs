//! The command in a directory of its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A temporary directory in which the command runs.
pub struct Place {
    directory: tempfile::TempDir,
}

/// What a command said.
pub struct Answer {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

pub const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/tiny.toml");

impl Place {
    pub fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_steadfast"));
        command.args(arguments).current_dir(self.directory.path()).env_remove("RUST_LOG").env("NO_COLOR", "1");
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Answer {
        answer(self.command(arguments).output().unwrap())
    }

    /// Runs and expects success.
    pub fn succeed(&self, arguments: &[&str]) -> Answer {
        let answer = self.run(arguments);
        assert_eq!(answer.code, Some(0), "{arguments:?} failed:\n{}{}", answer.out, answer.err);
        answer
    }

    /// Runs and expects an exit code; returns standard error without the place's path.
    pub fn fail(&self, code: i32, arguments: &[&str]) -> String {
        let answer = self.run(arguments);
        assert_eq!(answer.code, Some(code), "{arguments:?}:\n{}{}", answer.out, answer.err);
        assert_eq!(answer.out, "", "a failed command answers nothing on standard output");
        answer.err.replace(&self.directory.path().display().to_string(), "PLACE")
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }
}

pub fn answer(output: Output) -> Answer {
    Answer { code: output.status.code(), out: String::from_utf8(output.stdout).unwrap(), err: String::from_utf8(output.stderr).unwrap() }
}

/// Names in a directory, sorted.
pub fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The newest checkpoint of a run, as a path relative to the place.
pub fn newest_checkpoint(place: &Place, run: &str) -> String {
    let newest = names(&place.path(&format!("{run}/checkpoints"))).into_iter().rfind(|n| n.starts_with("step-")).unwrap();
    format!("{run}/checkpoints/{newest}")
}

/// Compares what must not depend on how a run was executed.
pub fn assert_equal_runs(place: &Place, a: &str, b: &str) {
    let learns_reward = String::from_utf8(place.read(&format!("{a}/config.toml"))).unwrap().contains("[reward]");
    let learned = ["reward.csv", "reward_epochs.csv", "preferences.jsonl"].into_iter().filter(|_| learns_reward);
    for file in ["metrics.jsonl", "eval.csv", "episodes.csv", "summary.json"].into_iter().chain(learned) {
        let (x, y) = (place.read(&format!("{a}/{file}")), place.read(&format!("{b}/{file}")));
        assert!(!x.is_empty() && x == y, "{file} differs between {a} and {b}");
    }
    let (x, y) = (newest_checkpoint(place, a), newest_checkpoint(place, b));
    assert_eq!(x.rsplit('/').next(), y.rsplit('/').next());
    let reward = learns_reward.then_some("reward.safetensors");
    for file in ["learner.safetensors", "engine.safetensors"].into_iter().chain(reward) {
        assert!(place.read(&format!("{x}/{file}")) == place.read(&format!("{y}/{file}")), "{file} differs between {a} and {b}");
    }
}
