"""Which samples an optimiser step sees, computed from (lengths, seed, epoch, step) and never remembered.

A row is what one line of a batch holds: a pack, or a single sample. Each epoch has the same number of rows. Optimiser
step s takes rows ``[s * G, (s + 1) * G)`` of the epoch, with G = micro_batch_size x accumulation x world_size; so the
samples of a step depend on G alone, and a run may go on with other ranks as long as G is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import overload

import numpy as np
import numpy.typing as npt

from whet.data.packing import IntArray, Packs, Slots, plan_slots

_SAMPLES, _ROWS = 0, 1
"""The two independent random streams of an epoch."""


class Order:
    """The order of samples in every epoch.

    Args:
        lengths: int[N], tokens of each sample.
        sequence_len: tokens a pack may hold; read only when ``packed``.
        packed: several samples a row; else one.
        micro_batch_size: rows a rank computes at a time.
        seed: any integer.
        shuffle: False keeps the order of the samples: row by row, or for packs by their earliest sample.
    """

    def __init__(
        self,
        lengths: npt.ArrayLike,
        sequence_len: int,
        packed: bool,
        micro_batch_size: int,
        seed: int,
        shuffle: bool = True,
    ) -> None:
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.packed = packed
        self.micro_batch_size = micro_batch_size
        self.seed = seed
        self.shuffle = shuffle
        self._slots = plan_slots(self.lengths, sequence_len) if packed else _one_each(len(self.lengths))
        self._epoch = lru_cache(maxsize=1)(self._compute_epoch)

    @property
    def num_samples(self) -> int:
        return len(self.lengths)

    @property
    def num_rows(self) -> int:
        """Rows of an epoch; the same for every epoch."""
        return len(self._slots.offsets) - 1

    def steps_per_epoch(self, accumulation: int, world_size: int = 1) -> int:
        """Optimiser steps of an epoch; the last may see fewer rows than the others."""
        return -(-self.num_rows // self.rows_per_step(accumulation, world_size))

    def rows_per_step(self, accumulation: int, world_size: int = 1) -> int:
        """Rows of a full optimiser step (G), over all ranks."""
        return self.micro_batch_size * accumulation * world_size

    def num_micro_batches(self, world_size: int = 1) -> int:
        """Micro-batches of an epoch, the same for every rank. Accumulation does not change it."""
        return -(-self.num_rows // (self.micro_batch_size * world_size))

    def epoch(self, epoch: int) -> Packs:
        """All rows of an epoch in order. The latest epoch asked for is kept in memory."""
        return self._epoch(epoch)

    def step_samples(self, epoch: int, step: int, accumulation: int, world_size: int = 1) -> IntArray:
        """Sample ids that optimiser step ``step`` of the epoch sees over all ranks, in row order."""
        rows, size = self.epoch(epoch), self.rows_per_step(accumulation, world_size)
        begin, end = min(step * size, len(rows)), min((step + 1) * size, len(rows))
        return rows.members[rows.offsets[begin] : rows.offsets[end]]

    def micro_batches(self, epoch: int, rank: int = 0, world_size: int = 1, accumulation: int = 1) -> MicroBatches:
        """What one rank computes in an epoch, in order.

        Micro-batches ``[s * accumulation, (s + 1) * accumulation)`` belong to optimiser step s; the last step may have
        fewer. Every rank has the same number of micro-batches; towards the end some may hold no row.

        Args:
            accumulation: only names the steps; micro-batches are the same for any value.
        """
        assert 0 <= rank < world_size
        assert accumulation >= 1
        return MicroBatches(self.epoch(epoch), self.micro_batch_size, rank, world_size)

    def _compute_epoch(self, epoch: int) -> Packs:
        if not self.shuffle:
            packs = self._slots.fill(self._by_length(np.arange(self.num_samples)))
            return _in_row_order(packs, np.argsort(_first_members(packs), kind="stable"))
        packs = self._slots.fill(self._by_length(self._random(epoch, _SAMPLES, self.num_samples)))
        return _in_row_order(packs, np.argsort(self._random(epoch, _ROWS, self.num_rows), kind="stable"))

    def _by_length(self, tie_breaker: npt.NDArray[np.integer]) -> IntArray:
        if not self.packed:
            return np.argsort(tie_breaker, kind="stable")
        by_length: IntArray = np.lexsort((tie_breaker, self.lengths))
        return by_length

    def _random(self, epoch: int, stream: int, size: int) -> npt.NDArray[np.uint64]:
        """Raw Philox output: unlike NumPy's Generator methods its stream is promised never to change."""
        key = np.array([self.seed % 2**64, 2 * epoch + stream], dtype=np.uint64)
        raw: npt.NDArray[np.uint64] = np.random.Philox(key=key).random_raw(size)
        return raw


@dataclass(frozen=True, eq=False)
class MicroBatches(Sequence[tuple[IntArray, ...]]):
    """One rank's micro-batches of an epoch; each is a tuple of rows, each row int64[k] sample ids.

    Row i of a global micro-batch goes to rank i mod world_size, so that the last, partial one is spread evenly.
    Nothing is computed before it is asked for: a resumed run starts anywhere at once.
    """

    rows: Packs
    micro_batch_size: int
    rank: int
    world_size: int

    def __len__(self) -> int:
        return -(-len(self.rows) // (self.micro_batch_size * self.world_size))

    @overload
    def __getitem__(self, index: int) -> tuple[IntArray, ...]: ...
    @overload
    def __getitem__(self, index: slice) -> list[tuple[IntArray, ...]]: ...
    def __getitem__(self, index: int | slice) -> tuple[IntArray, ...] | list[tuple[IntArray, ...]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(index)
        size = self.micro_batch_size * self.world_size
        end = min((index + 1) * size, len(self.rows))
        return tuple(self.rows[row] for row in range(index * size + self.rank, end, self.world_size))


def _one_each(num_samples: int) -> Slots:
    return Slots(np.arange(num_samples + 1, dtype=np.int64), np.arange(num_samples, dtype=np.int64))


def _first_members(packs: Packs) -> IntArray:
    """int64[P]: the smallest sample id of each row."""
    if not len(packs):
        return np.zeros(0, np.int64)
    return np.minimum.reduceat(packs.members, packs.offsets[:-1])


def _in_row_order(packs: Packs, order: IntArray) -> Packs:
    """The same rows in another order."""
    sizes = np.diff(packs.offsets)[order]
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    within = np.arange(len(packs.members)) - np.repeat(offsets[:-1], sizes)
    return Packs(offsets, packs.members[np.repeat(packs.offsets[:-1][order], sizes) + within])
