"""A training step of a small mixture with adapters, its experts by whet or by transformers and PEFT; all else is equal.

Both attend with whet's attention to packed documents and have whet's loss. Prints one JSON object: median seconds of a
step, and the most bytes of tensors that a step holds above what there was before it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("who", choices=["whet", "peft"])
    arguments.add_argument("--hidden-size", type=int, default=256)
    arguments.add_argument("--num-layers", type=int, default=4)
    arguments.add_argument("--num-experts", type=int, default=32)
    arguments.add_argument("--experts-per-token", type=int, default=4)
    arguments.add_argument("--expert-width", type=int, default=128)
    arguments.add_argument("--vocab-size", type=int, default=8192)
    arguments.add_argument("--tokens", type=int, default=2048)
    arguments.add_argument("--document", type=int, default=256, help="tokens of a document in the packed row")
    arguments.add_argument("--rank", type=int, default=16)
    arguments.add_argument("--train", choices=["experts", "attention", "full"], default="experts")
    arguments.add_argument("--steps", type=int, default=6)
    arguments.add_argument("--warmup", type=int, default=2)
    options = arguments.parse_args()

    import torch

    from whet.model.kernels.moe_grouped import choose_form
    from whet.model.kernels.moe_install import take_over
    from whet.model.loss import supervised_logits_loss
    from whet.model.memory.accounting import LiveBytes

    model = make_model(options)
    if options.who == "whet":
        take_over(model, choose_form("auto", device="cpu", dtype=torch.float32, widths=())[0])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
    batch = packed_row(options)

    def step() -> float:
        loss = supervised_logits_loss(model, batch).total
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    losses, seconds = [], []
    for _ in range(options.warmup + options.steps):
        start = time.perf_counter()
        losses.append(step())
        seconds.append(time.perf_counter() - start)
    with LiveBytes(model.parameters()) as alive:
        step()
    step_seconds = statistics.median(seconds[options.warmup :])
    measured = {
        "step_seconds": step_seconds,
        "tokens_per_second": options.tokens / step_seconds,
        "peak_bytes": alive.peak,
        "losses": losses,
    }
    print(json.dumps(measured))


def packed_row(options: argparse.Namespace) -> dict[str, Any]:
    """One flat row of random documents of equal length, every second token supervised."""
    import torch

    ids = torch.randint(options.vocab_size, (1, options.tokens), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, ::2] = -100
    edges = torch.arange(0, options.tokens + 1, options.document, dtype=torch.int32)
    return {
        "input_ids": ids,
        "labels": labels,
        "position_ids": torch.arange(options.tokens)[None] % options.document,
        "cu_seq_lens_q": edges,
        "cu_seq_lens_k": edges,
        "max_length_q": options.document,
        "max_length_k": options.document,
    }


def make_model(options: argparse.Namespace) -> Any:
    """A Qwen3-MoE with random weights, trained as ``--train`` says."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, Qwen3MoeConfig

    from whet.model.attention import register

    register()
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=options.vocab_size,
        hidden_size=options.hidden_size,
        num_hidden_layers=options.num_layers,
        num_attention_heads=options.hidden_size // 64,
        num_key_value_heads=options.hidden_size // 64,
        head_dim=64,
        num_experts=options.num_experts,
        num_experts_per_tok=options.experts_per_token,
        moe_intermediate_size=options.expert_width,
        norm_topk_prob=True,
        eos_token_id=None,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="whet_documents").train()
    if options.train == "full":
        return model
    parameters = ["experts.gate_up_proj", "experts.down_proj"] if options.train == "experts" else None
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    return get_peft_model(
        model,
        LoraConfig(r=options.rank, lora_alpha=2 * options.rank, target_modules=targets, target_parameters=parameters),
    )


if __name__ == "__main__":
    main()
