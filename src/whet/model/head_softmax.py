"""From a chunk's logits to its losses and, in their place, the gradient of the loss with respect to them.

On CUDA with Triton, the plain loss is one pass of a kernel (`whet.model.kernels.softmax_triton`); everything else is
PyTorch in place, a block of rows at a time.

Shapes: C positions of a chunk, R rows of a block within it, V vocabulary.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Protocol

import torch

from whet.model.kernels.base import Kernel, select
from whet.model.loss_terms import LogitForm, LossTerms

BLOCK_BYTES = {"cpu": 2 * 2**20, "cuda": 128 * 2**20}
"""Bytes in fp32 of the rows whose softmax is computed at a time; on a CPU all passes but the first meet its cache."""


class ChunkSoftmax(Protocol):
    """What turns the head's product at the positions of a chunk into losses."""

    def run(
        self,
        product_CV: torch.Tensor,
        targets_C: torch.Tensor,
        ce_C: torch.Tensor,
        each_C: torch.Tensor,
        *,
        gradient: bool,
    ) -> None:
        """Write the cross-entropy and the loss of each position; replace the product by the gradient where wanted."""
        ...


def make_softmax(buffer_CV: torch.Tensor, form: LogitForm, terms: LossTerms) -> ChunkSoftmax:
    """The form that serves this device and this loss.

    Args:
        buffer_CV: the largest chunk, of which only shape, dtype and device are read.
    """
    choice = select(SOFTMAX, device=buffer_CV.device.type, form=form, terms=terms)
    chosen: ChunkSoftmax = choice.function(buffer_CV, form, terms)
    return chosen


class Softmax:
    """Losses of a chunk's logits and, in their place, the gradient; a block of rows at a time on a CPU."""

    def __init__(self, buffer_CV: torch.Tensor, form: LogitForm, terms: LossTerms) -> None:
        rows, vocabulary = buffer_CV.shape
        fitting = BLOCK_BYTES.get(buffer_CV.device.type, BLOCK_BYTES["cpu"]) // (4 * vocabulary)
        rows = max(min(rows, max(fitting, 2 * torch.get_num_threads())), 1)
        self._form, self._terms, self._rows = form, terms, rows
        self._log_p_RV = buffer_CV.new_empty(rows, vocabulary, dtype=torch.float32)
        self._logits_RV = None if form.is_plain else torch.empty_like(self._log_p_RV)

    def run(
        self,
        product_CV: torch.Tensor,
        targets_C: torch.Tensor,
        ce_C: torch.Tensor,
        each_C: torch.Tensor,
        gradient: bool,
    ) -> None:
        for start in range(0, len(product_CV), self._rows):
            block = slice(start, start + self._rows)
            self._block(product_CV[block], targets_C[block, None], ce_C[block], each_C[block], gradient)

    def _block(
        self,
        product_RV: torch.Tensor,
        targets_R1: torch.Tensor,
        ce_R: torch.Tensor,
        each_R: torch.Tensor,
        gradient: bool,
    ) -> None:
        terms, form = self._terms, self._form
        logits_RV = self._logits(product_RV)
        log_p_RV = self._log_p_RV[: len(product_RV)]
        torch.log_softmax(logits_RV, -1, dtype=torch.float32, out=log_p_RV)
        log_p_R = log_p_RV.gather(-1, targets_R1)[:, 0]
        torch.neg(log_p_R, out=ce_R)
        weights_R = lse_R = None
        if not terms.is_plain:
            weights_R = terms.weights(logits_RV, log_p_R)
            lse_R = logits_RV.gather(-1, targets_R1)[:, 0].float() - log_p_R if terms.z_loss else None
            each_R.copy_(_combined(terms, ce_R, log_p_RV, weights_R, lse_R))
        if gradient:
            # The product is needed no more: in fp32 the probabilities go straight into its place.
            in_place = product_RV.dtype == torch.float32 and form.is_plain
            p_RV = torch.exp(log_p_RV, out=product_RV if in_place else log_p_RV)
            _to_gradient(p_RV, targets_R1, terms, weights_R, lse_R)
            if form.scale != 1.0:
                p_RV.mul_(form.scale)
            if form.softcap is not None:
                p_RV.mul_(logits_RV.div_(form.softcap).square_().neg_().add_(1.0))
            if not in_place:
                product_RV.copy_(p_RV)

    def _logits(self, product_RV: torch.Tensor) -> torch.Tensor:
        if self._logits_RV is None:
            return product_RV
        form, logits_RV = self._form, self._logits_RV[: len(product_RV)]
        torch.mul(product_RV, form.scale, out=logits_RV)
        return logits_RV if form.softcap is None else logits_RV.div_(form.softcap).tanh_().mul_(form.softcap)


def _combined(
    terms: LossTerms,
    ce_R: torch.Tensor,
    log_p_RV: torch.Tensor,
    weights_R: torch.Tensor | None,
    lse_R: torch.Tensor | None,
) -> torch.Tensor:
    each = ce_R
    if terms.label_smoothing:
        each = (1 - terms.label_smoothing) * each - terms.label_smoothing * log_p_RV.mean(-1)
    if weights_R is not None:
        each = weights_R * each
    return each if lse_R is None else each + terms.z_loss * lse_R**2


def _to_gradient(
    p_RV: torch.Tensor,
    targets_R1: torch.Tensor,
    terms: LossTerms,
    weights_R: torch.Tensor | None,
    lse_R: torch.Tensor | None,
) -> None:
    """In place, from probabilities to ``(w + 2 z lse) p - w (e / V + (1 - e) onehot)``."""
    w_R = p_RV.new_ones(len(p_RV)) if weights_R is None else weights_R
    if weights_R is not None or lse_R is not None:
        factor_R = w_R if lse_R is None else w_R + 2 * terms.z_loss * lse_R
        p_RV.mul_(factor_R[:, None])
    if terms.label_smoothing:
        p_RV.sub_((w_R * (terms.label_smoothing / p_RV.shape[1]))[:, None])
    p_RV.scatter_add_(-1, targets_R1, (w_R * (terms.label_smoothing - 1))[:, None])


def _fused(buffer_CV: torch.Tensor, form: LogitForm, terms: LossTerms) -> ChunkSoftmax:
    from whet.model.kernels.softmax_triton import TritonSoftmax

    return TritonSoftmax(form)


def _refuses(device: str, form: LogitForm, terms: LossTerms) -> str | None:
    if device != "cuda":
        return f"it is a Triton kernel, and this is {device}"
    if not terms.is_plain:
        return "the loss is more than the cross-entropy"
    return None if find_spec("triton") is not None else "triton is not installed"


SOFTMAX = Kernel("cross-entropy", Softmax, _fused, _refuses, 1e-5)
