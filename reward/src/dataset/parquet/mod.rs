//! Preference files in Apache Parquet.
//!
//! Columns are read and written through the column interface of the `parquet` crate, values with their repetition and
//! definition levels: unknown columns are never decoded, numbers arrive as flat arrays, and no second data model (arrow)
//! has to be compiled.

mod guard;
mod leaf;
mod read;
mod write;

pub(crate) use read::ParquetRows;
pub(crate) use write::ParquetWriter;
