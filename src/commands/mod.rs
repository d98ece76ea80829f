//! One file per command.

mod audit;
mod config;
mod eval;
#[cfg(feature = "llm")]
mod export;
#[cfg(feature = "llm")]
mod generate;
mod list;
mod plot;
mod preferences;
mod recipe;
mod robustness;
#[cfg(feature = "llm")]
mod show_batch;
mod sweep;
mod train;

use std::io::{ErrorKind, Write as _};

use crate::cli::{Cli, Command, TrainArgs};
use crate::failure::{Failure, Result};

/// Runs the command that was asked for.
///
/// # Errors
/// What the command reports.
pub fn run(cli: Cli) -> Result<()> {
    match cli.command {
        None => train::run(&TrainArgs::default()),
        Some(Command::Train(arguments)) => train::run(&arguments),
        Some(Command::Eval(arguments)) => eval::run(&arguments),
        Some(Command::Sweep(arguments)) => sweep::run(&arguments),
        Some(Command::SweepCell { run }) => sweep::cell(run),
        Some(Command::Plot(arguments)) => plot::run(&arguments),
        Some(Command::Preferences(arguments)) => preferences::run(&arguments),
        Some(Command::Audit(arguments)) => audit::run(&arguments),
        #[cfg(feature = "llm")]
        Some(Command::Generate(arguments)) => generate::run(&arguments),
        #[cfg(feature = "llm")]
        Some(Command::Export(arguments)) => export::run(&arguments),
        #[cfg(feature = "llm")]
        Some(Command::ShowBatch(arguments)) => show_batch::run(&arguments),
        Some(Command::Recipe(command)) => recipe::run(&command),
        Some(Command::Config(command)) => config::run(&command),
        Some(Command::List(arguments)) => list::run(&arguments),
    }
}

/// Writes an answer to standard output. Unlike `println!` it survives a reader that goes away.
fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(Failure::OutputClosed),
        other => other.map_err(|e| Failure::caused("cannot write to standard output", e)),
    }
}

/// Tells the recipe or file, which has no `=` in it and may stand anywhere, from the changes.
fn split_arguments(arguments: &[String]) -> Result<(&str, Vec<String>)> {
    let is_name = |argument: &&String| !argument.contains('=') || std::path::Path::new(argument).is_file();
    let (names, changes): (Vec<&String>, Vec<&String>) = arguments.iter().partition(is_name);
    let changes = changes.into_iter().cloned().collect();
    match names.as_slice() {
        [] => Ok((crate::config::recipe::DEFAULT, changes)),
        [name] => Ok((name, changes)),
        [first, second, ..] => Err(Failure::usage(
            format!("one recipe or file at a time, got `{first}` and `{second}`"),
            "changes to a recipe are written `key.path=value`, as in `seed=7`",
        )),
    }
}

/// Columns of text, the first to the left and the others to the right, under a header.
fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    table_of(1, header, rows)
}

/// As [`table`], with the first `left` columns to the left.
fn table_of(left: usize, header: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| rows.iter().map(|r| r[column].chars().count()).chain([header[column].chars().count()]).max().unwrap_or(0);
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let mut text = String::new();
    let header: Vec<String> = header.iter().map(ToString::to_string).collect();
    for row in std::iter::once(&header).chain(rows) {
        let mut line = String::new();
        for (i, (cell, width)) in row.iter().zip(&widths).enumerate() {
            line.push_str(if i == 0 { "" } else { "  " });
            line.push_str(&if i < left { format!("{cell:<width$}") } else { format!("{cell:>width$}") });
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}
