"""Loads folders that the Rust side wrote with transformers and compares logits, scores and generated tokens.

    cargo test -p steadfast-agents --features llm --test llm_checkpoints export -- --ignored --nocapture
    python tests/golden/generate/llm_exported.py target/tmp/llm_exported

Each folder has the `expected.json` of the golden checkpoint it was made from (see `llm_checkpoints.py`). Prints the greatest
difference; fails on one above the tolerance, on another token, and on a tensor that is missing, unexpected or newly made.
"""

import json
import os
import pathlib
import sys

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification


def main():
    worst = 0.0
    for folder in sorted(pathlib.Path(sys.argv[1]).iterdir()):
        expected = json.loads((folder / "expected.json").read_text())
        is_scalar = "scores" in expected
        kind = AutoModelForSequenceClassification if is_scalar else AutoModelForCausalLM
        assert AutoConfig.from_pretrained(folder).architectures == [type(kind.from_pretrained(folder)).__name__], folder
        model, info = kind.from_pretrained(folder, output_loading_info=True)
        for key in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            assert not info[key], (folder, key, info[key])
        model = model.float().eval()
        difference = 0.0
        with torch.no_grad():
            for at, sequence in enumerate(expected["sequences"]):
                tokens = torch.tensor([sequence])
                got = model(tokens).logits[0]
                if is_scalar:
                    assert model.config.num_labels == 1, folder
                    difference = max(difference, abs(got[0].item() - expected["scores"][at]))
                    continue
                difference = max(difference, (got - torch.tensor(expected["logits"][at])).abs().max().item())
                generated = expected["generated"][at]
                out = model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=len(generated), do_sample=False)
                assert out[0, len(sequence) :].tolist() == generated, folder
        print(f"{folder.name}: greatest difference {difference:.2e}")
        assert difference <= expected["header"]["tolerance"], folder
        worst = max(worst, difference)
    print(f"all: {worst:.2e}")


if __name__ == "__main__":
    main()
