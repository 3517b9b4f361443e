"""Causal attention within documents: how a packed row is computed, one call a document or one kernel for all.

Shapes: B rows, T tokens in a row, H query heads, G heads of keys and values, D_h width of a head, D documents.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch.nn.functional import dropout as drop
from torch.nn.functional import scaled_dot_product_attention

from whet.model.flash_documents import flash_documents, flash_refuses
from whet.model.flex import flex_documents, flex_refuses
from whet.model.masks import causal_band
from whet.model.varlen import kernel_dtype, varlen_documents, varlen_refuses


@dataclass(frozen=True, slots=True)
class Scores:
    """What becomes of the scores ``q k`` of one call, beside which keys are seen.

    Attributes:
        scaling: factor of them; ``D_h ** -0.5`` when None.
        softcap: ``c`` in ``c * tanh(score / c)`` (Gemma 2, https://arxiv.org/abs/2408.00118, section 2); None: no cap.
        sinks: [H], a learned logit that takes part in each softmax of its head and has no value (gpt-oss,
            https://arxiv.org/abs/2508.10925, section 2.2); None: there is none.
        dropout: share of the weights that are dropped.
    """

    scaling: float | None = None
    softcap: float | None = None
    sinks: torch.Tensor | None = None
    dropout: float = 0.0

    @property
    def are_plain(self) -> bool:
        """Whether PyTorch's own attention computes them."""
        return self.softcap is None and self.sinks is None


def lengths_from_positions(position_ids: torch.Tensor) -> tuple[int, ...]:
    """Lengths of the documents in int64[B, T], rows one after the other.

    >>> lengths_from_positions(torch.tensor([[0, 1, 2, 0, 1]]))
    (3, 2)
    """
    starts = torch.ones_like(position_ids, dtype=torch.bool)
    starts[:, 1:] = position_ids.diff(dim=1) != 1
    edges = [*starts.flatten().nonzero().flatten().tolist(), position_ids.numel()]
    return tuple(end - begin for begin, end in pairwise(edges))


@dataclass(frozen=True, slots=True)
class Boundaries:
    """Documents of the flattened rows: their lengths, and the same as a tensor where the caller gave one."""

    lengths: tuple[int, ...]
    cumulative: torch.Tensor | None

    def on(self, device: torch.device) -> torch.Tensor:
        """int32[D + 1] on ``device``."""
        if self.cumulative is not None:
            return self.cumulative.to(device=device, dtype=torch.int32)
        return torch.tensor((0, *self.lengths), dtype=torch.int32).cumsum(0, dtype=torch.int32).to(device)


def attend_each(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    boundaries: Boundaries,
    scores: Scores,
    window: int | None = None,
    causal: bool = True,
) -> torch.Tensor:
    """Attention of each document to itself: [B, T, H, D_h].

    Args:
        query: [B, H, T, D_h]; key, value: [B, G, T, D_h].
        window: a query sees itself and ``window - 1`` tokens before it; None: all before it.
        causal: False: a query sees all of its document (encoders); without a window then.
    """
    num_rows, _, row_length, _ = query.shape
    # Under autocast some arrive in float32 (norms, rotary embeddings); PyTorch's own attention casts them too.
    dtype = kernel_dtype(query)
    q, k, v = (
        tensor.to(dtype).transpose(1, 2).flatten(0, 1) for tensor in (query, key, value)
    )  # [B * T, H, D_h] views
    kernels_know_it = scores.softcap is None and scores.dropout == 0.0
    lengths, scaling, sinks = boundaries.lengths, scores.scaling, scores.sinks
    if kernels_know_it and flash_refuses(q, k, v) is None:
        output = flash_documents(q, k, v, lengths, scaling=scaling, window=window, sinks=sinks, causal=causal)
    elif kernels_know_it and causal and varlen_refuses(q, k, v) is None:
        edges = boundaries.on(query.device)
        output = varlen_documents(q, k, v, edges, max(lengths), scaling=scaling, window=window, sinks=sinks)
    elif (
        scores.softcap is not None and sinks is None and causal and scores.dropout == 0.0 and flex_refuses(q, v) is None
    ):
        output = flex_documents(q, k, v, lengths, scaling=scaling, window=window, softcap=scores.softcap)
    else:
        queries, keys, values = (
            torch.split(tensor.transpose(0, 1)[None], list(lengths), dim=2) for tensor in (q, k, v)
        )
        documents = [attend_one(q, k, v, scores, window, causal) for q, k, v in zip(queries, keys, values, strict=True)]
        output = torch.cat([document.transpose(1, 2)[0] for document in documents])
    return output.view(num_rows, row_length, *output.shape[1:])


def attend_one(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scores: Scores,
    window: int | None = None,
    causal: bool = True,
) -> torch.Tensor:
    """Attention of one document, [1, H, T, D_h], by plain PyTorch: what the fast forms are held to."""
    length = query.shape[2]
    band = None
    if causal and ((window is not None and window < length) or not scores.are_plain):
        band = causal_band(length, window, query.device)
    if not scores.are_plain:
        return scored_attention(query, key, value, scores, band)
    grouped = key.shape[1] != query.shape[1]
    if grouped and query.device.type != "cpu":
        # Off the CPU the fast kernels do not take grouped heads in every dtype; expanded heads always get one.
        key, value = _expanded(query, key, value)
        grouped = False
    return scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=band,
        dropout_p=scores.dropout,
        is_causal=causal and band is None,
        scale=scores.scaling,
        enable_gqa=grouped,
    )


def scored_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scores: Scores, seen: torch.Tensor | None
) -> torch.Tensor:
    """Attention written out, for caps and sinks: [B, H, T, D_h].

    Args:
        query: [B, H, T, D_h]; key, value: [B, G, S, D_h].
        seen: bool, True where a key is seen, or what is added to the scores; broadcasts to [B, H, T, S]. None: all.
    """
    key, value = _expanded(query, key, value)
    scale = query.shape[-1] ** -0.5 if scores.scaling is None else scores.scaling
    logits = query @ key.transpose(2, 3) * scale
    if scores.softcap is not None:
        logits = scores.softcap * torch.tanh(logits / scores.softcap)
    if seen is not None:
        hidden = torch.finfo(logits.dtype).min
        logits = logits.masked_fill(~seen, hidden) if seen.dtype == torch.bool else logits + seen
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    if scores.sinks is not None:
        sinks = scores.sinks.to(logits.dtype)[:, None, None].expand(*logits.shape[:3], 1)
        weights = torch.cat((logits, sinks), dim=-1).softmax(dim=-1)[..., :-1]
    else:
        weights = logits.softmax(dim=-1)
    return drop(weights.to(value.dtype), scores.dropout) @ value


def _expanded(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values with as many heads as the queries have."""
    groups = query.shape[1] // key.shape[1]
    if groups == 1:
        return key, value
    return key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
