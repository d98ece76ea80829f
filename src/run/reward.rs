//! `reward.csv` and `reward_epochs.csv`: what came of each fit of a learned reward; and the files of labelled pairs.

use std::path::Path;

use serde::{Deserialize, Serialize};
use steadfast_reward::EpochReport;

use super::log::LogFile;
use crate::failure::{Failure, Result};

/// Table of fits.
pub const STAGES: &str = "reward.csv";
/// Table of the passes of all fits.
pub const EPOCHS: &str = "reward_epochs.csv";
/// The labelled pairs, in the format that `steadfast audit` reads.
pub const PAIRS: &str = "preferences.jsonl";
/// Pairs with true labels that nothing was learned from. They stay until the run is finished.
pub const TEST_PAIRS: &str = "preferences_test.jsonl";

/// One line of `reward.csv`. What is not known is empty.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StageRow {
    /// Number of the fit, from 1.
    pub stage: usize,
    /// Joint environment steps of training before it.
    pub step: u64,
    /// Environment steps that went into segments so far, beyond those of training.
    pub environment_steps: u64,
    /// Pairs so far.
    pub pairs: usize,
    /// Pairs so far that were labelled equal.
    pub equal: usize,
    /// Share of wrong labels among all pairs so far whose truth is known.
    pub label_rate: Option<f64>,
    /// The pass whose parameters were kept.
    pub selected_epoch: usize,
    /// Loss of the last pass.
    pub loss: f64,
    /// Cross-entropy of the last pass.
    pub cross_entropy: f64,
    /// Accuracy on the training pairs, labels as given.
    pub train_accuracy: Option<f64>,
    /// Accuracy on held-out pairs, labels as given, at the kept pass.
    pub validation_accuracy: Option<f64>,
    /// Cross-entropy on held-out pairs, labels as given, at the kept pass.
    pub validation_cross_entropy: Option<f64>,
    /// Accuracy on held-out pairs, true labels, at the kept pass.
    pub oracle_accuracy: Option<f64>,
    /// Accuracy on the test pairs, true labels, at the kept pass.
    pub test_accuracy: Option<f64>,
    /// Spearman's correlation of learned and true segment returns on the test pairs.
    pub rank_correlation: Option<f64>,
    /// Area under the curve for finding wrong labels by their margins.
    pub auroc: Option<f64>,
    /// Average precision for the same.
    pub average_precision: Option<f64>,
    /// Precision of the set of outliers.
    pub precision: Option<f64>,
    /// Recall of the set of outliers.
    pub recall: Option<f64>,
    /// Share of outliers among the training pairs at the kept pass.
    pub outlier_fraction: Option<f64>,
    /// Mean outlier value of the training pairs at the kept pass.
    pub delta_mean: Option<f64>,
}

impl StageRow {
    /// Names and values of what is known, for logs.
    pub fn values(&self) -> Vec<(String, f64)> {
        let Ok(serde_json::Value::Object(map)) = serde_json::to_value(self) else { return Vec::new() };
        let is_metric = |name: &str| name != "step";
        map.into_iter()
            .filter(|(name, _)| is_metric(name))
            .filter_map(|(name, value)| Some((format!("reward/{name}"), value.as_f64()?)))
            .collect()
    }
}

/// A pass of one of the fits, a line of `reward_epochs.csv`. Tables know no nested records, so the fields stand here again.
#[derive(Debug, Serialize)]
struct EpochRow {
    stage: usize,
    epoch: usize,
    loss: f64,
    cross_entropy: f64,
    delta_mean: f64,
    delta_max: f64,
    outlier_fraction: f64,
    clip_saturation: Option<f64>,
    validation_accuracy: Option<f64>,
    validation_cross_entropy: Option<f64>,
    oracle_accuracy: Option<f64>,
    test_accuracy: Option<f64>,
}

impl EpochRow {
    fn new(stage: usize, report: &EpochReport) -> Self {
        Self {
            stage,
            epoch: report.epoch,
            loss: report.loss,
            cross_entropy: report.cross_entropy,
            delta_mean: report.delta_mean,
            delta_max: report.delta_max,
            outlier_fraction: report.outlier_fraction,
            clip_saturation: report.clip_saturation,
            validation_accuracy: report.validation_accuracy,
            validation_cross_entropy: report.validation_cross_entropy,
            oracle_accuracy: report.oracle_accuracy,
            test_accuracy: report.test_accuracy,
        }
    }
}

/// The open logs of a learned reward.
#[derive(Debug)]
pub struct RewardLog {
    stages: LogFile,
    epochs: LogFile,
    pairs: LogFile,
    test_pairs: LogFile,
}

impl RewardLog {
    /// Opens or creates the logs in `run`.
    ///
    /// # Errors
    /// [`Failure::Run`] naming the file.
    pub fn open(run: &Path) -> Result<Self> {
        let open = |name: &str| LogFile::open(&run.join(name));
        Ok(Self { stages: open(STAGES)?, epochs: open(EPOCHS)?, pairs: open(PAIRS)?, test_pairs: open(TEST_PAIRS)? })
    }

    /// Appends what came of a fit.
    ///
    /// # Errors
    /// As [`RewardLog::open`].
    pub fn write(&mut self, row: &StageRow, epochs: &[EpochReport]) -> Result<()> {
        append(&mut self.epochs, epochs.iter().map(|report| EpochRow::new(row.stage, report)))?;
        append(&mut self.stages, std::iter::once(row))
    }

    /// Appends lines of labelled pairs, and of pairs for testing.
    ///
    /// # Errors
    /// As [`RewardLog::open`].
    pub fn write_pairs(&mut self, pairs: &[u8], test_pairs: &[u8]) -> Result<()> {
        self.pairs.append(pairs)?;
        self.test_pairs.append(test_pairs)
    }

    /// The files by name, for lengths and cuts.
    pub fn files(&mut self) -> [(&'static str, &mut LogFile); 4] {
        [(STAGES, &mut self.stages), (EPOCHS, &mut self.epochs), (PAIRS, &mut self.pairs), (TEST_PAIRS, &mut self.test_pairs)]
    }
}

/// Appends records, after a header if the table is empty.
fn append<T: Serialize>(log: &mut LogFile, rows: impl Iterator<Item = T>) -> Result<()> {
    let mut writer = csv::WriterBuilder::new().has_headers(log.len()? == 0).from_writer(Vec::new());
    for row in rows {
        writer.serialize(row).map_err(|e| Failure::caused("cannot write a table of the reward", e))?;
    }
    log.append(&writer.into_inner().expect("flushing memory cannot fail"))
}

/// The rows of `reward.csv` of a run; none if it learned no reward.
///
/// # Errors
/// [`Failure::Run`] naming the file and the line.
pub fn read(run: &Path) -> Result<Vec<StageRow>> {
    let path = run.join(STAGES);
    if !path.is_file() {
        return Ok(Vec::new());
    }
    let text = std::fs::read(&path).map_err(|e| Failure::file("read", &path, e))?;
    let finished = text.iter().rposition(|&b| b == b'\n').map_or(0, |i| i + 1);
    let rows: Result<_, csv::Error> = csv::Reader::from_reader(&text[..finished]).deserialize().collect();
    rows.map_err(|e| Failure::caused(format!("cannot read {}", path.display()), e))
}
