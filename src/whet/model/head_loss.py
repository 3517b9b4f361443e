"""The output head and the loss as one operation that never holds all logits.

For each chunk of positions: logits into one buffer that all chunks share, their loss, and in the same buffer the
gradient of the loss with respect to them, from which the gradients of the hidden states and of the weights are formed
at once. That makes three matrix products where recomputing the logits in the backward pass would take four, and the
most that is held beside the results is one chunk, whatever the vocabulary. The gradients are of the sum itself; the
backward pass multiplies them by what comes from above.

Shapes: N supervised positions, H hidden size, V vocabulary, C positions of a chunk, K rank of a LoRA on the head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from whet.model.head_softmax import make_softmax
from whet.model.loss_terms import PLAIN, LogitForm, LossTerms, loss_of_logits

CHUNK_BYTES = {"cpu": 128 * 2**20, "cuda": 512 * 2**20}
"""Most bytes of a chunk's logits. On two cores in fp32 (N 1,700, V 128,000, H 512) chunks of 64, 128, 256 and 512
positions took 3.9, 2.8, 2.6 and 2.5 s; 128 MiB are 262 positions there."""

WEIGHT_BYTES = 8 * 2**20
"""Bytes of the part of a 16-bit weight's gradient that a CPU computes at a time before adding it up in fp32. All of it
at once went to memory and back and took twice the time (V 128,000, H 512)."""


@dataclass(frozen=True, slots=True)
class HeadWeights:
    """The output head as numbers: ``u = hidden @ weight.T + bias + low_rank_in @ low_rank_out.T``.

    Attributes:
        weight: [V, H].
        bias: [V].
        low_rank_in: [N, K], the hidden states after the first half of a LoRA on the head, scaled.
        low_rank_out: [V, K], its second half.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    low_rank_in: torch.Tensor | None = None
    low_rank_out: torch.Tensor | None = None


def head_loss(
    hidden_NH: torch.Tensor,
    head: HeadWeights,
    targets_N: torch.Tensor,
    form: LogitForm | None = None,
    terms: LossTerms = PLAIN,
    *,
    chunk_rows: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of the targets, and their plain cross-entropy one by one, without all logits in memory.

    Args:
        hidden_NH: what the head is given, at supervised positions alone.
        targets_N: int64.
        chunk_rows: positions of a chunk; by default as many as `CHUNK_BYTES` allow.

    Returns:
        The sum, an fp32 scalar with a graph, and fp32[N], detached.
    """
    compute = product_dtype(hidden_NH, head.weight)
    if chunk_rows is None:
        chunk_rows = rows_of_chunk(len(targets_N), head.weight.shape[0], compute, hidden_NH.device)
    plan = _Plan(form or LogitForm(), terms, max(chunk_rows, 1), compute, torch.is_grad_enabled())
    total, per_token = _HeadLoss.apply(  # type: ignore[no-untyped-call]
        hidden_NH, head.weight, head.bias, head.low_rank_in, head.low_rank_out, targets_N, plan
    )
    return total, per_token


def reference_head_loss(
    hidden_NH: torch.Tensor,
    head: HeadWeights,
    targets_N: torch.Tensor,
    form: LogitForm | None = None,
    terms: LossTerms = PLAIN,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The eager twin of `head_loss`: all logits at once, gradients by autograd."""
    product = torch.nn.functional.linear(hidden_NH, head.weight, head.bias)
    if head.low_rank_in is not None and head.low_rank_out is not None:
        product = product + head.low_rank_in @ head.low_rank_out.t()
    return loss_of_logits((form or LogitForm()).apply(product), targets_N, terms)


def rows_of_chunk(num_positions: int, vocabulary: int, dtype: torch.dtype, device: torch.device) -> int:
    """Positions of a chunk: chunks of equal size, none over `CHUNK_BYTES`.

    >>> rows_of_chunk(1700, 128_000, torch.float32, torch.device("cpu"))
    243
    """
    most = max(CHUNK_BYTES.get(device.type, CHUNK_BYTES["cpu"]) // (vocabulary * dtype.itemsize), 1)
    num_chunks = -(-num_positions // most)
    return -(-num_positions // max(num_chunks, 1))


@dataclass(frozen=True, slots=True)
class _Plan:
    form: LogitForm
    terms: LossTerms
    chunk_rows: int
    compute: torch.dtype
    wants_gradients: bool


def product_dtype(hidden: torch.Tensor, weight: torch.Tensor) -> torch.dtype:
    """Of the matrix products: autocast's, or the weight's own."""
    if torch.is_autocast_enabled(hidden.device.type):
        return torch.get_autocast_dtype(hidden.device.type)
    return weight.dtype


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: torch.Tensor,
        weight_VH: torch.Tensor,
        bias_V: torch.Tensor | None,
        low_in_NK: torch.Tensor | None,
        low_out_VK: torch.Tensor | None,
        targets_N: torch.Tensor,
        plan: _Plan,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        given = (hidden_NH, weight_VH, bias_V, low_in_NK, low_out_VK)
        wanted = tuple(needs and plan.wants_gradients for needs in ctx.needs_input_grad[:5])
        with torch.autocast(hidden_NH.device.type, enabled=False):
            cast = [None if tensor is None else tensor.detach().to(plan.compute) for tensor in given]
            sums = _Gradients(cast, wanted)
            total, per_token = _sum_over_chunks(cast, targets_N, plan, sums)
        ctx.gradients = sums.results(given)
        ctx.mark_non_differentiable(per_token)
        ctx.set_materialize_grads(False)
        return total, per_token

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor | None, _: Any) -> tuple[torch.Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the loss of the output head can go backward once only")
        gradients, ctx.gradients = ctx.gradients, None
        if upstream is None:
            return (None,) * 7
        # In place: the sums are this operation's own, and the weight's is as large as the weight.
        return (*(None if each is None else each.mul_(upstream.to(each.dtype)) for each in gradients), None, None)


def _sum_over_chunks(
    cast: list[torch.Tensor | None], targets_N: torch.Tensor, plan: _Plan, sums: _Gradients
) -> tuple[torch.Tensor, torch.Tensor]:
    """The total and fp32[N]; what goes into ``sums`` is the gradient with respect to the head's product."""
    hidden_NH, weight_VH, bias_V, low_in_NK, low_out_VK = cast
    assert hidden_NH is not None
    assert weight_VH is not None
    num_positions, vocabulary = len(targets_N), weight_VH.shape[0]
    per_token = hidden_NH.new_empty(num_positions, dtype=torch.float32)
    each = per_token if plan.terms.is_plain else torch.empty_like(per_token)
    buffer_CV = hidden_NH.new_empty(min(plan.chunk_rows, num_positions), vocabulary)
    softmax = make_softmax(buffer_CV, plan.form, plan.terms)
    for start in range(0, num_positions, plan.chunk_rows):
        chunk = slice(start, min(start + plan.chunk_rows, num_positions))
        product_CV = buffer_CV[: chunk.stop - start]
        torch.mm(hidden_NH[chunk], weight_VH.t(), out=product_CV)
        if low_in_NK is not None and low_out_VK is not None:
            product_CV.addmm_(low_in_NK[chunk], low_out_VK.t())
        if bias_V is not None:
            product_CV.add_(bias_V)
        softmax.run(product_CV, targets_N[chunk], per_token[chunk], each[chunk], gradient=sums.any)
        sums.add(chunk, product_CV)
    return each.sum(), per_token


class _Gradients:
    """Sums over chunks of the gradients that are wanted: of hidden states, weight, bias and the two halves of a LoRA.

    What belongs to a parameter is summed in fp32, whatever the dtype of the products.
    """

    def __init__(self, cast: list[torch.Tensor | None], wanted: tuple[bool, ...]) -> None:
        self._hidden, self._weight, self._bias, self._low_in, self._low_out = cast
        self._is_first = True
        self.any = any(wanted)
        # Of inputs, a row of results belongs to one chunk; of parameters, each chunk adds to the whole.
        dtypes = (None, torch.float32, torch.float32, None, torch.float32)
        self._sums = [
            torch.empty_like(tensor, dtype=dtype) if wants and tensor is not None else None
            for tensor, wants, dtype in zip(cast, wanted, dtypes, strict=True)
        ]

    def add(self, chunk: slice, gradient_CV: torch.Tensor) -> None:
        """Take in the gradient with respect to the head's product at the positions of a chunk."""
        if not self.any:
            return
        hidden, weight, bias, low_in, low_out = self._sums
        if hidden is not None and self._weight is not None:
            torch.mm(gradient_CV, self._weight, out=hidden[chunk])
        if low_in is not None and self._low_out is not None:
            torch.mm(gradient_CV, self._low_out, out=low_in[chunk])
        if weight is not None and self._hidden is not None:
            _add_product(weight, gradient_CV, self._hidden[chunk], self._is_first)
        if low_out is not None and self._low_in is not None:
            _add_product(low_out, gradient_CV, self._low_in[chunk], self._is_first)
        if bias is not None:
            sum_V = gradient_CV.sum(0, dtype=torch.float32)
            bias.copy_(sum_V) if self._is_first else bias.add_(sum_V)
        self._is_first = False

    def results(self, given: tuple[torch.Tensor | None, ...]) -> list[torch.Tensor | None]:
        """The sums, each in the dtype of what it is the gradient of; zeros where there was no position at all."""
        return [
            None if found is None or tensor is None else (found.zero_() if self._is_first else found).to(tensor.dtype)
            for found, tensor in zip(self._sums, given, strict=True)
        ]


def _add_product(sum_VX: torch.Tensor, gradient_CV: torch.Tensor, input_CX: torch.Tensor, is_first: bool) -> None:
    """``sum += gradient.T @ input`` in fp32; ``sum =`` for the first chunk."""
    if gradient_CV.dtype == torch.float32:
        if is_first:
            torch.mm(gradient_CV.t(), input_CX, out=sum_VX)
        else:
            sum_VX.addmm_(gradient_CV.t(), input_CX)
        return
    rows = max(WEIGHT_BYTES // (2 * input_CX.shape[1]), 256) if sum_VX.device.type == "cpu" else len(sum_VX)
    for start in range(0, len(sum_VX), rows):
        gradient_RC = gradient_CV[:, start : start + rows].t()
        if gradient_CV.dtype == torch.float16:  # the gradients are those of a sum: its range would not hold them
            product_RX = gradient_RC.float() @ input_CX.float()
        else:
            product_RX = gradient_RC @ input_CX
        sum_RX = sum_VX[start : start + rows]
        sum_RX.copy_(product_RX) if is_first else sum_RX.add_(product_RX)
