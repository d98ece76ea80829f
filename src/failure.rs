//! How a command can fail, and what the shell is told.

use std::path::Path;
use std::process::ExitCode;

use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme, Report};

/// Why a command did not do its job.
#[derive(Debug)]
pub enum Failure {
    /// The arguments or the configuration are wrong: exit code 2.
    Usage(Report),
    /// The run failed: exit code 1.
    Run(Report),
    /// Whoever reads standard output has gone: no message, exit code 0.
    OutputClosed,
}

/// Result of a command.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    /// A wrong argument.
    pub fn usage(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self::Usage(Message { message: message.into(), help: Some(help.into()), cause: None }.into())
    }

    /// A failed run.
    pub fn run(message: impl Into<String>) -> Self {
        Self::Run(Message { message: message.into(), help: None, cause: None }.into())
    }

    /// A failed run, with advice.
    pub fn run_with_help(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self::Run(Message { message: message.into(), help: Some(help.into()), cause: None }.into())
    }

    /// A failed run, with its cause.
    pub fn caused(message: impl Into<String>, cause: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Run(Message { message: message.into(), help: None, cause: Some(Box::new(cause)) }.into())
    }

    /// A failed run, with its cause and advice.
    pub fn caused_with_help(
        message: impl Into<String>,
        cause: impl std::error::Error + Send + Sync + 'static,
        help: impl Into<String>,
    ) -> Self {
        Self::Run(Message { message: message.into(), help: Some(help.into()), cause: Some(Box::new(cause)) }.into())
    }

    /// A failed file operation: `action` is a verb, as in "write".
    pub fn file(action: &str, path: &Path, cause: std::io::Error) -> Self {
        Self::caused(format!("cannot {action} {}", path.display()), cause)
    }

    /// Puts a message in front of the report.
    pub fn during(self, what: &str) -> Self {
        let wrap = |report: Report| report.wrap_err(what.to_string());
        match self {
            Self::Usage(report) => Self::Usage(wrap(report)),
            Self::Run(report) => Self::Run(wrap(report)),
            Self::OutputClosed => Self::OutputClosed,
        }
    }

    /// What the shell is told.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage(_) => ExitCode::from(2),
            Self::Run(_) => ExitCode::from(1),
            Self::OutputClosed => ExitCode::SUCCESS,
        }
    }

    /// The report as text.
    pub fn render(&self, color: bool, width: usize) -> String {
        let (Self::Usage(report) | Self::Run(report)) = self else { return String::new() };
        let theme = if color { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() };
        let mut text = String::new();
        let handler = GraphicalReportHandler::new_themed(theme).with_width(width).with_links(false);
        match handler.render_report(&mut text, report.as_ref()) {
            Ok(()) => text,
            // A span that does not fit its text: the message alone is still worth printing.
            Err(_) => format!("{report}\n"),
        }
    }
}

/// A report without a place in a file.
#[derive(Debug)]
struct Message {
    message: String,
    help: Option<String>,
    cause: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl std::fmt::Display for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Message {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.as_deref().map(|c| c as _)
    }
}

impl Diagnostic for Message {
    fn help<'a>(&'a self) -> Option<Box<dyn std::fmt::Display + 'a>> {
        self.help.as_ref().map(|h| Box::new(h) as _)
    }
}
