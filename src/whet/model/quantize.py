"""Base models in few bits, by bitsandbytes."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from whet.config import Config
from whet.config.resolve import ResolvedRun
from whet.core.errors import ModelError, Problem


def quantization_config(config: Config, resolved: ResolvedRun) -> BitsAndBytesConfig | None:
    """How transformers shall quantise the linear layers while loading; None when the run is not quantised.

    4-bit layers multiply in ``bnb_4bit_compute_dtype``, by default the run's own compute type.

    Raises:
        ModelError: bitsandbytes is not installed, or refuses an argument.
    """
    if resolved.quantization == "none":
        return None
    key = "load_in_8bit" if resolved.quantization == "int8" else "load_in_4bit"
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            Problem(config.where(key), f"{key} needs the package bitsandbytes", "pip install bitsandbytes", key)
        )
    options: dict[str, Any] = {"load_in_8bit": True}
    if resolved.quantization != "int8":
        compute = config.quant.bnb_4bit_compute_dtype or resolved.autocast_dtype or resolved.dtype
        options = {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": resolved.quantization,
            "bnb_4bit_compute_dtype": getattr(torch, compute),
            "bnb_4bit_use_double_quant": config.quant.bnb_4bit_use_double_quant,
        }
    options.update(config.quant.bnb_config_kwargs or {})
    try:
        return BitsAndBytesConfig(**options)
    except (TypeError, ValueError) as error:
        raise ModelError(
            Problem(config.where("bnb_config_kwargs"), f"bitsandbytes refuses its options: {error}", "correct them",
                    "bnb_config_kwargs")
        ) from error  # fmt: skip


def prepare_quantized(model: PreTrainedModel) -> None:
    """Freeze a quantised model and keep its other weights (norms, embeddings, head) in float32.

    These are few, and their rounding in 16 bits would add to that of the quantised layers (QLoRA,
    https://arxiv.org/abs/2305.14314, section 4 trains in the same way).
    """
    _keep_layout(model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        if parameter.dtype in (torch.float16, torch.bfloat16) and not _is_packed(parameter):
            parameter.data = parameter.data.to(torch.float32)


def _keep_layout(model: PreTrainedModel) -> None:
    """Keep bitsandbytes from repacking 4-bit weights in the first evaluation on a CPU with AVX512-BF16.

    Its inference layout rounds the blocks' scales to bfloat16 for good, refuses widths that are no multiple of the
    block, and would make the model that is trained another one after each evaluation (seen in 0.50.2).
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def count_weights(parameter: torch.nn.Parameter) -> int:
    """Weights that ``parameter`` stands for; a packed 4-bit tensor holds two in each byte."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else int(torch.Size(state.shape).numel())


def _is_packed(parameter: torch.nn.Parameter) -> bool:
    """Whether bitsandbytes stores 4-bit weights in it; their bytes may be declared as any dtype."""
    return type(parameter).__name__ == "Params4bit"
