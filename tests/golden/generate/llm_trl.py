"""Writes losses and metrics of TRL's preference trainers on made-up log-probabilities.

    pip install trl==1.16.0 torch==2.15.0 transformers==5.24.0
    python tests/golden/generate/llm_trl.py

Runs the trainers' own `_compute_loss` (DPO, KTO) and `get_batch_loss_metrics` (ORPO, CPO) with a stand-in for the model
that returns the log-probabilities.
"""

import collections
import json
import os
import pathlib
import random
import types
from importlib.metadata import version

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_trainer import KTOTrainer

SEED = 20240807
OUT = pathlib.Path(__file__).resolve().parent.parent
PROMPT = 3


class Accelerator:
    device = torch.device("cpu")

    def gather(self, x):
        return x

    gather_for_metrics = gather

    def unwrap_model(self, model):
        return model


def collected():
    return {mode: collections.defaultdict(list) for mode in ("train", "eval")}


class Model:
    """Gives prepared log-probabilities per token; `training` chooses the group of metrics."""

    training = True

    def __init__(self, *tables):
        self.tables = list(tables)

    def __call__(self, **kwargs):
        table = self.tables.pop(0)
        assert table.shape[1] == kwargs["input_ids"].shape[1] - 1
        zeros = torch.zeros_like(table)
        return types.SimpleNamespace(
            log_probs=table, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool(), log_sum_sq_probs=zeros
        )


def spread(total, n, width):
    """A row of `width` log-probabilities, of which the `n` after the prompt add up to `total`."""
    row = torch.zeros(width, dtype=torch.float64)
    row[PROMPT - 1 : PROMPT - 1 + n] = total / n
    return row


def batch(lengths):
    width = PROMPT + max(lengths)
    attention = torch.tensor([[1] * (PROMPT + n) + [0] * (width - PROMPT - n) for n in lengths])
    completion = torch.tensor([[0] * PROMPT + [1] * n + [0] * (width - PROMPT - n) for n in lengths])
    return {"input_ids": torch.ones_like(attention), "attention_mask": attention, "completion_mask": completion}, width - 1


def f32(x):
    return torch.tensor(x, dtype=torch.float32).item()


def draw_pairs(rng, n):
    pairs = []
    for _ in range(n):
        lengths = [rng.randint(1, 12), rng.randint(1, 12)]
        policy = [f32(-length * rng.uniform(0.2, 3.0)) for length in lengths]
        reference = [f32(min(-0.01, p + rng.gauss(0, 6))) for p in policy]
        pairs.append({"n_tokens": lengths, "policy": policy, "reference": reference})
    return pairs


def tensor(pairs, key, which):
    return torch.tensor([p[key][which] for p in pairs], dtype=torch.float64)


def dpo(pairs, loss_type, beta, label_smoothing=0.0):
    lengths = [p["n_tokens"][0] for p in pairs] + [p["n_tokens"][1] for p in pairs]
    inputs, width = batch(lengths)
    totals = [p["policy"][0] for p in pairs] + [p["policy"][1] for p in pairs]
    table = torch.stack([spread(t, n, width) for t, n in zip(totals, lengths)])
    inputs["ref_chosen_logps"] = tensor(pairs, "reference", 0)
    inputs["ref_rejected_logps"] = tensor(pairs, "reference", 1)
    model = Model(table)
    trainer = types.SimpleNamespace(
        accelerator=Accelerator(), model=model, aux_loss_enabled=False, ld_alpha=None, precompute_ref_logps=True,
        f_divergence_type="reverse_kl", loss_types=[loss_type], loss_weights=[1.0], beta=beta,
        label_smoothing=label_smoothing, use_weighting=False, _metrics=collected(), _total_train_tokens=0, _tp_size=1,
    )
    loss = DPOTrainer._compute_loss(trainer, model, inputs, False)
    return loss.item(), {k: v[-1] for k, v in trainer._metrics["train"].items()}


def kto(rows, beta, desirable, undesirable):
    inputs, width = batch([r["n_tokens"] for r in rows])
    table = torch.stack([spread(r["policy"], r["n_tokens"], width) for r in rows])
    kl_inputs, kl_width = batch([r["kl_n_tokens"] for r in rows])
    kl_table = torch.stack([spread(r["kl_policy"], r["kl_n_tokens"], kl_width) for r in rows])
    inputs |= {f"KL_{k}": v for k, v in kl_inputs.items()}
    inputs["label"] = torch.tensor([r["desirable"] for r in rows])
    inputs["ref_logps"] = torch.tensor([r["reference"] for r in rows], dtype=torch.float64)
    inputs["ref_KL_logps"] = torch.tensor([r["kl_reference"] for r in rows], dtype=torch.float64)
    model = Model(kl_table, table)
    trainer = types.SimpleNamespace(
        accelerator=Accelerator(), model=model, aux_loss_enabled=False, precompute_ref_logps=True, calculate_KL=True,
        loss_type="kto", beta=beta, desirable_weight=desirable, undesirable_weight=undesirable, _metrics=collected(),
        _total_train_tokens=0, _tp_size=1,
    )
    trainer._compute_kl_logps = types.MethodType(KTOTrainer._compute_kl_logps, trainer)
    loss = KTOTrainer._compute_loss(trainer, model, inputs, False)
    return loss.item(), {k: v[-1] for k, v in trainer._metrics["train"].items()}


def unreferenced(trainer_class, pairs, nll, averaged, **settings):
    divide = lambda which: torch.tensor([p["n_tokens"][which] for p in pairs]) if averaged else 1
    chosen, rejected = (tensor(pairs, "policy", w) / divide(w) for w in (0, 1))
    zeros = torch.zeros(len(pairs), 1)
    trainer = types.SimpleNamespace(accelerator=Accelerator(), aux_loss_enabled=False, **settings)
    trainer.concatenated_forward = lambda model, batch: (chosen, rejected, zeros, zeros, torch.tensor(nll))
    for name in ("odds_ratio_loss", "cpo_loss"):
        if hasattr(trainer_class, name):
            setattr(trainer, name, types.MethodType(getattr(trainer_class, name), trainer))
    loss, metrics = trainer_class.get_batch_loss_metrics(trainer, None, None)
    return loss.item(), metrics


def kept(metrics):
    names = ("rewards/", "logps/", "kl", "nll_loss", "log_odds")
    return {k: v for k, v in metrics.items() if k.startswith(names)}


def main():
    rng = random.Random(SEED)
    pairs = draw_pairs(rng, 12)
    # Mean over the tokens of the chosen answers.
    nll = -sum(p["policy"][0] for p in pairs) / sum(p["n_tokens"][0] for p in pairs)
    cases = []

    def case(name, settings, result):
        loss, metrics = result
        cases.append({"name": name, "settings": settings, "loss": loss, "metrics": kept(metrics)})

    for beta in (0.1, 0.5):
        for loss_type in ("sigmoid", "hinge", "ipo", "sigmoid_norm"):
            case(loss_type, {"beta": beta}, dpo(pairs, loss_type, beta))
        for epsilon in (0.1, 0.3):
            settings = {"beta": beta, "epsilon": epsilon}
            case("robust", settings, dpo(pairs, "robust", beta, epsilon))
        case("orpo", {"beta": beta, "nll": nll}, unreferenced(ORPOTrainer, pairs, nll, True, beta=beta))
    for beta, gamma, alpha, epsilon in ((2.0, 0.5, 0.0, 0.0), (2.5, 1.0, 1.0, 0.0), (2.0, 1.0, 0.0, 0.2)):
        settings = {"beta": beta, "gamma": gamma, "nll_weight": alpha, "epsilon": epsilon, "nll": nll}
        result = unreferenced(
            CPOTrainer, pairs, nll, True, beta=beta, simpo_gamma=gamma, cpo_alpha=alpha, label_smoothing=epsilon,
            loss_type="simpo", alpha=0.0,
        )
        case("simpo", settings, result)

    rows = []
    for pair in draw_pairs(rng, 10):
        rows.append(
            {
                "n_tokens": pair["n_tokens"][0], "policy": pair["policy"][0], "reference": pair["reference"][0],
                "kl_n_tokens": pair["n_tokens"][1], "kl_policy": pair["policy"][1],
                "kl_reference": pair["reference"][1], "desirable": rng.random() < 0.6,
            }
        )
    # The same with policy and reference exchanged in the mismatched rows, so that the other sign of the mean occurs.
    swapped = [r | {"kl_policy": r["kl_reference"], "kl_reference": r["kl_policy"]} for r in rows]
    kto_cases = []
    for beta, desirable, undesirable in ((0.1, 1.0, 1.0), (0.3, 1.5, 0.7)):
        for name, data in (("rows", rows), ("swapped", swapped)):
            loss, metrics = kto(data, beta, desirable, undesirable)
            settings = {"beta": beta, "desirable_weight": desirable, "undesirable_weight": undesirable}
            kto_cases.append({"rows": name, "settings": settings, "loss": loss, "metrics": kept(metrics)})

    packages = {name: version(name) for name in ("trl", "torch", "transformers")}
    header = {"generator": "tests/golden/generate/llm_trl.py", "packages": packages, "seed": SEED, "tolerance": 1e-5}
    content = {"header": header, "pairs": pairs, "cases": cases, "kto_rows": rows, "kto_cases": kto_cases}
    (OUT / "llm_trl.json").write_text(json.dumps(content, indent=1) + "\n")


main()
