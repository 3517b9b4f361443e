"""Attention in which each document of a packed row sees itself and nothing else.

The implementation is registered with transformers under the name ``whet_documents`` and used by every model that asks
its attention from transformers' ``AttentionInterface``. Where the documents lie is told by, in this order:

1. ``cu_seq_lens_q``: int32[D + 1], 0 first and the number of tokens last (the keyword that flash attention uses);
2. ``position_ids``: int64[B, T]; a document begins wherever the position does not follow the one before;
3. nothing: each row is one document.

A call with a padding mask or a key-value cache (generation) is computed as transformers' own ``sdpa`` would.

Shapes: B rows, T tokens in a row, S keys, H query heads, D_h width of a head. ``query`` is [B, H, T, D_h].
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from whet.core.errors import ModelError, Problem
from whet.model.documents import Boundaries, Scores, attend_each, lengths_from_positions, scored_attention
from whet.model.masks import causal_band, same_document

NAME = "whet_documents"


class DeferredMask:
    """The arguments of a mask that most calls never need.

    A mask of T x T booleans costs more than the attention of short documents, so it is built by the first layer that
    asks for it. One object serves all layers of a forward pass, and so keeps the document lengths found for the first.
    """

    def __init__(self, **arguments: Any) -> None:
        self._arguments = arguments
        self._lengths: tuple[int, ...] | None = None
        self.window: int | None = arguments.get("local_size")
        # A mask with an overlay (image tokens that see both ways) or a bidirectional one is not "causal in a window".
        self.is_causal = not (arguments.get("use_vmap") or arguments.get("allow_is_bidirectional_skip"))

    @cached_property
    def tensor(self) -> torch.Tensor | None:
        """bool[B, 1, T, S], True where seen; None when SDPA's own causal attention is the same."""
        mask: torch.Tensor | None = sdpa_mask(**self._arguments)
        return mask

    @cached_property
    def explicit(self) -> torch.Tensor:
        """The same, never None."""
        skips = {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
        mask: torch.Tensor = sdpa_mask(**{**self._arguments, **skips})
        return mask

    @cached_property
    def is_padded(self) -> bool:
        """Whether the caller's attention mask hides any token."""
        attention_mask = self._arguments.get("attention_mask")
        return attention_mask is not None and not bool(attention_mask.all())

    def lengths(self, find: Callable[[torch.Tensor], tuple[int, ...]], source: torch.Tensor) -> tuple[int, ...]:
        """``find(source)``, done once for all layers: reading lengths waits for the device."""
        if self._lengths is None:
            self._lengths = find(source)
        return self._lengths


def register() -> None:
    """Make ``attn_implementation="whet_documents"`` known to transformers. Doing it twice is harmless."""
    AttentionInterface.register(NAME, document_attention)
    AttentionMaskInterface.register(NAME, DeferredMask)


def document_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: DeferredMask | torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Transformers' attention interface: returns [B, T, H, D_h] and no weights.

    Raises:
        ModelError: the model picks the keys of each query itself (sparse attention), which is not computed here.
        ValueError: ``cu_seq_lens_q`` does not cover the tokens, or comes together with a key-value cache.
    """
    _refuse_sparse(kwargs)
    cu_seq_lens = kwargs.get("cu_seq_lens_q")
    lengths = _document_lengths(query, key, attention_mask, cu_seq_lens, kwargs.get("position_ids"))
    scores = Scores(scaling, softcap, kwargs.get("s_aux"), dropout)
    causal = _is_causal(module, kwargs)
    rows_are_documents = not lengths or lengths == (query.shape[2],) * query.shape[0]
    mask = None
    if _is_plain(attention_mask, lengths, sliding_window, causal) and kwargs.get("position_bias") is None:
        window = sliding_window if sliding_window is not None and sliding_window < max(lengths) else None
        # Off the CPU PyTorch picks among more kernels for whole rows than it has for documents.
        if not (rows_are_documents and window is None and scores.are_plain and query.device.type != "cpu"):
            return attend_each(query, key, value, Boundaries(lengths, cu_seq_lens), scores, window, causal), None
    else:
        mask = _written_out(attention_mask, always=not scores.are_plain)
        if not rows_are_documents:
            mask = same_document(lengths, query, mask, causal)
    if not scores.are_plain:
        seen = causal_band(query.shape[2], None, query.device, key.shape[2]) if mask is None and causal else mask
        return scored_attention(query, key, value, scores, seen).transpose(1, 2).contiguous(), None
    output: tuple[torch.Tensor, None] = sdpa_attention_forward(
        module, query, key, value, mask, dropout=dropout, scaling=scaling, **kwargs
    )
    return output


def _refuse_sparse(kwargs: dict[str, Any]) -> None:
    named = next((name for name in ("indices", "block_indices") if kwargs.get(name) is not None), None)
    if named is not None:
        found = f"this model picks the keys of each query itself ({named}), which '{NAME}' does not compute"
        raise ModelError(Problem("attn_implementation", found, "write 'eager' and sample_packing: false"))


def _is_causal(module: torch.nn.Module, kwargs: dict[str, Any]) -> bool:
    """As transformers' ``sdpa`` decides: the call's word, then the module's."""
    asked = kwargs.get("is_causal")
    return bool(getattr(module, "is_causal", True) if asked is None else asked)


def _document_lengths(
    query: torch.Tensor,
    key: torch.Tensor,
    attention_mask: DeferredMask | torch.Tensor | None,
    cu_seq_lens: torch.Tensor | None,
    position_ids: torch.Tensor | None,
) -> tuple[int, ...]:
    """Lengths of the documents, one row after the other; () where a cache makes the question meaningless."""
    num_rows, row_length = query.shape[0], query.shape[2]
    num_tokens = num_rows * row_length
    if cu_seq_lens is not None:
        lengths = _once(attention_mask, _lengths_between, cu_seq_lens)
        if sum(lengths) != num_tokens or key.shape[2] != row_length:
            raise ValueError(
                f"cu_seq_lens_q describes {sum(lengths)} tokens, the call has {num_tokens} queries and "
                f"{num_rows * key.shape[2]} keys; packed documents cannot be used together with a key-value cache"
            )
        return lengths
    if key.shape[2] != row_length:
        _refuse_documents_in_a_cache(attention_mask, position_ids, row_length)
        return ()
    if position_ids is None or position_ids.ndim != 2 or position_ids.shape[1] != row_length:
        return (row_length,) * num_rows
    return _once(attention_mask, lengths_from_positions, position_ids.expand(num_rows, -1))


def _refuse_documents_in_a_cache(
    attention_mask: DeferredMask | torch.Tensor | None, position_ids: torch.Tensor | None, row_length: int
) -> None:
    """Positions that begin anew say that a row holds several documents; beside cached keys nothing keeps them apart.

    Under a padding mask they may be those of hidden tokens, as `generate` makes them.
    """
    if row_length == 1 or position_ids is None or position_ids.ndim != 2 or position_ids.shape[1] != row_length:
        return
    if isinstance(attention_mask, torch.Tensor) or (attention_mask is not None and attention_mask.is_padded):
        return
    if bool((position_ids.diff(dim=1) != 1).any()):
        raise ValueError("packed documents cannot be used together with a key-value cache longer than the row")


def _lengths_between(edges: torch.Tensor) -> tuple[int, ...]:
    return tuple(length for length in edges.diff().tolist() if length > 0)


def _once(
    attention_mask: DeferredMask | torch.Tensor | None,
    find: Callable[[torch.Tensor], tuple[int, ...]],
    source: torch.Tensor,
) -> tuple[int, ...]:
    if isinstance(attention_mask, DeferredMask):
        return attention_mask.lengths(find, source)
    return find(source)


def _written_out(attention_mask: DeferredMask | torch.Tensor | None, always: bool) -> torch.Tensor | None:
    if isinstance(attention_mask, DeferredMask):
        return attention_mask.explicit if always else attention_mask.tensor
    return attention_mask


def _is_plain(
    attention_mask: DeferredMask | torch.Tensor | None,
    lengths: tuple[int, ...],
    sliding_window: int | None,
    causal: bool,
) -> bool:
    """Whether "causal, in a window, within each document" (or all of each document) is all there is to this call."""
    if not lengths or isinstance(attention_mask, torch.Tensor) or not (causal or sliding_window is None):
        return False
    if attention_mask is None:
        return True
    # A local size without a window is another pattern: chunks (Llama 4).
    is_chunked = attention_mask.window is not None and sliding_window is None
    return attention_mask.is_causal and not is_chunked and not attention_mask.is_padded
