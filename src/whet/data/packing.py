"""Which samples share a row: best-fit-decreasing bin packing over a histogram of lengths.

Samples of one length are interchangeable, so the work is done on (length, count) groups and on groups of packs with
equal contents, never on single samples. A million samples of a few thousand distinct lengths take about a second.

Best fit puts a sample into the fullest pack that still has room for it; taking samples from long to short makes the
number of packs at most 11/9 of the optimum plus a constant (Johnson, "Near-optimal bin packing algorithms", 1973),
and far closer on the skewed lengths of conversations, where short samples fill every gap.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Packs:
    """Samples grouped in rows.

    Attributes:
        offsets: int64[P + 1]; pack p is ``members[offsets[p]:offsets[p + 1]]``.
        members: int64[N]; every sample id once.
    """

    offsets: IntArray
    members: IntArray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> IntArray:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.members[self.offsets[index] : self.offsets[index + 1]]


@dataclass(frozen=True, eq=False)
class Slots:
    """A packing that knows lengths only: members are positions in the samples sorted by length.

    Any order of samples of one length may be poured into it, which is how an epoch gets new companions at no cost.

    Attributes:
        offsets: int64[P + 1].
        positions: int64[N]; positions in the length-sorted list of samples.
    """

    offsets: IntArray
    positions: IntArray

    def fill(self, by_length: IntArray) -> Packs:
        """Pour samples in.

        Args:
            by_length: int64[N], sample ids in order of length; ids of equal length in any order.
        """
        return Packs(self.offsets, by_length[self.positions])


@dataclass(frozen=True, slots=True)
class _Contents:
    """What a group of equal packs holds: ``copies`` samples of ``length`` on top of ``below``."""

    below: _Contents | None
    length: int
    copies: int


def pack(lengths: npt.ArrayLike, capacity: int) -> Packs:
    """Group samples into packs of at most ``capacity`` tokens.

    Args:
        lengths: int[N], tokens of each sample, 1 <= length <= capacity.
        capacity: tokens that fit in a pack.

    Returns:
        Packs with every sample exactly once. Their number depends on the multiset of lengths alone.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    return plan_slots(lengths, capacity).fill(np.argsort(lengths, kind="stable"))


def plan_slots(lengths: npt.ArrayLike, capacity: int) -> Slots:
    """Pack lengths without saying which sample of a length goes where; see `pack`."""
    lengths = np.asarray(lengths, dtype=np.int64)
    if not len(lengths):
        return Slots(np.zeros(1, np.int64), np.zeros(0, np.int64))
    assert lengths.min() >= 1, "an empty sample cannot be packed"
    assert lengths.max() <= capacity, f"a sample of {lengths.max()} tokens does not fit a pack of {capacity}"
    histogram = np.bincount(lengths)
    return _lay_out(_best_fit(histogram, capacity), histogram)


def fill(packs: Packs, lengths: npt.ArrayLike, capacity: int) -> float:
    """Share of the packs' capacity that holds tokens, between 0 and 1."""
    return float(np.asarray(lengths).sum() / (len(packs) * capacity)) if len(packs) else 0.0


def _best_fit(histogram: IntArray, capacity: int) -> list[tuple[_Contents, int]]:
    """Groups of equal packs as (contents, number of packs).

    ``open_packs[room]`` lists the groups with ``room`` tokens left and ``rooms`` the rooms in use, sorted. The fullest
    pack that takes a sample stays the fullest until no other sample of this length fits, so a whole group is filled
    at once with ``room // length`` samples each. A group's room at least halves each time, which bounds the work by
    (distinct lengths) x log(capacity) steps.
    """
    open_packs: dict[int, list[tuple[_Contents | None, int]]] = {}
    rooms: list[int] = []
    finished: list[tuple[_Contents, int]] = []

    def keep(contents: _Contents | None, number: int, room: int) -> None:
        if room == 0 and contents is not None:
            finished.append((contents, number))
        elif room in open_packs:
            open_packs[room].append((contents, number))
        else:
            open_packs[room] = [(contents, number)]
            insort(rooms, room)

    for length in np.flatnonzero(histogram)[::-1].tolist():
        remaining = int(histogram[length])
        while remaining:
            place = bisect_left(rooms, length)
            if place == len(rooms):
                keep(None, -(-remaining // (capacity // length)), capacity)
                continue
            room = rooms[place]
            groups = open_packs[room]
            contents, number = groups.pop()
            if not groups:
                del open_packs[room], rooms[place]
            copies = room // length
            filled = min(number, remaining // copies)
            last = remaining - filled * copies if filled < number else 0
            if filled:
                keep(_Contents(contents, length, copies), filled, room - copies * length)
            if last:
                keep(_Contents(contents, length, last), 1, room - last * length)
            if number > filled + bool(last):
                keep(contents, number - filled - bool(last), room)
            remaining -= filled * copies + last
    finished.extend((contents, number) for room in rooms for contents, number in open_packs[room] if contents)
    return finished


def _lay_out(groups: list[tuple[_Contents, int]], histogram: IntArray) -> Slots:
    """Give every place in every pack a position in the length-sorted samples."""
    next_position = np.concatenate([[0], np.cumsum(histogram)[:-1]]).tolist()
    blocks: list[IntArray] = []
    sizes: list[int] = []
    numbers: list[int] = []
    for contents, number in groups:
        columns = []
        layer: _Contents | None = contents
        while layer is not None:
            begin = next_position[layer.length]
            next_position[layer.length] = end = begin + number * layer.copies
            columns.append(np.arange(begin, end).reshape(number, layer.copies))
            layer = layer.below
        block = np.hstack(columns[::-1])
        blocks.append(block.ravel())
        sizes.append(block.shape[1])
        numbers.append(number)
    offsets = np.concatenate([[0], np.cumsum(np.repeat(sizes, numbers))]).astype(np.int64)
    return Slots(offsets, np.concatenate(blocks).astype(np.int64))
