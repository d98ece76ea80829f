//! Preference files in Apache Parquet.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::draft::Draft;
use super::row::Row;
use crate::error::{Result, RewardError};

#[derive(Debug)]
pub(crate) struct ParquetRows;

impl ParquetRows {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        Err(RewardError::Content { path: path.to_path_buf(), reason: "Parquet is not read yet".to_string() })
    }

    pub(crate) fn next(&mut self) -> Result<Option<(u64, Result<Draft<'static>, String>)>> {
        Ok(None)
    }
}

#[derive(Debug)]
pub(crate) struct ParquetWriter {
    file: File,
}

impl ParquetWriter {
    pub(crate) fn new(_: PathBuf, file: File) -> Self {
        Self { file }
    }

    pub(crate) fn write(&mut self, _: &Row) -> Result<()> {
        Err(RewardError::Data("Parquet is not written yet".to_string()))
    }

    pub(crate) fn finish(self) -> Result<File> {
        Ok(self.file)
    }
}
