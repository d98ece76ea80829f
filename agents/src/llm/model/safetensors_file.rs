//! Files in the safetensors format: 8 bytes with the header's length, a JSON header, the tensors one behind the other.
//!
//! Read by our own code rather than by a library, because every mistake of a file has to name the tensor it concerns, and
//! because tensors are read one at a time into the type they are used in: no copy of the file is held or mapped. What is
//! allocated is in proportion to the file's true length, whatever its header says.

use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::Deserialize;
use serde::de::{IgnoredAny, MapAccess, Visitor};

use crate::AgentError;

/// The format's own bound.
const LONGEST_HEADER: u64 = 100_000_000;
/// Bytes converted at a time.
const CHUNK: usize = 1 << 20;

/// One tensor of a file.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    pub name: String,
    pub dtype: String,
    pub shape: Vec<usize>,
    /// Offsets of the first byte and of the one behind the last, from the end of the header.
    pub bytes: (u64, u64),
}

/// A file whose header was read and checked.
#[derive(Debug)]
pub(super) struct SafetensorsFile {
    path: PathBuf,
    file: Mutex<File>,
    /// Position of the first tensor's first byte.
    start: u64,
    pub entries: Vec<Entry>,
}

pub(super) fn model_error(path: &Path, reason: impl fmt::Display) -> AgentError {
    AgentError::Model { place: path.display().to_string(), reason: reason.to_string() }
}

impl SafetensorsFile {
    /// Opens a file and checks its header: offsets in order, without gaps, to the end of the file; no name twice; lengths
    /// that fit shapes.
    ///
    /// # Errors
    /// [`AgentError::Model`] naming the file, and the tensor where one is concerned.
    pub fn open(path: &Path) -> Result<Self, AgentError> {
        let mut file = File::open(path).map_err(|error| model_error(path, format_args!("cannot be opened: {error}")))?;
        let length = file.metadata().map_err(|error| model_error(path, error))?.len();
        let entries_and_start = read_header(&mut file, length).map_err(|reason| model_error(path, reason))?;
        let (entries, start) = entries_and_start;
        Ok(Self { path: path.into(), file: Mutex::new(file), start, entries })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// An error about one tensor of this file.
    pub fn error(&self, tensor: &str, reason: impl fmt::Display) -> AgentError {
        model_error(&self.path, format_args!("tensor `{tensor}` {reason}"))
    }

    /// Reads one tensor as `f32`, row-major. `F16` and `BF16` are widened, which is exact.
    ///
    /// # Errors
    /// [`AgentError::Model`] naming file and tensor: another type of number, one that is not finite, or the file cannot be
    /// read (any more).
    pub fn read(&self, entry: &Entry) -> Result<Vec<f32>, AgentError> {
        match entry.dtype.as_str() {
            "F32" => self.widened(entry, f32::from_le_bytes),
            "F16" => self.widened(entry, |bytes| f16_to_f32(u16::from_le_bytes(bytes))),
            "BF16" => self.widened(entry, |bytes| f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)),
            other => {
                let reason = format!("has type {other}; supported: F32, F16, BF16. Convert the checkpoint to one of them");
                Err(self.error(&entry.name, reason))
            }
        }
    }

    /// Reads numbers of `WIDTH` bytes, a chunk at a time.
    fn widened<const WIDTH: usize>(&self, entry: &Entry, convert: impl Fn([u8; WIDTH]) -> f32) -> Result<Vec<f32>, AgentError> {
        let failed = |error: std::io::Error| self.error(&entry.name, format_args!("cannot be read: {error}"));
        let n_bytes = (entry.bytes.1 - entry.bytes.0) as usize;
        let mut values = Vec::with_capacity(n_bytes / WIDTH);
        let mut buffer = vec![0; n_bytes.min(CHUNK)];
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(self.start + entry.bytes.0)).map_err(failed)?;
        let mut left = n_bytes;
        while left > 0 {
            let chunk = &mut buffer[..left.min(CHUNK)];
            file.read_exact(chunk).map_err(failed)?;
            values.extend(chunk.as_chunks::<WIDTH>().0.iter().map(|bytes| convert(*bytes)));
            left -= chunk.len();
        }
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(values),
            Some(at) => Err(self.error(&entry.name, format_args!("holds {} at position {at}: the weights are broken", values[at]))),
        }
    }
}

/// Bytes of one number of a type, where the format has whole ones.
fn width(dtype: &str) -> Option<u64> {
    match dtype {
        "F64" | "I64" | "U64" | "C64" => Some(8),
        "F32" | "I32" | "U32" => Some(4),
        "F16" | "BF16" | "I16" | "U16" => Some(2),
        "I8" | "U8" | "BOOL" | "F8_E5M2" | "F8_E4M3" | "F8_E8M0" => Some(1),
        _ => None,
    }
}

/// The entries, sorted by offset, and where the tensors start. Errors are reasons without the file.
fn read_header(source: &mut (impl Read + Seek), length: u64) -> Result<(Vec<Entry>, u64), String> {
    let mut start = [0; 8];
    if length < 8 {
        return Err(format!("is {length} bytes long, too short for a safetensors file: it is damaged or not downloaded wholly"));
    }
    source.read_exact(&mut start).map_err(|error| format!("cannot be read: {error}"))?;
    let header_length = u64::from_le_bytes(start);
    if start.starts_with(b"version ") {
        return Err("is a Git LFS pointer, not the tensors: fetch the file itself".into());
    }
    if header_length > length - 8 || header_length > LONGEST_HEADER {
        return Err(format!(
            "says that its header has {header_length} bytes, but the file has {length}: it is damaged, cut off, or not a safetensors file"
        ));
    }
    let mut header = vec![0; header_length as usize];
    source.read_exact(&mut header).map_err(|error| format!("cannot be read: {error}"))?;
    let text =
        std::str::from_utf8(&header).map_err(|_| "has a header that is not UTF-8: it is damaged or not a safetensors file".to_owned())?;
    let mut entries = serde_json::from_str::<Header>(text).map_err(|error| format!("has a damaged header: {error}"))?.0;
    entries.sort_by_key(|entry| entry.bytes);
    let n_bytes = length - 8 - header_length;
    let mut end = 0;
    let mut names = HashSet::new();
    for Entry { name, dtype, shape, bytes } in &entries {
        if !names.insert(name.as_str()) {
            return Err(format!("has the tensor `{name}` twice"));
        }
        if bytes.0 != end || bytes.1 < bytes.0 {
            return Err(format!(
                "tensor `{name}` lies at bytes {} to {}, but the one before it ends at {end}: the header is damaged",
                bytes.0, bytes.1
            ));
        }
        end = bytes.1;
        if end > n_bytes {
            return Err(format!("tensor `{name}` ends at byte {end}, but the file holds {n_bytes} bytes of tensors: it is cut off"));
        }
        if let Some(width) = width(dtype) {
            let needed = shape.iter().try_fold(width, |product, size| product.checked_mul(*size as u64));
            if needed != Some(bytes.1 - bytes.0) {
                return Err(format!(
                    "tensor `{name}` of shape {shape:?} and type {dtype} has {} bytes, which does not fit",
                    bytes.1 - bytes.0
                ));
            }
        }
    }
    if end != n_bytes {
        return Err(format!("has {} bytes behind its last tensor: it is damaged", n_bytes - end));
    }
    Ok((entries, 8 + header_length))
}

/// All entries, doubles included, which a map would hide.
struct Header(Vec<Entry>);

#[derive(Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    let raw: RawEntry =
                        map.next_value().map_err(|error| serde::de::Error::custom(format_args!("tensor `{name}`: {error}")))?;
                    entries.push(Entry { name, dtype: raw.dtype, shape: raw.shape, bytes: raw.data_offsets });
                }
                Ok(Header(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// A half-precision number, exactly.
fn f16_to_f32(bits: u16) -> f32 {
    let sign = u32::from(bits >> 15) << 31;
    let exponent = u32::from(bits >> 10 & 0x1f);
    let fraction = u32::from(bits & 0x3ff);
    match exponent {
        // Zero and subnormal numbers: fraction * 2^-24.
        0 => f32::from_bits(sign | (fraction as f32 * 2f32.powi(-24)).to_bits()),
        0x1f => f32::from_bits(sign | 0x7f80_0000 | fraction << 13),
        _ => f32::from_bits(sign | (exponent + 127 - 15) << 23 | fraction << 13),
    }
}

/// Writes `f32` tensors to a file under a temporary name and renames it, so that no half file is ever seen.
///
/// `get` gives the values of each tensor when its turn comes.
///
/// # Errors
/// [`AgentError::Model`] naming the file, or what `get` says; [`AgentError::Shape`] if it gives another number of values.
pub(super) fn write(
    path: &Path,
    tensors: &[(&str, &[usize])],
    get: &mut dyn FnMut(&str) -> Result<Vec<f32>, AgentError>,
) -> Result<(), AgentError> {
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".into(), serde_json::json!({ "format": "pt" }));
    let mut end = 0;
    for (name, shape) in tensors {
        let start = end;
        end += 4 * shape.iter().product::<usize>();
        header.insert((*name).into(), serde_json::json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, end] }));
    }
    let mut header = serde_json::Value::Object(header).to_string().into_bytes();
    // Spaces to a multiple of 8, so that numbers lie where a mapped file can be read directly.
    header.resize(header.len().next_multiple_of(8), b' ');
    write_atomically(path, &mut |file| {
        let failed = |error: std::io::Error| model_error(path, format_args!("cannot be written: {error}"));
        file.write_all(&(header.len() as u64).to_le_bytes()).map_err(failed)?;
        file.write_all(&header).map_err(failed)?;
        let mut buffer = Vec::with_capacity(CHUNK);
        for (name, shape) in tensors {
            let values = get(name)?;
            if values.len() != shape.iter().product::<usize>() {
                let op = format!("{}: tensor `{name}`", path.display());
                return Err(AgentError::Shape { op, expected: shape.to_vec(), got: vec![values.len()] });
            }
            for chunk in values.chunks(CHUNK / 4) {
                buffer.clear();
                buffer.extend(chunk.iter().flat_map(|value| value.to_le_bytes()));
                file.write_all(&buffer).map_err(failed)?;
            }
        }
        Ok(())
    })
}

/// Writes a file under a temporary name in the same folder, and renames it when all of it is on the disk.
pub(super) fn write_atomically(path: &Path, fill: &mut dyn FnMut(&mut File) -> Result<(), AgentError>) -> Result<(), AgentError> {
    let failed = |error: std::io::Error| model_error(path, format_args!("cannot be written: {error}"));
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let partial = path.with_file_name(format!(".{name}.{}.partial", std::process::id()));
    let result = File::create(&partial).map_err(failed).and_then(|mut file| {
        fill(&mut file)?;
        file.sync_all().map_err(failed)
    });
    let result = result.and_then(|()| std::fs::rename(&partial, path).map_err(failed));
    if result.is_err() {
        // The first error is the one to report, also if the rest cannot be removed.
        let _ = std::fs::remove_file(&partial);
    }
    result
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;

    fn header(text: &str, n_bytes: usize) -> Result<Vec<Entry>, String> {
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.extend(text.as_bytes());
        bytes.resize(bytes.len() + n_bytes, 0);
        let length = bytes.len() as u64;
        read_header(&mut Cursor::new(bytes), length).map(|(entries, _)| entries)
    }

    fn sample() -> Vec<u8> {
        let text = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"b":{"dtype":"BF16","shape":[3],"data_offsets":[16,22]}}"#;
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.extend(text.as_bytes());
        bytes.resize(bytes.len() + 22, 7);
        bytes
    }

    #[test]
    fn half_precision_agrees_with_the_tensor_library_for_all_numbers() {
        for bits in 0..=u16::MAX {
            let expected =
                candle_core::Tensor::from_raw_buffer(&bits.to_le_bytes(), candle_core::DType::F16, &[1], &candle_core::Device::Cpu)
                    .and_then(|tensor| tensor.to_dtype(candle_core::DType::F32)?.to_vec1::<f32>())
                    .unwrap()[0];
            let got = f16_to_f32(bits);
            assert!(got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan(), "{bits:#x}: {got} {expected}");
        }
    }

    #[test]
    fn damaged_headers_name_the_tensor() {
        let cases = [
            (
                r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[0],"data_offsets":[8,8]}}"#,
                8,
                "`a` twice",
            ),
            (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,12]}}"#, 12, "`a` of shape [2]"),
            (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#, 12, "`a` lies at bytes 4"),
            (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 4, "`a` ends at byte 8"),
            (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 9, "1 bytes behind"),
            (r#"{"a":{"dtype":"F32","shape":[18446744073709551615,3],"data_offsets":[0,8]}}"#, 8, "`a` of shape"),
            (r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,8]}}"#, 8, "tensor `a`: invalid value"),
            (r#"{"a":{"dtype":"F32","data_offsets":[0,8]}}"#, 8, "missing field `shape`"),
            (r#"["a"]"#, 8, "damaged header"),
        ];
        for (text, n_bytes, expected) in cases {
            let error = header(text, n_bytes).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn a_header_longer_than_the_file_is_refused_without_allocating_it() {
        for length in [9, 1 << 20, LONGEST_HEADER + 1, u64::MAX] {
            let mut bytes = u64::to_le_bytes(length).to_vec();
            bytes.push(b'{');
            let error = read_header(&mut Cursor::new(&bytes), bytes.len() as u64).unwrap_err();
            assert!(error.contains("damaged, cut off"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), small in any::<bool>()) {
            let mut bytes = bytes;
            if small && bytes.len() >= 8 {
                let header = (bytes.len() as u64 - 8) / 2;
                bytes[..8].copy_from_slice(&header.to_le_bytes());
            }
            let length = bytes.len() as u64;
            let _ = read_header(&mut Cursor::new(bytes), length);
        }

        #[test]
        fn cut_or_flipped_files_are_an_error_or_stay_within_the_file(cut in any::<prop::sample::Index>(), flip in any::<prop::sample::Index>(), bit in 0..8_u8) {
            let whole = sample();
            let cut_off = &whole[..cut.index(whole.len())];
            prop_assert!(read_header(&mut Cursor::new(cut_off), cut_off.len() as u64).is_err());
            let mut flipped = whole.clone();
            let at = flip.index(flipped.len());
            flipped[at] ^= 1 << bit;
            let n = flipped.len() as u64;
            if let Ok((entries, start)) = read_header(&mut Cursor::new(flipped), n) {
                for entry in entries {
                    prop_assert!(entry.bytes.0 <= entry.bytes.1 && start + entry.bytes.1 <= n);
                }
            }
        }
    }
}
