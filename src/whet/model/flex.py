"""Attention within documents on CUDA where the scores are capped, by PyTorch's FlexAttention.

No flash kernel of PyTorch knows a cap, and document by document the weights of a long one are written out whole.
FlexAttention compiles a kernel for the cap and skips the blocks between documents (https://arxiv.org/abs/2412.05496).
Its backward pass does not run on a CPU, where documents are short enough to be written out.

Shapes: N tokens (all rows, one after the other), H query heads, G heads of keys and values, D_h width of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import torch


def flex_refuses(query: torch.Tensor, value: torch.Tensor) -> str | None:
    """Why it cannot take this call; None when it can."""
    if query.device.type != "cuda":
        return f"its backward pass runs on CUDA, not on {query.device.type}"
    if query.shape[-1] != value.shape[-1] or query.shape[-1] & (query.shape[-1] - 1):
        return "heads are of one width and a power of two"
    return None


def flex_documents(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: tuple[int, ...],
    *,
    scaling: float | None,
    window: int | None,
    softcap: float,
    attend: Callable[..., Any] | None = None,
) -> torch.Tensor:
    """Causal attention of each document to itself, ``softmax(c * tanh(scores / c)) v``: [N, H, D_h].

    Args:
        query: [N, H, D_h]; key, value: [N, G, D_h].
        lengths: tokens of each document.
        softcap: the cap ``c``.
        attend: FlexAttention, compiled when None.
    """

    # As a tensor: PyTorch 2.11 makes a float of a compiled score an unknown number and fails on it.
    cap = torch.full((), softcap, device=query.device)

    def capped(score: torch.Tensor, *place: torch.Tensor) -> torch.Tensor:
        return cap * torch.tanh(score / cap)

    attend = _compiled() if attend is None else attend
    output: torch.Tensor = attend(
        *(tensor.transpose(0, 1)[None] for tensor in (query, key, value)),
        score_mod=capped,
        block_mask=_blocks(lengths, window, query.device),
        scale=scaling,
        enable_gqa=key.shape[1] != query.shape[1],
    )
    return output[0].transpose(0, 1)


@cache
def _compiled() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    # Rows differ in length: one kernel with sizes as arguments, not one for each length.
    compiled: Callable[..., Any] = torch.compile(flex_attention, dynamic=True)
    return compiled


@lru_cache(maxsize=4)
def _blocks(lengths: tuple[int, ...], window: int | None, device: torch.device) -> Any:
    """Which blocks of queries and keys are computed: the same for all layers of a step, up to the window."""
    from torch.nn.attention.flex_attention import create_block_mask

    document = torch.repeat_interleave(torch.tensor(lengths, device=device))
    reach = sum(lengths) if window is None else window

    def seen(batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return (document[query] == document[key]) & (query >= key) & (query - key < reach)

    return create_block_mask(seen, None, None, len(document), len(document), device=device)
