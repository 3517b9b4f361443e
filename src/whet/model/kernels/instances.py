"""What is asked of a module before its forward is replaced, and the one place where that is done.

A forward is replaced on the instance; the class's own stays, for the calls that the fast form cannot serve.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import Module

from whet.model.kernels.glu import Activation, recognise

GATED = ("gate_proj", "up_proj", "down_proj")
"""What families call the layers of a gated MLP."""


def replace_forward(module: Module, forward: Callable[..., torch.Tensor]) -> None:
    """Let ``module(...)`` call ``forward``; its class's own is still ``type(module).forward``."""
    module.forward = forward


def own_forward(module: Module, *args: Any, **kwargs: Any) -> torch.Tensor:
    """What the module's class does."""
    result: torch.Tensor = type(module).forward(module, *args, **kwargs)
    return result


def is_watched(layer: Module) -> bool:
    """Whether something would miss the layer's calls if they did not come."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks or hasattr(layer, "_hf_hook"))


def activation_of(mlp: Module) -> Activation | None:
    """The activation of a gated MLP; None where it is none of ours."""
    function: Callable[[torch.Tensor], torch.Tensor] | None = getattr(mlp, "act_fn", None)
    return None if function is None else recognise(function)


@torch.no_grad()
def why_no_gated_mlp(mlp: Any, args: tuple[Any, ...], kwargs: dict[str, Any], y: Any) -> str | None:
    """Why a call of ``mlp`` that gave ``y`` was not down(act(gate(x)) * up(x)); None where it was."""
    reason = "its forward is not down(act(gate(x)) * up(x))"
    if kwargs or len(args) != 1 or not isinstance(y, torch.Tensor) or activation_of(mlp) is None:
        return reason
    expected = mlp.down_proj(mlp.act_fn(mlp.gate_proj(args[0])) * mlp.up_proj(args[0]))
    limit = (1e-5 if y.dtype == torch.float32 else 1e-2) * y.abs().max()
    is_same = limit > 0 and expected.shape == y.shape and (expected - y).abs().max() <= limit
    return None if is_same else reason
