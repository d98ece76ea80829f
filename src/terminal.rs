//! Standard error: log lines, the progress bar, and error reports.

use std::io::{IsTerminal as _, Write};
use std::sync::OnceLock;

use indicatif::MultiProgress;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::failure::Failure;

/// All progress bars, so that log lines do not run into them.
pub fn bars() -> &'static MultiProgress {
    static BARS: OnceLock<MultiProgress> = OnceLock::new();
    BARS.get_or_init(MultiProgress::new)
}

/// True if a person watches.
pub fn is_interactive() -> bool {
    std::io::stderr().is_terminal()
}

fn wants_color() -> bool {
    is_interactive() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

/// Sends log lines to standard error; `RUST_LOG` chooses which.
pub fn start_logging() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let format = tracing_subscriber::fmt().with_env_filter(filter).with_target(false).without_time().with_ansi(wants_color());
    // Only a second call in one process can fail, and the first one then still works.
    let _ = format.with_writer(AroundBars).try_init();
}

/// Prints an error report.
pub fn complain(failure: &Failure) {
    let text = failure.render(wants_color(), 100);
    bars().suspend(|| {
        // Nobody is left to tell if standard error is closed.
        let _ = std::io::stderr().write_all(text.as_bytes());
    });
}

/// A writer that hides the progress bars while it writes.
struct AroundBars;

impl<'a> MakeWriter<'a> for AroundBars {
    type Writer = AroundBars;

    fn make_writer(&'a self) -> Self::Writer {
        AroundBars
    }
}

impl Write for AroundBars {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        bars().suspend(|| std::io::stderr().write_all(bytes))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

/// Rounded to what is worth reading in a log line; files keep every digit.
pub fn short(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// How far a run is: a bar on a terminal, a line now and then elsewhere.
#[derive(Debug)]
pub struct ProgressLine {
    bar: Option<indicatif::ProgressBar>,
    begin: (std::time::Instant, u64),
    last_line: std::time::Instant,
    total: u64,
    what: &'static str,
}

/// Seconds between lines where there is no terminal.
const LINE_SECONDS: u64 = 10;

impl ProgressLine {
    /// Progress towards `total` steps, from `step` on.
    /// What is shown beside it is called `what`.
    pub fn new(total: u64, step: u64, what: &'static str) -> Self {
        let bar = is_interactive().then(|| {
            let bar = bars().add(indicatif::ProgressBar::new(total));
            let template = "{wide_bar} {human_pos}/{human_len} steps  {pace}  {msg}";
            let style = indicatif::ProgressStyle::with_template(template).expect("the template is valid");
            bar.set_style(style.with_key("pace", |state: &indicatif::ProgressState, out: &mut dyn std::fmt::Write| {
                // Before the first update there is nothing to say.
                if state.per_sec() >= 0.5 {
                    // A formatting error can only come from the receiver, which is a string.
                    let _ = write!(out, "{:.0} steps/s  {:#} left", state.per_sec(), indicatif::HumanDuration(state.eta()));
                }
            }));
            bar.set_position(step);
            bar.reset_eta();
            bar
        });
        let now = std::time::Instant::now();
        Self { bar, begin: (now, step), last_line: now, total, what }
    }

    /// Shows where the run is.
    pub fn show(&mut self, step: u64, value: Option<f64>) {
        match &self.bar {
            Some(bar) => {
                // The message first: moving the bar draws it.
                if let Some(value) = value {
                    bar.set_message(format!("{} {value:.2}", self.what));
                }
                bar.set_position(step.min(self.total));
            }
            None if self.last_line.elapsed().as_secs() >= LINE_SECONDS => {
                self.last_line = std::time::Instant::now();
                let rate = (step - self.begin.1) as f64 / self.begin.0.elapsed().as_secs_f64();
                let seconds_left = self.total.saturating_sub(step) as f64 / rate.max(1e-9);
                tracing::info!(
                    step,
                    total = self.total,
                    // Left out before the first episode has finished.
                    value = value.map(|value| format!("{} {}", self.what, short(value))).map(tracing::field::display),
                    steps_per_second = rate.round() as u64,
                    seconds_left = seconds_left.round() as u64,
                    "training"
                );
            }
            None => {}
        }
    }

    /// Takes the bar away.
    pub fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

/// How far a sweep is: a bar on a terminal, a line per finished cell elsewhere.
#[derive(Debug)]
pub struct CellLine {
    bar: Option<indicatif::ProgressBar>,
    begin: std::time::Instant,
    begin_done: usize,
    done: usize,
    total: usize,
}

impl CellLine {
    /// Progress towards `total` cells, of which `done` were finished before.
    pub fn new(total: usize, done: usize) -> Self {
        let bar = is_interactive().then(|| {
            let bar = bars().add(indicatif::ProgressBar::new(total as u64));
            let style = indicatif::ProgressStyle::with_template("{wide_bar} {pos}/{len} cells  {msg}").expect("the template is valid");
            bar.set_style(style);
            bar.set_position(done as u64);
            bar.enable_steady_tick(std::time::Duration::from_secs(1));
            bar
        });
        Self { bar, begin: std::time::Instant::now(), begin_done: done, done, total }
    }

    /// Counts one more cell, which ended as `outcome` says.
    pub fn advance(&mut self, cell: &str, outcome: &str) {
        self.done += 1;
        let seconds_per_cell = self.begin.elapsed().as_secs_f64() / (self.done - self.begin_done) as f64;
        let left = std::time::Duration::from_secs_f64(seconds_per_cell * (self.total.saturating_sub(self.done)) as f64);
        match &self.bar {
            Some(bar) => {
                bar.set_message(format!("{:#} left", indicatif::HumanDuration(left)));
                bar.set_position(self.done as u64);
            }
            None => tracing::info!(cell, done = self.done, total = self.total, seconds_left = left.as_secs(), "{outcome}"),
        }
    }

    /// Takes the bar away.
    pub fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

/// How far something is that reads the same things several times: a bar on a terminal, a line now and then elsewhere.
#[derive(Debug)]
pub struct PassLine {
    bar: Option<indicatif::ProgressBar>,
    last_line: std::time::Instant,
    passes: usize,
    unit: String,
}

impl PassLine {
    /// Progress through `passes` passes at most, each counted in `unit`.
    pub fn new(passes: usize, unit: &str) -> Self {
        let bar = is_interactive().then(|| {
            let bar = bars().add(indicatif::ProgressBar::no_length());
            bar.set_style(indicatif::ProgressStyle::with_template("{spinner} {msg}").expect("the template is valid"));
            bar
        });
        Self { bar, last_line: std::time::Instant::now(), passes, unit: unit.to_string() }
    }

    /// Shows that pass `pass` (from 1) has done so much.
    pub fn show(&mut self, pass: usize, done: u64) {
        match &self.bar {
            Some(bar) => {
                bar.set_message(format!("pass {pass} of at most {}: {done} {}", self.passes, self.unit));
                bar.tick();
            }
            None if self.last_line.elapsed().as_secs() >= LINE_SECONDS => {
                self.last_line = std::time::Instant::now();
                tracing::info!(pass, at_most = self.passes, done, unit = self.unit, "auditing");
            }
            None => {}
        }
    }

    /// Takes the bar away.
    pub fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}
