"""Writes golden numbers of the metrics of reward models: ranking, correlation, detection of wrong labels.

    pip install numpy==2.4.6 scipy==1.17.1 scikit-learn==1.9.1
    python tests/golden/generate/reward_metrics.py

Scores are rounded to a grid of a random width, so that ties are frequent in some cases and absent in others.
"""

import json
import pathlib
from importlib.metadata import version

import numpy as np
from scipy import stats
from sklearn import metrics

SEED = 20240615
OUT = pathlib.Path(__file__).resolve().parent.parent


def case(rng, n, grid):
    scores = rng.normal(size=n)
    if grid:
        scores = np.round(scores / grid) * grid
    scores = scores.astype(np.float32)
    positive = rng.random(n) < 1 / (1 + np.exp(-1.5 * scores - rng.normal()))
    if positive.all() or not positive.any():
        positive[0] = not positive[0]
    y = np.round(scores.astype(np.float64) + rng.normal(size=n), 2 if grid else 12)
    precision, recall, threshold = metrics.precision_recall_curve(positive, scores, drop_intermediate=False)
    return {
        "scores": [float(s) for s in scores],
        "positive": [bool(p) for p in positive],
        "y": y.tolist(),
        "auroc": float(metrics.roc_auc_score(positive, scores)),
        "average_precision": float(metrics.average_precision_score(positive, scores)),
        "curve": {
            "threshold": [float(t) for t in threshold[::-1]],
            "precision": precision[:-1][::-1].tolist(),
            "recall": recall[:-1][::-1].tolist(),
        },
        "pearson": float(stats.pearsonr(scores.astype(np.float64), y).statistic),
        "spearman": float(stats.spearmanr(scores.astype(np.float64), y).statistic),
    }


def main():
    rng = np.random.default_rng(SEED)
    cases = [case(rng, n, grid) for n in (4, 9, 30, 80) for grid in (0.0, 0.25, 1.0)]
    header = {
        "generator": "tests/golden/generate/reward_metrics.py",
        "packages": {p: version(p) for p in ("numpy", "scipy", "scikit-learn")},
        "seed": SEED,
        "tolerance": 1e-12,
    }
    text = json.dumps({"header": header, "cases": cases}, separators=(",", ":"))
    path = OUT / "reward_metrics.json"
    path.write_text(text.replace('{"scores"', '\n{"scores"') + "\n")
    print(path.name, len(text))


if __name__ == "__main__":
    main()
