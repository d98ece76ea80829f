"""Greedy generation with `generate` of transformers, in single precision on one thread.

A prompt of 64 tokens and 128 new ones per row, prefill included; the end-of-sequence token is off. Untied Llama models
with random weights: S has hidden size 256, 4 layers, 4 heads, feed-forward width 688 and 4,096 tokens, M has 512, 8, 8,
1,376 and 8,192.

- `llm_generate_{S,M}_b{B}`: new tokens per second over the whole call, for B of 1 and 16 rows.

With `--device cuda` it runs on the first GPU in `bfloat16`.
"""

import measure

SIZES = {
    "S": dict(hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=688, vocab_size=4096),
    "M": dict(hidden_size=512, num_hidden_layers=8, num_attention_heads=8, intermediate_size=1376, vocab_size=8192),
}
PROMPT, NEW = 64, 128


def main():
    parser = measure.arguments(__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to run (default: cpu)")
    options = parser.parse_args()
    measure.pin(options.core)
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    version = measure.versions("torch", "transformers")
    for size, shape in SIZES.items():
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**shape, max_position_embeddings=256, eos_token_id=None)).eval()
        model = model.to(options.device, torch.bfloat16 if options.device == "cuda" else torch.float32)
        model.generation_config.eos_token_id = None
        for batch in (1, 16):
            case = f"llm_generate_{size}_b{batch}"
            if options.only and case not in options.only:
                continue
            prompts = torch.randint(shape["vocab_size"], (batch, PROMPT)).to(options.device)
            mask = torch.ones_like(prompts)

            def work():
                out = model.generate(
                    prompts, attention_mask=mask, max_new_tokens=NEW, do_sample=False, pad_token_id=0
                )
                assert out.shape == (batch, PROMPT + NEW)

            measure.rate("transformers", case, batch * NEW, work, options.repetitions, version, unit="tokens/s")


if __name__ == "__main__":
    main()
