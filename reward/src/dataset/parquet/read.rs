//! Reading of rows from Parquet files, a batch of records at a time.

use std::borrow::Cow;
use std::fs::File;
use std::path::{Path, PathBuf};

use parquet::basic::{Compression, Type as Physical};
use parquet::column::reader::ColumnReader;
use parquet::errors::ParquetError;
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::reader::{FileReader, SerializedFileReader};

use super::guard::guarded;
use super::leaf::{Leaf, LeafBatch, leaves};
use crate::dataset::column::{self, SIDES};
use crate::dataset::draft::{Draft, Scalar, SegmentDraft, Side, shorten};
use crate::dataset::jsonl::message;
use crate::dataset::row::RowKind;
use crate::error::{Result, RewardError};

/// Bytes that a batch should take in memory.
const BATCH_BYTES: usize = 4 << 20;
/// Most records of a batch.
const BATCH_RECORDS: usize = 1024;
const SCALARS: [&str; 10] =
    ["id", "equal", "label", "margin", "annotator_id", "flipped", "gold_chosen", "gold_rejected", "logp_ref_chosen", "logp_ref_rejected"];

/// Numbers of the batches from which `prompt`, `chosen` or `rejected` is put together.
#[derive(Debug, Clone, Copy)]
enum SideLeaves {
    Plain(usize),
    /// Role and content of a list of messages.
    Messages(usize, usize),
    /// Role and content of a single message.
    Message(usize, usize),
    /// Observations, actions, rewards, whether the task ended, the policy.
    Segment(usize, usize, Option<usize>, Option<usize>, Option<usize>),
}

/// Rows of a Parquet file in their order.
pub(crate) struct ParquetRows {
    path: PathBuf,
    reader: SerializedFileReader<File>,
    row_kind: RowKind,
    max_row_bytes: usize,
    batches: Vec<LeafBatch>,
    scalars: [Option<usize>; SCALARS.len()],
    sides: [Option<SideLeaves>; SIDES.len()],
    unknown: Vec<String>,
    next_group: usize,
    columns: Vec<ColumnReader>,
    /// Records of the open row group that have not been loaded.
    left_in_group: usize,
    batch_records: usize,
    left_in_batch: usize,
    row: u64,
}

impl std::fmt::Debug for ParquetRows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ParquetRows").field("path", &self.path).field("row", &self.row).finish_non_exhaustive()
    }
}

impl ParquetRows {
    /// Opens a file and finds its columns. No row may take more than `max_row_bytes` when it is decoded.
    pub(crate) fn open(path: &Path, row_kind: RowKind, max_row_bytes: usize) -> Result<Self> {
        let file = File::open(path).map_err(|source| RewardError::File { action: "open", path: path.to_path_buf(), source })?;
        let reader = guarded(path, || SerializedFileReader::new(file))?;
        let found = leaves(reader.metadata().file_metadata().schema());
        let mut rows = Self {
            path: path.to_path_buf(),
            reader,
            row_kind,
            max_row_bytes,
            batches: Vec::new(),
            scalars: [None; SCALARS.len()],
            sides: [None; SIDES.len()],
            unknown: Vec::new(),
            next_group: 0,
            columns: Vec::new(),
            left_in_group: 0,
            batch_records: 1,
            left_in_batch: 0,
            row: 0,
        };
        rows.plan(&found).and_then(|()| rows.check_chunks()).map_err(|reason| rows.content_error(reason))?;
        Ok(rows)
    }

    /// The next row with its number from 1, or why it cannot be used.
    pub(crate) fn next(&mut self) -> Result<Option<(u64, Result<Draft<'static>, String>)>> {
        while self.left_in_batch == 0 {
            if self.left_in_group == 0 && !self.open_group()? {
                return Ok(None);
            }
            self.load_batch()?;
        }
        self.left_in_batch -= 1;
        self.row += 1;
        Ok(Some((self.row, self.draft())))
    }

    /// Decides which leaf is which part of a row.
    fn plan(&mut self, found: &[Leaf]) -> Result<(), String> {
        let known = column::known(self.row_kind);
        let mut is_used = vec![false; found.len()];
        for (slot, name) in SCALARS.iter().enumerate().filter(|(_, name)| known.contains(name)) {
            if let Some(at) = found.iter().position(|leaf| leaf.path == *name) {
                is_used[at] = true;
                self.scalars[slot] = Some(self.add_batch(&found[at], &[])?);
            }
        }
        for (slot, side) in SIDES.iter().enumerate().filter(|(_, side)| known.contains(side)) {
            self.sides[slot] = self.plan_side(side, found, &mut is_used)?;
        }
        let mut unknown: Vec<String> =
            found.iter().zip(&is_used).filter(|(_, is_used)| !**is_used).map(|(leaf, _)| unknown_name(&leaf.path, self.row_kind)).collect();
        unknown.dedup();
        self.unknown = unknown;
        let is_there = |name: &str| {
            let side = SIDES.iter().position(|side| *side == name).is_some_and(|slot| self.sides[slot].is_some());
            side || SCALARS.iter().position(|scalar| *scalar == name).is_some_and(|slot| self.scalars[slot].is_some())
        };
        // One column of each group is needed.
        let needed: &[&[&str]] = match self.row_kind {
            RowKind::Pairs => &[&["chosen"], &["rejected"]],
            RowKind::JudgedCompletions => &[&["completion"], &["label"]],
            RowKind::Completions => &[&["completion", "messages", "text", "conversations"]],
            RowKind::Prompts => &[&["prompt", "conversations"]],
        };
        let missing = needed.iter().filter(|group| !group.iter().any(|name| is_there(name)));
        let missing: Vec<&str> = missing.map(|group| group[0]).collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(missing_columns(&missing, found, self.row_kind))
    }

    fn plan_side(&mut self, side: &str, found: &[Leaf], is_used: &mut [bool]) -> Result<Option<SideLeaves>, String> {
        let mut take = |names: &[&str]| {
            let at = names.iter().find_map(|name| found.iter().position(|leaf| leaf.path == format!("{side}{name}")))?;
            is_used[at] = true;
            Some(&found[at])
        };
        let text = [Physical::BYTE_ARRAY];
        let numbers = [Physical::FLOAT, Physical::DOUBLE, Physical::INT32, Physical::INT64];
        if let Some(leaf) = take(&[""]) {
            return self.add_batch(leaf, &text).map(|at| Some(SideLeaves::Plain(at)));
        }
        // A list of messages is stored message by message, or as two lists side by side.
        for (role, content, is_list) in [
            (["[].role", "[].from"], ["[].content", "[].value"], true),
            ([".role[]", ".from[]"], [".content[]", ".value[]"], true),
            ([".role", ".from"], [".content", ".value"], false),
        ] {
            if let (Some(role), Some(content)) = (take(&role), take(&content)) {
                let (role, content) = (self.add_batch(role, &text)?, self.add_batch(content, &text)?);
                return Ok(Some(if is_list { SideLeaves::Messages(role, content) } else { SideLeaves::Message(role, content) }));
            }
        }
        let (observations, actions) = (take(&[".observations[][]", ".observations[]"]), take(&[".actions[][]", ".actions[]"]));
        let (rewards, terminated, policy) = (take(&[".rewards[]"]), take(&[".terminated"]), take(&[".policy"]));
        if let (Some(observations), Some(actions)) = (observations, actions) {
            return Ok(Some(SideLeaves::Segment(
                self.add_batch(observations, &numbers)?,
                self.add_batch(actions, &numbers)?,
                rewards.map(|leaf| self.add_batch(leaf, &numbers)).transpose()?,
                terminated.map(|leaf| self.add_batch(leaf, &[Physical::BOOLEAN])).transpose()?,
                policy.map(|leaf| self.add_batch(leaf, &text)).transpose()?,
            )));
        }
        let parts: Vec<&str> = found.iter().map(|leaf| leaf.path.as_str()).filter(|path| is_part(path, side)).collect();
        if parts.is_empty() {
            return Ok(None);
        }
        Err(format!(
            "column `{side}` is neither text, nor a list of messages (`role`, `content`), nor a segment (`observations`, `actions`); it \
             consists of {}",
            parts.join(", ")
        ))
    }

    /// Adds a batch for a leaf whose type is one of `expected` (any type that is read, if empty).
    fn add_batch(&mut self, leaf: &Leaf, expected: &[Physical]) -> Result<usize, String> {
        let is_expected = expected.is_empty() || expected.contains(&leaf.physical);
        match LeafBatch::new(leaf.clone(), self.max_row_bytes).filter(|_| is_expected) {
            Some(batch) => {
                self.batches.push(batch);
                Ok(self.batches.len() - 1)
            }
            None => Err(format!("column `{}` has the type {}, which does not fit; convert it", leaf.path, leaf.physical)),
        }
    }

    /// What can be known to fail before anything is decoded: missing parts, codecs that are not built in, rows that are too
    /// long.
    fn check_chunks(&self) -> Result<(), String> {
        for (number, group) in self.reader.metadata().row_groups().iter().enumerate() {
            for batch in &self.batches {
                let leaf = batch.leaf();
                let Some(column) = group.columns().get(leaf.column) else {
                    return Err(format!("is damaged: a row group lacks the column `{}`", leaf.path));
                };
                let places = [column.compressed_size(), column.data_page_offset(), column.dictionary_page_offset().unwrap_or(0)];
                if places.iter().any(|&place| place < 0) {
                    return Err(format!("is damaged: the column `{}` has no place in the file", leaf.path));
                }
                if column.num_values() < 0 || column.uncompressed_size() < 0 {
                    return Err(format!("is damaged: the column `{}` has less than no values", leaf.path));
                }
                let (codec, remedy) = match column.compression() {
                    Compression::ZSTD(_) if !cfg!(feature = "zstd") => ("zstd", ", or build with `--features zstd`"),
                    Compression::LZO => ("lzo", ""),
                    _ => continue,
                };
                return Err(format!(
                    "column `{}` is compressed with {codec}, which this build does not read; write the file with another codec (pyarrow: \
                     `compression=\"snappy\"`){remedy}",
                    leaf.path
                ));
            }
            let row_bytes = self.row_bytes(group);
            if row_bytes > self.max_row_bytes {
                return Err(format!(
                    "a row of row group {} takes {row_bytes} bytes on average, more than {}; raise `max_line_bytes` if it should",
                    number + 1,
                    self.max_row_bytes
                ));
            }
        }
        Ok(())
    }

    /// Bytes that an average row of a group takes in memory: what its columns encode to or what they decode to, whatever is
    /// more. Runs of one number and entries of a dictionary decode to far more than they encode to.
    fn row_bytes(&self, group: &RowGroupMetaData) -> usize {
        let columns = self.batches.iter().filter_map(|batch| Some((batch, group.columns().get(batch.leaf().column)?)));
        let bytes = columns.fold(0_usize, |sum, (batch, column)| {
            let encoded = usize::try_from(column.uncompressed_size()).unwrap_or(0);
            let values = usize::try_from(column.num_values()).unwrap_or(0);
            sum.saturating_add(encoded.max(values.saturating_mul(batch.value_bytes())))
        });
        bytes / usize::try_from(group.num_rows()).unwrap_or(0).max(1)
    }

    fn open_group(&mut self) -> Result<bool> {
        if self.next_group >= self.reader.num_row_groups() {
            return Ok(false);
        }
        let (reader, batches, group) = (&self.reader, &self.batches, self.next_group);
        self.columns = guarded(&self.path, || {
            let group = reader.get_row_group(group)?;
            batches.iter().map(|batch| group.get_column_reader(batch.leaf().column)).collect()
        })?;
        let metadata = self.reader.metadata().row_group(self.next_group);
        self.left_in_group = usize::try_from(metadata.num_rows()).unwrap_or(0);
        self.batch_records = batch_records(self.row_bytes(metadata));
        self.next_group += 1;
        Ok(true)
    }

    fn load_batch(&mut self) -> Result<()> {
        let n_records = self.left_in_group.min(self.batch_records);
        let (batches, columns) = (&mut self.batches, &mut self.columns);
        guarded(&self.path, || {
            for (batch, column) in batches.iter_mut().zip(columns) {
                let n_read = batch.load(column, n_records)?;
                if n_read != n_records {
                    return Err(ParquetError::General(format!("`{}` ends before its row group does", batch.leaf().path)));
                }
            }
            Ok(())
        })?;
        self.left_in_group -= n_records;
        self.left_in_batch = n_records;
        Ok(())
    }

    /// Takes one record from every batch. All of them advance, even if one is bad.
    fn draft(&mut self) -> Result<Draft<'static>, String> {
        let mut scalars: [Option<Scalar<'static>>; SCALARS.len()] = Default::default();
        let mut sides: [Option<Side<'static>>; SIDES.len()] = Default::default();
        let mut fault = None;
        let mut note = |reason: String| {
            fault.get_or_insert(reason);
        };
        for (scalar, batch) in scalars.iter_mut().zip(self.scalars) {
            if let Some(batch) = batch {
                self.batches[batch].scalar().map_or_else(&mut note, |value| *scalar = value);
            }
        }
        for ((side, leaves), name) in sides.iter_mut().zip(self.sides).zip(SIDES) {
            if let Some(leaves) = leaves {
                take_side(&mut self.batches, leaves, name).map_or_else(&mut note, |value| *side = value);
            }
        }
        if let Some(reason) = fault {
            return Err(reason);
        }
        let mut draft = Draft { unknown: self.unknown.clone(), ..Draft::default() };
        for (name, scalar) in SCALARS.iter().zip(scalars) {
            if let Some(slot) = draft.scalar_mut(name) {
                *slot = scalar;
                continue;
            }
            draft.margin = match scalar {
                None => None,
                Some(Scalar::Real(value)) => Some(value as f32),
                Some(Scalar::Whole(value)) => Some(value as f32),
                Some(_) => return Err(format!("`{name}` must be a number")),
            };
        }
        for (name, side) in SIDES.iter().zip(sides) {
            if let Some(slot) = draft.side_mut(name) {
                *slot = side;
            }
        }
        Ok(draft)
    }

    fn content_error(&self, reason: String) -> RewardError {
        RewardError::Content { path: self.path.clone(), reason }
    }
}

/// Records of a batch whose rows take `row_bytes` each on average.
fn batch_records(row_bytes: usize) -> usize {
    (BATCH_BYTES / row_bytes.max(1)).clamp(1, BATCH_RECORDS)
}

fn take_side(batches: &mut [LeafBatch], leaves: SideLeaves, name: &str) -> Result<Option<Side<'static>>, String> {
    match leaves {
        SideLeaves::Plain(at) => match batches[at].scalar()? {
            Some(Scalar::Text(text)) => Ok(Some(Side::Plain(Cow::Owned(text.into_owned())))),
            _ => Ok(None),
        },
        SideLeaves::Messages(role, content) => {
            // Both advance before either may fail.
            let (roles, contents) = (batches[role].texts(), batches[content].texts());
            let (Some(roles), Some(contents)) = (roles?, contents?) else { return Ok(None) };
            if roles.len() != contents.len() {
                return Err(format!("`{name}` has {} roles but {} texts", roles.len(), contents.len()));
            }
            let messages = roles.into_iter().zip(contents).enumerate().map(|(at, pair)| match pair {
                (Some(role), Some(content)) => Ok(message(role, content)),
                (None, _) => Err(format!("`{name}, message {}`: no `role`", at + 1)),
                _ => Err(format!("`{name}, message {}`: no text in `content`", at + 1)),
            });
            messages.collect::<Result<_, _>>().map(|messages| Some(Side::Messages(messages)))
        }
        SideLeaves::Message(role, content) => match (batches[role].scalar(), batches[content].scalar()) {
            (Err(reason), _) | (_, Err(reason)) => Err(reason),
            (Ok(Some(Scalar::Text(role))), Ok(Some(Scalar::Text(content)))) => {
                Ok(Some(Side::Messages(vec![message(role.into_owned(), content.into_owned())])))
            }
            (Ok(None), Ok(None)) => Ok(None),
            _ => Err(format!("`{name}` lacks its role or its text")),
        },
        SideLeaves::Segment(observations, actions, rewards, terminated, policy) => {
            let (observations, actions) = (batches[observations].matrix(), batches[actions].matrix());
            let rewards = rewards.map(|at| batches[at].matrix()).transpose();
            let terminated = terminated.map(|at| batches[at].scalar()).transpose();
            let policy = policy.map(|at| batches[at].scalar()).transpose();
            let (observations, actions, rewards) = (observations?, actions?, rewards?.flatten());
            let (terminated, policy) = (terminated?.flatten(), policy?.flatten());
            if observations.is_none() && actions.is_none() {
                return Ok(None);
            }
            Ok(Some(Side::Segment(SegmentDraft {
                observations,
                actions,
                rewards: rewards.map(|matrix| matrix.numbers),
                terminated: terminated == Some(Scalar::Bool(true)),
                policy: match policy {
                    Some(Scalar::Text(text)) => text.into_owned(),
                    _ => String::new(),
                },
            })))
        }
    }
}

fn is_part(path: &str, column: &str) -> bool {
    path.strip_prefix(column).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// How an unread leaf is named: its column, or the field of a side.
fn unknown_name(path: &str, kind: RowKind) -> String {
    match SIDES.iter().find(|side| column::known(kind).contains(side) && is_part(path, side)) {
        Some(_) => shorten(&path.replace("[]", "")),
        None => shorten(path.split(['.', '[']).next().unwrap_or(path)),
    }
}

fn missing_columns(missing: &[&str], found: &[Leaf], kind: RowKind) -> String {
    let mut names: Vec<String> = found.iter().map(|leaf| unknown_name(&leaf.path, kind)).collect();
    names.dedup();
    if kind == RowKind::Pairs && names.iter().any(|name| name == "completion") {
        return "holds single judged completions (`completion`, `label`), not pairs; two completions of the same prompt make a pair: write \
                them as `prompt`, `chosen`, `rejected`"
            .to_string();
    }
    let meant = names.iter().find_map(|name| {
        let meant = column::suggestion(name, kind).filter(|meant| missing.contains(&meant.as_str()))?;
        Some(format!("; did you mean `{meant}` by `{name}`?"))
    });
    names.truncate(40);
    format!("has no column `{}`; the columns are {}{}", missing.join("` and no `"), names.join(", "), meant.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_keep_to_their_bytes_and_hold_a_row() {
        assert_eq!([0, 1, 4096].map(batch_records), [BATCH_RECORDS; 3]);
        assert_eq!(batch_records(1 << 20), 4);
        assert_eq!(batch_records(usize::MAX), 1);
    }
}
