"""Norms that keep float32 weights and arithmetic in a model of 16 bits: `fp32_norms`."""

from __future__ import annotations

from typing import Any

import torch

from whet.config import Config
from whet.config.resolve import ResolvedRun
from whet.core.errors import ModelError, Problem

DEFAULT_CLASSES = ("RMSNorm", "LayerNorm")


def install(model: torch.nn.Module, config: Config, resolved: ResolvedRun) -> str | None:
    """Turn the norms' weights to float32; a lever (`whet.model.levers`).

    A norm's weights are near 1, where bfloat16 has steps of 1/128 and a small update is rounded away.

    Raises:
        ModelError: no module's class has such a name.
    """
    section = config.precision
    if not section.fp32_norms:
        return None
    patterns = section.fp32_norm_classes or DEFAULT_CLASSES
    norms = [module for module in model.modules() if _is_named(module, patterns)]
    if not norms:
        key = "fp32_norm_classes" if section.fp32_norm_classes else "fp32_norms"
        found = f"{key}: no module's class is named like {', '.join(patterns)}"
        kinds = sorted({type(module).__name__ for module in model.modules() if "norm" in type(module).__name__.lower()})
        raise ModelError(Problem(config.where(key), found, f"this model has {', '.join(kinds) or 'no norms'}", key))
    halves = [module for module in norms if any(p.dtype != torch.float32 for p in module.parameters(recurse=False))]
    for module in halves:
        module.float()
        module.register_forward_pre_hook(_widen, with_kwargs=True)
        module.register_forward_hook(_narrow)
    return f"fp32_norms: {len(halves)} norms compute and are trained in float32" if halves else None


def _is_named(module: torch.nn.Module, patterns: tuple[str, ...]) -> bool:
    return any(pattern in type(module).__name__ for pattern in patterns) and not list(module.children())


def _widen(module: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The first argument is what is normed, by its place or by whatever name the family has for it."""
    first = next(iter((*inputs, *named.values())))
    module.whet_input_dtype = first.dtype
    if inputs:
        return (first.float(), *inputs[1:]), named
    return (), {**named, next(iter(named)): first.float()}


def _narrow(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    return output.to(module.whet_input_dtype)
