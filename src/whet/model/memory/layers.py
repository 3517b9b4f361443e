"""The repeated layers of a model, as transformers marks them."""

from __future__ import annotations

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from whet.model.loss import innermost


def repeated_layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The layers that can be checkpointed one by one, in the order of the model; empty where it has none.

    Each has ``gradient_checkpointing`` (whether it is) and ``_gradient_checkpointing_func`` (by what), which
    transformers reads in its forward pass.
    """
    return [module for module in innermost(model).modules() if isinstance(module, GradientCheckpointingLayer)]


def attention_types(model: torch.nn.Module, num_layers: int) -> tuple[str, ...]:
    """What kind of attention each layer has ("full_attention", "sliding_attention" ...), as the config says it."""
    config = innermost(model).config
    text_config = config.get_text_config(decoder=True)  # type: ignore[union-attr,operator]  # of transformers
    types = getattr(text_config, "layer_types", None) or ()
    return tuple(types) if len(types) == num_layers else ("full_attention",) * num_layers
