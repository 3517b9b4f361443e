"""Base models in few bits, by bitsandbytes."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
import transformers
from transformers import BitsAndBytesConfig, PreTrainedModel

from whet.config import Config
from whet.config.resolve import ResolvedRun
from whet.core.errors import ModelError, Problem


def quantization_config(config: Config, resolved: ResolvedRun) -> Any:
    """How transformers shall quantise the linear layers while loading; None when the run is not quantised.

    4-bit layers multiply in ``bnb_4bit_compute_dtype``, by default the run's own compute type.

    Raises:
        ModelError: bitsandbytes is not installed, or refuses an argument.
    """
    if config.quant.model_quantization_config is not None:
        return _of_the_model(config)
    if resolved.quantization == "none":
        return None
    key = "load_in_8bit" if resolved.quantization == "int8" else "load_in_4bit"
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            Problem(config.where(key), f"{key} needs the package bitsandbytes", "pip install bitsandbytes", key)
        )
    options: dict[str, Any] = {"load_in_8bit": True}
    if config.quant.llm_int8_threshold is not None:
        options["llm_int8_threshold"] = config.quant.llm_int8_threshold
    if resolved.quantization != "int8":
        compute = config.quant.bnb_4bit_compute_dtype or resolved.autocast_dtype or resolved.dtype
        options = {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": resolved.quantization,
            "bnb_4bit_compute_dtype": getattr(torch, compute),
            "bnb_4bit_use_double_quant": config.quant.bnb_4bit_use_double_quant,
        }
        if config.quant.bnb_4bit_quant_storage is not None:
            options["bnb_4bit_quant_storage"] = getattr(torch, config.quant.bnb_4bit_quant_storage)
    options.update(config.quant.bnb_config_kwargs or {})
    try:
        return BitsAndBytesConfig(**options)
    except (TypeError, ValueError) as error:
        raise ModelError(
            Problem(config.where("bnb_config_kwargs"), f"bitsandbytes refuses its options: {error}", "correct them",
                    "bnb_config_kwargs")
        ) from error  # fmt: skip


def _of_the_model(config: Config) -> Any:
    """What `model_quantization_config` names, made with its arguments."""
    name, arguments = str(config.quant.model_quantization_config), config.quant.model_quantization_config_kwargs or {}
    try:
        return getattr(transformers, name)(**arguments)
    except (TypeError, ValueError) as error:
        key = "model_quantization_config_kwargs"
        found = f"{name} refuses its arguments: {error}"
        raise ModelError(Problem(config.where(key), found, "correct them", key)) from error


def prepare_quantized(model: PreTrainedModel, *, embedding_stays: bool = False) -> None:
    """Freeze a quantised model and keep its other weights (norms, embeddings, head) in float32.

    The stacked weights of a mixture's experts, which bitsandbytes does not quantise, stay in 16 bits: they are most of
    the model. The others are few, and their rounding in 16 bits would add to that of the quantised layers (QLoRA,
    https://arxiv.org/abs/2305.14314, section 4 trains in the same way).

    Args:
        embedding_stays: leave the input embedding in its 16 bits.
    """
    keep_layout(model)
    kept = model.get_input_embeddings().weight if embedding_stays else None
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        is_half = parameter.dtype in (torch.float16, torch.bfloat16) and not _is_packed(parameter)
        if is_half and parameter is not kept and parameter.dim() < 3:
            parameter.data = parameter.data.to(torch.float32)


def keep_layout(model: PreTrainedModel) -> None:
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
