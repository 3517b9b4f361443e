"""The weight of a frozen linear layer, however it is stored: as it is, transposed (GPT-2), or packed in 4 bits."""

from __future__ import annotations

from typing import Any

import torch
from transformers.pytorch_utils import Conv1D


def unreadable(layer: torch.nn.Module) -> str | None:
    """Why `read_weight` cannot give the weight of ``layer``, in words that follow "because"; None where it can."""
    kind = type(layer)
    if kind not in (torch.nn.Linear, Conv1D) and not is_4bit(layer):
        return f"its base layer is a {kind.__name__}"
    weight = layer.weight
    if is_4bit(layer):
        state = getattr(weight, "quant_state", None)
        if state is None or getattr(state, "packing_format_for_cpu", False) or len(state.shape) != 2:
            return "its 4-bit weight is not in the layout of training"
    elif type(weight) is not torch.nn.Parameter or not weight.is_floating_point():
        return f"its base weight is a {type(weight).__name__}"
    if weight.requires_grad or (layer.bias is not None and layer.bias.requires_grad):
        return "its base layer is trained too"
    return None


def is_4bit(layer: torch.nn.Module) -> bool:
    """Whether bitsandbytes packs it; known by name, so that bitsandbytes need not be installed."""
    return type(layer).__name__ in ("Linear4bit", "LinearNF4", "LinearFP4")


def read_weight(layer: torch.nn.Module, dtype: torch.dtype) -> torch.Tensor:
    """``dtype[out, in]``: the layer's own tensor where it is stored so, else one made for the moment."""
    if is_4bit(layer):
        from bitsandbytes.functional import dequantize_4bit

        packed: Any = layer.weight
        unpacked: torch.Tensor = dequantize_4bit(packed.data, packed.quant_state)
        return unpacked.to(dtype)
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    weight = weight.detach()
    return (weight.t() if type(layer) is Conv1D else weight).to(dtype)


def compute_dtype(layer: torch.nn.Module, x: torch.Tensor) -> torch.dtype:
    """The type in which ``layer(x)`` multiplies: of autocast where that is on, else the layer's own."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    if is_4bit(layer):
        return getattr(layer, "compute_dtype", None) or x.dtype
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    return weight.dtype


def output_dtype(layer: torch.nn.Module, x: torch.Tensor) -> torch.dtype:
    """The type that ``layer(x)`` returns: bitsandbytes gives back that of the input."""
    return x.dtype if is_4bit(layer) else compute_dtype(layer, x)
