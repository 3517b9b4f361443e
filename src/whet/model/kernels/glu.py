"""Gated linear units: act(gate) * up (https://arxiv.org/abs/2002.05202), without keeping what can be had again.

Autograd would keep gate, act(gate) and up; the two inputs are enough. What is computed is written into buffers that the
caller has, for a new buffer costs a CPU more than the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol

import torch

from whet.model.kernels.base import Kernel, select

Tensor = torch.Tensor
_aten = torch.ops.aten


@dataclass(frozen=True)
class Activation:
    """An elementwise function and its derivative, each written to a buffer.

    Attributes:
        name: "silu", "gelu" or "gelu_tanh".
        apply: ``(gate, out)``: out = act(gate).
        backward: ``(grad, gate, out)``: out = grad * act'(gate); out may be grad.
    """

    name: str
    apply: Callable[[Tensor, Tensor], Any]
    backward: Callable[[Tensor, Tensor, Tensor], Any]


ACTIVATIONS = (
    Activation(
        "silu",
        lambda gate, out: _aten.silu.out(gate, out=out),
        lambda grad, gate, out: _aten.silu_backward.grad_input(grad, gate, grad_input=out),
    ),
    Activation(
        "gelu_tanh",
        lambda gate, out: _aten.gelu.out(gate, approximate="tanh", out=out),
        lambda grad, gate, out: _aten.gelu_backward.grad_input(grad, gate, approximate="tanh", grad_input=out),
    ),
    Activation(
        "gelu",
        lambda gate, out: _aten.gelu.out(gate, out=out),
        lambda grad, gate, out: _aten.gelu_backward.grad_input(grad, gate, grad_input=out),
    ),
)


def recognise(function: Callable[[Tensor], Tensor]) -> Activation | None:
    """Which activation ``function`` is, by its values; None where it is another.

    >>> recognise(torch.nn.GELU(approximate="tanh")).name
    'gelu_tanh'
    """
    if isinstance(function, torch.nn.Module) and next(function.parameters(), None) is not None:
        return None
    x = torch.linspace(-6, 6, 97)
    with torch.no_grad():
        values = function(x.clone())
        for activation in ACTIVATIONS:
            expected = torch.empty_like(x)
            activation.apply(x, expected)
            if values.shape == x.shape and torch.allclose(values, expected, rtol=0, atol=2e-6):
                return activation
    return None


class Glu(Protocol):
    """The elementwise half of a gated MLP."""

    def forward(self, gate: Tensor, up: Tensor) -> Tensor:
        """act(gate) * up."""
        ...

    def again(self, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor | None]:
        """For the backward pass: act(gate) * up, and act(gate) where it was made on the way."""
        ...

    def backward_(self, grad: Tensor, gate: Tensor, up: Tensor, activated: Tensor | None) -> Tensor:
        """From the gradient of act(gate) * up: that of ``gate``, in the place of ``grad``, and that of ``up``.

        Args:
            activated: what `again` gave; it is written over. ``gate`` and ``up`` are not: another backward pass through
                the same graph may want them.
        """
        ...


class PlainGlu:
    """Operators of PyTorch, each a pass of its own."""

    def __init__(self, activation: Activation) -> None:
        self._activation = activation

    def forward(self, gate: Tensor, up: Tensor) -> Tensor:
        return self._activated(gate).mul_(up)

    def again(self, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        activated = self._activated(gate)
        return activated * up, activated

    def backward_(self, grad: Tensor, gate: Tensor, up: Tensor, activated: Tensor | None) -> Tensor:
        activated = self._activated(gate) if activated is None else activated
        d_up = activated.mul_(grad)
        self._activation.backward(grad.mul_(up), gate, grad)
        return d_up

    def _activated(self, gate: Tensor) -> Tensor:
        activated = torch.empty_like(gate)
        self._activation.apply(gate, activated)
        return activated


def make_glu(activation: Activation, like: Tensor) -> Glu:
    """The form for tensors of this device and dtype."""
    chosen: Glu = select(GLU, device=like.device.type, dtype=like.dtype).function(activation)
    return chosen


def _fused(activation: Activation) -> Glu:
    from whet.model.kernels.glu_triton import TritonGlu

    return TritonGlu(activation)


def _refuses(device: str, dtype: torch.dtype) -> str | None:
    if device != "cuda":
        return f"it is a Triton kernel, and this is {device}"
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it computes in float32, and this is {dtype}"
    return None if find_spec("triton") is not None else "triton is not installed"


GLU = Kernel("gated linear unit", PlainGlu, _fused, _refuses, 1e-5)
