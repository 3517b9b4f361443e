"""act(gate) * up and its two gradients, each in one reading of the inputs (Triton). All arithmetic is fp32.

Imported on CUDA alone, and by the test that runs it in Triton's interpreter.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from whet.model.kernels.glu import Activation

BLOCK = 1024
"""Numbers that a program takes in."""

_KINDS = {"silu": 0, "gelu_tanh": 1, "gelu": 2}


class TritonGlu:
    """See `whet.model.kernels.glu.Glu`; its eager twin is `PlainGlu`."""

    def __init__(self, activation: Activation) -> None:
        self._kind = _KINDS[activation.name]

    def forward(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(gate)
        self._launch(_forward, gate, up, out)
        return out

    def again(self, gate: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, None]:
        return self.forward(gate, up), None

    def backward_(
        self, grad: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, activated: torch.Tensor | None
    ) -> torch.Tensor:
        d_up = torch.empty_like(up) if activated is None else activated
        self._launch(_backward, grad, gate, up, d_up)
        return d_up

    def _launch(self, kernel: Any, *tensors: torch.Tensor) -> None:
        assert all(tensor.is_contiguous() and tensor.shape == tensors[0].shape for tensor in tensors)
        count = tensors[0].numel()
        if count == 0:
            return
        with torch.cuda.device_of(tensors[0]):  # type: ignore[no-untyped-call]  # a model may lie on several devices
            kernel[(triton.cdiv(count, BLOCK),)](*tensors, count, KIND=self._kind, BLOCK=BLOCK, num_warps=4)


@triton.jit  # type: ignore[untyped-decorator]
def _value_and_slope(x, KIND: tl.constexpr):  # type: ignore[no-untyped-def]
    """act(x) and act'(x), for SiLU (0), GELU by tanh (1) and GELU (2)."""
    if KIND == 0:
        share = 1.0 / (1.0 + tl.exp(-x))
        value = x * share
        slope = share * (1.0 + x * (1.0 - share))
    elif KIND == 1:
        inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
        # tanh(x) = 1 - 2 / (exp(2x) + 1), which has the right limits where exp overflows.
        tanh = 1.0 - 2.0 / (tl.exp(2.0 * inner) + 1.0)
        value = 0.5 * x * (1.0 + tanh)
        inner_slope = 0.7978845608028654 * (1.0 + 3.0 * 0.044715 * x * x)
        slope = 0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * inner_slope
    else:
        share = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
        value = x * share
        slope = share + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)
    return value, slope


@triton.jit  # type: ignore[untyped-decorator]
def _forward(gate_ptr, up_ptr, out_ptr, count, KIND: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    lanes = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = lanes < count
    up = tl.load(up_ptr + lanes, mask=inside, other=0.0)
    value, _ = _value_and_slope(tl.load(gate_ptr + lanes, mask=inside, other=0.0).to(tl.float32), KIND)
    tl.store(out_ptr + lanes, (value * up.to(tl.float32)).to(up.dtype), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _backward(  # type: ignore[no-untyped-def]
    grad_ptr, gate_ptr, up_ptr, d_up_ptr, count, KIND: tl.constexpr, BLOCK: tl.constexpr
):
    """The gradient of the gate replaces that of the product."""
    lanes = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = lanes < count
    up = tl.load(up_ptr + lanes, mask=inside, other=0.0)
    grad = tl.load(grad_ptr + lanes, mask=inside, other=0.0).to(tl.float32)
    value, slope = _value_and_slope(tl.load(gate_ptr + lanes, mask=inside, other=0.0).to(tl.float32), KIND)
    tl.store(d_up_ptr + lanes, (grad * value).to(up.dtype), mask=inside)
    tl.store(grad_ptr + lanes, (grad * up.to(tl.float32) * slope).to(up.dtype), mask=inside)
