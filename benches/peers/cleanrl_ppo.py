"""CleanRL's `ppo.py` on CartPole-v1 with its default hyper-parameters: steps per second.

The script is not part of this repository. Give the path of your own checkout with `--script`. It
runs in a temporary folder, so its logs leave nothing behind.

`value` is the rate that the script prints at the end; its clock starts after imports and set-up.
`value_minus_start_up` divides the steps of a long run beyond those of a one-iteration run by the
difference of their wall times; `cpu_value` does the same with CPU time.
"""

import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import measure

TOTAL_STEPS = 40_960
# One iteration: 4 environments times 128 steps.
START_UP_STEPS = 512


def run(script, steps):
    """Wall seconds, CPU seconds and the last printed rate of one run of `steps` steps."""
    command = [sys.executable, str(script), "--no-cuda", "--total-timesteps", str(steps)]
    with tempfile.TemporaryDirectory() as folder:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        start = time.perf_counter()
        done = subprocess.run(command, cwd=folder, env=os.environ, text=True, capture_output=True)
        wall = time.perf_counter() - start
        now = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    rates = re.findall(r"^SPS: (\d+)$", done.stdout, flags=re.MULTILINE)
    if not rates:
        sys.exit(f"{script} printed no line of the form 'SPS: <number>'")
    cpu = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
    return wall, cpu, float(rates[-1])


def main():
    parser = measure.arguments(__doc__.splitlines()[0])
    parser.add_argument(
        "--script", type=Path, required=True, help="path of CleanRL's ppo.py in your checkout"
    )
    options = parser.parse_args()
    script = options.script.resolve()
    if not script.is_file():
        sys.exit(f"no such file: {script}")
    measure.pin(options.core)
    case = "ppo_cartpole_cleanrl_4env"
    if options.only and case not in options.only:
        return
    run(script, START_UP_STEPS)
    printed, by_wall, by_cpu = [], [], []
    for _ in range(options.repetitions):
        short_wall, short_cpu, _ = run(script, START_UP_STEPS)
        long_wall, long_cpu, rate = run(script, TOTAL_STEPS)
        printed.append(rate)
        by_wall.append((TOTAL_STEPS - START_UP_STEPS) / (long_wall - short_wall))
        by_cpu.append((TOTAL_STEPS - START_UP_STEPS) / (long_cpu - short_cpu))
    measure.emit(
        "cleanrl",
        case,
        "steps/s",
        printed,
        by_cpu,
        measure.versions("gymnasium", "torch", "numpy", "tyro", "tensorboard"),
        value_minus_start_up=round(statistics.median(by_wall), 3),
    )


if __name__ == "__main__":
    main()
