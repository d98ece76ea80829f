//! What was found in a preference file: counts, bad rows, unknown columns, pairs and identifiers that stand twice.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::Serialize;

use super::column;
use super::draft::{IDENTICAL, shorten};
use super::reader::PreferenceFile;
use super::row::{Entry, Row, hash_id};
use crate::error::{Result, RewardError};

/// Bad rows that a report shows; all are counted.
const SHOWN_BAD_ROWS: usize = 10;
/// Unknown columns that a report names. More than that means that keys hold data.
const SHOWN_COLUMNS: usize = 100;

/// A row that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BadRow {
    /// Line of a JSONL file, row of a Parquet file, from 1.
    pub line: u64,
    /// What is wrong, and what to do about it.
    pub reason: String,
}

/// A column that is not read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UnknownColumn {
    /// Its name; a field of `chosen` or `rejected` is written as `chosen.name`.
    pub name: String,
    /// Number of usable rows that have it.
    pub rows: u64,
    /// The column that is read and has nearly the same name.
    pub suggestion: Option<String>,
}

/// What was found in a preference file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ReadReport {
    /// Rows of the file; empty lines are none.
    pub rows: u64,
    /// Rows that can be used, `rows - bad`.
    pub used: u64,
    /// Rows that cannot be used.
    pub bad: u64,
    /// Bad rows whose chosen and rejected are the same.
    pub identical: u64,
    /// Usable rows whose label is a tie.
    pub ties: u64,
    /// Usable rows that repeat an earlier row: the same contents in the same order (ties: in any order).
    pub duplicates: u64,
    /// Usable rows that contradict an earlier row: the same contents in the opposite order, or judged the opposite way.
    pub contradictions: u64,
    /// Usable rows without an identifier; their line number is the identifier.
    pub missing_ids: u64,
    /// Columns that are not read, by name; at most 100.
    pub unknown_columns: Vec<UnknownColumn>,
    /// The first ten bad rows.
    pub bad_rows: Vec<BadRow>,
}

impl ReadReport {
    /// What the user should know, one sentence each; empty if all is well.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.bad > 0 {
            let same = if self.identical > 0 { format!(", {} of them with equal sides", self.identical) } else { String::new() };
            warnings.push(format!("{} of {} rows cannot be used and are left out{same}", self.bad, self.rows));
            warnings.extend(self.bad_rows.iter().map(|row| format!("line {}: {}", row.line, row.reason)));
        }
        if self.contradictions > 0 {
            warnings.push(format!(
                "{} rows contradict an earlier row (the same pair in the opposite order, or the same completion judged the opposite way)",
                self.contradictions
            ));
        }
        if self.duplicates > 0 {
            warnings.push(format!("{} rows repeat an earlier row", self.duplicates));
        }
        if self.missing_ids > 0 && self.missing_ids < self.used {
            warnings.push(format!("{} rows have no `id`; the line number stands in for it", self.missing_ids));
        }
        for column in &self.unknown_columns {
            let meant = column.suggestion.as_ref().map_or(String::new(), |name| format!("; did you mean `{name}`?"));
            warnings.push(format!("column `{}` ({} rows) is not read{meant}", column.name, column.rows));
        }
        warnings
    }
}

/// Counts the entries of a file and applies its [`ReadOptions`](super::reader::ReadOptions) to bad ones.
///
/// Takes 50 to 120 bytes for each pair: 128-bit hashes of identifiers and contents instead of the rows themselves.
#[derive(Debug)]
pub struct Tally {
    file: PreferenceFile,
    report: ReadReport,
    /// Line by hash of the identifier.
    ids: HashMap<u128, u64>,
    pairs: HashSet<u128>,
    /// Usable rows by name of the column.
    unknown: BTreeMap<String, u64>,
}

impl Tally {
    /// A count for one pass over a file.
    pub fn new(file: &PreferenceFile) -> Self {
        let (report, ids, pairs, unknown) = Default::default();
        Self { file: file.clone(), report, ids, pairs, unknown }
    }

    /// Counts an entry, which must come in the order of the file, and returns the row with its line if it is to be used.
    ///
    /// # Errors
    /// [`RewardError::Row`] for a bad row, unless they are skipped, and for an identifier that stood in an earlier row,
    /// always: nothing that speaks of rows by identifier could be trusted then. Other errors are passed on.
    pub fn admit(&mut self, entry: Result<Entry>) -> Result<Option<(u64, Row)>> {
        let entry = match entry {
            Ok(entry) => entry,
            Err(RewardError::Row { line, reason, .. }) if self.file.options().skip_bad_rows => {
                self.report.rows += 1;
                self.report.bad += 1;
                self.report.identical += u64::from(reason == IDENTICAL);
                if self.report.bad_rows.len() < SHOWN_BAD_ROWS {
                    self.report.bad_rows.push(BadRow { line, reason });
                }
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        if let Some(earlier) = self.ids.insert(hash_id(entry.row.id()), entry.line) {
            let hint = if entry.missing_id { " (the line number, as the row has none)" } else { "" };
            let id = shorten(entry.row.id());
            let reason = format!("the id `{id}`{hint} already stands in line {earlier}; identifiers must be unique");
            return Err(self.file.row_error(entry.line, reason));
        }
        self.report.rows += 1;
        self.report.used += 1;
        self.report.ties += u64::from(entry.row.equal());
        self.report.missing_ids += u64::from(entry.missing_id);
        let contents = entry.contents;
        if contents.ordered != contents.reversed && self.pairs.contains(&contents.reversed) {
            self.report.contradictions += 1;
        }
        if !self.pairs.insert(contents.ordered) {
            self.report.duplicates += 1;
        }
        self.note_columns(entry.unknown);
        Ok(Some((entry.line, entry.row)))
    }

    /// The counts so far.
    pub fn report(&self) -> &ReadReport {
        &self.report
    }

    /// The counts of the whole file.
    ///
    /// # Errors
    /// [`RewardError::Content`] if no row can be used.
    pub fn finish(mut self) -> Result<ReadReport> {
        if self.report.used == 0 {
            return Err(self.file.content_error("no row can be used".to_string()));
        }
        let columns = self.unknown.into_iter();
        self.report.unknown_columns =
            columns.map(|(name, rows)| UnknownColumn { suggestion: column::suggestion(&name, self.file.row_kind()), name, rows }).collect();
        Ok(self.report)
    }

    fn note_columns(&mut self, mut names: Vec<String>) {
        // A field of several messages of a row is one column.
        names.sort_unstable();
        names.dedup();
        for name in names {
            if let Some(rows) = self.unknown.get_mut(&name) {
                *rows += 1;
            } else if self.unknown.len() < SHOWN_COLUMNS {
                self.unknown.insert(name, 1);
            }
        }
    }
}
