"""Which keys a query sees, written out.

Shapes: B rows, T queries in a row, S keys.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def causal_band(length: int, window: int | None, device: torch.device, num_keys: int | None = None) -> torch.Tensor:
    """bool[T, S], True where query i sees key j: the last ``window`` keys up to its own. Aligned at the last key."""
    num_keys = length if num_keys is None else num_keys
    seen = torch.ones(length, num_keys, dtype=torch.bool, device=device).tril(num_keys - length)
    return seen if window is None else seen.triu(num_keys - length - window + 1)


def same_document(
    lengths: Sequence[int], query: torch.Tensor, mask: torch.Tensor | None, causal: bool = True
) -> torch.Tensor:
    """bool[B, 1, T, T]: ``mask`` within documents; without one, causal or all of them."""
    num_rows, row_length = query.shape[0], query.shape[2]
    document = torch.repeat_interleave(torch.tensor(lengths, device=query.device)).view(num_rows, 1, row_length)
    same = document[:, :, :, None] == document[:, :, None, :]
    if mask is None:
        return same & causal_band(row_length, None, query.device) if causal else same
    return mask & same if mask.dtype == torch.bool else mask.masked_fill(~same, torch.finfo(mask.dtype).min)
