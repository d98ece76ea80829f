"""Run our benchmarks and the peers' in turn on one core and print medians and speed-ups.

Both sides print one JSON object per line (the schema is in README.md). Results are paired by
`case`; other output is passed over. A round runs our command and then each peer of the group, so
that a slow spell of the machine hits both sides.

The speed-up is ours over theirs: steps/s divided by steps/s, or their time divided by ours.
Above 1 we are faster. The interval is the 2.5 % and 97.5 % point of a bootstrap over rounds.
"""

import argparse
import json
import os
import random
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

from measure import pin

HERE = Path(__file__).resolve().parent
OURS = "steadfast"
# For each unit, whether a larger figure is the better one.
LARGER_IS_BETTER = {"steps/s": True, "tokens/s": True, "us": False, "s": False}
GROUPS = {
    "envs": "cargo bench -p steadfast-envs --bench env_step -- --json",
    "nn": "cargo bench -p steadfast-agents --bench nn -- --json",
    "ppo": "cargo bench --bench ppo -- --json",
    "off_policy": "cargo bench --bench off_policy -- --json",
    "llm_generate": "cargo bench -p steadfast -p steadfast-agents --bench llm_generate -- --json",
    "llm_train": "cargo bench -p steadfast -p steadfast-agents --bench llm_train -- --json",
}


def peer_commands(group, options):
    """The peer commands of a group, as argument lists."""
    shared = ["--core", str(options.core), "--repetitions", str(options.repetitions)]

    def script(name, *extra, python=sys.executable):
        return [python, str(HERE / name), *shared, *extra]

    if group == "envs":
        commands = [script("env_steps.py")]
        if options.jaxmarl_python:
            commands.append(
                script("env_steps.py", "--jaxmarl", python=options.jaxmarl_python)
            )
        return commands
    if group == "nn":
        return [script("torch_mlp.py")]
    if group == "llm_generate":
        return [script("llm_generate.py")]
    if group == "llm_train":
        return [script("llm_dpo.py")]
    if group == "off_policy":
        python = options.epymarl_python or sys.executable
        return [script("epymarl.py", "--epymarl", options.epymarl, python=python)] if options.epymarl else []
    commands = [script("sb3_ppo.py")]
    if options.cleanrl_script:
        commands.append(script("cleanrl_ppo.py", "--script", options.cleanrl_script))
    return commands


def run(command, clock, failures):
    """The result lines that a command prints. A failing command is noted in `failures`.

    Ends the program at the first result that cannot be compared, before more time is spent.
    """
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        failures.append(f"exit status {done.returncode}: {shlex.join(command)}")
    results = []
    for line in done.stdout.splitlines():
        if not line.startswith("{"):
            continue
        try:
            result = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(result, dict) and {"peer", "case", "value", "unit"} <= result.keys():
            name = f"{result['peer']} {result['case']}"
            if result["unit"] not in LARGER_IS_BETTER:
                # Figures without a counterpart, such as the cost of ERNIE over the plain update.
                print(f"{name}: {result['value']} {result['unit']} (not compared)")
                continue
            if clock == "cpu" and "cpu_value" not in result:
                sys.exit(f"{name}: no cpu_value; use --clock wall")
            results.append(result)
    if done.returncode == 0 and not results:
        failures.append(f"no result lines: {shlex.join(command)}")
    return results


def build(command):
    """Build a `cargo bench` command before the process is pinned, so that building is not slow."""
    if command[:2] == ["cargo", "bench"]:
        arguments = command[: command.index("--")] if "--" in command else command
        subprocess.run([*arguments, "--no-run"], check=True)


def speed_up(ours, theirs, unit):
    ratio = statistics.median(ours) / statistics.median(theirs)
    return ratio if LARGER_IS_BETTER[unit] else 1 / ratio


def interval(ours, theirs, unit, draws=10_000):
    """Bootstrap interval of the speed-up over rounds; `None` for a single round."""
    if min(len(ours), len(theirs)) < 2:
        return None
    rng = random.Random(0)
    ratios = sorted(
        speed_up(rng.choices(ours, k=len(ours)), rng.choices(theirs, k=len(theirs)), unit)
        for _ in range(draws)
    )
    return ratios[draws // 40], ratios[draws - 1 - draws // 40]


def collect(results, clock):
    """Values by (case, peer) and the unit of each case, in order of appearance."""
    values, units = {}, {}
    for result in results:
        case, unit = result["case"], result["unit"]
        if units.setdefault(case, unit) != unit:
            sys.exit(f"{case}: units {units[case]!r} and {unit!r} do not match")
        value = float(result["cpu_value" if clock == "cpu" else "value"])
        values.setdefault((case, result["peer"]), []).append(value)
    return values, units


def table(values, units):
    """The rows of the comparison, and the cases that only one side has."""
    ours = {case: samples for (case, peer), samples in values.items() if peer == OURS}
    rows, unmatched = [], []
    for (case, peer), theirs in values.items():
        if peer == OURS:
            if not any(other == case and name != OURS for other, name in values):
                unmatched.append(f"{case} ({OURS} only)")
        elif case not in ours:
            unmatched.append(f"{case} ({peer} only)")
        else:
            unit = units[case]
            rows.append(
                {
                    "case": case,
                    "peer": peer,
                    "unit": unit,
                    "better": "higher" if LARGER_IS_BETTER[unit] else "lower",
                    "ours": statistics.median(ours[case]),
                    "theirs": statistics.median(theirs),
                    "speed_up": speed_up(ours[case], theirs, unit),
                    "interval": interval(ours[case], theirs, unit),
                    "rounds": min(len(ours[case]), len(theirs)),
                }
            )
    return rows, unmatched


def print_table(rows):
    lines = [["case", "peer", "unit", "better", "ours", "theirs", "speed-up", "95 % interval"]]
    for row in rows:
        bounds = row["interval"]
        lines.append(
            [
                row["case"],
                row["peer"],
                row["unit"],
                row["better"],
                f"{row['ours']:,.4g}" if row["ours"] < 1000 else f"{row['ours']:,.0f}",
                f"{row['theirs']:,.4g}" if row["theirs"] < 1000 else f"{row['theirs']:,.0f}",
                f"{row['speed_up']:.2f}x",
                f"{bounds[0]:.2f} to {bounds[1]:.2f}" if bounds else "one round",
            ]
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        left = [cell.ljust(width) for cell, width in zip(line[:4], widths)]
        right = [cell.rjust(width) for cell, width in zip(line[4:], widths[4:])]
        print("  ".join(left + right))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--core", type=int, default=0, help="the core to run on")
    parser.add_argument("--rounds", type=int, default=5, help="alternations of both sides")
    parser.add_argument("--repetitions", type=int, default=5, help="repetitions in a peer's run")
    parser.add_argument(
        "--group", action="append", choices=GROUPS, help="run this group only; may be repeated"
    )
    for group, command in GROUPS.items():
        parser.add_argument(
            f"--ours-{group}", metavar="COMMAND", default=command, help="our command of the group"
        )
    parser.add_argument("--cleanrl-script", help="path of CleanRL's ppo.py; else it is left out")
    parser.add_argument("--epymarl", help="checkout of EPyMARL; else it is left out")
    parser.add_argument("--epymarl-python", help="Python of an environment with what EPyMARL needs")
    parser.add_argument(
        "--jaxmarl-python", help="Python of an environment with JaxMARL; else it is left out"
    )
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="which time to compare by"
    )
    parser.add_argument(
        "--output", type=Path, help="also write all result lines and the table here"
    )
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")

    groups = options.group or list(GROUPS)
    our_commands = {group: shlex.split(getattr(options, f"ours_{group}")) for group in groups}
    for command in our_commands.values():
        build(command)
    pin(options.core)
    os.environ["RAYON_NUM_THREADS"] = "1"

    results, failures = [], []
    for group in groups:
        for round_number in range(options.rounds):
            print(f"{group}: round {round_number + 1} of {options.rounds}", file=sys.stderr)
            for command in [our_commands[group], *peer_commands(group, options)]:
                results += run(command, options.clock, failures)

    values, units = collect(results, options.clock)
    rows, unmatched = table(values, units)
    print_table(rows)
    for entry in unmatched:
        print(f"not compared: {entry}")
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    if options.output:
        report = {"clock": options.clock, "rows": rows, "results": results}
        options.output.write_text(json.dumps(report, indent=2) + "\n")
    if failures:
        sys.exit(1)


if __name__ == "__main__":
    main()
