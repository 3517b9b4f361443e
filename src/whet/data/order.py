"""Which samples an optimiser step sees, computed from (lengths, seed, epoch, step) and never remembered.

A row is what one line of a batch holds: a pack, or a single sample. Each epoch has the same number of rows. Optimiser
step s takes rows ``[s * G, (s + 1) * G)`` of the epoch, with G = micro_batch_size x accumulation x world_size; so the
samples of a step depend on G alone, and a run may go on with other ranks as long as G is kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import numpy.typing as npt

from whet.data.balance import balanced
from whet.data.mixing import Mix, plain_mix
from whet.data.packing import IntArray, Packs, Slots, joined, next_fit, one_each, plan_slots
from whet.data.sorting import by_length, by_random

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
        mix: the parts of an epoch and how often each shows every dataset; every sample once by default.
        neighbours: pack samples that stand behind each other; only for parts that show each sample once.
        balance_steps: rows of an optimiser step (G); then rows are dealt to steps so that each takes equal time.
        whole_micro_batches: ranks take turns by micro-batches, not by rows; then a step has the same micro-batches at
            any number of ranks, for losses that look at their rows together.
    """

    def __init__(
        self,
        lengths: npt.ArrayLike,
        sequence_len: int,
        packed: bool,
        micro_batch_size: int,
        seed: int,
        shuffle: bool = True,
        *,
        mix: Mix | None = None,
        neighbours: bool = False,
        balance_steps: int | None = None,
        whole_micro_batches: bool = False,
    ) -> None:
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.packed = packed
        self.micro_batch_size = micro_batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.mix = mix if mix is not None else plain_mix(self.lengths)
        self._by_length = packed and not neighbours
        self._balance_steps = balance_steps
        self._whole_micro_batches = whole_micro_batches
        pack = (next_fit if neighbours else plan_slots) if packed else lambda lengths, _: one_each(len(lengths))
        self._lengths = [self.mix.slots(part) for part in range(self.mix.num_parts)]
        self._slots: list[Slots] = [pack(lengths, sequence_len) for lengths in self._lengths]
        self._latest: tuple[int, Packs] | None = None

    @property
    def num_samples(self) -> int:
        return len(self.lengths)

    @property
    def num_rows(self) -> int:
        """Rows of an epoch; the same for every epoch."""
        return sum(map(len, self._slots))

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
        if self._latest is None or self._latest[0] != epoch:
            self._latest = epoch, self._compute_epoch(epoch)
        return self._latest[1]

    def identity(self) -> str:
        """Hash of the rows of the first epoch, in their order: another seed, mix, capacity of packs or way of packing
        gives another."""
        rows = self.epoch(0)
        digest = hashlib.sha256(f"{len(rows)} rows".encode())
        for part in (rows.offsets, rows.members):
            digest.update(np.ascontiguousarray(part, dtype="<i8").data)
        return digest.hexdigest()

    def step_samples(self, epoch: int, step: int, accumulation: int, world_size: int = 1) -> IntArray:
        """Sample ids that optimiser step ``step`` of the epoch sees over all ranks, in row order."""
        rows, size = self.epoch(epoch), self.rows_per_step(accumulation, world_size)
        begin, end = min(step * size, len(rows)), min((step + 1) * size, len(rows))
        return rows.members[rows.offsets[begin] : rows.offsets[end]]

    def times_seen(self, num_steps: int, accumulation: int, world_size: int = 1) -> IntArray:
        """int64[N]: how often a run's first ``num_steps`` optimiser steps see each sample."""
        whole_epochs, steps_of_last = divmod(num_steps, self.steps_per_epoch(accumulation, world_size))
        times = self.mix.times_seen(whole_epochs, self.num_samples)
        if steps_of_last:
            rows = self.epoch(whole_epochs)
            num_rows = min(steps_of_last * self.rows_per_step(accumulation, world_size), len(rows))
            times = times + np.bincount(rows.members[: rows.offsets[num_rows]], minlength=self.num_samples)
        return times

    def micro_batches(self, epoch: int, rank: int = 0, world_size: int = 1, accumulation: int = 1) -> MicroBatches:
        """What one rank computes in an epoch, in order.

        Micro-batches ``[s * accumulation, (s + 1) * accumulation)`` belong to optimiser step s; the last step may have
        fewer. Every rank has the same number of micro-batches; towards the end some may hold no row.

        Args:
            accumulation: only names the steps; micro-batches are the same for any value.
        """
        assert 0 <= rank < world_size
        assert accumulation >= 1
        return MicroBatches(
            self.epoch(epoch),
            self.micro_batch_size,
            rank,
            world_size,
            to_and_fro=self._balance_steps is not None,
            whole=self._whole_micro_batches,
        )

    def _compute_epoch(self, epoch: int) -> Packs:
        tie_breaker = self._random(epoch, _SAMPLES, sum(map(len, self._lengths)))
        row_random = self._random(epoch, _ROWS, self.num_rows)
        filled: list[Packs] = []
        first_slot = first_row = 0
        for part, (lengths, slots) in enumerate(zip(self._lengths, self._slots, strict=True)):
            last_slot, last_row = first_slot + len(lengths), first_row + len(slots)
            samples = self.mix.deal(part, epoch)
            packs = slots.fill(samples[self._arrangement(lengths, tie_breaker[first_slot:last_slot])])
            filled.append(packs.in_order(self._row_order(packs, row_random[first_row:last_row], first_row)))
            first_slot, first_row = last_slot, last_row
        return joined(filled)

    def _arrangement(self, lengths: IntArray, tie_breaker: npt.NDArray[np.uint64]) -> IntArray:
        """int64: which sample of a part stands where in the list that its slots point into."""
        if self._by_length:
            shuffled = by_random(tie_breaker) if self.shuffle else np.arange(len(lengths))
            return shuffled[by_length(lengths[shuffled])]
        return by_random(tie_breaker) if self.shuffle and not self.packed else np.arange(len(lengths))

    def _row_order(self, packs: Packs, random: npt.NDArray[np.uint64], first_row: int) -> IntArray:
        if not self.shuffle:
            return np.argsort(_first_members(packs), kind="stable")
        if self._balance_steps:
            return balanced(packs.sums(self.lengths**2), random, self._balance_steps, first_row)
        return by_random(random)

    def _random(self, epoch: int, stream: int, size: int) -> npt.NDArray[np.uint64]:
        """Raw Philox output: unlike NumPy's Generator methods its stream is promised never to change."""
        key = np.array([self.seed % 2**64, 2 * epoch + stream], dtype=np.uint64)
        raw: npt.NDArray[np.uint64] = np.random.Philox(key=key).random_raw(size)
        return raw


@dataclass(frozen=True, eq=False)
class MicroBatches(Sequence[tuple[IntArray, ...]]):
    """One rank's micro-batches of an epoch; each is a tuple of rows, each row int64[k] sample ids.

    Rows are dealt to the ranks in turn, so that the last, partial micro-batch is spread evenly. Nothing is computed
    before it is asked for: a resumed run starts anywhere at once.

    Attributes:
        to_and_fro: every other turn goes from the last rank to the first; where rows stand from dear to cheap, no rank
            gets the dearest of every turn.
        whole: micro-batches are dealt, not rows.
    """

    rows: Packs
    micro_batch_size: int
    rank: int
    world_size: int
    to_and_fro: bool = False
    whole: bool = False

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
        if self.whole:
            begin = (index * self.world_size + self.rank) * self.micro_batch_size
            rows: Sequence[int] = range(begin, begin + self.micro_batch_size)
        else:
            turns = range(index * self.micro_batch_size, (index + 1) * self.micro_batch_size)
            rows = [turn * self.world_size + self._place(turn) for turn in turns]
        return tuple(self.rows[row] for row in rows if row < len(self.rows))

    def _place(self, turn: int) -> int:
        """Which row of a turn is this rank's."""
        return self.world_size - 1 - self.rank if self.to_and_fro and turn % 2 else self.rank


def _first_members(packs: Packs) -> IntArray:
    """int64[P]: the smallest sample id of each row."""
    if not len(packs):
        return np.zeros(0, np.int64)
    return np.minimum.reduceat(np.append(packs.members, np.iinfo(np.int64).max), packs.offsets[:-1])
