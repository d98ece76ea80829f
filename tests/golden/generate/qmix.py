"""Writes golden values and derivatives of QMIX's mixing network, computed by EPyMARL's own module.

    pip install torch==2.15.0 numpy==2.4.6
    git clone https://github.com/uoe-agents/epymarl && git -C epymarl checkout cbc38c0
    python tests/golden/generate/qmix.py --epymarl epymarl

Double precision, derivatives by autograd of the sum of weighted values.
"""

import argparse
import importlib.util
import json
import pathlib
import subprocess
from importlib.metadata import version
from types import SimpleNamespace

import torch

SEED = 20261127
OUT = pathlib.Path(__file__).resolve().parent.parent
AGENTS, STATE, WIDTH, HYPERNETWORK, ROWS = 3, 5, 4, 6, 8
torch.set_default_dtype(torch.float64)


def linear(layer):
    return {"weight": layer.weight.tolist(), "bias": layer.bias.tolist()}


def layers(part):
    return [linear(p) for p in part.modules() if isinstance(p, torch.nn.Linear)]


def gradients(part):
    return [{"weight": p.weight.grad.tolist(), "bias": p.bias.grad.tolist()} for p in part.modules() if isinstance(p, torch.nn.Linear)]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epymarl", type=pathlib.Path, required=True)
    root = parser.parse_args().epymarl
    spec = importlib.util.spec_from_file_location("qmix", root / "src/modules/mixers/qmix.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(SEED)
    arguments = SimpleNamespace(
        n_agents=AGENTS, state_shape=(STATE,), mixing_embed_dim=WIDTH, hypernet_layers=2, hypernet_embed=HYPERNETWORK
    )
    mixer = module.QMixer(arguments)
    states = torch.randn(ROWS, STATE)
    values = (2 * torch.randn(ROWS, AGENTS)).requires_grad_()
    weights = torch.randn(ROWS)
    mixed = mixer(values.unsqueeze(1), states.unsqueeze(1)).flatten()
    (weights * mixed).sum().backward()
    parts = {"hyper_w_1": mixer.hyper_w_1, "hyper_b_1": mixer.hyper_b_1, "hyper_w_final": mixer.hyper_w_final, "v": mixer.V}
    commit = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    golden = {
        "header": {
            "seed": SEED,
            "epymarl": commit,
            "torch": version("torch"),
            "tolerance": "1e-5, relative to the greatest value of each array",
        },
        "n_agents": AGENTS,
        "state": STATE,
        "width": WIDTH,
        "hypernetwork": HYPERNETWORK,
        "parts": {name: layers(part) for name, part in parts.items()},
        "gradients": {name: gradients(part) for name, part in parts.items()},
        "states": states.tolist(),
        "values": values.tolist(),
        "weights": weights.tolist(),
        "mixed": mixed.tolist(),
        "d_values": values.grad.tolist(),
    }
    (OUT / "qmix.json").write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
