"""One step of DPO in PyTorch, in single precision on one thread.

A step takes 8 pairs, thus 16 sequences of 128 tokens of which the last 64 are the completion: forward and backward of the
policy, a forward of the reference model, one step of AdamW over all weights. The models are the sizes S and M of
`llm_generate.py`.

- `llm_dpo_{S,M}`: seconds per step.
- `llm_dpo_cached_{S,M}`: the same with the reference's log-probabilities known beforehand.

Peers:

- `torch`: written by hand: queries, keys and values in one product, likewise gate and up; `scaled_dot_product_attention`;
  logits of the completion only; fused AdamW.
- `transformers`: the Llama model of that library, all logits, fused AdamW.
- `trl`: its `DPOTrainer` on S, without gradient checkpointing, on rows of the same lengths.

With `--device cuda` the first two run on the first GPU under autocast to `bfloat16`, with weights in single precision.
"""

import copy
import tempfile
import time

import measure
from llm_generate import SIZES

PAIRS, LENGTH, COMPLETION = 8, 128, 64
BETA, LEARNING_RATE = 0.1, 1e-5


def hand_written(shape):
    import torch
    from torch import nn
    from torch.nn import functional as F

    hidden, heads, width = shape["hidden_size"], shape["num_attention_heads"], shape["intermediate_size"]
    head_dim = hidden // heads
    frequencies = 10_000.0 ** (-torch.arange(0, head_dim, 2).float() / head_dim)
    angles = torch.outer(torch.arange(LENGTH).float(), frequencies).repeat(1, 2)
    cos, sin = angles.cos(), angles.sin()
    tables = {}

    def rotate(x):
        n = x.shape[-2]
        if x.device not in tables:
            tables[x.device] = cos.to(x.device), sin.to(x.device)
        c, s = tables[x.device]
        first, second = x.chunk(2, dim=-1)
        return (x * c[:n] + torch.cat((-second, first), dim=-1) * s[:n]).to(x.dtype)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention_norm, self.mlp_norm = nn.RMSNorm(hidden, 1e-6), nn.RMSNorm(hidden, 1e-6)
            self.qkv, self.out = nn.Linear(hidden, 3 * hidden, bias=False), nn.Linear(hidden, hidden, bias=False)
            self.gate_up, self.down = nn.Linear(hidden, 2 * width, bias=False), nn.Linear(width, hidden, bias=False)

        def forward(self, x):
            batch, n, _ = x.shape
            q, k, v = self.qkv(self.attention_norm(x)).view(batch, n, 3, heads, head_dim).permute(2, 0, 3, 1, 4)
            attended = F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
            x = x + self.out(attended.transpose(1, 2).reshape(batch, n, hidden))
            gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, dim=-1)
            return x + self.down(F.silu(gate) * up)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(shape["vocab_size"], hidden)
            self.blocks = nn.ModuleList(Block() for _ in range(shape["num_hidden_layers"]))
            self.norm, self.head = nn.RMSNorm(hidden, 1e-6), nn.Linear(hidden, shape["vocab_size"], bias=False)
            for module in self.modules():
                if isinstance(module, (nn.Linear, nn.Embedding)):
                    nn.init.normal_(module.weight, std=0.02)

        def forward(self, tokens):
            """Sums of log-probabilities of the completions, `[sequence]`."""
            x = self.embedding(tokens[:, :-1])
            for block in self.blocks:
                x = block(x)
            logits = self.head(self.norm(x[:, -COMPLETION:]))
            targets = tokens[:, -COMPLETION:]
            losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
            return -losses.view_as(targets).sum(dim=1)

    return Model()


def transformers_model(shape):
    from torch import nn
    from torch.nn import functional as F
    from transformers import LlamaConfig, LlamaForCausalLM

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = LlamaForCausalLM(LlamaConfig(**shape, max_position_embeddings=256))

        def forward(self, tokens):
            logits = self.model(tokens[:, :-1], use_cache=False).logits[:, -COMPLETION:]
            targets = tokens[:, -COMPLETION:]
            losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
            return -losses.view_as(targets).sum(dim=1)

    return Model()


def step(build, shape, is_cached, device):
    import torch
    from torch.nn import functional as F

    torch.manual_seed(0)
    policy = build(shape).to(device)
    reference = copy.deepcopy(policy).requires_grad_(False)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=LEARNING_RATE, fused=True)
    tokens = torch.randint(shape["vocab_size"], (2 * PAIRS, LENGTH)).to(device)
    is_cuda = device == "cuda"

    def narrow():
        return torch.autocast(device, torch.bfloat16, enabled=is_cuda)

    def reference_log_probs():
        with torch.no_grad(), narrow():
            return reference(tokens)

    cached = reference_log_probs()

    def work():
        with narrow():
            own = policy(tokens)
        reward = own - (cached if is_cached else reference_log_probs())
        loss = -F.logsigmoid(BETA * (reward[:PAIRS] - reward[PAIRS:])).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if is_cuda:
            torch.cuda.synchronize()

    return work


def trl_steps(shape, repetitions, is_cached):
    """Wall and CPU seconds of each step of the trainer but the first."""
    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    class Clock(TrainerCallback):
        def __init__(self):
            self.steps = []

        def on_step_begin(self, *arguments, **keywords):
            self.start = time.perf_counter(), time.process_time()

        def on_step_end(self, *arguments, **keywords):
            wall, cpu = self.start
            self.steps.append((time.perf_counter() - wall, time.process_time() - cpu))

    torch.manual_seed(0)
    words = ["<eos>", "<pad>"] + [f"w{i}" for i in range(shape["vocab_size"] - 2)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")

    def text(n):
        return " ".join(words[i] for i in torch.randint(2, len(words), (n,)).tolist())

    rows = [
        # The trainer adds the end-of-sequence token to the completions.
        {"prompt": text(LENGTH - COMPLETION), "chosen": " " + text(COMPLETION - 1), "rejected": " " + text(COMPLETION - 1)}
        for _ in range(PAIRS * (repetitions + 1))
    ]
    model = LlamaForCausalLM(LlamaConfig(**shape, max_position_embeddings=256, eos_token_id=0, pad_token_id=1, bos_token_id=None))
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        config = DPOConfig(
            output_dir=folder, per_device_train_batch_size=PAIRS, max_steps=repetitions + 1, max_length=LENGTH,
            learning_rate=LEARNING_RATE, beta=BETA, optim="adamw_torch_fused", gradient_checkpointing=False, bf16=False,
            use_cpu=True, report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True,
            precompute_ref_log_probs=is_cached,
        )
        trainer = DPOTrainer(
            model,
            ref_model=copy.deepcopy(model),
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[clock],
        )
        trainer.train()
    return clock.steps[1:]


def main():
    parser = measure.arguments(__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to run (default: cpu)")
    options = parser.parse_args()
    measure.pin(options.core)
    import torch

    torch.set_num_threads(1)
    version = measure.versions("torch", "transformers", "trl")
    for size, shape in SIZES.items():
        for is_cached in (False, True):
            case = f"llm_dpo_cached_{size}" if is_cached else f"llm_dpo_{size}"
            if options.only and case not in options.only:
                continue
            for peer, build in (("torch", hand_written), ("transformers", transformers_model)):
                work = step(build, shape, is_cached, options.device)
                work()
                timed = [measure.seconds(work) for _ in range(options.repetitions)]
                wall, cpu = zip(*timed)
                measure.emit(peer, case, "s", wall, cpu, version)
            if size == "S" and options.device == "cpu":
                wall, cpu = zip(*trl_steps(shape, options.repetitions, is_cached))
                measure.emit("trl", case, "s", wall, cpu, version)


if __name__ == "__main__":
    main()
