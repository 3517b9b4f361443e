"""The training loss of each dataset, from the origin that every sample keeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from whet.data.batch import Batch
from whet.model.loss import LossParts, document_of_position
from whet.training.carried import Carried
from whet.training.evaluation import metric_names
from whet.training.loader import Sources

SOURCES = "sources"
"""Entry of a batch: int64[documents that are samples], which of the split's datasets each is from."""


class DatasetLosses(Carried):
    """Sums of losses and targets by dataset, kept on the device; nothing at all where there is one dataset.

    Args:
        split: the training samples.
    """

    carried_as = "dataset_losses"

    def __init__(self, split: Sources) -> None:
        present = np.unique(split.source)
        self._index = np.searchsorted(present, split.source) if len(present) > 1 else None
        self._keys = metric_names([split.names[source] for source in present.tolist()])
        self._sums: torch.Tensor | None = None
        self._begun: list[list[float]] | None = None  # what they begin with

    def carried(self) -> list[list[float]] | None:
        """The sums since the last figures, float64[datasets, 2], of this rank."""
        return self._begun if self._sums is None else self._sums.tolist()

    def carry_on(self, value: Any) -> None:
        self._begun = value

    def shared_out(self, of_ranks: Sequence[Any], num_ranks: int) -> list[Any]:
        """All to the first rank: in the end they are added up over the ranks."""
        known = [sums for sums in of_ranks if sums is not None]
        total = np.sum(known, axis=0).tolist() if known else None
        return [total, *[None] * (num_ranks - 1)]

    def mark(self, batch: Batch) -> None:
        """Say in a batch that is still on the CPU where its samples come from, unless it says so itself."""
        if self._index is not None and SOURCES not in batch:
            batch[SOURCES] = torch.from_numpy(self._index[batch["example_ids"].numpy()])

    def add(self, batch: Batch, parts: LossParts) -> None:
        """Count a micro-batch. Waits for no device."""
        if SOURCES not in batch or not parts.count:
            return
        source = batch[SOURCES][document_of_position(batch, parts.positions)]
        exact = torch.float32 if source.device.type == "mps" else torch.float64
        if self._sums is None:
            self._sums = self._first_sums(exact, source.device)
        each = torch.stack([parts.per_token.to(exact), torch.ones_like(parts.per_token, dtype=exact)], dim=1)
        self._sums.index_add_(0, source, each)

    def figures(self, device: torch.device, total: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
        """``loss/<dataset>``, nats per supervised token since the last call, over all ranks.

        Args:
            total: adds a tensor up over the ranks. Every rank calls this method, whatever it has seen.
        """
        if self._index is None:
            return {}
        sums, self._sums = self._sums, None
        if sums is None:
            exact = torch.float32 if device.type == "mps" else torch.float64
            sums = self._first_sums(exact, device)
        losses = zip(self._keys, total(sums).tolist(), strict=True)
        return {f"loss/{key}": loss / count for key, (loss, count) in losses if count}

    def _first_sums(self, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        begun, self._begun = self._begun, None
        if begun is None:
            return torch.zeros(len(self._keys), 2, dtype=dtype, device=device)
        return torch.tensor(begun, dtype=dtype, device=device)
