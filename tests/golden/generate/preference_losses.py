"""Writes golden values and derivatives of the preference losses and of the margins of language-model policies.

    pip install torch==2.15.0 numpy==2.4.6
    python tests/golden/generate/preference_losses.py

Double precision, derivatives by autograd. R3M is the two-step form: the outlier is computed without a gradient, then put
into the shifted loss. The methods of the DPO family are written out from log-probabilities, as in their papers.
"""

import json
import pathlib
from importlib.metadata import version

import numpy as np
import torch
import torch.nn.functional as F

SEED = 20240617
OUT = pathlib.Path(__file__).resolve().parent.parent
GRID = [0.0, 1e-3, 0.05, 0.3, 0.7, 1.0, 1.3, 1.9, 2.2, 3.0, 4.5, 6.0, 9.0, 14.0, 20.0, 30.0, 50.0, 80.0]
MARGINS = sorted({float(np.float32(s * d)) for d in GRID for s in (-1, 1)})
torch.set_default_dtype(torch.float64)


def cross_entropy(d):
    return -F.logsigmoid(d)


def r3m(d, lam):
    if lam >= 1:
        return cross_entropy(d)
    delta = torch.clamp(np.log(1 / lam - 1) - d, min=0).detach()
    return -F.logsigmoid(d + delta) + lam * delta


def label_smoothing(d, epsilon):
    return -(1 - epsilon) * F.logsigmoid(d) - epsilon * F.logsigmoid(-d)


def robust_dpo(d, epsilon):
    return (-(1 - epsilon) * F.logsigmoid(d) + epsilon * F.logsigmoid(-d)) / (1 - 2 * epsilon)


def bounded(d, logistic, bounded):
    # The derivative of torch.sigmoid loses its digits near 1.
    return logistic * -F.logsigmoid(d) + bounded * torch.exp(F.logsigmoid(-d))


LOSSES = (
    [({"cross_entropy": {}}, cross_entropy)]
    + [({"r3m": {"lambda": lam}}, lambda d, lam=lam: r3m(d, lam)) for lam in (0.05, 0.1, 0.3, 0.5, 0.65, 0.75, 0.9, 0.99, 1.0)]
    + [({"label_smoothing": {"epsilon": e}}, lambda d, e=e: label_smoothing(d, e)) for e in (0.0, 0.1, 0.4)]
    + [({"robust_dpo": {"epsilon": e}}, lambda d, e=e: robust_dpo(d, e)) for e in (0.0, 0.1, 0.4, 0.49)]
    + [({"hinge": {}}, lambda d: torch.relu(1 - d))]
    + [({"ipo": {"target": t}}, lambda d, t=t: (d - t) ** 2) for t in (0.5, 5.0)]
    + [({"bounded": {"logistic": a, "bounded": b}}, lambda d, a=a, b=b: bounded(d, a, b)) for a, b in ((0.0, 1.0), (0.3, 0.7))]
)


def loss_case(config, f):
    d = torch.tensor(MARGINS, requires_grad=True)
    value = f(d)
    (slope,) = torch.autograd.grad(value.sum(), d)
    return {"config": config, "value": value.tolist(), "slope": slope.tolist()}


def trimmed_case(rng, n, fraction):
    d = torch.tensor(rng.normal(size=n).astype(np.float32).astype(np.float64), requires_grad=True)
    value = cross_entropy(d)
    keep = torch.ones(n)
    keep[torch.argsort(value.detach(), descending=True)[: min(round(fraction * n), n - 1)]] = 0
    (slope,) = torch.autograd.grad((value * keep).sum(), d)
    return {"fraction": fraction, "margins": d.tolist(), "value": (value * keep).tolist(), "slope": slope.tolist()}


def log_odds(mean):
    return mean - torch.log1p(-torch.exp(mean))


# From log-probabilities: lw, ll of the policy, rw, rl of the reference, nw, nl numbers of tokens.
METHODS = [
    ("dpo", {"dpo": {"beta": 0.1}}, {"cross_entropy": {}}, lambda lw, ll, rw, rl, nw, nl: -F.logsigmoid(0.1 * ((lw - ll) - (rw - rl)))),
    ("r3m_dpo", {"dpo": {"beta": 0.3}}, {"r3m": {"lambda": 0.75}}, lambda lw, ll, rw, rl, nw, nl: r3m(0.3 * ((lw - rw) - (ll - rl)), 0.75)),
    ("cdpo", {"dpo": {"beta": 0.1}}, {"label_smoothing": {"epsilon": 0.2}}, lambda lw, ll, rw, rl, nw, nl: -0.8 * F.logsigmoid(0.1 * ((lw - ll) - (rw - rl))) - 0.2 * F.logsigmoid(-0.1 * ((lw - ll) - (rw - rl)))),
    ("rdpo", {"dpo": {"beta": 0.1}}, {"robust_dpo": {"epsilon": 0.2}}, lambda lw, ll, rw, rl, nw, nl: (-0.8 * F.logsigmoid(0.1 * ((lw - ll) - (rw - rl))) + 0.2 * F.logsigmoid(-0.1 * ((lw - ll) - (rw - rl)))) / 0.6),
    ("slic", {"dpo": {"beta": 0.1}}, {"hinge": {}}, lambda lw, ll, rw, rl, nw, nl: torch.relu(1 - 0.1 * ((lw - ll) - (rw - rl)))),
    ("ipo_sum", {"ipo": {"beta": 0.1}}, {"ipo": {"target": 5.0}}, lambda lw, ll, rw, rl, nw, nl: ((lw - ll) - (rw - rl) - 1 / (2 * 0.1)) ** 2),
    ("ipo_trl", {"ipo_normalized": {"beta": 0.25}}, {"ipo": {"target": 2.0}}, lambda lw, ll, rw, rl, nw, nl: ((lw - rw) / nw - (ll - rl) / nl - 1 / (2 * 0.25)) ** 2),
    ("sigmoid_norm", {"dpo_normalized": {"beta": 2.0}}, {"cross_entropy": {}}, lambda lw, ll, rw, rl, nw, nl: -F.logsigmoid(2.0 * ((lw - rw) / nw - (ll - rl) / nl))),
    ("simpo", {"simpo": {"beta": 2.5, "gamma": 1.375}}, {"cross_entropy": {}}, lambda lw, ll, rw, rl, nw, nl: -F.logsigmoid(2.5 * lw / nw - 2.5 * ll / nl - 1.375)),
    ("orpo", {"orpo": {}}, {"cross_entropy": {}}, lambda lw, ll, rw, rl, nw, nl: -F.logsigmoid(log_odds(lw / nw) - log_odds(ll / nl))),
]


def answers(rng, n):
    tokens = rng.integers(1, 60, n)
    policy = -tokens * rng.gamma(1.5, 0.8, n)
    reference = np.minimum(policy + rng.normal(size=n) * 0.4 * tokens, -0.01)
    single = lambda x: x.astype(np.float32).astype(np.float64)
    return tokens, single(policy), single(reference)


def method_case(name, margin, loss, f, data):
    (nw, lw, rw), (nl, ll, rl) = data
    lw, ll = torch.tensor(lw, requires_grad=True), torch.tensor(ll, requires_grad=True)
    value = f(lw, ll, torch.tensor(rw), torch.tensor(rl), torch.tensor(nw), torch.tensor(nl))
    by_chosen, by_rejected = torch.autograd.grad(value.sum(), (lw, ll))
    return {
        "name": name,
        "margin": margin,
        "loss": loss,
        "value": value.tolist(),
        "by_chosen": by_chosen.tolist(),
        "by_rejected": by_rejected.tolist(),
    }


def main():
    rng = np.random.default_rng(SEED)
    data = answers(rng, 24), answers(rng, 24)
    header = {
        "generator": "tests/golden/generate/preference_losses.py",
        "packages": {p: version(p) for p in ("torch", "numpy")},
        "seed": SEED,
        "tolerance": {"relative": 1e-6, "methods": 1e-5},
    }
    column = lambda i: {"n_tokens": data[i][0].tolist(), "policy": data[i][1].tolist(), "reference": data[i][2].tolist()}
    fixture = {
        "header": header,
        "margins": MARGINS,
        "losses": [loss_case(config, f) for config, f in LOSSES],
        "trimmed": [trimmed_case(rng, n, fraction) for n, fraction in ((8, 0.25), (10, 0.1), (5, 0.9), (6, 0.0))],
        "chosen": column(0),
        "rejected": column(1),
        "methods": [method_case(*method, data) for method in METHODS],
    }
    text = json.dumps(fixture, separators=(",", ":"))
    path = OUT / "preference_losses.json"
    path.write_text(text.replace('{"config"', '\n{"config"').replace('{"name"', '\n{"name"') + "\n")
    print(path.name, len(text))


if __name__ == "__main__":
    main()
