"""The cross-entropy of a chunk of logits and its gradient in their place, in two readings of each row (Triton).

The first reading finds the largest logit and the sum of exponentials at once (online softmax, Milakov and Gimelshein,
2018), the second writes the gradient. All arithmetic is fp32, whatever the logits are kept in.

Imported on CUDA alone, and by the test that runs it in Triton's interpreter.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from whet.model.loss_terms import LogitForm

BLOCK = 4096
"""Logits that a program takes in at a time."""


class TritonSoftmax:
    """The plain loss in one launch; `whet.model.head_softmax.Softmax` is its eager twin."""

    def __init__(self, form: LogitForm) -> None:
        self._scale, self._softcap = form.scale, form.softcap

    def run(
        self,
        product_CV: torch.Tensor,
        targets_C: torch.Tensor,
        ce_C: torch.Tensor,
        each_C: torch.Tensor,
        *,
        gradient: bool,
    ) -> None:
        """``each_C`` is ``ce_C``: nothing but the cross-entropy is computed here."""
        rows, vocabulary = product_CV.shape
        if rows == 0:
            return
        kernel: Any = _cross_entropy
        kernel[(rows,)](
            product_CV,
            targets_C,
            ce_C,
            product_CV.stride(0),
            vocabulary,
            self._scale,
            self._softcap or 1.0,
            HAS_SOFTCAP=self._softcap is not None,
            GRADIENT=gradient,
            BLOCK=min(BLOCK, triton.next_power_of_2(vocabulary)),
            num_warps=8,
        )


@triton.jit  # type: ignore[untyped-decorator]
def _logits(product, scale, softcap, HAS_SOFTCAP: tl.constexpr):  # type: ignore[no-untyped-def]
    """fp32 logits of a block of the head's product."""
    logits = product.to(tl.float32) * scale
    if HAS_SOFTCAP:
        # tanh(x) = 1 - 2 / (exp(2x) + 1), which has the right limits where exp overflows.
        logits = softcap * (1.0 - 2.0 / (tl.exp(2.0 * logits / softcap) + 1.0))
    return logits


@triton.jit  # type: ignore[untyped-decorator]
def _cross_entropy(  # type: ignore[no-untyped-def]
    product_ptr,
    target_ptr,
    loss_ptr,
    stride,
    vocabulary,
    scale,
    softcap,
    HAS_SOFTCAP: tl.constexpr,
    GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row: its loss, and the gradient over its logits."""
    row = tl.program_id(0).to(tl.int64)
    product_ptr += row * stride
    target = tl.load(target_ptr + row)
    # Read before the reductions, which are barriers: later another warp may have put a gradient in its place.
    of_target = _logits(tl.load(product_ptr + target), scale, softcap, HAS_SOFTCAP)
    lanes = tl.arange(0, BLOCK)
    # Each lane keeps its own running maximum and sum; they meet once, at the end.
    top = tl.full((BLOCK,), -1e30, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, vocabulary, BLOCK):
        inside = start + lanes < vocabulary
        product = tl.load(product_ptr + start + lanes, mask=inside, other=0.0)
        logits = tl.where(inside, _logits(product, scale, softcap, HAS_SOFTCAP), -1e30)
        higher = tl.maximum(top, logits)
        total = total * tl.exp(top - higher) + tl.where(inside, tl.exp(logits - higher), 0.0)
        top = higher
    highest = tl.max(top, 0)
    lse = highest + tl.log(tl.sum(total * tl.exp(top - highest), 0))
    tl.store(loss_ptr + row, lse - of_target)
    if GRADIENT:
        for start in range(0, vocabulary, BLOCK):
            inside = start + lanes < vocabulary
            product = tl.load(product_ptr + start + lanes, mask=inside, other=0.0)
            logits = _logits(product, scale, softcap, HAS_SOFTCAP)
            gradient = tl.exp(logits - lse) - tl.where(start + lanes == target, 1.0, 0.0)
            if HAS_SOFTCAP:
                share = logits / softcap
                gradient = gradient * (1.0 - share * share)
            tl.store(product_ptr + start + lanes, (gradient * scale).to(product.dtype), mask=inside)
