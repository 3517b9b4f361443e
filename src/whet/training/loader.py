"""One rank's micro-batches as a PyTorch DataLoader: the order says which samples, the layout how they are tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from whet.data.batch import Batch
from whet.data.order import Order
from whet.data.store import Split

Rows = Sequence[npt.ArrayLike]
Collate = Callable[[Split, Rows], Batch]


@dataclass(frozen=True, eq=False)
class Samples(Dataset[Any]):
    """Samples, the order in which they are seen, and how rows of them become a batch.

    Attributes:
        collate: `whet.data.batch.flatten` or `pad` with its options bound; must pickle when workers are used.
    """

    split: Split
    order: Order
    collate: Collate

    def __len__(self) -> int:
        return len(self.split)

    def __getitems__(self, rows: Rows) -> Batch:
        """PyTorch's hook for fetching a batch at once: ``rows`` is what the batch sampler yielded."""
        return self.collate(self.split, rows)


class EpochBatches:
    """A batch sampler: this rank's micro-batches of the epoch that was set last.

    Args:
        rank, world_size: which of the processes asks.
        accumulation: micro-batches of an optimiser step.
    """

    def __init__(self, order: Order, rank: int = 0, world_size: int = 1, accumulation: int = 1) -> None:
        self.order, self.rank, self.world_size, self.accumulation = order, rank, world_size, accumulation
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.order.num_micro_batches(self.world_size)

    def __iter__(self) -> Iterator[Rows]:
        yield from self.order.micro_batches(self.epoch, self.rank, self.world_size, self.accumulation)


class MicroBatchLoader(DataLoader[Any]):
    """A DataLoader whose epoch can be set, which transformers does before each one.

    It draws from a generator of its own, so that making an iterator leaves the global random state alone.
    """

    def __init__(
        self,
        samples: Samples,
        batches: EpochBatches,
        *,
        num_workers: int = 0,
        prefetch_factor: int | None = None,
        pin_memory: bool = False,
    ) -> None:
        super().__init__(
            samples,
            batch_sampler=batches,  # type: ignore[arg-type]  # any iterable of index lists; the stub asks for Sampler
            collate_fn=_as_fetched,  # type: ignore[arg-type]  # it gets a batch, not a list, by `__getitems__`
            num_workers=num_workers,
            prefetch_factor=prefetch_factor if num_workers else None,
            pin_memory=pin_memory,
            generator=torch.Generator(),
        )
        self.batches = batches

    def set_epoch(self, epoch: int) -> None:
        self.batches.set_epoch(epoch)


def _as_fetched(batch: Batch) -> Batch:
    """`Samples.__getitems__` has collated already."""
    return batch
