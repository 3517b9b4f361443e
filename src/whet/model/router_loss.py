"""The load-balancing loss of a mixture model's routers (Switch Transformer, Fedus et al., 2021, equations 4 to 6).

    E * sum over experts e of f_e * P_e

f_e is the share of tokens sent to e, P_e the mean probability that routers give it, over all layers. The model's own
function computes it, from the tokens that are real: padding of a flattened row is left out.

It is a product of two means, so that a micro-batch has one of its own and means of pieces are not the mean of the
whole. Here each micro-batch's value counts by its supervised tokens, as if every one of them carried it: the step's is
the mean over micro-batches weighted so, whatever the accumulation and the number of ranks, and differs from that of an
uncut step by how unlike the pieces are.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch


def router_coefficient(model: torch.nn.Module) -> float:
    """What the model's config weights the loss with; 0 where it does not ask for it (`output_router_logits`).

    Args:
        model: without wrappers.
    """
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    if not getattr(text, "output_router_logits", False):
        return 0.0
    return float(getattr(text, "router_aux_loss_coef", 0.0) or 0.0)


def router_loss(model: torch.nn.Module, batch: Mapping[str, Any], output: Any) -> torch.Tensor | None:
    """Scalar with a graph, of one micro-batch; None from a model without routers.

    Args:
        model: without wrappers.
        batch: what it was given, in either layout.
        output: what its forward returned, asked with ``output_router_logits``.
    """
    own: Any = getattr(output, "aux_loss", None)
    if not isinstance(own, torch.Tensor):
        return None
    mask = _real_tokens(batch)
    if mask is None:
        return own
    family = sys.modules[type(model).__module__]
    function = getattr(family, "load_balancing_loss_func", None)
    experts, chosen = getattr(model, "num_experts", None), getattr(model, "num_experts_per_tok", None)
    logits = getattr(output, "router_logits", None)
    if function is None or experts is None or chosen is None or not logits:
        return own
    of_real: torch.Tensor = function(logits, experts, chosen, mask)
    return of_real


def _real_tokens(batch: Mapping[str, Any]) -> torch.Tensor | None:
    """int64[1, T], 0 at the padding of a flattened row; None where there is none, or the model is told of it itself."""
    bounds = batch.get("cu_seq_lens_q")
    if bounds is None or "example_ids" not in batch or len(bounds) == len(batch["example_ids"]) + 1:
        return None
    num_real = bounds[len(batch["example_ids"])]
    positions = torch.arange(batch["input_ids"].shape[1], device=bounds.device)
    is_real: torch.Tensor = positions < num_real
    return is_real.long()[None]
