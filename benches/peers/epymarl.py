"""EPyMARL's QMIX, VDN, IQL and MADDPG on simple_spread with one environment and their default settings: joint steps per second.

EPyMARL is not part of this repository. Give the path of your own checkout with `--epymarl`. Each
run happens in a copy of its `src` in a temporary folder, so that its logs leave nothing behind. Its
import of `smaclite`, which simple_spread does not need, is met by an empty module.

A figure is the steps of a long run beyond those of a short one, divided by the difference of their
wall times; `cpu_value` does the same with CPU time.
"""

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import measure

SHORT, LONG = 5_000, 15_000
ALGORITHMS = ("qmix", "vdn", "iql", "maddpg")


def run(source, algorithm, steps):
    """Wall and CPU seconds of one run of `steps` steps."""
    command = [sys.executable, "main.py", f"--config={algorithm}", "--env-config=gymma", "with"]
    command += ["env_args.time_limit=25", "env_args.key=pz-mpe-simple-spread-v3", "use_cuda=False"]
    command += [f"t_max={steps}", "test_interval=1000000", "test_nepisode=1", "log_interval=1000000"]
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(source, Path(folder) / "src")
        stub = Path(folder) / "stub" / "smaclite"
        stub.mkdir(parents=True)
        (stub / "__init__.py").write_text("")
        (stub / "env.py").write_text("class SMACliteEnv: pass\n")
        environment = dict(os.environ, PYTHONPATH=str(stub.parent))
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        start = time.perf_counter()
        done = subprocess.run(command, cwd=Path(folder) / "src", env=environment, text=True, capture_output=True)
        wall = time.perf_counter() - start
        now = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return wall, now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime


def main():
    parser = measure.arguments(__doc__.splitlines()[0])
    parser.add_argument("--epymarl", type=Path, required=True, help="path of your checkout of EPyMARL")
    options = parser.parse_args()
    source = options.epymarl.resolve() / "src"
    if not (source / "main.py").is_file():
        sys.exit(f"no such file: {source / 'main.py'}")
    measure.pin(options.core)
    for algorithm in ALGORITHMS:
        case = f"{algorithm}_spread_1env"
        if options.only and case not in options.only:
            continue
        by_wall, by_cpu = [], []
        for _ in range(options.repetitions):
            (short_wall, short_cpu), (long_wall, long_cpu) = run(source, algorithm, SHORT), run(source, algorithm, LONG)
            by_wall.append((LONG - SHORT) / (long_wall - short_wall))
            by_cpu.append((LONG - SHORT) / (long_cpu - short_cpu))
        measure.emit(
            "epymarl",
            case,
            "steps/s",
            by_wall,
            by_cpu,
            measure.versions("torch", "pettingzoo", "gymnasium"),
        )


if __name__ == "__main__":
    main()
