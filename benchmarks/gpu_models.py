"""The models of benchmarks/gpu.py: true shapes, random weights made on the device, and what a step of each costs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# Data sheets: dense bfloat16 products with float32 sums, in TFLOP/s. The first name that the device's holds counts.
DATA_SHEETS = (
    ("GH200", 989.0),
    ("H200", 989.0),
    ("H100 PCIe", 756.0),
    ("H100", 989.0),
    ("B200", 2250.0),
    ("B100", 1750.0),
    ("A100", 312.0),
    ("A800", 312.0),
    ("L40S", 362.0),
    ("L4", 121.0),
    ("A10G", 70.0),
    ("A10", 125.0),
    ("RTX 5090", 209.5),
    ("RTX 4090", 165.2),
    ("RTX 3090", 71.0),
    ("RTX A6000", 154.8),
    ("RTX 6000 Ada", 364.2),
)

LLAMA_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
}
QWEN3_600M = {
    "model_type": "qwen3",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}
SMALL_MOE = {
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 12,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "router_aux_loss_coef": 0.0,
}
TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 512,
}
TINY_MOE = {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
EXPERTS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")


@dataclass(frozen=True)
class Case:
    """One training job.

    Attributes:
        shape: of the model, as transformers' config names it.
        sequence_len: tokens of a row, one document each.
        rows: of a forward pass.
        lora: rank 16 on every linear layer; else every weight is trained.
        experts: the adapter is on the experts' weights and the attention's.
        nf4: the base model in 4 bits.
        pure: the weights in bfloat16; else float32 in mixed precision (an adapter's base is always in bfloat16).
        optimizer: its name in whet's config and in transformers.
        recompute: with gradient checkpointing.
        steps: timed ones, after two more.
        profiled: steps after those, under PyTorch's profiler.
        goal: in words; None where there is none.
    """

    shape: dict[str, Any]
    sequence_len: int = 4096
    rows: int = 1
    lora: bool = False
    experts: bool = False
    nf4: bool = False
    pure: bool = False
    optimizer: str = "adamw_torch_fused"
    recompute: bool = False
    steps: int = 8
    profiled: int = 0
    goal: str | None = None
    targets: tuple[str, ...] = field(default=LINEAR)


CASES = {
    "llama-8b-lora-4k": Case(LLAMA_8B, lora=True, goal="one H200: at least 16,000 tokens/s (54% MFU), no recompute"),
    "qwen3-0.6b-full-4k": Case(QWEN3_600M, rows=4, goal="one H200: at least 85,000 tokens/s"),
    "llama-8b-qlora-4k": Case(LLAMA_8B, lora=True, nf4=True),
    "llama-8b-full-8bit-4k": Case(LLAMA_8B, pure=True, optimizer="adamw_8bit", recompute=True, steps=5),
    "moe-lora-4k": Case(SMALL_MOE, lora=True, experts=True, targets=("q_proj", "k_proj", "v_proj", "o_proj")),
    "llama-8b-lora-64k": Case(LLAMA_8B, sequence_len=65536, lora=True, recompute=True, steps=1),
    "llama-8b-qlora-64k": Case(LLAMA_8B, sequence_len=65536, lora=True, nf4=True, recompute=True, steps=1),
}


def build_model(case: Case, device: str, dtype: Any, attention: str) -> Any:
    """The case's model with random weights, in training mode."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from whet.model.attention import register

    register()
    shape = dict(case.shape)
    config = AutoConfig.for_model(shape.pop("model_type"), **shape)
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    model.config.use_cache = False
    if case.nf4:
        _to_nf4(model, device)
    return model.train()


def _to_nf4(model: Any, device: str) -> None:
    """Every linear layer but the head in 4 bits, as bitsandbytes loads a checkpoint."""
    import torch
    from bitsandbytes.nn import Linear4bit, Params4bit

    for path, module in list(model.named_modules()):
        if type(module) is not torch.nn.Linear or path == "lm_head":
            continue
        packed = Linear4bit(
            module.in_features,
            module.out_features,
            bias=False,
            compute_dtype=module.weight.dtype,
            compress_statistics=True,
            quant_type="nf4",
            device="meta",
        )
        packed.weight = Params4bit(module.weight.data, requires_grad=False, quant_type="nf4").to(device)
        model.set_submodule(path, packed)
    model.is_loaded_in_4bit = True  # PEFT asks this


def flops_per_token(model_config: Any, case: Case, num_active: int, num_trained: int) -> float:
    """Floating-point operations that a token's forward and backward pass need, recomputation left out.

    Two a weight forwards, two backwards to the activations, and two for the gradient of each weight that is trained
    (Kaplan et al., 2020, https://arxiv.org/abs/2001.08361, with the two kinds of backward told apart); attention within
    a causal row: 2 products of half the row each way, three times.
    """
    text = model_config.get_text_config()
    width = text.num_attention_heads * getattr(text, "head_dim", text.hidden_size // text.num_attention_heads)
    attention = 3 * 2 * case.sequence_len * width * text.num_hidden_layers
    return 4.0 * num_active + 2.0 * num_trained + attention


def active_weights(model: Any) -> int:
    """Weights that a token is multiplied with: no embedding table (unless it is the head), of experts only its own."""
    from whet.model.quantize import count_weights

    text = model.config.get_text_config()
    share = getattr(text, "num_experts_per_tok", 1) / getattr(text, "num_experts", 1)
    total = 0.0
    for name, parameter in model.named_parameters():
        if "embed_tokens" in name and not text.tie_word_embeddings:
            continue
        if "lora_" in name or parameter.ndim < 2:
            continue
        total += count_weights(parameter) * (share if ".experts." in name else 1.0)
    return int(total)


def sheet_tflops(device_name: str) -> float | None:
    """bfloat16 TFLOP/s of the data sheet; None for a device that is not in the table."""
    return next((tflops for name, tflops in DATA_SHEETS if name.lower() in device_name.lower()), None)
