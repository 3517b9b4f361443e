"""Attention within documents on a CPU: PyTorch's flash kernel, one call a document, results written in place.

Autograd of one ``scaled_dot_product_attention`` a document costs what the kernel costs and a tenth to a half more: the
pieces are cut and joined in both directions, and in 16 bits the kernel's backward pass is slow. Here one function does
all documents of a row. It reads each document where it lies, writes outputs and gradients where they belong, computes
runs of equally long documents in one call, and goes back in float32 whatever it went forward in.

Learned sinks cost next to nothing: with the log-sum-exp ``l`` of a query's scores and its head's sink ``s``, the
output is that without sinks times ``exp(l - l')``, where ``l' = log(exp(l) + exp(s))``. Given this output and ``l'``,
the same backward kernel returns the right gradients, because it computes ``exp(score - l')`` as the probabilities and
``sum(grad * output)`` as what the softmax takes off, to which a sink adds nothing.

Shapes: N tokens (all rows, one after the other), H query heads, G heads of keys and values, D_h width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from itertools import groupby
from typing import Any, NamedTuple

import torch

from whet.model.masks import causal_band

LONGEST_BLOCK = 512
"""Queries of one call in a sliding window: its mask has this many rows and ``window`` columns more than that."""


class Run(NamedTuple):
    """Equally long documents that follow one another: the first token, how many, tokens of each."""

    start: int
    number: int
    length: int


class Block(NamedTuple):
    """Queries ``begin`` to ``end`` of a document, and the first of the keys that they may see; ``end`` is their last.

    ``masked`` says that not all of these are seen by every query that comes after them.
    """

    begin: int
    end: int
    keys: int
    masked: bool


def runs_of(lengths: Sequence[int]) -> Iterator[Run]:
    """Documents in as few runs as there are.

    >>> list(runs_of((3, 3, 5)))
    [Run(start=0, number=2, length=3), Run(start=6, number=1, length=5)]
    """
    start = 0
    for length, same in groupby(lengths):
        number = sum(1 for _ in same)
        yield Run(start, number, length)
        start += number * length


def blocks_of(length: int, window: int | None) -> Iterator[Block]:
    """A document in blocks of queries; one block where the window holds all of it.

    Blocks are about as long as the window, so that at most half of what is computed is masked out again.

    >>> list(blocks_of(5, None))
    [Block(begin=0, end=5, keys=0, masked=False)]
    >>> list(blocks_of(150, 100))
    [Block(begin=0, end=100, keys=0, masked=False), Block(begin=100, end=150, keys=1, masked=True)]
    """
    if window is None or window >= length:
        yield Block(0, length, 0, masked=False)
        return
    step = min(max(window, 32), LONGEST_BLOCK)
    for begin in range(0, length, step):
        end, keys = min(begin + step, length), max(0, begin - window + 1)
        yield Block(begin, end, keys, masked=begin != keys or end - begin > window)


def flash_refuses(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> str | None:
    """Why this kernel cannot take these tensors; None when it can."""
    if query.device.type != "cpu":
        return f"it runs on a CPU, not on {query.device.type}"
    if not query.dtype == key.dtype == value.dtype or not query.dtype.is_floating_point:
        return "queries, keys and values are not of one type"
    if not query.shape[-1] == key.shape[-1] == value.shape[-1]:
        return "keys and values are not of one width"
    if not query.stride(-1) == key.stride(-1) == value.stride(-1) == 1:
        return "the values of a head do not lie side by side"
    if query.shape[1] != key.shape[1] and not _takes_grouped_heads():
        return f"that of PyTorch {torch.__version__} does not take grouped heads"
    return None


@cache
def _takes_grouped_heads() -> bool:
    """Tried, because no version of PyTorch documents it; 2.13 does."""
    query, key = torch.ones(1, 2, 1, 8), torch.arange(8.0).view(1, 1, 1, 8)
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    try:
        output, lse = kernel(query, key, key)
        grad = backward(query, query, key, key, output, lse, 0.0, False)[2]
    except RuntimeError:
        return False
    return torch.equal(output, key.expand_as(query)) and torch.equal(grad, torch.full_like(key, 2.0))


def flash_documents(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: Sequence[int],
    *,
    scaling: float | None = None,
    window: int | None = None,
    sinks: torch.Tensor | None = None,
    causal: bool = True,
) -> torch.Tensor:
    """Attention of each document to itself.

    Args:
        query: [N, H, D_h], any strides with the last 1; documents one after the other.
        key, value: [N, G, D_h], H a multiple of G.
        lengths: tokens of each document; none is 0, their sum is N.
        scaling: of the scores; ``D_h ** -0.5`` when None.
        window: a query sees itself and ``window - 1`` tokens before it; None: all before it.
        sinks: [H], a logit that takes part in each softmax of its head and has no value.
        causal: False: a query sees all of its document; without a window then.

    Returns:
        [N, H, D_h], contiguous, of the queries' dtype.
    """
    arguments = (query, key, value, sinks, tuple(lengths), scaling, window, causal)
    output: torch.Tensor = _FlashDocuments.apply(*arguments)  # type: ignore[no-untyped-call]
    return output


class _FlashDocuments(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        sinks: torch.Tensor | None,
        lengths: tuple[int, ...],
        scaling: float | None,
        window: int | None,
        causal: bool,
    ) -> torch.Tensor:
        output = torch.empty(query.shape, dtype=query.dtype)
        # float64 scores have a float64 log-sum-exp; those of every other type are summed in float32.
        lse = torch.empty(query.shape[:2], dtype=torch.promote_types(query.dtype, torch.float32))
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
        for run in runs_of(lengths):
            q, k, v, out, log = (_documents(each, run) for each in (query, key, value, output, lse[..., None]))
            for block in blocks_of(run.length, window):
                own, seen = slice(block.begin, block.end), slice(block.keys, block.end)
                result, sums = kernel(
                    q[:, :, own],
                    k[:, :, seen],
                    v[:, :, seen],
                    0.0,
                    causal and not block.masked,
                    attn_mask=_mask(block, window, q.dtype),
                    scale=scaling,
                )
                out[:, :, own] = result
                log[:, :, own, 0] = sums
        if sinks is not None:
            with_sinks = torch.logaddexp(lse, sinks.to(lse.dtype))
            output.mul_((lse - with_sinks).exp_()[..., None])
            lse = with_sinks
        ctx.save_for_backward(query, key, value, sinks, output, lse)
        ctx.arguments = (lengths, scaling, window, causal)
        return output

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, sinks, output, lse = ctx.saved_tensors
        lengths, scaling, window, causal = ctx.arguments
        grads = [torch.empty(each.shape, dtype=each.dtype) for each in (query, key, value)]
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default
        for run in runs_of(lengths):
            tensors = (grad, query, key, value, output)
            g, q, k, v, out = (_wide(_documents(each, run)) for each in tensors)
            log = _documents(lse[..., None], run)[..., 0]
            to_q, to_k, to_v = (_documents(each, run) for each in grads)
            blocks = list(blocks_of(run.length, window))
            # Keys of a block are seen by the next one too: their gradients are summed, in float32, and kept at the end.
            sum_k, sum_v = (to_k, to_v) if len(blocks) == 1 else (torch.zeros_like(k), torch.zeros_like(v))
            for block in blocks:
                own, seen = slice(block.begin, block.end), slice(block.keys, block.end)
                grad_q, grad_k, grad_v = kernel(
                    g[:, :, own],
                    q[:, :, own],
                    k[:, :, seen],
                    v[:, :, seen],
                    out[:, :, own],
                    log[:, :, own],
                    0.0,
                    causal and not block.masked,
                    attn_mask=_mask(block, window, q.dtype),
                    scale=scaling,
                )
                to_q[:, :, own] = grad_q
                if len(blocks) == 1:
                    to_k.copy_(grad_k)
                    to_v.copy_(grad_v)
                else:
                    sum_k[:, :, seen] += grad_k
                    sum_v[:, :, seen] += grad_v
            if len(blocks) > 1:
                to_k.copy_(sum_k)
                to_v.copy_(sum_v)
        return *grads, _grad_of_sinks(sinks, grad, output, lse), None, None, None, None


def _grad_of_sinks(
    sinks: torch.Tensor | None, grad: torch.Tensor, output: torch.Tensor, lse: torch.Tensor
) -> torch.Tensor | None:
    """Of each head: minus the sum, over queries, of the sink's probability times ``grad . output``."""
    if sinks is None:
        return None
    taken = (grad * output).sum(dim=-1, dtype=lse.dtype)
    return -((sinks.to(lse.dtype) - lse).exp_() * taken).sum(dim=0).to(sinks.dtype)


def _documents(tensor: torch.Tensor, run: Run) -> torch.Tensor:
    """The documents of a run as [number, heads, length, D_h], a view of [N, heads, D_h]."""
    part = tensor[run.start : run.start + run.number * run.length]
    return part.view(run.number, run.length, *part.shape[1:]).transpose(1, 2)


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _mask(block: Block, window: int | None, dtype: torch.dtype) -> torch.Tensor | None:
    """What is added to a block's scores; None where plain causal attention (or all of it) is meant."""
    if window is None or not block.masked:
        return None
    return _band(block.end - block.begin, window, block.end - block.keys, dtype)


@lru_cache(maxsize=4)
def _band(length: int, window: int, num_keys: int, dtype: torch.dtype) -> torch.Tensor:
    """[T, S] for a block: 0 where seen, minus infinity elsewhere. Of most blocks the same, so the last are kept."""
    seen = causal_band(length, window, torch.device("cpu"), num_keys)
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, float("-inf"))
