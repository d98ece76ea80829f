//! Files that only grow, and can be cut back to an earlier length.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use crate::failure::{Failure, Result};

/// A file that only grows.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: File,
}

impl LogFile {
    /// Opens a file for appending; creates it if it is missing.
    ///
    /// # Errors
    /// [`Failure::Run`] naming the file.
    pub fn open(path: &Path) -> Result<Self> {
        let opened = OpenOptions::new().read(true).append(true).create(true).open(path);
        let file = opened.map_err(|e| Failure::file("open", path, e))?;
        Ok(Self { path: path.to_path_buf(), file })
    }

    /// Cuts the file back to `length` and returns what was behind it.
    ///
    /// # Errors
    /// [`Failure::Run`] if the file is shorter than that or cannot be changed.
    pub fn truncate(&mut self, length: u64) -> Result<Vec<u8>> {
        let found = self.len()?;
        if found < length {
            let message = format!("{} has {found} bytes, but the checkpoint was taken when it had {length}", self.path.display());
            return Err(Failure::run(message));
        }
        let mut tail = Vec::new();
        let cut = |file: &mut File, tail: &mut Vec<u8>| {
            file.seek(SeekFrom::Start(length))?;
            file.read_to_end(tail)?;
            file.set_len(length)
        };
        cut(&mut self.file, &mut tail).map_err(|e| Failure::file("truncate", &self.path, e))?;
        Ok(tail)
    }

    /// Appends bytes, all or nothing.
    ///
    /// # Errors
    /// [`Failure::Run`] naming the file, for instance because the disk is full.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let length = self.len()?;
        self.file.write_all(bytes).map_err(|error| {
            // Half a line would make the file unreadable; if cutting fails too, readers skip an unfinished last line.
            let _ = self.file.set_len(length);
            Failure::file("write to", &self.path, error)
        })
    }

    /// Bytes in the file, with what other processes appended.
    ///
    /// # Errors
    /// [`Failure::Run`] naming the file.
    pub fn len(&self) -> Result<u64> {
        Ok(self.file.metadata().map_err(|e| Failure::file("read", &self.path, e))?.len())
    }

    /// Makes sure that everything is on the disk.
    ///
    /// # Errors
    /// [`Failure::Run`] naming the file.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|e| Failure::file("write to", &self.path, e))
    }
}

/// Writes a whole file under a temporary name and renames it, so that it is never seen half-written.
///
/// # Errors
/// [`Failure::Run`] naming the file.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    write().map_err(|error| {
        let _ = std::fs::remove_file(&temporary);
        Failure::file("write", path, error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_cut_back_and_goes_on() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut log = LogFile::open(&path).unwrap();
        log.append(b"one\n").unwrap();
        let length = log.len().unwrap();
        log.append(b"two\n").unwrap();
        drop(log);
        let mut log = LogFile::open(&path).unwrap();
        assert_eq!(log.truncate(length).unwrap(), b"two\n");
        log.append(b"three\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"one\nthree\n");
        assert!(log.truncate(100).is_err());
    }

    #[test]
    fn a_full_disk_is_reported_with_the_file() {
        let path = Path::new("/dev/full");
        if path.exists() {
            let mut log = LogFile { path: path.to_path_buf(), file: OpenOptions::new().write(true).open(path).unwrap() };
            let text = log.append(b"line").unwrap_err().render(false, 100);
            assert!(text.contains("/dev/full") && text.contains("No space left"), "{text}");
        }
    }

    #[test]
    fn a_whole_file_leaves_no_temporary_name() {
        let directory = tempfile::tempdir().unwrap();
        write_whole(&directory.path().join("a"), b"x").unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
        assert!(write_whole(&directory.path().join("missing/a"), b"x").is_err());
    }
}
