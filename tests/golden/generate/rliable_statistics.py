"""Statistics of small tables of scores by rliable 1.2.0, for src/plot/aggregate.rs.

Set-up: pip install rliable==1.2.0 "pandas<3" (about ten minutes: the package draws in Python)
Run:    python tests/golden/generate/rliable_statistics.py > tests/golden/rliable.json
"""

import json

import numpy as np
from rliable import library, metrics


def intervals(scores, statistic):
    """Point estimate and 95 % interval of `statistic` of the methods in `scores`, `[run, stratum]` each."""
    state = np.random.RandomState(1)
    points, bounds = library.get_interval_estimates(scores, statistic, reps=50_000, random_state=state)
    (name,) = scores
    return points[name].tolist(), bounds[name][:, 0].tolist()


def case(rng, runs, strata, shift):
    scores = rng.normal(size=(runs, strata)) + np.arange(strata)
    others = rng.normal(size=(runs + 1, strata)) + np.arange(strata) - shift
    # Equal scores must count by half.
    others[0] = scores[0]
    thresholds = np.linspace(-2, strata + 2, 9)
    iqm, iqm_bounds = intervals({"a": scores}, lambda x: np.array([metrics.aggregate_iqm(x)]))
    improvement, improvement_bounds = intervals(
        {"a": (scores, others)}, lambda x, y: np.array([metrics.probability_of_improvement(x, y)])
    )
    profiles, _ = library.create_performance_profile({"a": scores}, thresholds, reps=10)
    return {
        "scores": scores.T.tolist(),
        "others": others.T.tolist(),
        "mean": float(metrics.aggregate_mean(scores)),
        "interquartile_mean": iqm[0],
        "interquartile_mean_interval": iqm_bounds,
        "probability_of_improvement": improvement[0],
        "probability_of_improvement_interval": improvement_bounds,
        "thresholds": thresholds.tolist(),
        "profile": profiles["a"].tolist(),
    }


rng = np.random.default_rng(20)
cases = [case(rng, 10, 1, 0.5), case(rng, 5, 3, 0.8), case(rng, 7, 4, 0.0), case(rng, 13, 2, -0.4)]
print(json.dumps(cases, indent=1))
