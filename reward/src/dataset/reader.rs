//! Reading of preference files.
//!
//! A file holds pairs of texts or pairs of trajectory segments, one object per line (JSONL) or one row each (Parquet). The
//! format is told by the contents, the kind by the first row. Rows are read as a stream, as often as needed.
//!
//! **Texts**: `prompt`, `chosen`, `rejected`, each a string or a list of messages `{"role", "content"}` (or the older
//! `{"from", "value"}`; `conversations` may stand for `prompt`). Without `prompt` the two hold the whole conversation and the
//! prompt is what they share.
//! **Segments**: `chosen` and `rejected` are objects with `observations` and `actions` (a list of lists, or of numbers if
//! each step has one; those are rounded to double precision first), and optionally `rewards`, `terminated`, `policy`.
//! **Both**, optional: `id`, `equal` (or `label` 0.5) for ties, `margin`, `annotator_id`, `flipped`, `gold_chosen`,
//! `gold_rejected`, `logp_ref_chosen` and `logp_ref_rejected` (log-probabilities under a reference model, both or none).
//! Other columns are named in the report and not read.
//!
//! [`PreferenceFile::open_as`] reads other rows in the same ways: judged completions, texts to imitate, prompts alone; see
//! [`RowKind`] for their columns.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::draft::Draft;
use super::jsonl::{self, Lines};
use super::parquet::ParquetRows;
use super::report::{ReadReport, Tally};
use super::row::{Entry, Kind, Row, RowKind, Shape};
use crate::error::{Result, RewardError};

/// How a file is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadOptions {
    /// True to leave out rows that cannot be used, counting them; otherwise the first one is an error.
    pub skip_bad_rows: bool,
    /// Longest row in bytes: a line of a JSONL file, or the decoded values of a row of a Parquet file (8 bytes for a number
    /// in single precision). A longer line is a bad row and never held in memory. A Parquet file is refused before anything
    /// is decoded if the rows of a row group are longer on average; beyond that, a row is bad if one of its columns is
    /// longer.
    pub max_line_bytes: usize,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self { skip_bad_rows: false, max_line_bytes: 64 << 20 }
    }
}

/// How a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One JSON object per line.
    Jsonl,
    /// Apache Parquet.
    Parquet,
}

/// A preference file: where it is, how it is read, what it holds. Cheap to clone.
///
/// ```
/// use steadfast_reward::dataset::{PreferenceFile, ReadOptions, Row};
///
/// # let folder = tempfile::tempdir()?;
/// let path = folder.path().join("pairs.jsonl");
/// std::fs::write(&path, r#"{"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}"#)?;
/// let file = PreferenceFile::open(&path, &ReadOptions::default())?;
/// for row in file.rows()? {
///     let (line, Row::Texts(preference)) = row? else { panic!("the pairs are texts") };
///     assert_eq!((line, preference.id.as_str()), (1, "1"));
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct PreferenceFile {
    path: Arc<PathBuf>,
    options: ReadOptions,
    format: Format,
    row_kind: RowKind,
    shape: Shape,
}

impl PreferenceFile {
    /// Opens a file of pairs and reads its first usable row.
    ///
    /// # Errors
    /// [`RewardError::File`] if it cannot be read, [`RewardError::Content`] if it is empty or of another format,
    /// [`RewardError::Row`] if the first row cannot be used and bad rows are not skipped.
    pub fn open(path: impl AsRef<Path>, options: &ReadOptions) -> Result<Self> {
        Self::open_as(path, RowKind::Pairs, options)
    }

    /// Opens a file of rows of a kind and reads its first usable row.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_as(path: impl AsRef<Path>, row_kind: RowKind, options: &ReadOptions) -> Result<Self> {
        let path = path.as_ref();
        let format = detect(path, row_kind)?;
        let mut file = Self { path: Arc::new(path.to_path_buf()), options: *options, format, row_kind, shape: Shape::Texts };
        let mut first_fault = None;
        for entry in file.raw_entries()? {
            match entry {
                Ok(entry) => {
                    file.shape = Shape::of(&entry.row);
                    return Ok(file);
                }
                Err(RewardError::Row { line, reason, .. }) if options.skip_bad_rows => {
                    first_fault.get_or_insert((line, reason));
                }
                Err(error) => return Err(error),
            }
        }
        Err(file.content_error(match first_fault {
            None => format!("holds no rows; {}", what_is_read(row_kind)),
            Some((line, reason)) => format!("no row can be used; the first, in line {line}: {reason}"),
        }))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What its rows are read for.
    pub fn row_kind(&self) -> RowKind {
        self.row_kind
    }

    /// What its rows are.
    pub fn kind(&self) -> Kind {
        self.shape.kind()
    }

    /// How it is written.
    pub fn format(&self) -> Format {
        self.format
    }

    /// How it is read.
    pub fn options(&self) -> &ReadOptions {
        &self.options
    }

    /// Widths of the observations and of the actions of segments.
    pub fn segment_widths(&self) -> Option<(usize, usize)> {
        match self.shape {
            Shape::Segments(observation, action) => Some((observation, action)),
            Shape::Texts | Shape::Completions | Shape::Prompts => None,
        }
    }

    /// All rows from the beginning, in memory that does not grow with their number.
    ///
    /// A row that cannot be used is an error and ends the iteration, or is left out with [`ReadOptions::skip_bad_rows`] and
    /// counted by [`Rows::n_bad`]. What needs a memory of other rows (identifiers that stand twice) is found by
    /// [`Self::scan`].
    ///
    /// # Errors
    /// [`RewardError::File`] if the file cannot be opened.
    pub fn rows(&self) -> Result<Rows> {
        Ok(Rows { entries: self.entries()?, skip_bad_rows: self.options.skip_bad_rows, n_bad: 0, is_done: false })
    }

    /// All rows from the beginning with what was remarkable about them, in memory that does not grow with their number.
    ///
    /// A row that cannot be used is [`RewardError::Row`], after which the iteration goes on whatever the options say; every
    /// other error ends it. [`Tally::admit`] applies the options.
    ///
    /// # Errors
    /// [`RewardError::File`] if the file cannot be opened.
    pub fn entries(&self) -> Result<Entries> {
        self.raw_entries().map(|entries| Entries { file: Some(self.clone()), ..entries })
    }

    /// The lines of a JSONL file, to be parsed elsewhere by [`Self::parse_line`]; nothing for other formats.
    ///
    /// # Errors
    /// [`RewardError::File`] if the file cannot be opened.
    pub fn lines(&self) -> Result<Option<Lines>> {
        match self.format {
            Format::Jsonl => Lines::open(&self.path, self.options.max_line_bytes).map(Some),
            Format::Parquet => Ok(None),
        }
    }

    /// Parses one line of a JSONL file. Depends on nothing but its arguments and the first row of the file, so lines may be
    /// parsed in any order by any number of threads.
    ///
    /// # Errors
    /// [`RewardError::Row`] if the row cannot be used.
    pub fn parse_line(&self, line: u64, bytes: &[u8]) -> Result<Entry> {
        self.parse_any_line(line, bytes).and_then(|entry| self.check_shape(entry))
    }

    /// Reads the whole file, hands every usable row with its line to `visit`, and returns what was found. Takes 50
    /// to 120 bytes of memory for each pair.
    ///
    /// # Errors
    /// As [`Tally::admit`] and [`Tally::finish`]; errors of `visit` are passed on.
    pub fn scan(&self, mut visit: impl FnMut(u64, Row) -> Result<()>) -> Result<ReadReport> {
        let mut tally = Tally::new(self);
        for entry in self.entries()? {
            if let Some((line, row)) = tally.admit(entry)? {
                visit(line, row)?;
            }
        }
        tally.finish()
    }

    /// Reads the whole file into memory.
    ///
    /// # Errors
    /// As [`Self::scan`].
    pub fn read(&self) -> Result<(Vec<Row>, ReadReport)> {
        let mut rows = Vec::new();
        let report = self.scan(|_, row| {
            rows.push(row);
            Ok(())
        })?;
        Ok((rows, report))
    }

    pub(crate) fn row_error(&self, line: u64, reason: String) -> RewardError {
        RewardError::Row { path: self.path.to_path_buf(), line, reason }
    }

    pub(crate) fn content_error(&self, reason: String) -> RewardError {
        RewardError::Content { path: self.path.to_path_buf(), reason }
    }

    fn parse_any_line(&self, line: u64, bytes: &[u8]) -> Result<Entry> {
        jsonl::parse(bytes, self.row_kind)
            .and_then(|draft| draft.finish(line, self.row_kind))
            .map_err(|reason| self.row_error(line, reason))
    }

    /// Entries without the check against the first row.
    fn raw_entries(&self) -> Result<Entries> {
        let source = match self.format {
            Format::Jsonl => Source::Jsonl(Lines::open(&self.path, self.options.max_line_bytes)?, Vec::new()),
            Format::Parquet => Source::Parquet(Box::new(ParquetRows::open(&self.path, self.row_kind, self.options.max_line_bytes)?)),
        };
        Ok(Entries { opener: self.clone(), file: None, source, is_done: false })
    }

    fn check_shape(&self, entry: Entry) -> Result<Entry> {
        match self.shape.check(&entry.row) {
            Ok(()) => Ok(entry),
            Err(reason) => Err(self.row_error(entry.line, reason)),
        }
    }
}

/// Iterator of [`PreferenceFile::entries`].
#[derive(Debug)]
pub struct Entries {
    opener: PreferenceFile,
    /// The file with its shape known; nothing while the first row is looked for.
    file: Option<PreferenceFile>,
    source: Source,
    is_done: bool,
}

#[derive(Debug)]
enum Source {
    Jsonl(Lines, Vec<u8>),
    Parquet(Box<ParquetRows>),
}

impl Entries {
    fn advance(&mut self) -> Result<Option<Entry>> {
        let entry = match &mut self.source {
            Source::Jsonl(lines, buffer) => match lines.next_into(buffer)? {
                Some(line) => self.opener.parse_any_line(line, buffer)?,
                None => return Ok(None),
            },
            Source::Parquet(rows) => match rows.next()? {
                Some((line, draft)) => {
                    let kind = self.opener.row_kind;
                    draft.and_then(|draft: Draft<'_>| draft.finish(line, kind)).map_err(|reason| self.opener.row_error(line, reason))?
                }
                None => return Ok(None),
            },
        };
        match &self.file {
            Some(file) => file.check_shape(entry).map(Some),
            None => Ok(Some(entry)),
        }
    }
}

impl Iterator for Entries {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_done {
            return None;
        }
        let next = self.advance().transpose();
        self.is_done = !matches!(next, Some(Ok(_) | Err(RewardError::Row { .. })));
        next
    }
}

/// Iterator of [`PreferenceFile::rows`].
#[derive(Debug)]
pub struct Rows {
    entries: Entries,
    skip_bad_rows: bool,
    n_bad: u64,
    is_done: bool,
}

impl Rows {
    /// Number of bad rows left out so far.
    pub fn n_bad(&self) -> u64 {
        self.n_bad
    }
}

impl Iterator for Rows {
    type Item = Result<(u64, Row)>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.is_done {
            match self.entries.next()? {
                Ok(entry) => return Some(Ok((entry.line, entry.row))),
                Err(RewardError::Row { .. }) if self.skip_bad_rows => self.n_bad += 1,
                Err(error) => {
                    self.is_done = true;
                    return Some(Err(error));
                }
            }
        }
        None
    }
}

/// What one row of a file holds, in words.
fn what_is_read(kind: RowKind) -> &'static str {
    match kind {
        RowKind::Pairs => "a preference file has one pair with `chosen` and `rejected` per row",
        RowKind::JudgedCompletions => "a file of judged completions has `prompt`, `completion` and `label` in every row",
        RowKind::Completions => "a file of texts to imitate has `prompt` and `completion`, `messages` or `text` in every row",
        RowKind::Prompts => "a file of prompts has `prompt` in every row",
    }
}

/// Tells the format from the first bytes of a file.
fn detect(path: &Path, kind: RowKind) -> Result<Format> {
    let file_error = |action, source| RewardError::File { action, path: path.to_path_buf(), source };
    let content_error = |reason: &str| RewardError::Content { path: path.to_path_buf(), reason: reason.to_string() };
    if path.is_dir() {
        return Err(content_error("is a folder; name one file of it"));
    }
    let mut head = Vec::new();
    let file = File::open(path).map_err(|source| file_error("open", source))?;
    file.take(4096).read_to_end(&mut head).map_err(|source| file_error("read", source))?;
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    if head.starts_with(b"PAR1") {
        return Ok(Format::Parquet);
    }
    if head.starts_with(b"PARE") {
        return Err(content_error("is an encrypted Parquet file; write it without encryption"));
    }
    if head.is_empty() {
        return Err(content_error(&format!("is empty; {}", what_is_read(kind))));
    }
    if extension == "parquet" {
        return Err(content_error("is no Parquet file: it does not begin with PAR1; was the download complete?"));
    }
    for (magic, name, remedy) in [
        (&b"\x1F\x8B"[..], "gzip", "gunzip"),
        (b"\x28\xB5\x2F\xFD", "zstd", "unzstd"),
        (b"BZh", "bzip2", "bunzip2"),
        (b"\xFD7zXZ", "xz", "unxz"),
        (b"PK\x03\x04", "zip", "unzip"),
    ] {
        if head.starts_with(magic) {
            return Err(content_error(&format!("is compressed with {name}; unpack it first (`{remedy}`)")));
        }
    }
    if head.starts_with(b"\xFF\xFE") || head.starts_with(b"\xFE\xFF") {
        return Err(content_error("is written in UTF-16; save it as UTF-8"));
    }
    let text = head.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&head);
    match text.iter().find(|byte| !byte.is_ascii_whitespace()) {
        Some(b'[') => Err(content_error(
            "is a JSON array; write one object per line instead, for example with `jq -c '.[]' pairs.json > pairs.jsonl`",
        )),
        Some(b'{') | None => Ok(Format::Jsonl),
        Some(_) if matches!(extension.as_str(), "jsonl" | "ndjson" | "json") => Ok(Format::Jsonl),
        Some(_) => Err(content_error("is neither JSONL (one object per line) nor Parquet")),
    }
}
