"""Attention within documents on CUDA: PyTorch's variable-length flash kernel, one call for all documents.

`torch.nn.attention.varlen` came with PyTorch 2.10. In 2.11 and 2.12 it takes grouped heads without being told, from
2.13 on by ``enable_gqa``. It knows no dropout, no cap on scores and no sinks; sinks are put on top of the kernel
that it calls, by its log-sum-exp (see `whet.model.flash_documents`), with a backward pass of our own, for the public
function's ignores what is done with a log-sum-exp. Where FlashAttention 3 is installed, PyTorch calls that kernel
instead (`use_flash_attention_3`).

Shapes: N tokens (all rows, one after the other), H query heads, G heads of keys and values, D_h width of a head.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch


def kernel_dtype(query: torch.Tensor) -> torch.dtype:
    """What attention computes in: autocast's type where that is on."""
    kind = query.device.type
    if query.dtype != torch.float64 and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return query.dtype


def varlen_refuses(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> str | None:
    """Why the variable-length kernel cannot take these tensors; None when it can."""
    if query.device.type != "cuda":
        return f"it runs on CUDA, not on {query.device.type}"
    if _varlen_function() is None:
        return f"PyTorch {torch.__version__} does not have it with scale and window"
    if query.dtype not in (torch.float16, torch.bfloat16):
        return "it computes in bfloat16 and float16 only"
    if not query.shape[-1] == key.shape[-1] == value.shape[-1]:
        return "keys and values are not of one width"
    if query.shape[-1] > 256 or query.shape[-1] % 8:
        return f"its heads are at most 256 wide, a multiple of 8, these are {query.shape[-1]}"
    if torch.cuda.get_device_capability(query.device) < (8, 0):
        return "it needs a GPU of compute capability 8.0"
    return None


def varlen_documents(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    edges: torch.Tensor,
    longest: int,
    *,
    scaling: float | None = None,
    window: int | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Causal attention of each document to itself: [N, H, D_h].

    Args:
        query: [N, H, D_h], bfloat16 or float16; key, value: [N, G, D_h].
        edges: int32[D + 1], where documents begin, and N.
        longest: tokens of the longest document.
        window: a query sees itself and ``window - 1`` tokens before it; None: all before it.
        sinks: [H], see `whet.model.documents.Scores`.
    """
    if sinks is not None:
        arguments = (query, key, value, sinks, edges, longest, scaling, window)
        with_sinks: torch.Tensor = _VarlenWithSinks.apply(*arguments)  # type: ignore[no-untyped-call]
        return with_sinks
    varlen = _varlen_function()
    assert varlen is not None, "asked for only after varlen_refuses"
    is_asked = key.shape[1] != query.shape[1] and "enable_gqa" in inspect.signature(varlen).parameters
    output: torch.Tensor = varlen(
        query,
        key,
        value,
        edges,
        edges,
        longest,
        longest,
        scale=scaling,
        window_size=_window_size(window),
        **({"enable_gqa": True} if is_asked else {}),
    )
    return output


@cache
def _varlen_function() -> Callable[..., Any] | None:
    """PyTorch's variable-length attention, where this PyTorch has it with a scale and a window."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    function: Callable[..., Any] = varlen_attn
    return function if {"scale", "window_size"} <= inspect.signature(function).parameters.keys() else None


def _window_size(window: int | None) -> tuple[int, int]:
    """Keys to the left and to the right of a query's own. A window of W tokens is its own and W - 1 before it."""
    return (-1 if window is None else window - 1, 0)


class _VarlenWithSinks(torch.autograd.Function):
    """The same kernel with a sink's logit in each softmax, by PyTorch's operators below its public function."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        sinks: torch.Tensor,
        edges: torch.Tensor,
        longest: int,
        scaling: float | None,
        window: int | None,
    ) -> torch.Tensor:
        left, right = _window_size(window)
        plain, lse, *_ = torch.ops.aten._flash_attention_forward(
            query,
            key,
            value,
            edges,
            edges,
            longest,
            longest,
            0.0,
            left < 0,  # causal; a window is causal by its right end
            return_debug_mask=False,
            scale=scaling,
            window_size_left=left,
            window_size_right=right,
        )
        with_sinks = torch.logaddexp(lse, sinks.float()[:, None])  # fp32[H, N]
        output: torch.Tensor = plain * (lse - with_sinks).exp().t()[..., None].to(plain.dtype)
        ctx.save_for_backward(query, key, value, sinks, edges, output, with_sinks)
        ctx.arguments = (longest, scaling, left, right)
        return output

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, sinks, edges, output, lse = ctx.saved_tensors
        longest, scaling, left, right = ctx.arguments
        unused = torch.zeros(2, dtype=torch.uint64, device=query.device)  # the random state of a dropout of 0
        grads = torch.ops.aten._flash_attention_backward(
            grad.contiguous(),
            query,
            key,
            value,
            output,
            lse,
            edges,
            edges,
            longest,
            longest,
            0.0,
            left < 0,
            unused,
            torch.empty(0, device=query.device),
            scale=scaling,
            window_size_left=left,
            window_size_right=right,
        )
        taken = (grad.float() * output.float()).sum(dim=-1).t()
        grad_sinks = -((sinks.float()[:, None] - lse).exp() * taken).sum(dim=1).to(sinks.dtype)
        return *grads, grad_sinks, None, None, None, None


def use_flash_attention_3(device: torch.device) -> bool:
    """Let PyTorch's flash kernels be FlashAttention 3's, where that package is installed and was made for this GPU.

    It was written for Hopper's asynchronous tensor cores (https://arxiv.org/abs/2407.08608); PyTorch's own kernel is
    FlashAttention 2. The numbers are those of the same computation in another order.
    """
    if torch.cuda.get_device_capability(device)[0] != 9 or importlib.util.find_spec("flash_attn_interface") is None:
        return False
    attention = torch.nn.attention
    if "FA3" not in getattr(attention, "list_flash_attention_impls", list)():
        return False
    attention.activate_flash_attention_impl("FA3")
    return True
