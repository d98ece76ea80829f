//! Whatever stands in a file, reading it ends without a panic.

use super::*;

/// Reads a file to its end whatever is in it; true if every row was good.
fn read_anything(name: &str, contents: &[u8]) -> bool {
    let file = Scratch::new(name, contents);
    let options = ReadOptions { skip_bad_rows: true, max_line_bytes: 1 << 20 };
    PreferenceFile::open(file.path(), &options).and_then(|file| file.read()).is_ok_and(|(_, report)| report.bad == 0)
}

fn golden_bytes(name: &str) -> Vec<u8> {
    std::fs::read(golden(name).unwrap().path()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_bytes_are_read_or_refused(contents in proptest::collection::vec(any::<u8>(), 0..300), is_parquet in any::<bool>()) {
        let mut bytes = if is_parquet { b"PAR1".to_vec() } else { Vec::new() };
        bytes.extend_from_slice(&contents);
        read_anything("a.jsonl", &bytes);
        if is_parquet {
            bytes.extend_from_slice(&(contents.len() as u32).to_le_bytes());
            bytes.extend_from_slice(b"PAR1");
            read_anything("a.parquet", &bytes);
        }
    }

    #[test]
    fn damaged_lines_are_read_or_refused(at in any::<proptest::sample::Index>(), byte in any::<u8>(), kind in 0..3_usize) {
        let mut bytes = golden_bytes(["texts_small.jsonl", "conversations.jsonl", "segments.jsonl"][kind]);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        read_anything("a.jsonl", &bytes);
        bytes.truncate(at);
        read_anything("a.jsonl", &bytes);
    }

    #[test]
    fn damaged_parquet_is_read_or_refused(
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4),
        at_end in any::<bool>(),
        kind in 0..5_usize,
    ) {
        let name = ["texts_none.parquet", "texts.parquet", "conversations.parquet", "segments.parquet", "texts_v2.parquet"][kind];
        let mut bytes = golden_bytes(name);
        // The metadata at the end is where a wrong number does most harm.
        let start = if at_end { bytes.len().saturating_sub(1500) } else { 0 };
        for (at, byte) in &changes {
            let at = start + at.index(bytes.len() - start);
            bytes[at] = *byte;
        }
        read_anything("a.parquet", &bytes);
        let cut = start + changes[0].0.index(bytes.len() - start);
        prop_assert!(!read_anything("a.parquet", &bytes[..cut]));
    }
}
