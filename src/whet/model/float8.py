"""Training with products in 8-bit floats, by torchao (Micikevicius et al. 2022, https://arxiv.org/abs/2209.05433)."""

from __future__ import annotations

import re
from typing import Any

import torch

from whet.config import Config
from whet.config.resolve import ResolvedRun
from whet.core.errors import ModelError, Problem
from whet.model.loss import innermost
from whet.model.schemes import require_torchao

MULTIPLE = 16
"""Both sides of a layer must be a multiple of this: the tensor cores' 8-bit products take no other sizes."""

# The layer that chooses experts: small, and its rounding would choose others.
_ROUTER = re.compile(r"(^|\.)(router|gate)$")


def install(model: torch.nn.Module, config: Config, resolved: ResolvedRun) -> str | None:
    """Multiply in 8-bit floats where `fp8` asks for it; a lever (`whet.model.levers`).

    Raises:
        ModelError: torchao is not installed, or no layer has sides that are multiples of 16.
    """
    if not config.precision.fp8:
        return None
    require_torchao(config, "fp8")
    converted, total = convert(model)
    if not converted:
        found = f"fp8: none of the {total} linear layers has sides that are multiples of {MULTIPLE}"
        raise ModelError(Problem(config.where("fp8"), found, "remove the line", "fp8"))
    compiled = "" if resolved.torch_compile else "; write torch_compile: true too, or each cast is a kernel of its own"
    return f"fp8: {converted} of {total} linear layers multiply in 8-bit floats, the head as before{compiled}"


def convert(model: torch.nn.Module, *, emulate: bool = False) -> tuple[int, int]:
    """Replace linear layers by torchao's, whose inputs, weights and gradients are cast with a scale for the tensor.

    Parameters stay the same objects in their own dtype. The head, routers and layers of odd sizes are left out.

    Args:
        emulate: round to 8 bits and multiply in the original dtype, as any device can; for tests.

    Returns:
        How many were replaced, and how many there are beside the head.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    base: Any = innermost(model)
    head = base.get_output_embeddings()
    candidates = [
        (module, name)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    ]
    fitting = {id(module) for module, name in candidates if _fits(module, name)}
    convert_to_float8_training(
        model,
        # The gradient of a weight is a sum over tokens, whose number is any: torchao pads it.
        config=Float8LinearConfig(pad_inner_dim=True, emulate=emulate),
        module_filter_fn=lambda module, name: id(module) in fitting,
    )
    return len(fitting), len(candidates)


def _fits(module: torch.nn.Linear, name: str) -> bool:
    return module.in_features % MULTIPLE == 0 and module.out_features % MULTIPLE == 0 and not _ROUTER.search(name)
