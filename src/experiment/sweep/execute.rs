//! Trains cells side by side, each in a process of its own.
//!
//! Processes rather than threads: a cell that panics, runs out of memory or is killed takes nothing with it, every run
//! has its own worker threads and log, and the numbers cannot depend on a neighbour.
//!
//! A cell's process reads its standard input, which is a pipe from the sweep. The pipe closes when the sweep ends in
//! any way, so that no cell outlives a sweep that was killed.

use std::fs::OpenOptions;
use std::io::Read as _;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use super::directory::SweepDirectory;
use crate::config::sweep::Cell;
use crate::experiment::parallel::in_parallel;
use crate::failure::{Failure, Result};
use crate::run::directory::RunDirectory;

/// File in a cell's run directory with what its processes said.
pub const LOG: &str = "train.log";
/// The hidden command that trains a cell.
pub const CELL_COMMAND: &str = "sweep-cell";

/// Trains `cells`, `jobs` at once, in their order. `report` is told of each that ends, and why if it failed.
///
/// # Errors
/// What `report` returns; cells that have begun are then still finished.
pub fn run(
    directory: &SweepDirectory,
    cells: &[&Cell],
    jobs: usize,
    mut report: impl FnMut(&Cell, Result<(), String>) -> Result<()>,
) -> Result<()> {
    let program = program()?;
    in_parallel(cells, jobs, |cell| train(&program, &directory.cell(cell), cell), |cell, outcome| report(cell, outcome))
}

/// This very program, even if its file has been replaced since it was started.
fn program() -> Result<PathBuf> {
    let own = PathBuf::from("/proc/self/exe");
    if cfg!(target_os = "linux") && own.exists() {
        return Ok(own);
    }
    std::env::current_exe().map_err(|e| Failure::caused("cannot find the program's own file", e))
}

/// Trains a cell to its end, from the beginning or from its newest checkpoint.
fn train(program: &PathBuf, run: &RunDirectory, cell: &Cell) -> Result<(), String> {
    let in_words = |failure: Failure| failure.render(false, 200).trim().trim_start_matches("× ").to_string();
    if !run.file("config.toml").is_file() {
        run.initialise(&cell.config).map_err(in_words)?;
    }
    wait_for_lock(run).map_err(in_words)?;
    let log = run.file(LOG);
    let start = || {
        let out = OpenOptions::new().append(true).create(true).open(&log)?;
        let mut command = Command::new(program);
        command.arg(CELL_COMMAND).arg(run.path()).stdin(Stdio::piped()).stdout(out.try_clone()?).stderr(out);
        let mut child = command.spawn()?;
        // Waiting would close it, and with it stop the cell.
        let lifeline = child.stdin.take();
        let status = child.wait();
        drop(lifeline);
        status
    };
    let status = start().map_err(|e| format!("cannot start a process: {e}"))?;
    match run.is_finished() && status.success() {
        true => Ok(()),
        false => Err(format!("{}; see {}", reason(status, &std::fs::read(&log).unwrap_or_default()), log.display())),
    }
}

/// Waits until a process of a sweep that was killed has noticed it.
fn wait_for_lock(run: &RunDirectory) -> Result<()> {
    const TRIES: usize = 50;
    for _ in 1..TRIES {
        if run.lock().is_ok() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    run.lock().map(drop)
}

/// The last error report in a log, or how the process ended.
fn reason(status: ExitStatus, log: &[u8]) -> String {
    let log = String::from_utf8_lossy(log);
    let lines: Vec<&str> = log.lines().collect();
    let is_begin = |line: &&str| line.trim_start().starts_with("× ") || line.starts_with("thread '");
    let Some(begin) = lines.iter().rposition(is_begin).filter(|_| status.code().is_some()) else {
        return format!("the process ended with {status}");
    };
    let mut text = lines[begin].trim().trim_start_matches("× ").to_string();
    if lines[begin].starts_with("thread '") {
        text.extend(lines.get(begin + 1).map(|message| format!(" {message}")));
        return text;
    }
    for line in &lines[begin + 1..] {
        let inner = line.trim();
        let (separator, rest) = match (inner.strip_prefix("╰─▶ ").or(inner.strip_prefix("├─▶ ")), inner.strip_prefix("│ ")) {
            (Some(cause), _) => (": ", cause),
            (None, Some(wrapped)) => (" ", wrapped.trim()),
            // The last cause goes on without a frame; advice and excerpts of files are indented less.
            (None, None) if line.starts_with("      ") => (" ", inner),
            (None, None) => break,
        };
        text.push_str(separator);
        text.push_str(rest);
    }
    text
}

/// Ends this process when the one that started it has ended.
pub fn end_with_parent() {
    std::thread::spawn(|| {
        let mut bytes = [0; 16];
        // Nothing is ever written: reading ends when the other side is gone.
        while std::io::stdin().read(&mut bytes).is_ok_and(|n| n > 0) {}
        // As if killed: a run directory is sound at any moment.
        std::process::exit(1);
    });
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    #[test]
    fn the_reason_of_a_failure_is_found_in_the_log() {
        let failed = ExitStatus::from_raw(256);
        let log = "  × old\nINFO more\n  × training stopped in update 3\n  ╰─▶ loss is NaN\n".as_bytes();
        assert_eq!(reason(failed, log), "training stopped in update 3: loss is NaN");
        let log = "  × a message\n  │ on two lines\n  ├─▶ a cause\n  ╰─▶ another\n      one\n  help: advice\n".as_bytes();
        assert_eq!(reason(failed, log), "a message on two lines: a cause: another one");
        assert_eq!(
            reason(failed, b"thread 'main' (7) panicked at a.rs:1:2:\nindex 3\nnote: x\n"),
            "thread 'main' (7) panicked at a.rs:1:2: index 3"
        );
        assert!(reason(ExitStatus::from_raw(9), log).contains("signal: 9"));
        assert!(reason(failed, b"").contains("exit status: 1"));
    }
}
