"""Samples to tensors, in two layouts.

`flatten` puts all samples of a micro-batch behind each other in one line and marks the documents' borders; it is what
a model that keeps documents apart is given. `pad` gives every sample its own line.

Legend: T tokens of the micro-batch, D documents, B lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from whet.core.types import IGNORED

Sample = tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]
Batch = dict[str, Any]


class TokenSource(Protocol):
    """What has samples by number; `whet.data.store.Split` is one."""

    def tokens(self, index: int) -> Sample:
        """ids int32[T] and supervised bool[T]."""
        ...


def flatten(
    split: TokenSource,
    rows: Sequence[npt.ArrayLike],
    *,
    pad_token_id: int = 0,
    pad_to: int | None = None,
    pad_to_multiple_of: int | None = None,
) -> Batch:
    """One flattened line of documents.

    Args:
        split: where the samples are.
        rows: the rows of a micro-batch, each a list of sample ids. None at all (a rank with nothing left to do) gives
            a document of one padding token without a label.
        pad_token_id: the token of padding.
        pad_to: lengthen the line to this many tokens.
        pad_to_multiple_of: lengthen the line to a multiple of this.

    Padding stands at the end as documents of its own, none longer than the longest sample.

    Returns:
        input_ids int64[1, T]; labels int64[1, T], -100 where unsupervised and at the first token of every document
        (nothing of its own document comes before it); position_ids int64[1, T] from 0 in every document;
        cu_seq_lens_q and cu_seq_lens_k int32[D + 1] (the same tensor); max_length_q and max_length_k int;
        example_ids int64[documents that are samples]; num_supervised int, the labels that count.
    """
    example_ids = _all_samples(rows)
    samples = [split.tokens(index) for index in example_ids.tolist()]
    lengths = np.array([len(ids) for ids, _ in samples], dtype=np.int64)
    num_tokens = int(lengths.sum())
    padding = _padded_length(num_tokens, pad_to, pad_to_multiple_of) - num_tokens
    lengths = np.concatenate([lengths, _padding_documents(padding, int(lengths.max(initial=1)))])
    borders = np.concatenate([[0], np.cumsum(lengths)])

    total = num_tokens + padding
    input_ids = np.full(total, pad_token_id, dtype=np.int64)
    supervised = np.zeros(total, dtype=np.bool_)
    if samples:
        np.concatenate([ids for ids, _ in samples], out=input_ids[:num_tokens])
        np.concatenate([mask for _, mask in samples], out=supervised[:num_tokens])
    supervised[borders[:-1]] = False
    cu_seq_lens = torch.from_numpy(borders.astype(np.int32))
    longest = int(lengths.max())
    return {
        "input_ids": torch.from_numpy(input_ids)[None],
        "labels": torch.from_numpy(np.where(supervised, input_ids, IGNORED))[None],
        "position_ids": torch.from_numpy(np.arange(total) - np.repeat(borders[:-1], lengths))[None],
        "cu_seq_lens_q": cu_seq_lens,
        "cu_seq_lens_k": cu_seq_lens,
        "max_length_q": longest,
        "max_length_k": longest,
        "example_ids": torch.from_numpy(example_ids),
        "num_supervised": int(supervised.sum()),
    }


def pad(
    split: TokenSource,
    rows: Sequence[npt.ArrayLike],
    *,
    pad_token_id: int = 0,
    pad_to: int | None = None,
    pad_to_multiple_of: int | None = None,
) -> Batch:
    """A line for every sample of every row, padded on the right; arguments as for `flatten`.

    Returns:
        input_ids, labels, attention_mask int64[B, T]; example_ids int64[samples]; num_supervised int. With no sample
        at all there is one line of one padding token, without a label and with attention to itself.
    """
    example_ids = _all_samples(rows)
    samples = [split.tokens(index) for index in example_ids.tolist()]
    width = _padded_length(max((len(ids) for ids, _ in samples), default=0), pad_to, pad_to_multiple_of)
    shape = (max(len(samples), 1), width)
    input_ids = np.full(shape, pad_token_id, dtype=np.int64)
    supervised = np.zeros(shape, dtype=np.bool_)
    attention_mask = np.zeros(shape, dtype=np.int64)
    attention_mask[:, 0] = 1
    for line, (ids, mask) in enumerate(samples):
        input_ids[line, : len(ids)] = ids
        supervised[line, : len(ids)] = mask
        attention_mask[line, : len(ids)] = 1
    supervised[:, 0] = False
    return {
        "input_ids": torch.from_numpy(input_ids),
        "labels": torch.from_numpy(np.where(supervised, input_ids, IGNORED)),
        "attention_mask": torch.from_numpy(attention_mask),
        "example_ids": torch.from_numpy(example_ids),
        "num_supervised": int(supervised.sum()),
    }


def _all_samples(rows: Sequence[npt.ArrayLike]) -> npt.NDArray[np.int64]:
    return np.concatenate([np.zeros(0, np.int64), *(np.asarray(row, dtype=np.int64).ravel() for row in rows)])


def _padded_length(length: int, pad_to: int | None, multiple: int | None) -> int:
    """At least one token, so that a rank with no sample still runs its model."""
    length = max(length, pad_to or 1)
    return -(-length // multiple) * multiple if multiple else length


def _padding_documents(padding: int, longest: int) -> npt.NDArray[np.int64]:
    """Lengths of the padding's documents: short ones, so that attention over padding costs no more than over text."""
    whole, rest = divmod(padding, longest)
    return np.array([longest] * whole + [rest] * bool(rest), dtype=np.int64)
