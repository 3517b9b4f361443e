"""A gated MLP with adapters as one step of the graph: down(act(gate(x)) * up(x)).

Kept for the backward pass: x by reference, gate and up. Autograd would keep act(gate) and its product with up as well.

Shapes: N tokens, I input features, M features between, O output features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from whet.model.kernels.glu import Activation, make_glu
from whet.model.kernels.lora import Factors, Group, Projection, draw_seeds, in_threes

Tensor = torch.Tensor


@dataclass(frozen=True, eq=False, slots=True)
class Mlp:
    """The three projections, gate, up and down, and the activation between them."""

    projections: tuple[Projection, Projection, Projection]
    activation: Activation


class _LoRAMlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, mlp: Mlp, dtype: torch.dtype, *flat: Tensor | None) -> Tensor:
        ctx.mlp, ctx.dtype, ctx.seeds = mlp, dtype, draw_seeds(mlp.projections)
        three = in_threes(flat)
        (gate, up), down = mlp.projections[:2], mlp.projections[2]
        inner = Group((gate, up), three[:2], ctx.seeds[:2], dtype=dtype, rows=x_NI.shape[0])
        gate_NM, up_NM = inner.forward(x_NI.to(dtype))
        h_NM = make_glu(mlp.activation, gate_NM).forward(gate_NM, up_NM)
        outer = Group((down,), three[2:], ctx.seeds[2:], dtype=dtype, rows=x_NI.shape[0])
        (y_NO,) = outer.forward(h_NM)
        ctx.save_for_backward(x_NI, gate_NM, up_NM, None if three[2][2] is None else y_NO, *flat)
        return y_NO

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor | None, ...]:
        x_NI, gate_NM, up_NM, y_NO, *flat = ctx.saved_tensors
        (gate, up), down = ctx.mlp.projections[:2], ctx.mlp.projections[2]
        three, rows = in_threes(flat), x_NI.shape[0]
        outer = Group((down,), three[2:], ctx.seeds[2:], dtype=ctx.dtype, rows=rows, backward=True)
        glu, dh_NM = make_glu(ctx.mlp.activation, gate_NM), torch.empty_like(gate_NM)
        h_NM, act_NM = glu.again(gate_NM, up_NM)
        outer.backward(h_NM, (grad_NO,), (y_NO,), dh_NM)
        of_down = outer.gradients()
        del h_NM, outer
        dup_NM = glu.backward_(dh_NM, gate_NM, up_NM, act_NM)
        inner = Group((gate, up), three[:2], ctx.seeds[:2], dtype=ctx.dtype, rows=rows, backward=True)
        dx_NI = torch.empty_like(x_NI, dtype=ctx.dtype) if ctx.needs_input_grad[0] else None
        inner.backward(x_NI.to(ctx.dtype), (dh_NM, dup_NM), (gate_NM, up_NM), dx_NI)
        return dx_NI, None, None, *inner.gradients(), *of_down


def lora_mlp(x: Tensor, mlp: Mlp, factors: Sequence[Factors], dtype: torch.dtype) -> Tensor:
    """down(act(gate(x)) * up(x)) for ``x[..., I]``, multiplied in ``dtype``.

    Args:
        factors: of gate, up and down.
    """
    flat = [factor for three in factors for factor in three]
    with torch.autocast(x.device.type, enabled=False):
        y_NO: Tensor = _LoRAMlp.apply(x.reshape(-1, x.shape[-1]), mlp, dtype, *flat)  # type: ignore[no-untyped-call]
    return y_NO.view(*x.shape[:-1], y_NO.shape[-1])
