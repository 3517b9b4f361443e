"""Rotary position embedding on CUDA: one pass over each tensor in each direction (Triton). All arithmetic is fp32.

Written out it is five passes forwards and eight backwards, of which two join halves. Imported on CUDA alone, and by the
test that runs it in Triton's interpreter.

Shapes: B rows, H heads, T tokens, D_h width of a head; x is [B, H, T, D_h] in any layout whose heads lie in one piece,
cos and sin are [B or 1, T, D_h], in which the second half repeats the first.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

HEADS = 8
"""Heads that a program turns; their token's angles are read once for them."""


class TritonRotate(torch.autograd.Function):
    """A rotation; its transpose, by the opposite angle, is its gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.dtype = x.dtype
        turned = torch.empty_like(x, dtype=dtype)  # keeps x's order in memory, as a projection or a norm leaves it
        ctx.stride = turned.stride()
        _launch(x, cos, sin, turned, 1.0)
        return turned

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        (grad,) = gradients
        dx = torch.empty_strided(grad.shape, ctx.stride, dtype=ctx.dtype, device=grad.device)
        _launch(grad, cos, sin, dx, -1.0)
        return dx, None, None, None


def _launch(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, out: torch.Tensor, sign: float) -> None:
    rows, heads, tokens, width = x.shape
    if x.numel() == 0:
        return
    x = x if x.stride(-1) == 1 else x.contiguous()
    cos, sin = (angles.expand(rows, -1, -1) for angles in (cos.contiguous(), sin.contiguous()))
    kernel: Any = _rotate
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]  # a model may lie on several devices
        kernel[(rows * tokens, triton.cdiv(heads, HEADS))](
            x, cos, sin, out, sign, heads, tokens, width // 2, *x.stride()[:3], *out.stride()[:3], *cos.stride()[:2],
            HEADS=HEADS, HALF=triton.next_power_of_2(width // 2), num_warps=4 if width > 64 else 2,
        )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def _rotate(  # type: ignore[no-untyped-def]
    x_ptr, cos_ptr, sin_ptr, out_ptr, sign, heads, tokens, half,
    x_row, x_head, x_token, out_row, out_head, out_token, angle_row, angle_token,
    HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """A block of heads of one token: first half cos - second half sin, second half cos + first half sin."""
    place = tl.program_id(0)
    row, token = (place // tokens).to(tl.int64), (place % tokens).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    lane = tl.arange(0, HALF)
    angle = row * angle_row + token * angle_token + lane
    cos = tl.load(cos_ptr + angle, mask=lane < half, other=0.0).to(tl.float32)[None, :]
    sin = tl.load(sin_ptr + angle, mask=lane < half, other=0.0).to(tl.float32)[None, :] * sign
    inside = (head[:, None] < heads) & (lane[None, :] < half)
    places = row * x_row + head[:, None].to(tl.int64) * x_head + token * x_token + lane[None, :]
    first = tl.load(x_ptr + places, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(x_ptr + places + half, mask=inside, other=0.0).to(tl.float32)
    places = row * out_row + head[:, None].to(tl.int64) * out_head + token * out_token + lane[None, :]
    kind = out_ptr.dtype.element_ty
    tl.store(out_ptr + places, (first * cos - second * sin).to(kind), mask=inside)
    tl.store(out_ptr + places + half, (second * cos + first * sin).to(kind), mask=inside)
