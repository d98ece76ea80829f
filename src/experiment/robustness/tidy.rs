//! A table with one fact per row, for other programs to read.

use std::collections::BTreeMap;
use std::sync::Arc;

use parquet::basic::{Compression, ConvertedType, Repetition, Type as Physical};
use parquet::column::writer::ColumnWriter;
use parquet::data_type::ByteArray;
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::Type;

use crate::cli::TableFormat;
use crate::failure::{Failure, Result};
use crate::run::results;

/// The values of a column, one per row.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    /// Words.
    Text(Vec<String>),
    /// Counts and seeds, where there are any.
    Whole(Vec<Option<u64>>),
    /// Numbers, where there are any.
    Real(Vec<Option<f64>>),
}

/// Named columns of equal length.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tidy {
    columns: Vec<(String, Values)>,
}

impl Tidy {
    /// Adds a column.
    pub fn push(&mut self, name: impl Into<String>, values: Values) {
        self.columns.push((name.into(), values));
    }

    /// Adds columns of numbers: all names that a row has, in their order.
    pub fn push_reals(&mut self, rows: &[BTreeMap<String, f64>]) {
        let mut names: Vec<&String> = rows.iter().flat_map(BTreeMap::keys).collect();
        names.sort();
        names.dedup();
        for name in names {
            self.columns.push((name.clone(), Values::Real(rows.iter().map(|row| row.get(name).copied()).collect())));
        }
    }

    fn n_rows(&self) -> usize {
        self.columns.first().map_or(0, |(_, values)| match values {
            Values::Text(values) => values.len(),
            Values::Whole(values) => values.len(),
            Values::Real(values) => values.len(),
        })
    }

    /// As a file in the format.
    ///
    /// # Errors
    /// [`Failure::Run`] with the reason of the library that writes Parquet.
    pub fn to_bytes(&self, format: TableFormat) -> Result<Vec<u8>> {
        match format {
            TableFormat::Csv => Ok(self.csv()),
            TableFormat::Parquet => self.parquet().map_err(|e| Failure::caused("cannot write the table as Parquet", e)),
        }
    }

    /// As Apache Parquet: texts, unsigned whole numbers of 64 bits and double-precision numbers; what is missing is null.
    fn parquet(&self) -> ParquetResult<Vec<u8>> {
        let field = |(name, values): &(String, Values)| {
            let (physical, converted, repetition) = match values {
                Values::Text(_) => (Physical::BYTE_ARRAY, ConvertedType::UTF8, Repetition::REQUIRED),
                Values::Whole(_) => (Physical::INT64, ConvertedType::UINT_64, Repetition::OPTIONAL),
                Values::Real(_) => (Physical::DOUBLE, ConvertedType::NONE, Repetition::OPTIONAL),
            };
            let builder = Type::primitive_type_builder(name, physical).with_converted_type(converted);
            builder.with_repetition(repetition).build().map(Arc::new)
        };
        let fields = self.columns.iter().map(field).collect::<ParquetResult<Vec<_>>>()?;
        let schema = Arc::new(Type::group_type_builder("table").with_fields(fields).build()?);
        let properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            .set_created_by(format!("steadfast {}", env!("CARGO_PKG_VERSION")))
            .build();
        let mut bytes = Vec::new();
        let mut writer = SerializedFileWriter::new(&mut bytes, schema, Arc::new(properties))?;
        let mut group = writer.next_row_group()?;
        for (_, values) in &self.columns {
            let Some(mut column) = group.next_column()? else { break };
            match (values, column.untyped()) {
                (Values::Text(values), ColumnWriter::ByteArrayColumnWriter(writer)) => {
                    let texts: Vec<ByteArray> = values.iter().map(|text| ByteArray::from(text.as_bytes().to_vec())).collect();
                    writer.write_batch(&texts, None, None)?;
                }
                (Values::Whole(values), ColumnWriter::Int64ColumnWriter(writer)) => {
                    // Parquet keeps the bits and notes that there is no sign.
                    let (present, levels) = present(values, |v| v as i64);
                    writer.write_batch(&present, Some(&levels), None)?;
                }
                (Values::Real(values), ColumnWriter::DoubleColumnWriter(writer)) => {
                    let (present, levels) = present(values, |v| v);
                    writer.write_batch(&present, Some(&levels), None)?;
                }
                _ => return Err(ParquetError::General("a column has another type than its schema".to_string())),
            }
            column.close()?;
        }
        group.close()?;
        writer.close()?;
        Ok(bytes)
    }

    /// As CSV; what is missing is left empty.
    pub fn csv(&self) -> Vec<u8> {
        let mut text = results::record(self.columns.iter().map(|(name, _)| name.as_str()));
        for row in 0..self.n_rows() {
            let field = |values: &Values| match values {
                Values::Text(values) => values[row].clone(),
                Values::Whole(values) => values[row].map_or_else(String::new, |v| v.to_string()),
                Values::Real(values) => values[row].map_or_else(String::new, |v| v.to_string()),
            };
            let fields: Vec<String> = self.columns.iter().map(|(_, values)| field(values)).collect();
            text.extend(results::record(fields.iter().map(String::as_str)));
        }
        text
    }
}

/// The values that are there, and for each row whether one is (1) or not (0).
fn present<T: Copy, U>(values: &[Option<T>], convert: impl Fn(T) -> U) -> (Vec<U>, Vec<i16>) {
    let levels = values.iter().map(|value| i16::from(value.is_some())).collect();
    (values.iter().flatten().map(|value| convert(*value)).collect(), levels)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use parquet::file::reader::FileReader as _;
    use parquet::file::serialized_reader::SerializedFileReader;
    use parquet::record::Field;

    use super::*;

    #[test]
    fn parquet_keeps_types_values_and_gaps() {
        let mut tidy = Tidy::default();
        tidy.push("name", Values::Text(vec!["ä, b".to_string(), String::new()]));
        tidy.push("seed", Values::Whole(vec![None, Some(u64::MAX)]));
        tidy.push_reals(&[[("y".to_string(), 0.1 + 0.2)].into(), [("x".to_string(), f64::NEG_INFINITY)].into()]);
        let read = |table: &Tidy| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&table.to_bytes(TableFormat::Parquet).unwrap()).unwrap();
            SerializedFileReader::new(file).unwrap()
        };
        let reader = read(&tidy);
        let rows: Vec<Vec<(String, Field)>> = reader
            .get_row_iter(None)
            .unwrap()
            .map(|row| row.unwrap().get_column_iter().map(|(name, field)| (name.clone(), field.clone())).collect())
            .collect();
        let named = |fields: [Field; 4]| -> Vec<(String, Field)> {
            ["name", "seed", "x", "y"].map(str::to_string).into_iter().zip(fields).collect()
        };
        assert_eq!(rows[0], named([Field::Str("ä, b".to_string()), Field::Null, Field::Null, Field::Double(0.1 + 0.2)]));
        assert_eq!(rows[1], named([Field::Str(String::new()), Field::ULong(u64::MAX), Field::Double(f64::NEG_INFINITY), Field::Null]));
        assert_eq!(rows.len(), 2);
        // A table without rows is a table.
        let mut empty = Tidy::default();
        empty.push("name", Values::Text(Vec::new()));
        assert_eq!(read(&empty).metadata().file_metadata().num_rows(), 0);
    }

    #[test]
    fn missing_numbers_are_empty_and_texts_are_quoted() {
        let mut tidy = Tidy::default();
        tidy.push("name", Values::Text(vec!["a, b".to_string(), "c".to_string()]));
        tidy.push("seed", Values::Whole(vec![None, Some(u64::MAX)]));
        tidy.push_reals(&[[("y".to_string(), 0.1 + 0.2)].into(), [("x".to_string(), -1.5)].into()]);
        assert_eq!(String::from_utf8(tidy.csv()).unwrap(), "name,seed,x,y\n\"a, b\",,,0.30000000000000004\nc,18446744073709551615,-1.5,\n");
    }
}
