//! Large files: speed and memory, and a check by other programs. Run on demand.

use super::*;

/// Peak memory of this process in bytes since the last call with true, as Linux counts it; nothing elsewhere.
fn peak_memory(is_reset: bool) -> Option<u64> {
    if is_reset {
        std::fs::write("/proc/self/clear_refs", "5").ok()?;
    }
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_ascii_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib << 10)
}

/// Numbers without a pattern that compression could find (the mixing of splitmix64).
fn scatter(a: usize, b: usize) -> u64 {
    let mut x = (a as u64) << 32 | b as u64;
    for factor in [0xBF58_476D_1CE4_E5B9_u64, 0x94D0_49BB_1331_11EB] {
        x = (x ^ x >> 30).wrapping_add(0x9E37_79B9_7F4A_7C15).wrapping_mul(factor);
    }
    x ^ x >> 31
}

fn text_row(id: usize, n_words: usize) -> Row {
    let say = |salt: usize| {
        let words = ["the ", "value ", "of ", "\"it\" ", "matters\n", "überall ", "and ", "gradient "];
        (0..n_words).map(|at| words[scatter(salt, at) as usize % words.len()]).collect::<String>()
    };
    let pair = TextPair { prompt: Text::Plain(say(id)), chosen: Text::Plain(say(id + 1) + "a"), rejected: Text::Plain(say(id + 2) + "b") };
    Row::Texts(any_label(id, pair, 0b0111_1010, 0.25, id as f64 / 3.0))
}

fn segment_row(id: usize, steps: usize) -> Row {
    let numbers = |n: usize, salt: usize| (0..n).map(|at| (scatter(id * 7 + salt, at) as u32 as f32) * 1e-7 - 200.0).collect::<Vec<f32>>();
    let segment = |salt: usize| Segment {
        steps,
        observations: numbers(steps * 17, salt),
        actions: numbers(steps * 6, salt + 1),
        rewards: numbers(steps, salt + 2),
        terminated: false,
        policy: format!("step {id}"),
    };
    let pair = SegmentPair { chosen: segment(0), rejected: segment(3) };
    Row::Segments(any_label(id, pair, 0b0111_1010, 0.25, id as f64 / 3.0))
}

#[test]
#[ignore = "writes 200 MB for each case and reports speed; run with --release and --nocapture"]
fn large_files_are_read_in_constant_memory() {
    let folder = tempfile::tempdir().unwrap();
    let n_bytes = 200 << 20;
    for name in ["texts.jsonl", "texts.parquet", "segments.jsonl", "segments.parquet"] {
        let path = folder.path().join(name);
        let mut writer = PreferenceWriter::create(&path).unwrap();
        let mut line = Vec::new();
        let (mut written, mut n_rows) = (0, 0);
        while written < n_bytes {
            let row = if name.starts_with("texts") { text_row(n_rows, 100) } else { segment_row(n_rows, 25) };
            line.clear();
            write_jsonl_row(&mut line, &row).unwrap();
            writer.write(&row).unwrap();
            written += line.len();
            n_rows += 1;
        }
        writer.finish().unwrap();
        let before = peak_memory(true);
        let clock = std::time::Instant::now();
        let file = PreferenceFile::open(&path, &ReadOptions::default()).unwrap();
        assert_eq!(file.rows().unwrap().map(|row| row.unwrap()).filter(|(_, row)| !row.id().is_empty()).count(), n_rows);
        let stream = clock.elapsed().as_secs_f64();
        let clock = std::time::Instant::now();
        file.scan(|_, _| Ok(())).unwrap();
        let scan = clock.elapsed().as_secs_f64();
        let grown = before.zip(peak_memory(false)).map(|(before, after)| after.saturating_sub(before));
        let megabytes = written as f64 / 1e6;
        println!(
            "{name}: {n_rows} rows, {megabytes:.0} MB as JSON, {} MB on disk; rows {:.0} MB/s, scan {:.0} MB/s, peak memory {:?} MB more",
            std::fs::metadata(&path).unwrap().len() / 1_000_000,
            megabytes / stream,
            megabytes / scan,
            grown.map(|bytes| bytes / 1_000_000)
        );
        assert!(grown.is_none_or(|bytes| bytes < 64 << 20), "{name}: {grown:?} bytes more");
    }
}

#[test]
#[ignore = "writes files for `tests/golden/generate/preference_files.py check`"]
fn files_for_other_readers() {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("preference_files");
    std::fs::create_dir_all(&folder).unwrap();
    for name in ["texts", "conversations", "segments"] {
        let (rows, _) = golden(&format!("{name}.jsonl")).unwrap().read().unwrap();
        write_both(&folder, name, &rows);
    }
    // Enough for several row groups.
    write_both(&folder, "large", &(0..30_000).map(|id| text_row(id, 100)).collect::<Vec<_>>());
    write_both(&folder, "large_segments", &(0..9_000).map(|id| segment_row(id, 25)).collect::<Vec<_>>());
    println!("{}", folder.display());
}

fn write_both(folder: &std::path::Path, name: &str, rows: &[Row]) {
    for extension in ["jsonl", "parquet"] {
        let mut writer = PreferenceWriter::create(folder.join(format!("{name}.{extension}"))).unwrap();
        rows.iter().for_each(|row| writer.write(row).unwrap());
        writer.finish().unwrap();
    }
}
