"""Preference files as other programs write them, and a check that they read ours.

    pip install pyarrow==26.0.1 datasets==5.2.0
    python tests/golden/generate/preference_files.py write          # tests/golden/preferences/*.parquet, the same rows as *.jsonl
    python tests/golden/generate/preference_files.py check FOLDER   # reads FOLDER/*.parquet, compares with the rows of FOLDER/*.jsonl

FOLDER is named by `cargo test -p steadfast-reward --test formats -- --ignored --nocapture files_for_other_readers`.
Seed 0. Numbers must agree exactly.
"""

import json
import random
import struct
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

HERE = Path(__file__).resolve().parent.parent / "preferences"


def single(x):
    """The nearest single-precision number."""
    return struct.unpack("f", struct.pack("f", x))[0]


def text_rows(n, rng):
    words = "the cat sat on a mat — überall 日本 \"quoted\" tab\there new\nline 😀".split(" ")
    say = lambda k: " ".join(rng.choice(words) for _ in range(k))
    rows = []
    for i in range(n):
        rows.append(
            {
                "id": i * 7,
                "prompt": say(6),
                "chosen": f"yes {i} " + say(8),
                "rejected": f"no {i} " + say(rng.randrange(1, 9)),
                "margin": None if i % 3 == 0 else single(rng.random()),
                "annotator_id": rng.choice(["ann", "bob"]),
                "flipped": None if i % 4 == 0 else bool(rng.randrange(2)),
                "equal": i == 5,
                "gold_chosen": rng.random(),
                "gold_rejected": None if i == 2 else rng.random(),
                "source": "web",
            }
        )
    return rows


TEXT_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("id", pa.int64()),
        ("prompt", pa.large_string()),
        ("chosen", pa.string()),
        ("rejected", pa.dictionary(pa.int32(), pa.string())),
        ("margin", pa.float32()),
        ("annotator_id", pa.dictionary(pa.int8(), pa.string())),
        ("flipped", pa.bool_()),
        ("equal", pa.bool_()),
        ("gold_chosen", pa.float64()),
        ("gold_rejected", pa.float64()),
    ]
)


def message(role, content):
    return {"content": content, "role": role}


def conversation_rows(n, rng):
    rows = []
    for i in range(n):
        question = [message("system", "be brief")] * rng.randrange(2) + [message("user", f"question {i}?")]
        rows.append(
            {
                "prompt": question,
                "chosen": [message("assistant", f"good {i}")],
                "rejected": [message("assistant", f"bad {i}"), message("user", "no"), message("assistant", "sorry")],
                "margin": None,
            }
        )
    return rows


def segment_rows(n, rng):
    rows = []
    numbers = lambda k: [single(rng.gauss(0, 10 ** rng.randrange(-6, 6))) for _ in range(k)]
    for i in range(n):
        def segment(steps, terminated):
            return {
                "observations": [numbers(3) for _ in range(steps)],
                "actions": [rng.randrange(4) for _ in range(steps)],
                "rewards": None if i == 1 else numbers(steps),
                "terminated": terminated,
                "policy": None if i == 2 else f"step {i}",
            }

        rows.append({"id": f"s{i}", "chosen": segment(4, False), "rejected": segment(4 - i % 2, i % 2 == 1), "flipped": i == 3})
    return rows


SEGMENT = pa.struct(
    [
        ("observations", pa.list_(pa.list_(pa.float32()))),
        ("actions", pa.list_(pa.int64())),
        ("rewards", pa.list_(pa.float32())),
        ("terminated", pa.bool_()),
        ("policy", pa.string()),
    ]
)
SEGMENT_SCHEMA = pa.schema([("id", pa.string()), ("chosen", SEGMENT), ("rejected", SEGMENT), ("flipped", pa.bool_())])


def write_lines(name, rows):
    with open(HERE / f"{name}.jsonl", "w") as out:
        for row in rows:
            out.write(json.dumps(row) + "\n")


def write():
    HERE.mkdir(exist_ok=True)
    rng = random.Random(0)

    rows = text_rows(40, rng)
    write_lines("texts", rows)
    table = pa.Table.from_pylist(rows, schema=TEXT_SCHEMA)
    pq.write_table(table, HERE / "texts.parquet", row_group_size=16)
    small = table.slice(0, 8)
    write_lines("texts_small", rows[:8])
    for codec in ["none", "gzip", "brotli", "lz4", "zstd"]:
        pq.write_table(small, HERE / f"texts_{codec}.parquet", compression=codec)
    # Newer pages and encodings.
    pq.write_table(
        small,
        HERE / "texts_v2.parquet",
        data_page_version="2.0",
        use_dictionary=False,
        column_encoding={"prompt": "DELTA_BYTE_ARRAY", "chosen": "DELTA_LENGTH_BYTE_ARRAY", "id": "DELTA_BINARY_PACKED"},
    )

    rows = conversation_rows(12, rng)
    write_lines("conversations", rows)
    from datasets import Dataset

    Dataset.from_list(rows).to_parquet(HERE / "conversations.parquet")

    # The whole conversation on both sides, in the older spelling, with the prompt to be found.
    older = lambda messages: [{"from": {"user": "human", "assistant": "gpt"}.get(m["role"], m["role"]), "value": m["content"]} for m in messages]
    implicit = [{"chosen": older(row["prompt"] + row["chosen"]), "rejected": older(row["prompt"] + row["rejected"])} for row in rows]
    write_lines("conversations_implicit", implicit)
    Dataset.from_list(implicit).to_parquet(HERE / "conversations_implicit.parquet")

    rows = segment_rows(7, rng)
    write_lines("segments", rows)
    table = pa.Table.from_pylist(rows, schema=SEGMENT_SCHEMA)
    pq.write_table(table, HERE / "segments.parquet", row_group_size=3)
    # Fixed-size lists and double precision.
    fixed = pa.struct(
        [
            ("observations", pa.list_(pa.list_(pa.float64(), 3))),
            ("actions", pa.large_list(pa.int32())),
            ("rewards", pa.list_(pa.float64())),
            ("terminated", pa.bool_()),
            ("policy", pa.large_string()),
        ]
    )
    schema = pa.schema([("id", pa.large_string()), ("chosen", fixed), ("rejected", fixed), ("flipped", pa.bool_())])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), HERE / "segments_double.parquet")

    # Files that are not preferences.
    pq.write_table(pa.table({"prompt": ["a"], "choosen": ["b"], "rejected": ["c"]}), HERE / "misspelled.parquet")
    pq.write_table(pa.table({"prompt": ["a"], "completion": ["b"], "label": [True]}), HERE / "unpaired.parquet")
    pq.write_table(pa.table({"chosen": [1], "rejected": [2]}), HERE / "numbers.parquet")
    bad = {"chosen": ["a", None, "c", "d", ""], "rejected": ["b", "b", "c", "e", "f"], "margin": [0.5, 1.0, 1.0, float("nan"), 1.0]}
    pq.write_table(pa.table(bad), HERE / "bad_rows.parquet")


def without_nulls(value):
    """What a row says: no nulls, none of the defaults, numbers as they are."""
    if isinstance(value, dict):
        kept = {key: without_nulls(item) for key, item in value.items() if item is not None}
        return {key: item for key, item in kept.items() if not (key in ("equal", "terminated") and item is False)}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def check(folder):
    def compare(name, line, ours, theirs):
        if isinstance(theirs, float) and isinstance(ours, float) and single(ours) == single(theirs):
            return
        if isinstance(theirs, dict) and isinstance(ours, dict) and ours.keys() == theirs.keys():
            for key in theirs:
                compare(name, line, ours[key], theirs[key])
            return
        if isinstance(theirs, list) and isinstance(ours, list) and len(ours) == len(theirs):
            for a, b in zip(ours, theirs):
                compare(name, line, a, b)
            return
        assert ours == theirs, f"{name}, row {line}: {ours!r} != {theirs!r}"

    for path in sorted(Path(folder).glob("*.parquet")):
        table = pq.read_table(path)
        rows = [json.loads(line) for line in open(path.with_suffix(".jsonl"), encoding="utf-8")]
        assert table.num_rows == len(rows), path
        for line, (ours, theirs) in enumerate(zip(table.to_pylist(), rows), 1):
            compare(path.name, line, without_nulls(ours), without_nulls(theirs))
        groups = pq.ParquetFile(path).num_row_groups
        print(f"{path.name}: {len(rows)} rows in {groups} row groups agree\n{table.schema}\n")


if __name__ == "__main__":
    if sys.argv[1:] == ["write"]:
        write()
    elif len(sys.argv) == 3 and sys.argv[1] == "check":
        check(sys.argv[2])
    else:
        sys.exit(__doc__)
