"""Writes what B-Pref's annotator and the paper's myopic and irrational annotators say about random segments.

    pip install numpy==2.4.6
    python tests/golden/generate/label_noise.py

A restatement of the published rules with padded arrays and explicit weights. For each pair: whether it is skipped or
found equal, and the probability that the second segment is preferred before the ties of the rule. Rewards are multiples of
1/8, so that sums are exact and pairs lie exactly on thresholds.
"""

import json
import pathlib
from importlib.metadata import version

import numpy as np

SEED = 20240616
OUT = pathlib.Path(__file__).resolve().parent.parent
STEPS = 5
PAIRS = 40

TEACHERS = [
    {},
    {"beta": 1.0},
    {"beta": 4.0, "discount": 0.9},
    {"discount": 0.9},
    {"discount": 0.5, "mistake": 0.1},
    {"mistake": 0.3},
    {"skip": 0.5},
    {"equal": 0.25},
    {"beta": 0.5, "discount": 0.7, "mistake": 0.2, "skip": 0.4, "equal": 0.2},
]


def weights(discount):
    """The last of all steps, there or missing, has weight 1."""
    return np.array([discount ** (STEPS - t) for t in range(1, STEPS + 1)])


def teacher(config, padded, average_return, episode_steps):
    beta = config.get("beta", np.inf)
    average_segment = average_return * STEPS / episode_steps
    total = padded.sum(axis=2)
    seen = (padded * weights(config.get("discount", 1.0))).sum(axis=2)
    skip_below = config.get("skip", 0.0) * average_segment
    skipped = total.max(axis=1) <= skip_below if skip_below > 0 else np.zeros(len(total), dtype=bool)
    if np.isinf(beta):
        second = np.where(seen[:, 0] < seen[:, 1], 1.0, np.where(seen[:, 0] > seen[:, 1], 0.0, 0.5))
    else:
        logits = beta * seen
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        second = powers[:, 1] / powers.sum(axis=1)
    mistake = config.get("mistake", 0.0)
    second = second * (1 - mistake) + (1 - second) * mistake
    equal = np.abs(total[:, 0] - total[:, 1]) < config.get("equal", 0.0) * average_segment
    return {"config": config, "skipped": skipped.tolist(), "equal": (equal & ~skipped).tolist(), "second": second.tolist()}


def myopic(discount, padded):
    seen = (padded * weights(discount)).sum(axis=2)
    return {"discount": discount, "sign": np.sign(seen[:, 0] - seen[:, 1]).astype(int).tolist()}


def irrational(exponent, batch_size, gaps):
    flipped = np.zeros(len(gaps), dtype=bool)
    for start in range(0, len(gaps), batch_size):
        batch = np.abs(gaps[start : start + batch_size])
        count = int(np.floor(len(batch) ** exponent + 0.5))
        flipped[start + np.argsort(-batch, kind="stable")[:count]] = True
    return {"exponent": exponent, "batch_size": batch_size, "flipped": flipped.tolist()}


def main():
    rng = np.random.default_rng(SEED)
    lengths = np.where(rng.random((PAIRS, 2)) < 0.25, rng.integers(1, STEPS, (PAIRS, 2)), STEPS)
    rewards = rng.integers(-4, 13, (PAIRS, 2, STEPS)) / 8
    # One pair lies exactly on the threshold of skipping, one exactly on that of equality: half and a quarter of a segment.
    lengths[:2] = STEPS
    rewards[0] = [[0.5, 0.5, 0.5, 0.5, 0.0], [0.0, 0.0, 1.0, 0.5, 0.0]]
    rewards[1] = [[1.0, 1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.5, 0.5]]
    padded = np.where(np.arange(STEPS) < lengths[:, :, None], rewards, 0.0)
    average_return, episode_steps = 160.0, 200.0
    total = padded.sum(axis=2)
    header = {
        "generator": "tests/golden/generate/label_noise.py",
        "packages": {p: version(p) for p in ("numpy",)},
        "seed": SEED,
        "tolerance": "exact for skipped, equal, sign and flipped; `second` is a probability, met by drawing",
    }
    fixture = {
        "header": header,
        "steps": STEPS,
        "average_return": average_return,
        "episode_steps": episode_steps,
        "rewards": [[[float(r) for r in padded[i, j, : lengths[i, j]]] for j in range(2)] for i in range(PAIRS)],
        "teachers": [teacher(config, padded, average_return, episode_steps) for config in TEACHERS],
        "myopic": [myopic(discount, padded) for discount in (0.0, 0.3, 0.5, 0.7, 1.0)],
        "irrational": [
            irrational(exponent, size, total[:, 0] - total[:, 1])
            for exponent, size in ((1 / 3, 64), (1 / 3, 16), (0.5, 12), (2 / 3, 7), (0.0, 13), (1.0, 9))
        ],
    }
    text = json.dumps(fixture, separators=(",", ":"))
    path = OUT / "label_noise.json"
    path.write_text(text.replace('{"config"', '\n{"config"') + "\n")
    print(path.name, len(text))


if __name__ == "__main__":
    main()
