//! TensorBoard event files.
//!
//! A file is a sequence of records: length (u64), masked CRC-32C of the length, an `Event` message, masked CRC-32C of
//! the message; all numbers little-endian. Of the messages only the fields that scalars need are declared.

use prost::Message as _;

/// `tensorflow.Event`.
#[derive(Clone, PartialEq, prost::Message)]
struct Event {
    /// Seconds since 1970.
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(oneof = "What", tags = "3, 5")]
    what: Option<What>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum What {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
}

/// `tensorflow.Summary`.
#[derive(Clone, PartialEq, prost::Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Scalar>,
}

/// `tensorflow.Summary.Value` with a `simple_value`. Explicit presence, or a value of 0 would not be written.
#[derive(Clone, PartialEq, prost::Message)]
struct Scalar {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

/// The record that begins a file.
pub fn header(wall_time: f64) -> Vec<u8> {
    record(&Event { wall_time, step: 0, what: Some(What::FileVersion("brain.Event:2".to_string())) })
}

/// The record of some scalars at a step.
pub fn scalars<'a>(wall_time: f64, step: u64, values: impl Iterator<Item = (&'a str, f64)>) -> Vec<u8> {
    let value = values.map(|(tag, v)| Scalar { tag: tag.to_string(), simple_value: Some(v as f32) }).collect();
    record(&Event { wall_time, step: step as i64, what: Some(What::Summary(Summary { value })) })
}

fn record(event: &Event) -> Vec<u8> {
    let message = event.encode_to_vec();
    let length = (message.len() as u64).to_le_bytes();
    let mut bytes = Vec::with_capacity(message.len() + 16);
    bytes.extend_from_slice(&length);
    bytes.extend_from_slice(&masked_crc(&length).to_le_bytes());
    bytes.extend_from_slice(&message);
    bytes.extend_from_slice(&masked_crc(&message).to_le_bytes());
    bytes
}

/// The mask of the TFRecord format, which keeps checksums of data that contains checksums apart.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    /// Records written by `RecordWriter` of the Python package tensorboard 2.21.0 from its own `Event` messages.
    #[test]
    fn records_are_byte_for_byte_those_of_tensorboard() {
        assert_eq!(hex(&header(12.5)), "1800000000000000a37f4b220900000000000029401a0d627261696e2e4576656e743a326394a44f");
        assert_eq!(
            hex(&scalars(12.5, 300, [("train/loss", 0.25), ("zero", 0.0)].into_iter())),
            "2e00000000000000c5cb57fa09000000000000294010ac022a200a110a0a747261696e2f6c6f7373150000803e\
             0a0b0a047a65726f1500000000a54485ab"
        );
    }

    #[test]
    fn checksum_of_the_standard_test_vector() {
        // CRC-32C of "123456789" is 0xE3069283 (RFC 3720, appendix B.4 lists the polynomial).
        assert_eq!(crc32c::crc32c(b"123456789"), 0xE306_9283);
        assert_eq!(masked_crc(b"123456789"), 0xE306_9283_u32.rotate_right(15).wrapping_add(0xa282_ead8));
    }
}
