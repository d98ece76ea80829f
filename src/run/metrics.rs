//! `metrics.jsonl`, `timing.jsonl` and the TensorBoard file: the numbers of each logged update.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use super::log::LogFile;
use super::tensorboard;
use crate::failure::Result;

/// Names of the log files in a run directory.
pub const METRICS: &str = "metrics.jsonl";
/// See [`METRICS`].
pub const TIMING: &str = "timing.jsonl";
/// See [`METRICS`].
pub const EVENTS: &str = "tensorboard/events.out.tfevents.0.steadfast";

/// The open logs of a run.
#[derive(Debug)]
pub struct MetricsLog {
    metrics: LogFile,
    timing: LogFile,
    events: Option<LogFile>,
}

impl MetricsLog {
    /// Opens or creates the logs in `run`.
    ///
    /// # Errors
    /// [`crate::failure::Failure::Run`] naming the file.
    pub fn open(run: &Path, with_tensorboard: bool) -> Result<Self> {
        let events = if with_tensorboard {
            let mut file = LogFile::open(&run.join(EVENTS))?;
            if file.len()? == 0 {
                file.append(&tensorboard::header(now()))?;
            }
            Some(file)
        } else {
            None
        };
        Ok(Self { metrics: LogFile::open(&run.join(METRICS))?, timing: LogFile::open(&run.join(TIMING))?, events })
    }

    /// Writes the numbers of an update. What is not finite is written as `null`.
    ///
    /// # Errors
    /// [`crate::failure::Failure::Run`] naming the file.
    pub fn write(&mut self, step: u64, update: u64, values: &[(String, f64)]) -> Result<()> {
        self.metrics.append(line(step, update, values).as_bytes())?;
        self.events(step, values)
    }

    /// Writes wall-clock figures, which differ between equal runs and therefore stand apart.
    ///
    /// # Errors
    /// As [`MetricsLog::write`].
    pub fn write_timing(&mut self, step: u64, update: u64, values: &[(String, f64)]) -> Result<()> {
        self.timing.append(line(step, update, values).as_bytes())?;
        self.events(step, values)
    }

    /// Writes numbers that have a file of their own as TensorBoard events only.
    ///
    /// # Errors
    /// As [`MetricsLog::write`].
    pub fn events(&mut self, step: u64, values: &[(String, f64)]) -> Result<()> {
        let finite = || values.iter().filter(|(_, v)| v.is_finite()).map(|(n, v)| (n.as_str(), *v));
        match &mut self.events {
            Some(file) if finite().next().is_some() => file.append(&tensorboard::scalars(now(), step, finite())),
            _ => Ok(()),
        }
    }

    /// The files by name, for lengths and cuts.
    pub fn files(&mut self) -> Vec<(&'static str, &mut LogFile)> {
        let mut files = vec![(METRICS, &mut self.metrics), (TIMING, &mut self.timing)];
        files.extend(self.events.as_mut().map(|f| (EVENTS, f)));
        files
    }
}

fn now() -> f64 {
    // A clock before 1970 only spoils TensorBoard's time axis.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

fn line(step: u64, update: u64, values: &[(String, f64)]) -> String {
    let mut text = format!("{{\"step\":{step},\"update\":{update}");
    for (name, value) in values {
        let name = serde_json::Value::String(name.clone());
        // `Value` turns what is not finite into null.
        text.push_str(&format!(",{name}:{}", serde_json::Value::from(*value)));
    }
    text.push_str("}\n");
    text
}

/// One line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Joint environment steps so far.
    pub step: u64,
    /// The numbers, without counters of steps and updates; those that were not finite are missing.
    pub values: BTreeMap<String, f64>,
}

/// Reads `metrics.jsonl`. An unfinished last line, as a killed run leaves, is skipped.
///
/// # Errors
/// The number of the first line that cannot be read, from 1, and the reason.
pub fn parse(text: &[u8]) -> Result<Vec<Row>, (usize, String)> {
    let mut rows = Vec::new();
    let finished = text.iter().rposition(|&b| b == b'\n').map_or(0, |i| i + 1);
    for (i, line) in text[..finished].split(|&b| b == b'\n').enumerate().filter(|(_, l)| !l.is_empty()) {
        let values: BTreeMap<String, Option<f64>> = serde_json::from_slice(line).map_err(|e| (i + 1, e.to_string()))?;
        let step = values.get("step").copied().flatten().ok_or_else(|| (i + 1, "there is no `step`".to_string()))?;
        let values = values.into_iter().filter_map(|(n, v)| v.map(|v| (n, v))).filter(|(n, _)| n != "step" && n != "update").collect();
        rows.push(Row { step: step as u64, values });
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_read_back() {
        let text = line(10, 1, &[("train/loss".to_string(), 0.1), ("x".to_string(), f64::NAN)]);
        assert_eq!(text, "{\"step\":10,\"update\":1,\"train/loss\":0.1,\"x\":null}\n");
        let rows = parse(format!("{text}{{\"step\":20,\"upd").as_bytes()).unwrap();
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].step, 10);
        assert_eq!(rows[0].values["train/loss"], 0.1);
        assert!(!rows[0].values.contains_key("x"));
        assert_eq!(parse(b"{}\n").unwrap_err().0, 1);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
            let mut with_newline = bytes;
            with_newline.push(b'\n');
            let _ = parse(&with_newline);
        }
    }
}
