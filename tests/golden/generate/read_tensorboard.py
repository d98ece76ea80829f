"""Read TensorBoard event files with the TensorBoard package and print tags and values as JSON.

Usage: python read_tensorboard.py RUN_DIRECTORY [--require TAG]... [--summary]

Every folder under RUN_DIRECTORY that holds event files is one run, named by its relative path, "."
for RUN_DIRECTORY itself. Each record's checksums are verified first: TensorBoard's own reader stops
without an error at the first damaged record.

The output is one JSON object:
`{"run": {"events": 3, "scalars": {"train/loss": [{"step": 0, "wall_time": 0.0, "value": 1.5}]},
"other": {"tensors": ["config/text_summary"]}}}`. Scalars are single-precision in event files, so a
value is the nearest `f32` of what was logged. Values that are not finite are written as the strings
"NaN", "Infinity" and "-Infinity", so that the output is valid JSON.

Exit status: 0; 1 if there is no event file, a record is damaged or a required tag is missing.

Needs: `pip install tensorboard` (written against 2.21.0; no TensorFlow).
"""

import argparse
import json
import math
import sys
from pathlib import Path

from google.protobuf.message import DecodeError
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.tensorflow_stub import errors
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New
from tensorboard.util.tensor_util import make_ndarray


def count_events(path: Path) -> int:
    """The number of events in a file. Raises `ValueError` at a damaged or cut-off record."""
    reader = PyRecordReader_New(str(path))
    count = 0
    while True:
        try:
            reader.GetNext()
        except errors.OutOfRangeError:
            return count
        except errors.DataLossError as error:
            raise ValueError(f"record {count}: {error}") from error
        try:
            Event.FromString(reader.record())
        except DecodeError as error:
            raise ValueError(f"record {count} of {path} is no event: {error}") from error
        count += 1


def number(value: float) -> float | str:
    """The value itself, or its name if JSON has no literal for it."""
    if math.isfinite(value):
        return value
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def scalar_points(accumulator: EventAccumulator) -> dict[str, list[dict]]:
    """All points of every scalar tag, whether stored as a simple value or as a scalar tensor."""
    points = {}
    for tag in accumulator.Tags()["scalars"]:
        points[tag] = [
            {"step": point.step, "wall_time": point.wall_time, "value": number(point.value)}
            for point in accumulator.Scalars(tag)
        ]
    for tag in accumulator.Tags()["tensors"]:
        if accumulator.SummaryMetadata(tag).plugin_data.plugin_name == "scalars":
            points[tag] = [
                {
                    "step": point.step,
                    "wall_time": point.wall_time,
                    "value": number(float(make_ndarray(point.tensor_proto))),
                }
                for point in accumulator.Tensors(tag)
            ]
    return points


def read_run(folder: Path, events: int) -> dict:
    """The content of the event files directly in `folder`."""
    # A limit of 0 keeps all points; the default samples long series.
    kinds = ("scalars", "tensors", "histograms", "compressedHistograms", "images", "audio")
    accumulator = EventAccumulator(str(folder), size_guidance={kind: 0 for kind in kinds})
    accumulator.Reload()
    scalars = scalar_points(accumulator)
    other = {}
    for kind, tags in accumulator.Tags().items():
        # `graph`, `meta_graph` and `run_metadata` hold flags or nothing worth listing.
        if kind != "scalars" and isinstance(tags, list):
            kept = [tag for tag in tags if tag not in scalars]
            if kept:
                other[kind] = kept
    return {"events": events, "scalars": scalars, "other": other}


def summary(run: dict) -> dict:
    """A run with each series reduced to its length, first and last point."""
    scalars = {
        tag: {"points": len(points), "first": points[0], "last": points[-1]}
        for tag, points in run["scalars"].items()
    }
    return {**run, "scalars": scalars}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run_directory", type=Path)
    parser.add_argument(
        "--require", action="append", default=[], metavar="TAG", help="fail if no run has this tag"
    )
    parser.add_argument(
        "--summary", action="store_true", help="print lengths, first and last points only"
    )
    options = parser.parse_args()

    events = {}
    for path in sorted(options.run_directory.rglob("*tfevents*")):
        try:
            events[path.parent] = events.get(path.parent, 0) + count_events(path)
        except ValueError as error:
            sys.exit(str(error))
    if not events:
        sys.exit(f"no event file under {options.run_directory}")

    runs = {}
    for folder, count in events.items():
        run = read_run(folder, count)
        runs[str(folder.relative_to(options.run_directory))] = (
            summary(run) if options.summary else run
        )
    json.dump(runs, sys.stdout, indent=2, allow_nan=False)
    print()

    found = {tag for run in runs.values() for tag in run["scalars"]}
    found |= {tag for run in runs.values() for tags in run["other"].values() for tag in tags}
    missing = [tag for tag in options.require if tag not in found]
    if missing:
        sys.exit(f"missing tags: {', '.join(missing)}")


if __name__ == "__main__":
    main()
