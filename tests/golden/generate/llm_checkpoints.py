"""Writes tiny random checkpoints of all families with what transformers computes from them, and frequencies of all scalings.

    pip install torch==2.15.0 transformers==5.24.0 safetensors numpy
    python tests/golden/generate/llm_checkpoints.py

Each folder under `tests/golden/llm/checkpoints` holds a checkpoint and `expected.json`: two sequences, their logits in single
precision (or scores of a scalar head), and 12 tokens of greedy generation from each, alone and left-padded in one batch.
All weights are random, norms and biases too, and wide enough that no choice of a token is near a tie. Between them the
folders have one file and shards, three types of numbers, old and new spellings, and old names.

`tests/golden/llm/rope.json` holds rotary frequencies of all scalings as the library computes them.
"""

import json
import os
import pathlib
import shutil
from importlib.metadata import version

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

SEED = 20261126
OUT = pathlib.Path(__file__).resolve().parent.parent / "llm"
VOCAB, NEW = 48, 12
HEADER = {
    "generator": "tests/golden/generate/llm_checkpoints.py",
    "packages": {p: version(p) for p in ("torch", "transformers", "safetensors")},
    "seed": SEED,
}
SMALL = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
             max_position_embeddings=64, bos_token_id=None, eos_token_id=None, pad_token_id=0)
GPT2 = dict(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=40, n_inner=40, bos_token_id=None,
            eos_token_id=None, pad_token_id=0)
LLAMA3 = dict(rope_type="llama3", rope_theta=500.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=32)
YARN = dict(rope_type="yarn", rope_theta=1000.0, factor=4.0, original_max_position_embeddings=16)


def dump(path, content):
    path.write_text(json.dumps(content, separators=(",", ":")) + "\n")


def randomize(model):
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape)
        if parameter.dim() == 1:
            centre = 1.0 if "norm" in name and name.endswith("weight") or ".ln_" in name and name.endswith("weight") else 0.0
            parameter.data = centre + 0.2 * noise
        else:
            parameter.data = noise * (1.0 if "embed" in name or "wte" in name else 0.35)


def rounded(tensor):
    return [[float(f"{value:.7g}") for value in row] for row in tensor.tolist()]


def expect(model, sequences):
    """Logits and greedy tokens, with the proof that padding changes nothing; nothing if a choice is near a tie."""
    model = model.float().eval()
    single, logits = [], []
    with torch.no_grad():
        for sequence in sequences:
            tokens = torch.tensor([sequence])
            logits.append(model(tokens).logits[0])
            out = model.generate(tokens, max_new_tokens=NEW, do_sample=False, eos_token_id=None, attention_mask=torch.ones_like(tokens))
            single.append(out[0, len(sequence):].tolist())
            top = model(out).logits[0, len(sequence) - 1 : -1].topk(2).values
            if (top[:, 0] - top[:, 1]).min() < 5e-3:
                return None
        longest = max(map(len, sequences))
        padded = torch.tensor([[0] * (longest - len(s)) + s for s in sequences])
        mask = torch.tensor([[0] * (longest - len(s)) + [1] * len(s) for s in sequences])
        batched = model.generate(padded, attention_mask=mask, max_new_tokens=NEW, do_sample=False, eos_token_id=None)
        assert batched[:, longest:].tolist() == single, "padding changed the tokens"
    return {"logits": [rounded(l) for l in logits], "generated": single}


def old_spelling(folder, changes):
    """Writes `config.json` as version 4 of the library did, and checks that it means the same."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["torch_dtype"] = config.pop("dtype")
    config.update(changes(rope))
    path.write_text(json.dumps(config, indent=2) + "\n")


def checkpoint(name, config, seed, dtype=torch.float32, scalar=False, old=None, attempt=0, **save):
    torch.manual_seed(SEED + seed + 100 * attempt)
    folder = OUT / "checkpoints" / name
    shutil.rmtree(folder, ignore_errors=True)
    if scalar:
        config.num_labels = 1
    kind = AutoModelForSequenceClassification if scalar else AutoModelForCausalLM
    model = kind.from_config(config)
    randomize(model)
    model.tie_weights()
    sequences = [torch.randint(1, VOCAB, (n,)).tolist() for n in (9, 14)]
    model.to(dtype).save_pretrained(folder, **save)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if old:
        old_spelling(folder, old)
    model = kind.from_pretrained(folder, dtype=torch.float32)
    if scalar:
        with torch.no_grad():
            expected = {"scores": [model.float().eval()(torch.tensor([s])).logits[0, 0].item() for s in sequences]}
    else:
        expected = expect(model, sequences)
        if expected is None:
            return checkpoint(name, config, seed, dtype, scalar, old, attempt + 1, **save)
    dump(folder / "expected.json", {"header": {**HEADER, "tolerance": 1e-4}, "sequences": sequences, **expected})
    print(name, sum(f.stat().st_size for f in folder.iterdir()), sorted(f.name for f in folder.iterdir()))
    return folder


def checkpoints():
    t = transformers
    checkpoint("llama", t.LlamaConfig(**SMALL, num_key_value_heads=2, rope_parameters=LLAMA3), 1, max_shard_size="30KB")
    checkpoint("llama_tied_biased", t.LlamaConfig(**SMALL, num_key_value_heads=1, head_dim=12, attention_bias=True, mlp_bias=True,
               tie_word_embeddings=True), 2, torch.bfloat16)
    checkpoint("mistral", t.MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=6), 3, torch.bfloat16)
    checkpoint("qwen2", t.Qwen2Config(**SMALL, num_key_value_heads=2, rope_parameters=YARN, use_sliding_window=True, sliding_window=5,
               max_window_layers=1), 4, torch.bfloat16,
               old=lambda rope: {"rope_theta": rope.pop("rope_theta"), "rope_scaling": {"type": rope.pop("rope_type"), **rope}})
    checkpoint("qwen3", t.Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=16), 5, torch.bfloat16)
    neox = {**SMALL, "num_attention_heads": 2}
    checkpoint("gpt_neox", t.GPTNeoXConfig(**neox), 6, torch.float16,
               old=lambda rope: {"rotary_emb_base": rope["rope_theta"], "rotary_pct": rope["partial_rotary_factor"]})
    checkpoint("gpt_neox_serial", t.GPTNeoXConfig(**neox, use_parallel_residual=False, attention_bias=False,
               rope_parameters=dict(rope_type="linear", rope_theta=100.0, factor=2.0, partial_rotary_factor=0.5)), 7, torch.float16)
    folder = checkpoint("gpt2", t.GPT2Config(**GPT2), 8)
    # As the oldest files have it: no prefix, and the causal mask written along.
    tensors = {k.removeprefix("transformer."): v for k, v in load_file(folder / "model.safetensors").items()}
    for layer in range(2):
        tensors[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 40, 40, dtype=torch.bool).tril()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    checkpoint("gpt2_reward", t.GPT2Config(**GPT2, activation_function="relu"), 9, torch.bfloat16, scalar=True)
    checkpoint("qwen3_reward", t.Qwen3Config(**SMALL, num_key_value_heads=4, head_dim=8, tie_word_embeddings=True), 10, torch.bfloat16, scalar=True)


def rope():
    scalings = [
        ({"rope_type": "linear", "factor": 2.5}, [64]),
        ({"rope_type": "dynamic", "factor": 4.0}, [64, 100, 256]),
        (LLAMA3, [64]),
        (dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192), [64]),
        (YARN, [64]),
        (dict(rope_type="yarn", factor=40.0, beta_fast=16.0, beta_slow=2.0, original_max_position_embeddings=4096), [64]),
        (dict(rope_type="yarn", factor=4.0, attention_factor=0.75, truncate=False, original_max_position_embeddings=128), [64]),
        (dict(rope_type="yarn", factor=40.0, mscale=0.707, mscale_all_dim=1.1, original_max_position_embeddings=4096), [64]),
        (dict(rope_type="yarn", factor=0.5, original_max_position_embeddings=32), [64]),
    ]
    cases = []
    for head_dim, theta in ((8, 10_000.0), (64, 500_000.0), (128, 1_000_000.0)):
        for parameters, lengths in scalings:
            for length in lengths:
                given = {"rope_theta": theta, **parameters}
                config = transformers.LlamaConfig(**SMALL, num_key_value_heads=2, head_dim=head_dim, rope_parameters=dict(given))
                frequencies, factor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, "cpu", seq_len=length)
                cases.append({
                    "config": config.to_dict() | {"dtype": None}, "length": length, "attention_factor": factor,
                    "frequencies": [float(f"{f:.8g}") for f in frequencies.tolist()],
                })
    keep = ("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "max_position_embeddings", "head_dim", "rope_parameters")
    for case in cases:
        case["config"] = {key: case["config"][key] for key in keep}
    # Powers in single precision there, in double precision here.
    dump(OUT / "rope.json", {"header": {**HEADER, "relative_tolerance": 2e-6}, "cases": cases})
    print("rope.json", (OUT / "rope.json").stat().st_size, len(cases))


if __name__ == "__main__":
    checkpoints()
    rope()
