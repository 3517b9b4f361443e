"""Next-token loss of the supervised tokens, as a sum and a count.

Only positions whose next token is supervised go through the output head, a chunk at a time (`whet.model.head_loss`,
inside the model's own forward by `whet.model.head_seam`). A model whose logits are not plainly those of its head
computes them itself, of the supervised positions where it can be asked for them.

Shapes: B rows, T tokens in a row, N supervised tokens, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from whet.core.types import IGNORED
from whet.model.head_seam import HeadSeam, seam_of
from whet.model.loss_terms import EVALUATION, LossPlan, LossTerms, loss_of_logits
from whet.model.router_loss import router_loss

MODEL_INPUTS = (
    "input_ids",
    "attention_mask",
    "position_ids",
    "cu_seq_lens_q",
    "cu_seq_lens_k",
    "max_length_q",
    "max_length_k",
)
"""Entries of a batch that are the model's; the others (labels, example_ids) are ours."""


@dataclass(frozen=True, slots=True)
class LossParts:
    """A loss that has not been divided yet.

    Attributes:
        total: fp32 scalar with a graph, the sum over supervised tokens of -log p(token), in nats (or of
            what `LossTerms` make of it). Joined to the graph
            even when no token is supervised, so that every rank of a data-parallel run has a backward pass.
        count: N, the number of supervised tokens.
        per_token: fp32[N], detached: the plain cross-entropy of each, whatever else is in the total.
        positions: int64[N], where each prediction was made, as an index into the flattened [B * T] tokens; its target
            is the token after it.
    """

    total: torch.Tensor
    count: int
    per_token: torch.Tensor
    positions: torch.Tensor


def supervised_logits_loss(model: torch.nn.Module, batch: Mapping[str, Any], plan: LossPlan = EVALUATION) -> LossParts:
    """The next-token loss of one micro-batch.

    Args:
        model: a causal language model of transformers, bare or wrapped by PEFT or DistributedDataParallel.
        batch: ``input_ids`` int64[B, T], ``labels`` int64[B, T] with -100 where a token is no target, and any other of
            ``MODEL_INPUTS``. The first token of each document is no target, so none is predicted from another document.
        plan: what is summed, and who computes it.
    """
    labels_BT: torch.Tensor = batch["labels"]
    rows, columns = (labels_BT[:, 1:] != IGNORED).nonzero(as_tuple=True)
    targets_N = labels_BT[rows, columns + 1]
    positions_N = rows * labels_BT.shape[1] + columns
    inner = innermost(model)
    seam, inputs = seam_of(inner), model_inputs(model, batch)
    if plan.router_coefficient:
        inputs["output_router_logits"] = True
    if isinstance(seam, HeadSeam):
        total, per_token, output = seam.loss(lambda: _forward(model, inputs), positions_N, targets_N, plan)
    else:
        output, logits_NV = _logits_at(model, inputs, rows, columns)
        total, per_token = _loss_of_own_logits(logits_NV, targets_N, plan.terms)
    if plan.router_coefficient and (balance := router_loss(inner, batch, output)) is not None:
        total = total + balance.float() * (plan.router_coefficient * targets_N.numel())
    return LossParts(total, targets_N.numel(), per_token, positions_N)


def _loss_of_own_logits(
    logits_NV: torch.Tensor, targets_N: torch.Tensor, terms: LossTerms
) -> tuple[torch.Tensor, torch.Tensor]:
    if targets_N.numel() == 0:
        return logits_NV.float().sum() * 0.0, logits_NV.new_zeros(0, dtype=torch.float32)
    return loss_of_logits(logits_NV, targets_N, terms)


def document_of_position(batch: Mapping[str, Any], positions: torch.Tensor) -> torch.Tensor:
    """int64[N]: the document of the batch that each of `LossParts.positions` is in, in either layout of a batch."""
    if "cu_seq_lens_q" not in batch:
        return positions // int(batch["input_ids"].shape[1])
    ends: torch.Tensor = batch["cu_seq_lens_q"][1:]
    documents: torch.Tensor = torch.searchsorted(ends, positions.to(ends.dtype), right=True)
    return documents


def model_inputs(model: torch.nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """What of ``batch`` the model's forward takes; a model without keyword arguments is spared the document bounds."""
    names, takes_any = _parameters(type(innermost(model)).forward)
    return {name: batch[name] for name in MODEL_INPUTS if name in batch and (takes_any or name in names)}


def innermost(model: torch.nn.Module) -> torch.nn.Module:
    """The transformers model inside the wrappers of PEFT, DistributedDataParallel and torch.compile."""
    compiled = model._modules.get("_orig_mod")  # a compiled module answers for the attributes of its own
    if compiled is not None:
        return innermost(compiled)
    inner = getattr(model, "module", None)
    if isinstance(inner, torch.nn.Module) and not hasattr(model, "config"):
        return innermost(inner)
    unwrap: Callable[[], torch.nn.Module] | None = getattr(model, "get_base_model", None)
    return model if unwrap is None else unwrap()


def _logits_at(
    model: torch.nn.Module, inputs: Mapping[str, Any], rows: torch.Tensor, columns: torch.Tensor
) -> tuple[Any, torch.Tensor]:
    """The output, and [N, V] logits at ``(rows[n], columns[n])``; of one arbitrary position when N is 0."""
    names, _ = _parameters(type(innermost(model)).forward)
    if columns.numel() == 0:
        rows, columns = rows.new_zeros(1), columns.new_zeros(1)
    if "logits_to_keep" not in names:
        output = _forward(model, inputs)
        return output, output.logits[rows, columns]
    # One list of columns serves all rows; in the flattened layout there is one row and nothing is computed in vain.
    kept, index_in_kept = torch.unique(columns, return_inverse=True)
    output = _forward(model, {**inputs, "logits_to_keep": kept})
    logits = output.logits
    return output, logits[0] if logits.shape[0] == 1 else logits[rows, index_in_kept]


def _forward(model: torch.nn.Module, inputs: Mapping[str, Any]) -> Any:
    return model(**inputs, use_cache=False)


@cache
def _parameters(forward: Callable[..., Any]) -> tuple[frozenset[str], bool]:
    """Names of the forward's parameters, and whether it takes any keyword."""
    parameters = inspect.signature(forward).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return frozenset(parameters), takes_any
