//! Directories of audits.
//!
//! ```text
//! pairs-audit/
//!     audit.csv              one line per labelled pair, the most suspicious first
//!     summary.json           what was read, how it was judged, how well
//!     precision_recall.svg   .png: where the truth is known
//!     margins.svg            .png: elsewhere
//! ```

use std::path::{Path, PathBuf};

use serde::Serialize;
use steadfast_reward::audit::{Audit, AuditConfig, PassReport};
use steadfast_reward::dataset::{Format, Kind, PreferenceFile, ReadReport};
use steadfast_reward::{Detection, LossConfig};

use super::log::write_whole;
use crate::failure::{Failure, Result};
use crate::plot::{margins, precision_recall, save};

/// Below this chance that coin tosses agree with as many labels, the models have learned something.
pub const SIGNIFICANCE: f64 = 0.01;

/// Names of everything that an audit may write.
const FILES: [&str; 6] = ["audit.csv", "summary.json", "precision_recall.svg", "precision_recall.png", "margins.svg", "margins.png"];

/// What an audit came to, beside the pairs themselves.
#[derive(Debug, Serialize)]
pub struct Summary<'a> {
    steadfast_version: &'static str,
    file: String,
    kind: Kind,
    format: &'static str,
    /// What was found in the file.
    read: &'a ReadReport,
    settings: &'a AuditConfig,
    /// Pairs with a label; those found equally good are not ranked.
    pub labelled: usize,
    /// Judged out of fold, except with one fold.
    passes: &'a [PassReport],
    selected_pass: usize,
    /// Of the selected pass.
    pub accuracy: f64,
    /// That coin tosses agree with as many labels.
    pub chance: f64,
    /// False if the ranking means nothing.
    pub is_informative: bool,
    /// Share of pairs with δ > 0.
    pub outlier_fraction: f64,
    /// Pairs of which it is known whether the label is wrong.
    known: usize,
    detection: Option<Detection>,
}

impl<'a> Summary<'a> {
    /// The summary of an audit of `file`.
    pub fn new(file: &PreferenceFile, settings: &'a AuditConfig, audit: &'a Audit) -> Self {
        let labelled = || audit.pairs.iter().filter(|p| !p.equal);
        let selected = audit.passes.get(audit.selected_pass.wrapping_sub(1));
        let chance = audit.chance();
        Self {
            steadfast_version: env!("CARGO_PKG_VERSION"),
            file: file.path().display().to_string(),
            kind: file.kind(),
            format: match file.format() {
                Format::Jsonl => "jsonl",
                Format::Parquet => "parquet",
            },
            read: &audit.report,
            settings,
            labelled: labelled().count(),
            passes: &audit.passes,
            selected_pass: audit.selected_pass,
            accuracy: selected.map_or(0.0, |p| p.accuracy),
            chance,
            is_informative: chance < SIGNIFICANCE,
            outlier_fraction: selected.map_or(0.0, |p| p.outlier_fraction),
            known: labelled().filter(|p| p.flipped.is_some()).count(),
            detection: audit.detection,
        }
    }
}

/// Where an audit goes: `output`, or `NAME-audit` beside the file. The directory is made.
///
/// # Errors
/// [`Failure::Usage`] if it holds something and `force` is not set, or cannot be made.
pub fn create(file: &Path, output: Option<&Path>, force: bool) -> Result<PathBuf> {
    let beside = || {
        let mut name = file.file_stem().unwrap_or_default().to_os_string();
        name.push("-audit");
        file.with_file_name(name)
    };
    let directory = output.map_or_else(beside, Path::to_path_buf);
    let is_taken = std::fs::read_dir(&directory).is_ok_and(|mut entries| entries.next().is_some());
    if is_taken && !force {
        return Err(Failure::usage(
            format!("{} is not empty", directory.display()),
            "choose another --output, or replace the audit in it with --force",
        ));
    }
    std::fs::create_dir_all(&directory)
        .map_err(|e| Failure::usage(format!("cannot create {}: {e}", directory.display()), "choose another --output"))?;
    Ok(directory)
}

/// Writes everything and returns the paths.
///
/// # Errors
/// [`Failure::Run`] naming the file that cannot be written.
pub fn write(directory: &Path, audit: &Audit, ranking: &[usize], summary: &Summary<'_>) -> Result<Vec<PathBuf>> {
    // What an earlier audit wrote would be taken for this one's.
    for name in FILES {
        let path = directory.join(name);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(Failure::file("replace", &path, error)),
            _ => {}
        }
    }
    let mut written = vec![directory.join("audit.csv"), directory.join("summary.json")];
    write_whole(&written[0], &table(audit, ranking).map_err(|e| Failure::file("write", &written[0], e))?)?;
    let mut json = serde_json::to_vec_pretty(summary).map_err(|e| Failure::caused("cannot write summary.json", e))?;
    json.push(b'\n');
    write_whole(&written[1], &json)?;

    let folds = if summary.settings.folds == 1 { "in sample".to_string() } else { format!("{} folds", summary.settings.folds) };
    let note = format!(
        "{}, {} labelled pairs, loss {}, {folds}, pass {}",
        Path::new(&summary.file).file_name().unwrap_or_default().display(),
        summary.labelled,
        summary.settings.loss.name(),
        summary.selected_pass
    );
    let (stem, panel) = match precision_recall::panel(audit, &note) {
        Some(panel) => ("precision_recall", panel),
        None => ("margins", margins::panel(audit, threshold(&summary.settings.loss), &note)),
    };
    for extension in ["svg", "png"] {
        let path = directory.join(format!("{stem}.{extension}"));
        save(std::slice::from_ref(&panel), &path)?;
        written.push(path);
    }
    Ok(written)
}

/// The margin below which δ > 0.
fn threshold(loss: &LossConfig) -> Option<f64> {
    match loss {
        LossConfig::R3m(config) if config.lambda < 1.0 => Some((1.0 / config.lambda - 1.0).ln()),
        _ => None,
    }
}

/// `audit.csv`.
fn table(audit: &Audit, ranking: &[usize]) -> std::io::Result<Vec<u8>> {
    let mut out = csv::Writer::from_writer(Vec::new());
    out.write_record(["rank", "id", "line", "margin", "outlier", "suspicion", "flipped"])?;
    for (i, &row) in ranking.iter().enumerate() {
        let pair = &audit.pairs[row];
        out.write_record([
            (i + 1).to_string().as_str(),
            &pair.id,
            &pair.line.to_string(),
            &pair.margin.to_string(),
            &pair.outlier.to_string(),
            &pair.suspicion().to_string(),
            pair.flipped.map_or("", |flipped| if flipped { "true" } else { "false" }),
        ])?;
    }
    out.into_inner().map_err(|e| e.into_error())
}
