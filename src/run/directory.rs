//! Where a run lives, and who may write there.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use super::log::write_whole;
use crate::config::{Experiment, ExperimentConfig, load, render};
use crate::failure::{Failure, Result};

/// A run directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunDirectory {
    path: PathBuf,
}

/// The right to write into a directory; given back when dropped or when the process ends in any way.
#[derive(Debug)]
pub struct RunLock {
    _file: File,
}

impl RunDirectory {
    /// Creates a directory for a new run: exactly `output` if given, else `runs/NAME-seedSEED`, with `-2`, `-3`, ...
    /// behind it if that exists. Existing runs are never touched. Returns the taken names as well.
    ///
    /// # Errors
    /// [`Failure::Usage`] if `output` exists and is not empty, or if the directory cannot be created.
    pub fn create(config: &Experiment, output: Option<&Path>) -> Result<(Self, Vec<Self>)> {
        if let Some(path) = output {
            let is_taken = path.exists() && fs::read_dir(path).map_or(true, |mut entries| entries.next().is_some());
            if is_taken {
                let resume = format!(", or continue it with `steadfast train --resume {}`", path.display());
                let is_run = path.join("config.toml").is_file();
                return Err(Failure::usage(
                    format!("{} exists and is not an empty directory", path.display()),
                    format!("choose another --output{}", if is_run { resume.as_str() } else { "" }),
                ));
            }
            fs::create_dir_all(path).map_err(|e| cannot_create(path, &e))?;
            return Ok((Self { path: path.to_path_buf() }, Vec::new()));
        }
        let parent = Path::new("runs");
        fs::create_dir_all(parent).map_err(|e| cannot_create(parent, &e))?;
        let base = format!("{}-seed{}", config.name(), config.seed());
        let mut taken = Vec::new();
        for number in 1_u64.. {
            let path = parent.join(if number == 1 { base.clone() } else { format!("{base}-{number}") });
            // Creating it is the test, so that two processes cannot both find it free.
            match fs::create_dir(&path) {
                Ok(()) => return Ok((Self { path }, taken)),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => taken.push(Self { path }),
                Err(e) => return Err(cannot_create(&path, &e)),
            }
        }
        Err(Failure::run("no free name for the run directory"))
    }

    /// A run at exactly `path` that [`RunDirectory::initialise`] may have been interrupted in.
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// An existing run.
    ///
    /// # Errors
    /// [`Failure::Usage`] if `path` is no run directory.
    pub fn open(path: &Path) -> Result<Self> {
        let run = Self { path: path.to_path_buf() };
        if run.file("config.toml").is_file() {
            return Ok(run);
        }
        let what = if path.is_dir() { "is no run directory: it has no config.toml" } else { "does not exist" };
        let mut known: Vec<String> = fs::read_dir("runs")
            .into_iter()
            .flatten()
            .flatten()
            .filter(|e| e.path().join("config.toml").is_file())
            .map(|e| e.path().display().to_string())
            .collect();
        known.sort();
        let help = match known.is_empty() {
            true => "`steadfast train` makes one below runs/".to_string(),
            false => load_suggestion(&path.display().to_string(), known),
        };
        Err(Failure::usage(format!("{} {what}", path.display()), help))
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Where checkpoints are.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// True once the run has ended as planned.
    pub fn is_finished(&self) -> bool {
        self.file("summary.json").is_file()
    }

    /// Creates what is inside and stores the resolved configuration.
    ///
    /// # Errors
    /// [`Failure::Run`] naming the file.
    pub fn initialise(&self, config: &Experiment) -> Result<()> {
        for inner in ["checkpoints", "plots", "tensorboard"] {
            let path = self.path.join(inner);
            fs::create_dir_all(&path).map_err(|e| Failure::file("create", &path, e))?;
        }
        write_whole(&self.file("config.toml"), render::resolved(config).as_bytes())
    }

    /// The resolved configuration.
    ///
    /// # Errors
    /// [`Failure::Usage`] if it cannot be read or no longer passes the checks.
    pub fn config(&self) -> Result<Experiment> {
        let path = self.file("config.toml");
        let text = fs::read_to_string(&path)
            .map_err(|e| Failure::usage(format!("cannot read {}: {e}", path.display()), "give a run directory"))?;
        load::stored(&path.display().to_string(), &text)
    }

    /// The resolved configuration of a run whose policy collected what it learned from.
    ///
    /// # Errors
    /// As [`RunDirectory::config`]; [`Failure::Usage`] for other kinds of runs.
    pub fn online_config(&self) -> Result<ExperimentConfig> {
        self.config()?.online().ok_or_else(|| {
            let message = format!("{} is a run over given examples, without a world to act in", self.path.display());
            Failure::usage(message, "its evaluations are in eval.csv; `steadfast generate` lets its model speak")
        })
    }

    /// Takes the right to write.
    ///
    /// # Errors
    /// [`Failure::Run`] if another process has it.
    pub fn lock(&self) -> Result<RunLock> {
        RunLock::take(&self.path, "run.lock")
    }
}

impl RunLock {
    /// Takes the right to write into `directory` by locking the file called `name` in it.
    ///
    /// # Errors
    /// [`Failure::Run`] if another process has it.
    pub fn take(directory: &Path, name: &str) -> Result<Self> {
        let path = directory.join(name);
        let file = File::create(&path).map_err(|e| Failure::file("create", &path, e))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(Failure::run_with_help(
                format!("another process is writing to {}", directory.display()),
                "wait for it, or stop it first",
            )),
            // Some network file systems have no locks; the user is then alone responsible.
            Err(TryLockError::Error(error)) => {
                tracing::warn!(%error, "{} cannot be locked", directory.display());
                Ok(Self { _file: file })
            }
        }
    }
}

fn load_suggestion(name: &str, known: Vec<String>) -> String {
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    crate::config::report::suggest(name, &known)
}

fn cannot_create(path: &Path, error: &std::io::Error) -> Failure {
    Failure::usage(format!("cannot create {}: {error}", path.display()), "choose a writable directory with --output")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_must_be_free() {
        let directory = tempfile::tempdir().unwrap();
        let config = Experiment::from(ExperimentConfig::default());
        let target = directory.path().join("run");
        let (run, _) = RunDirectory::create(&config, Some(&target)).unwrap();
        run.initialise(&config).unwrap();
        assert!(RunDirectory::create(&config, Some(&target)).is_err());
        assert_eq!(RunDirectory::open(&target).unwrap().config().unwrap(), config);
        assert!(!run.is_finished());
    }

    #[test]
    fn a_second_writer_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let run = RunDirectory { path: directory.path().to_path_buf() };
        let lock = run.lock().unwrap();
        assert!(run.lock().is_err());
        drop(lock);
        run.lock().unwrap();
    }
}
