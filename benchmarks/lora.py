"""A LoRA step with whet's kernels against the same step by PEFT: time, and bytes kept for the backward pass.

One process, one base model of random weights, the same attention, loss, norms and optimizer for both; adapters on every
linear layer; one packed row of documents of 250 tokens, fp32, on the CPU. The two are stepped in turn, and the order
changes from round to round. The limit is the step without any adapter, in which only the input's gradient goes through
the frozen layers: it cannot be beaten by computing adapters better.
Run: python benchmarks/lora.py [--hidden-size 512 --num-layers 8].
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

from common import report
from whet.config import Config
from whet.config.resolve import resolve
from whet.core.types import Hardware
from whet.model.attention import NAME, register
from whet.model.levers import install_levers
from whet.model.loss import supervised_logits_loss
from whet.model.memory.accounting import LiveBytes

KERNELS = ("lora_qkv_kernel", "lora_mlp_kernel", "lora_o_kernel")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--hidden-size", type=int, default=256)
    arguments.add_argument("--num-layers", type=int, default=4)
    arguments.add_argument("--vocab-size", type=int, default=8192)
    arguments.add_argument("--sequence-len", type=int, default=2048)
    arguments.add_argument("--lora-r", type=int, default=16)
    arguments.add_argument("--rounds", type=int, default=12)
    options = arguments.parse_args()

    batch = packed_row(options.sequence_len, options.vocab_size)
    models = {
        "kernels": adapted(options, kernels=True),
        "peft": adapted(options, kernels=False),
        "bare": without_adapter(options),
    }
    steps = {name: stepper(model, batch) for name, model in models.items()}
    kept = {name: kept_bytes(model, batch) for name, model in models.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(options.rounds + 2):
        names = list(steps) if number % 2 else list(reversed(steps))
        for name in names:
            start = time.perf_counter()
            steps[name]()
            if number >= 2:
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    report(
        f"lora-{options.num_layers}x{options.hidden_size}-s{options.sequence_len}-r{options.lora_r}",
        unit="seconds a step",
        ours=medians["kernels"],
        peer=medians["peft"],
        ratio=medians["peft"] / medians["kernels"],
        limit=medians["bare"],
        goal="a step in 1 / 1.25 of PEFT's time, with less memory",
        peer_name="PEFT's own forward, the same attention and loss",
        best={name: min(values) for name, values in seconds.items()},
        kept_bytes={name: now for name, (now, _) in kept.items()},
        peak_bytes={name: peak for name, (_, peak) in kept.items()},
        threads=torch.get_num_threads(),
        arguments=vars(options),
    )


def base(options: argparse.Namespace) -> Any:
    register()
    torch.manual_seed(0)
    heads = max(4, options.hidden_size // 64)
    config = LlamaConfig(
        vocab_size=options.vocab_size,
        hidden_size=options.hidden_size,
        intermediate_size=4 * options.hidden_size,
        num_hidden_layers=options.num_layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=8192,
    )
    return AutoModelForCausalLM.from_config(config, attn_implementation=NAME)


def adapted(options: argparse.Namespace, *, kernels: bool) -> Any:
    settings = LoraConfig(
        task_type="CAUSAL_LM",
        r=options.lora_r,
        lora_alpha=2 * options.lora_r,
        target_modules="all-linear",
        init_lora_weights="gaussian",
    )
    return with_levers(get_peft_model(base(options), settings), adapter=dict.fromkeys(KERNELS, kernels))


def without_adapter(options: argparse.Namespace) -> Any:
    """The frozen model, with a gradient for what the embedding gives."""
    model = base(options).requires_grad_(False)
    model.enable_input_require_grads()
    return with_levers(model, adapter={})


def with_levers(model: Any, adapter: dict[str, Any]) -> Any:
    """What a run installs; the config's adapter keys beside those of the kernels are not read here."""
    config = Config.model_validate(
        {
            "model": {"base_model": "none"},
            "data": {"datasets": ({"path": "none", "type": "completion"},)},
            "optimizer": {"learning_rate": 1e-4},
            "adapter": {"adapter": "lora", **adapter} if adapter else {},
            "file": "bench.yaml",
        }
    )
    for sentence in install_levers(model, config, resolve(config, Hardware("cpu"))):
        print(sentence)
    return model.train()


def packed_row(length: int, vocab_size: int, document: int = 250) -> dict[str, Any]:
    """Documents of 250 tokens in one row, half of the tokens supervised."""
    random = torch.Generator().manual_seed(0)
    lengths = [document] * (length // document) + ([length % document] if length % document else [])
    input_ids = torch.randint(vocab_size, (1, length), generator=random)
    labels = input_ids.where(torch.rand(input_ids.shape, generator=random) < 0.5, torch.tensor(-100))
    edges = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    labels[0, edges[:-1].long()] = -100
    return {
        "input_ids": input_ids,
        "labels": labels,
        "position_ids": torch.cat([torch.arange(n) for n in lengths])[None],
        "cu_seq_lens_q": edges,
        "cu_seq_lens_k": edges,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }


def stepper(model: Any, batch: dict[str, Any]) -> Callable[[], None]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True) if trained else None

    def step() -> None:
        supervised_logits_loss(model, batch).total.backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()

    return step


def kept_bytes(model: Any, batch: dict[str, Any]) -> tuple[int, int]:
    """Bytes alive between forward and backward, and at most, beside the weights."""
    with LiveBytes(known=model.state_dict().values()) as alive:
        loss = supervised_logits_loss(model, batch).total
        now = alive.now()
        loss.backward()
    model.zero_grad()
    return now, alive.peak


if __name__ == "__main__":
    main()
