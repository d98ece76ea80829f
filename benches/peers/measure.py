"""Pinning, timing and output shared by the peer benchmarks.

Import this module, call `pin`, and only then import NumPy, PyTorch or JAX: their thread pools read
the environment once, when they are loaded.
"""

import argparse
import json
import os
import statistics
import sys
import time
from importlib import metadata

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)


def arguments(description: str) -> argparse.ArgumentParser:
    """The options that every peer benchmark takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--core", type=int, default=0, help="the core to run on (default: 0)")
    parser.add_argument(
        "--repetitions", type=int, default=5, help="timed repetitions per case (default: 5)"
    )
    parser.add_argument(
        "--only", action="append", metavar="CASE", help="run this case only; may be repeated"
    )
    return parser


def pin(core: int) -> None:
    """Bind this process and its children to one core and one thread."""
    if not hasattr(os, "sched_setaffinity"):
        sys.exit("these benchmarks need Linux: the process must be bound to one core")
    os.sched_setaffinity(0, {core})
    for variable in THREAD_VARIABLES:
        os.environ[variable] = "1"


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python and of the named distributions."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in packages:
        found[package] = metadata.version(package)
    return found


def seconds(work) -> tuple[float, float]:
    """Wall and process CPU seconds of one call of `work`."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def emit(peer, case, unit, wall, cpu, version, **extra) -> None:
    """Print one result line.

    `wall` and `cpu` hold one figure per repetition, already in `unit`, by wall clock and by process
    CPU time. `value` is the median by wall clock, `cpu_value` by CPU time, `samples` all of `wall`.
    """
    line = {
        "peer": peer,
        "case": case,
        "value": round(statistics.median(wall), 3),
        "unit": unit,
        "cpu_value": round(statistics.median(cpu), 3),
        "samples": [round(sample, 3) for sample in wall],
        **extra,
        "versions": version,
    }
    print(json.dumps(line), flush=True)


def rate(peer, case, steps, work, repetitions, version, unit="steps/s", **extra) -> None:
    """Time `work`, which makes `steps` steps (or tokens) per call, and print how many per second."""
    work()
    timed = [seconds(work) for _ in range(repetitions)]
    emit(
        peer,
        case,
        unit,
        [steps / wall for wall, _ in timed],
        [steps / cpu for _, cpu in timed],
        version,
        **extra,
    )


def latency(peer, case, batch, work, repetitions, version, min_seconds=0.2, **extra) -> None:
    """Time `work` and print microseconds per call, and nanoseconds per row of the batch.

    The number of calls per repetition is chosen so that a repetition lasts about `min_seconds`.
    """
    for _ in range(20):
        work()
    calls = 1
    while True:
        wall, _ = seconds(lambda: [work() for _ in range(calls)])
        if wall >= min_seconds / 4:
            break
        calls *= 2
    calls = max(1, round(calls * min_seconds / wall))

    def chunk():
        for _ in range(calls):
            work()

    timed = [seconds(chunk) for _ in range(repetitions)]
    wall = [1e6 * wall / calls for wall, _ in timed]
    cpu = [1e6 * cpu / calls for _, cpu in timed]
    per_sample = round(1e3 * statistics.median(wall) / batch, 2)
    emit(peer, case, "us", wall, cpu, version, ns_per_sample=per_sample, **extra)
