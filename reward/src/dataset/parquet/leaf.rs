//! One leaf column of a Parquet file: where it stands in the schema, and its values record by record.
//!
//! A leaf's values come flat, each with two levels. The repetition level says at which list a new element begins (0: a new
//! record), the definition level how deep the path to the value exists. Source: the Parquet format, "Nested Encoding".

use std::borrow::Cow;

use parquet::basic::{ConvertedType, LogicalType, Type as Physical};
use parquet::column::reader::ColumnReader;
use parquet::data_type::ByteArray;
use parquet::errors::Result as ParquetResult;
use parquet::schema::types::Type;

use crate::dataset::draft::{Matrix, Scalar};

/// Where a leaf stands.
#[derive(Debug, Clone)]
pub(super) struct Leaf {
    /// Names on the way, lists as `[]`, as in `chosen.observations[][]`.
    pub path: String,
    /// Number of the leaf in the file.
    pub column: usize,
    pub physical: Physical,
    pub is_unsigned: bool,
    /// Definition level of a value that exists.
    max_def: i16,
    /// Definition level from which each list on the way has an element, outermost first.
    list_defs: Vec<i16>,
}

/// All leaves of a schema in the order of the file.
pub(super) fn leaves(root: &Type) -> Vec<Leaf> {
    let mut found = Vec::new();
    let mut column = 0;
    for field in root.get_fields() {
        walk(field, field.name().to_string(), 0, &mut Vec::new(), &mut column, &mut found);
    }
    found
}

/// Visits a node. Every leaf takes the next column number; those of a type without values are left out.
fn walk(node: &Type, mut path: String, mut def: i16, lists: &mut Vec<i16>, column: &mut usize, found: &mut Vec<Leaf>) {
    let info = node.get_basic_info();
    let n_lists = lists.len();
    if info.has_repetition() && node.is_optional() {
        def += 1;
    }
    if is_repeated(node) {
        def += 1;
        lists.push(def);
        path += "[]";
    }
    if node.is_primitive() {
        // A column of nothing but nulls has no type of its own.
        if info.logical_type_ref() != Some(&LogicalType::Unknown) {
            let is_unsigned = matches!(
                info.converted_type(),
                ConvertedType::UINT_8 | ConvertedType::UINT_16 | ConvertedType::UINT_32 | ConvertedType::UINT_64
            );
            let physical = node.get_physical_type();
            found.push(Leaf { path, column: *column, physical, is_unsigned, max_def: def, list_defs: lists.clone() });
        }
        *column += 1;
    } else {
        let is_list = info.converted_type() == ConvertedType::LIST || info.logical_type_ref() == Some(&LogicalType::List);
        match node.get_fields() {
            [repeated] if is_list && is_repeated(repeated) => match element_of(repeated) {
                // The repeated group is a wrapper around the element, which has no name in the data.
                Some(element) => {
                    lists.push(def + 1);
                    walk(element, path + "[]", def + 1, lists, column, found);
                }
                None => walk(repeated, path, def, lists, column, found),
            },
            fields => {
                for field in fields {
                    walk(field, format!("{path}.{}", field.name()), def, lists, column, found);
                }
            }
        }
    }
    lists.truncate(n_lists);
}

fn is_repeated(node: &Type) -> bool {
    let info = node.get_basic_info();
    info.has_repetition() && info.repetition() == parquet::basic::Repetition::REPEATED
}

/// The element inside the repeated group of a list; nothing if the repeated node is the element itself, as old writers did.
fn element_of(repeated: &Type) -> Option<&Type> {
    if repeated.is_primitive() || repeated.name() == "array" || repeated.name().ends_with("_tuple") {
        return None;
    }
    match repeated.get_fields() {
        [element] => Some(element),
        _ => None,
    }
}

#[derive(Debug)]
enum Values {
    Bool(Vec<bool>),
    I32(Vec<i32>),
    I64(Vec<i64>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    Bytes(Vec<ByteArray>),
}

/// Some records of a leaf, handed out one by one.
#[derive(Debug)]
pub(super) struct LeafBatch {
    leaf: Leaf,
    values: Values,
    defs: Vec<i16>,
    reps: Vec<i16>,
    /// Most bytes that a record may take.
    max_record_bytes: usize,
    next_level: usize,
    next_value: usize,
}

/// One record of a leaf.
struct Record {
    levels: std::ops::Range<usize>,
    first_value: usize,
}

impl LeafBatch {
    /// A batch without records, of which none may take more than `max_record_bytes`; nothing if values of the physical type
    /// are not read.
    pub(super) fn new(leaf: Leaf, max_record_bytes: usize) -> Option<Self> {
        let values = match leaf.physical {
            Physical::BOOLEAN => Values::Bool(Vec::new()),
            Physical::INT32 => Values::I32(Vec::new()),
            Physical::INT64 => Values::I64(Vec::new()),
            Physical::FLOAT => Values::F32(Vec::new()),
            Physical::DOUBLE => Values::F64(Vec::new()),
            Physical::BYTE_ARRAY => Values::Bytes(Vec::new()),
            _ => return None,
        };
        Some(Self { leaf, values, defs: Vec::new(), reps: Vec::new(), max_record_bytes, next_level: 0, next_value: 0 })
    }

    pub(super) fn leaf(&self) -> &Leaf {
        &self.leaf
    }

    /// Bytes that a value takes in memory with its levels, without the text it may point to.
    pub(super) fn value_bytes(&self) -> usize {
        let value = match self.values {
            Values::Bool(_) => size_of::<bool>(),
            Values::I32(_) | Values::F32(_) => size_of::<f32>(),
            Values::I64(_) | Values::F64(_) => size_of::<f64>(),
            Values::Bytes(_) => size_of::<ByteArray>(),
        };
        value + 2 * size_of::<i16>()
    }

    /// Replaces the contents by the next `n_records` of a reader and returns how many there were.
    pub(super) fn load(&mut self, reader: &mut ColumnReader, n_records: usize) -> ParquetResult<usize> {
        self.defs.clear();
        self.reps.clear();
        (self.next_level, self.next_value) = (0, 0);
        let (defs, reps) = (Some(&mut self.defs), Some(&mut self.reps));
        macro_rules! read {
            ($values:expr, $reader:expr) => {{
                $values.clear();
                let (n_read, n_values, n_levels) = $reader.read_records(n_records, defs, reps, $values)?;
                // Decoders of damaged pages have been seen to promise more values than they deliver.
                (n_read, n_values.min($values.len()), n_levels)
            }};
        }
        let (n_read, n_values, n_levels) = match (&mut self.values, reader) {
            (Values::Bool(values), ColumnReader::BoolColumnReader(reader)) => read!(values, reader),
            (Values::I32(values), ColumnReader::Int32ColumnReader(reader)) => read!(values, reader),
            (Values::I64(values), ColumnReader::Int64ColumnReader(reader)) => read!(values, reader),
            (Values::F32(values), ColumnReader::FloatColumnReader(reader)) => read!(values, reader),
            (Values::F64(values), ColumnReader::DoubleColumnReader(reader)) => read!(values, reader),
            (Values::Bytes(values), ColumnReader::ByteArrayColumnReader(reader)) => read!(values, reader),
            _ => return Err(parquet::errors::ParquetError::General(format!("the type of `{}` changes", self.leaf.path))),
        };
        // Columns without nulls or lists come without levels.
        if self.leaf.max_def == 0 {
            self.defs = vec![0; n_levels];
        }
        if self.leaf.list_defs.is_empty() {
            self.reps = vec![0; n_levels];
        }
        let n_defined = self.defs.iter().filter(|&&def| def == self.leaf.max_def).count();
        let n_records = self.reps.iter().filter(|&&rep| rep == 0).count();
        // Levels are stored in whole bits, so damaged ones may lie beyond the deepest.
        let is_within = self.defs.iter().all(|&def| (0..=self.leaf.max_def).contains(&def));
        let is_whole = self.defs.len() == n_levels && self.reps.len() == n_levels && n_defined == n_values && n_records == n_read;
        if !is_within || !is_whole || self.reps.first().is_some_and(|&rep| rep != 0) {
            return Err(parquet::errors::ParquetError::General(format!("the levels of `{}` do not fit its values", self.leaf.path)));
        }
        Ok(n_read)
    }

    /// The next record. A batch that has been read through yields records without levels, which read as null.
    fn record(&mut self) -> Result<Record, String> {
        let start = self.next_level;
        let first_value = self.next_value;
        while self.next_level < self.reps.len() && (self.next_level == start || self.reps[self.next_level] != 0) {
            self.next_value += usize::from(self.defs[self.next_level] == self.leaf.max_def);
            self.next_level += 1;
        }
        let record = Record { levels: start..self.next_level, first_value };
        // Many values may point to one long text of a dictionary, which would be copied for each of them.
        let text = match &self.values {
            Values::Bytes(values) => values[first_value..self.next_value].iter().fold(0, |sum: usize, text| sum.saturating_add(text.len())),
            _ => 0,
        };
        let bytes = record.levels.len().saturating_mul(self.value_bytes()).saturating_add(text);
        if bytes > self.max_record_bytes {
            return Err(format!(
                "`{}` takes {bytes} bytes in this row, more than {}; raise `max_line_bytes` if it should",
                self.leaf.path, self.max_record_bytes
            ));
        }
        Ok(record)
    }

    /// The next record of a column without lists.
    pub(super) fn scalar(&mut self) -> Result<Option<Scalar<'static>>, String> {
        let record = self.record()?;
        if record.levels.is_empty() || self.defs[record.levels.start] < self.leaf.max_def {
            return Ok(None);
        }
        let at = record.first_value;
        Ok(Some(match &self.values {
            Values::Bool(values) => Scalar::Bool(values[at]),
            Values::I32(values) if self.leaf.is_unsigned => Scalar::Whole((values[at] as u32).into()),
            Values::I32(values) => Scalar::Whole(values[at].into()),
            Values::I64(values) if self.leaf.is_unsigned => Scalar::Whole((values[at] as u64).into()),
            Values::I64(values) => Scalar::Whole(values[at].into()),
            Values::F32(values) => Scalar::Real(values[at].into()),
            Values::F64(values) => Scalar::Real(values[at]),
            Values::Bytes(_) => Scalar::Text(Cow::Owned(self.text(at)?)),
        }))
    }

    /// The next record of a list of texts; nothing for null.
    pub(super) fn texts(&mut self) -> Result<Option<Vec<Option<String>>>, String> {
        let record = self.record()?;
        let Some(&list_def) = self.leaf.list_defs.first() else { return Ok(None) };
        let mut at = record.first_value;
        let mut texts = Vec::new();
        for level in record.levels {
            let def = self.defs[level];
            if def < list_def {
                return Ok((def == list_def - 1).then_some(texts));
            }
            if def == self.leaf.max_def {
                texts.push(Some(self.text(at)?));
                at += 1;
            } else {
                texts.push(None);
            }
        }
        Ok(Some(texts))
    }

    /// The next record of a list of numbers or of a list of lists of them, one inner list per step; nothing for null.
    pub(super) fn matrix(&mut self) -> Result<Option<Matrix>, String> {
        let record = self.record()?;
        let shown = self.leaf.path.trim_end_matches("[]").to_string();
        let Some(&list_def) = self.leaf.list_defs.first() else { return Ok(None) };
        let inner_def = self.leaf.list_defs.get(1).copied();
        if record.levels.is_empty() {
            return Ok(None);
        }
        let mut matrix = Matrix::default();
        let mut at = record.first_value;
        let null = |step: usize| Err(format!("`{shown}`, step {step}: null is not a number"));
        for (i, level) in record.levels.enumerate() {
            let (def, rep) = (self.defs[level], self.reps[level]);
            if def < list_def {
                return Ok((def == list_def - 1).then_some(matrix));
            }
            if i > 0 && rep <= 1 {
                matrix.close_step(|| format!("`{shown}`"))?;
            }
            if def == self.leaf.max_def {
                matrix.numbers.push(self.number(at)?);
                at += 1;
            } else if inner_def.is_none_or(|inner| def != inner - 1) {
                return null(matrix.steps + 1);
            }
        }
        matrix.close_step(|| format!("`{shown}`"))?;
        Ok(Some(matrix))
    }

    fn number(&self, at: usize) -> Result<f32, String> {
        match &self.values {
            Values::I32(values) if self.leaf.is_unsigned => Ok(values[at] as u32 as f32),
            Values::I32(values) => Ok(values[at] as f32),
            Values::I64(values) if self.leaf.is_unsigned => Ok(values[at] as u64 as f32),
            Values::I64(values) => Ok(values[at] as f32),
            Values::F32(values) => Ok(values[at]),
            Values::F64(values) => Ok(values[at] as f32),
            Values::Bool(_) | Values::Bytes(_) => Err(format!("`{}` holds no numbers", self.leaf.path)),
        }
    }

    fn text(&self, at: usize) -> Result<String, String> {
        let Values::Bytes(values) = &self.values else { return Err(format!("`{}` holds no text", self.leaf.path)) };
        let bytes = values[at].data();
        std::str::from_utf8(bytes).map(str::to_string).map_err(|error| {
            let at = error.valid_up_to();
            format!("`{}` is not UTF-8: byte {} of the text is 0x{:02X}", self.leaf.path, at + 1, bytes[at])
        })
    }
}
