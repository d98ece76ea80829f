//! Writing of rows to Parquet files: columns are gathered with their levels and written a row group at a time.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use parquet::basic::Compression;
use parquet::column::writer::ColumnWriter;
use parquet::data_type::ByteArray;
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use crate::dataset::row::Row;
use crate::dataset::writer::RowCheck;
use crate::error::{Result, RewardError};
use crate::preference::{Message, Preference, Segment, Text, TextCompletion};

/// Bytes of values, before compression, after which a row group is written.
const GROUP_BYTES: usize = 32 << 20;

/// What the rows of a file look like; a file has one schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Texts,
    Conversations,
    Segments,
    Completions,
    CompletionChats,
    Prompts,
    PromptChats,
}

impl Form {
    fn of(row: &Row) -> Self {
        match row {
            Row::Segments(_) => Self::Segments,
            Row::Texts(row) => match row.pair.chosen {
                Text::Plain(_) => Self::Texts,
                Text::Conversation(_) => Self::Conversations,
            },
            Row::Completion(row) => match row.completion {
                Text::Plain(_) => Self::Completions,
                Text::Conversation(_) => Self::CompletionChats,
            },
            Row::Prompt(row) => match row.prompt {
                Text::Plain(_) => Self::Prompts,
                Text::Conversation(_) => Self::PromptChats,
            },
        }
    }

    fn describe(self) -> &'static str {
        match self {
            Self::Texts => "pair of plain texts",
            Self::Conversations => "pair of conversations",
            Self::Segments => "pair of segments",
            Self::Completions => "completion in plain text",
            Self::CompletionChats => "completion in messages",
            Self::Prompts => "prompt in plain text",
            Self::PromptChats => "prompt in messages",
        }
    }

    fn schema(self) -> String {
        const NUMBERS: &str = "(LIST) { REPEATED GROUP list { OPTIONAL FLOAT element; } }";
        const STEPS: &str =
            "(LIST) { REPEATED GROUP list { OPTIONAL GROUP element (LIST) { REPEATED GROUP list { OPTIONAL FLOAT element; } } } }";
        let plain = |names: &[&str]| names.iter().map(|name| format!("OPTIONAL BYTE_ARRAY {name} (UTF8);")).collect::<String>();
        let chats = |names: &[&str]| {
            let list = |name: &&str| {
                format!(
                    "OPTIONAL GROUP {name} (LIST) {{ REPEATED GROUP list {{ OPTIONAL GROUP element {{ OPTIONAL BYTE_ARRAY role (UTF8); \
                     OPTIONAL BYTE_ARRAY content (UTF8); }} }} }}"
                )
            };
            names.iter().map(list).collect::<String>()
        };
        let single =
            |columns: String| format!("message completions {{ OPTIONAL BYTE_ARRAY id (UTF8); {columns} OPTIONAL BOOLEAN label; }}");
        let pair = match self {
            Self::Completions => return single(plain(&["prompt", "completion"])),
            Self::CompletionChats => return single(chats(&["prompt", "completion"])),
            Self::Prompts => return single(plain(&["prompt"])),
            Self::PromptChats => return single(chats(&["prompt"])),
            Self::Texts => plain(&["prompt", "chosen", "rejected"]),
            Self::Conversations => chats(&["prompt", "chosen", "rejected"]),
            Self::Segments => ["chosen", "rejected"]
                .map(|name| {
                    format!(
                        "OPTIONAL GROUP {name} {{ OPTIONAL GROUP observations {STEPS} OPTIONAL GROUP actions {STEPS} OPTIONAL GROUP rewards \
                         {NUMBERS} OPTIONAL BOOLEAN terminated; OPTIONAL BYTE_ARRAY policy (UTF8); }}"
                    )
                })
                .concat(),
        };
        format!(
            "message preferences {{ OPTIONAL BYTE_ARRAY id (UTF8); {pair} OPTIONAL BOOLEAN equal; OPTIONAL FLOAT margin; \
             OPTIONAL BYTE_ARRAY annotator_id (UTF8); OPTIONAL BOOLEAN flipped; OPTIONAL DOUBLE gold_chosen; OPTIONAL DOUBLE gold_rejected; \
             OPTIONAL DOUBLE logp_ref_chosen; OPTIONAL DOUBLE logp_ref_rejected; }}"
        )
    }
}

/// Values of one leaf with their levels.
#[derive(Debug)]
struct Column<T> {
    values: Vec<T>,
    defs: Vec<i16>,
    reps: Vec<i16>,
}

impl<T> Default for Column<T> {
    fn default() -> Self {
        Self { values: Vec::new(), defs: Vec::new(), reps: Vec::new() }
    }
}

impl<T> Column<T> {
    /// Levels as [`super::leaf`] explains them; `def` with a value is the deepest of the leaf.
    fn push(&mut self, value: Option<T>, def: i16, rep: i16) {
        self.values.extend(value);
        self.defs.push(def);
        self.reps.push(rep);
    }

    /// A value of a column without lists under `depth` optional groups.
    fn push_optional(&mut self, value: Option<T>, depth: i16) {
        let def = depth + i16::from(value.is_some());
        self.push(value, def, 0);
    }

    fn clear(&mut self) {
        self.values.clear();
        self.defs.clear();
        self.reps.clear();
    }
}

impl Column<f32> {
    /// A list of lists: two lists and their elements are optional, inside one optional group.
    fn push_steps(&mut self, numbers: &[f32], steps: usize) {
        let width = numbers.len() / steps;
        for (at, number) in numbers.iter().enumerate() {
            let rep = if at == 0 { 0 } else { 2 - i16::from(at % width == 0) };
            self.push(Some(*number), 6, rep);
        }
    }
}

/// The leaves of a message list or a segment, or a plain text.
#[derive(Debug, Default)]
struct Side {
    text: Column<ByteArray>,
    role: Column<ByteArray>,
    content: Column<ByteArray>,
    observations: Column<f32>,
    actions: Column<f32>,
    rewards: Column<f32>,
    terminated: Column<bool>,
    policy: Column<ByteArray>,
}

fn bytes(text: &str) -> ByteArray {
    ByteArray::from(text.as_bytes().to_vec())
}

impl Side {
    fn push_text(&mut self, text: &str) -> usize {
        self.text.push_optional(Some(bytes(text)), 0);
        text.len()
    }

    fn push_messages(&mut self, messages: &[Message]) -> usize {
        if messages.is_empty() {
            self.role.push(None, 1, 0);
            self.content.push(None, 1, 0);
        }
        for (at, message) in messages.iter().enumerate() {
            let rep = i16::from(at > 0);
            self.role.push(Some(bytes(&message.role)), 4, rep);
            self.content.push(Some(bytes(&message.content)), 4, rep);
        }
        messages.iter().map(|message| message.role.len() + message.content.len()).sum()
    }

    fn push(&mut self, text: &Text) -> usize {
        match text {
            Text::Plain(text) => self.push_text(text),
            Text::Conversation(messages) => self.push_messages(messages),
        }
    }

    fn push_segment(&mut self, segment: &Segment) -> usize {
        self.observations.push_steps(&segment.observations, segment.steps);
        self.actions.push_steps(&segment.actions, segment.steps);
        if segment.rewards.is_empty() {
            self.rewards.push(None, 1, 0);
        }
        for (at, reward) in segment.rewards.iter().enumerate() {
            self.rewards.push(Some(*reward), 4, i16::from(at > 0));
        }
        self.terminated.push_optional(Some(segment.terminated), 1);
        self.policy.push_optional((!segment.policy.is_empty()).then(|| bytes(&segment.policy)), 1);
        4 * (segment.observations.len() + segment.actions.len() + segment.rewards.len())
    }

    fn clear(&mut self) {
        [&mut self.text, &mut self.role, &mut self.content, &mut self.policy].into_iter().for_each(Column::clear);
        [&mut self.observations, &mut self.actions, &mut self.rewards].into_iter().for_each(Column::clear);
        self.terminated.clear();
    }
}

/// Rows of the row group that is being gathered.
#[derive(Debug, Default)]
struct Group {
    n_rows: usize,
    n_bytes: usize,
    id: Column<ByteArray>,
    prompt: Side,
    chosen: Side,
    rejected: Side,
    equal: Column<bool>,
    margin: Column<f32>,
    annotator: Column<ByteArray>,
    flipped: Column<bool>,
    gold_chosen: Column<f64>,
    gold_rejected: Column<f64>,
    logp_ref_chosen: Column<f64>,
    logp_ref_rejected: Column<f64>,
    /// The judgement of a single completion, which stands in the place of the chosen one.
    judgement: Column<bool>,
}

impl Group {
    fn push(&mut self, row: &Row) -> Result<()> {
        self.n_bytes += match row {
            Row::Completion(row) => self.prompt.push(&row.prompt) + self.chosen.push(&row.completion),
            Row::Prompt(row) => self.prompt.push(&row.prompt),
            Row::Segments(row) => self.chosen.push_segment(&row.pair.chosen) + self.rejected.push_segment(&row.pair.rejected),
            Row::Texts(row) => {
                let pair = &row.pair;
                match (&pair.prompt, &pair.chosen, &pair.rejected) {
                    (Text::Plain(prompt), Text::Plain(chosen), Text::Plain(rejected)) => {
                        self.prompt.push_text(prompt) + self.chosen.push_text(chosen) + self.rejected.push_text(rejected)
                    }
                    (Text::Conversation(prompt), Text::Conversation(chosen), Text::Conversation(rejected)) => {
                        self.prompt.push_messages(prompt) + self.chosen.push_messages(chosen) + self.rejected.push_messages(rejected)
                    }
                    // A pair without a prompt may keep it as blank text.
                    (Text::Plain(prompt), Text::Conversation(chosen), Text::Conversation(rejected)) if prompt.trim().is_empty() => {
                        self.prompt.push_messages(&[]) + self.chosen.push_messages(chosen) + self.rejected.push_messages(rejected)
                    }
                    _ => {
                        return Err(RewardError::Data(format!(
                            "pair `{}`: plain text and messages in one row; a Parquet column holds one of them",
                            row.id
                        )));
                    }
                }
            }
        };
        match row {
            Row::Segments(row) => self.push_label(row),
            Row::Texts(row) => self.push_label(row),
            Row::Completion(TextCompletion { id, label, .. }) => self.push_judgement(id, *label),
            Row::Prompt(row) => self.push_judgement(&row.id, None),
        }
        self.n_rows += 1;
        Ok(())
    }

    fn push_judgement(&mut self, id: &str, label: Option<bool>) {
        self.id.push_optional(Some(bytes(id)), 0);
        self.judgement.push_optional(label, 0);
    }

    fn push_label<P>(&mut self, row: &Preference<P>) {
        self.id.push_optional(Some(bytes(&row.id)), 0);
        self.equal.push_optional(Some(row.equal), 0);
        self.margin.push_optional(row.margin, 0);
        self.annotator.push_optional(row.annotator.as_deref().map(bytes), 0);
        self.flipped.push_optional(row.truth.flipped, 0);
        self.gold_chosen.push_optional(row.truth.gold_chosen, 0);
        self.gold_rejected.push_optional(row.truth.gold_rejected, 0);
        self.logp_ref_chosen.push_optional(row.reference_log_probs.map(|log_probs| log_probs[0]), 0);
        self.logp_ref_rejected.push_optional(row.reference_log_probs.map(|log_probs| log_probs[1]), 0);
    }

    fn clear(&mut self) {
        (self.n_rows, self.n_bytes) = (0, 0);
        [&mut self.prompt, &mut self.chosen, &mut self.rejected].into_iter().for_each(Side::clear);
        [&mut self.id, &mut self.annotator].into_iter().for_each(Column::clear);
        [&mut self.equal, &mut self.flipped, &mut self.judgement].into_iter().for_each(Column::clear);
        [&mut self.gold_chosen, &mut self.gold_rejected].into_iter().for_each(Column::clear);
        [&mut self.logp_ref_chosen, &mut self.logp_ref_rejected].into_iter().for_each(Column::clear);
        self.margin.clear();
    }

    /// The leaves in the order of the schema.
    fn leaves<'a>(&'a self, form: Form) -> Vec<Leaf<'a>> {
        let texts = |sides: &[&'a Side]| sides.iter().map(|side| Leaf::Bytes(&side.text)).collect::<Vec<_>>();
        let chats =
            |sides: &[&'a Side]| sides.iter().flat_map(|side| [Leaf::Bytes(&side.role), Leaf::Bytes(&side.content)]).collect::<Vec<_>>();
        let sides = match form {
            Form::Texts => texts(&[&self.prompt, &self.chosen, &self.rejected]),
            Form::Conversations => chats(&[&self.prompt, &self.chosen, &self.rejected]),
            Form::Completions => texts(&[&self.prompt, &self.chosen]),
            Form::CompletionChats => chats(&[&self.prompt, &self.chosen]),
            Form::Prompts => texts(&[&self.prompt]),
            Form::PromptChats => chats(&[&self.prompt]),
            Form::Segments => [&self.chosen, &self.rejected]
                .into_iter()
                .flat_map(|side| {
                    [
                        Leaf::F32(&side.observations),
                        Leaf::F32(&side.actions),
                        Leaf::F32(&side.rewards),
                        Leaf::Bool(&side.terminated),
                        Leaf::Bytes(&side.policy),
                    ]
                })
                .collect(),
        };
        if !matches!(form, Form::Texts | Form::Conversations | Form::Segments) {
            return std::iter::once(Leaf::Bytes(&self.id)).chain(sides).chain([Leaf::Bool(&self.judgement)]).collect();
        }
        let label = [
            Leaf::Bool(&self.equal),
            Leaf::F32(&self.margin),
            Leaf::Bytes(&self.annotator),
            Leaf::Bool(&self.flipped),
            Leaf::F64(&self.gold_chosen),
            Leaf::F64(&self.gold_rejected),
            Leaf::F64(&self.logp_ref_chosen),
            Leaf::F64(&self.logp_ref_rejected),
        ];
        std::iter::once(Leaf::Bytes(&self.id)).chain(sides).chain(label).collect()
    }
}

#[derive(Debug)]
enum Leaf<'a> {
    Bool(&'a Column<bool>),
    F32(&'a Column<f32>),
    F64(&'a Column<f64>),
    Bytes(&'a Column<ByteArray>),
}

impl Leaf<'_> {
    fn write(&self, writer: &mut ColumnWriter<'_>) -> ParquetResult<usize> {
        macro_rules! write {
            ($column:expr, $writer:expr) => {
                $writer.write_batch(&$column.values, Some(&$column.defs), Some(&$column.reps))
            };
        }
        match (self, writer) {
            (Self::Bool(column), ColumnWriter::BoolColumnWriter(writer)) => write!(column, writer),
            (Self::F32(column), ColumnWriter::FloatColumnWriter(writer)) => write!(column, writer),
            (Self::F64(column), ColumnWriter::DoubleColumnWriter(writer)) => write!(column, writer),
            (Self::Bytes(column), ColumnWriter::ByteArrayColumnWriter(writer)) => write!(column, writer),
            _ => Err(ParquetError::General("the columns do not stand in the order of the schema".to_string())),
        }
    }
}

/// Writes rows to a Parquet file, compressed with snappy.
pub(crate) struct ParquetWriter {
    path: PathBuf,
    /// The file until the first row tells the schema.
    file: Option<File>,
    writer: Option<(Form, SerializedFileWriter<File>)>,
    group: Group,
    row_check: RowCheck,
}

impl std::fmt::Debug for ParquetWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ParquetWriter").field("path", &self.path).finish_non_exhaustive()
    }
}

impl ParquetWriter {
    /// Rows will be written to `file`; `path` is its name in errors.
    pub(crate) fn new(path: PathBuf, file: File) -> Self {
        Self { path, file: Some(file), writer: None, group: Group::default(), row_check: RowCheck::default() }
    }

    pub(crate) fn write(&mut self, row: &Row) -> Result<()> {
        self.row_check.check(row)?;
        let form = Form::of(row);
        if let Some(file) = self.file.take() {
            let properties = WriterProperties::builder()
                .set_compression(Compression::SNAPPY)
                .set_created_by(format!("steadfast {}", env!("CARGO_PKG_VERSION")))
                .build();
            let writer = parse_message_type(&form.schema())
                .and_then(|schema| SerializedFileWriter::new(file, Arc::new(schema), Arc::new(properties)))
                .map_err(|error| self.file_error(error))?;
            self.writer = Some((form, writer));
        }
        if let Some((first, _)) = &self.writer
            && *first != form
        {
            return Err(RewardError::Data(format!(
                "pair `{}` is a {}, the first row a {}; a Parquet file holds one of them",
                row.id(),
                form.describe(),
                first.describe()
            )));
        }
        self.group.push(row)?;
        if self.group.n_bytes >= GROUP_BYTES { self.flush() } else { Ok(()) }
    }

    /// Completes the file and returns it.
    pub(crate) fn finish(mut self) -> Result<File> {
        self.flush()?;
        match self.writer.take() {
            Some((_, writer)) => writer.into_inner().map_err(|error| self.file_error(error)),
            None => Err(RewardError::Data(format!("{}: there is no row to write", self.path.display()))),
        }
    }

    fn flush(&mut self) -> Result<()> {
        let Some((form, writer)) = self.writer.as_mut().filter(|_| self.group.n_rows > 0) else { return Ok(()) };
        let leaves = self.group.leaves(*form);
        let written = (|| {
            let mut group = writer.next_row_group()?;
            for leaf in leaves {
                let Some(mut column) = group.next_column()? else {
                    return Err(ParquetError::General("the schema has too few columns".to_string()));
                };
                leaf.write(column.untyped())?;
                column.close()?;
            }
            group.close().map(|_| ())
        })();
        written.map_err(|error| self.file_error(error))?;
        self.group.clear();
        Ok(())
    }

    fn file_error(&self, error: ParquetError) -> RewardError {
        RewardError::File { action: "write", path: self.path.clone(), source: std::io::Error::other(error) }
    }
}
