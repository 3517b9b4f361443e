"""Which samples share a row: bin packing over a histogram of lengths.

Samples of one length are interchangeable, so the work is done on (length, count) groups and on groups of packs with
equal contents, never on single samples.

Two ways are tried, and the one with fewer packs is taken. Best fit decreasing puts a sample, from long to short, into
the fullest pack that still has room for it: at most 11/9 of the optimum plus a constant (Johnson, "Near-optimal bin
packing algorithms", 1973). Where that leaves more packs than a lower bound allows, packs without a gap are looked for
first: the longest sample left and others that fill its pack to the last token, as often as there are samples for it
(after the minimum bin slack heuristic of Gupta and Ho, 1999).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]

EMPTY = -1
"""Stands in a slot that no sample takes in an epoch."""


@dataclass(frozen=True, eq=False)
class Packs:
    """Samples grouped in rows.

    Attributes:
        offsets: int64[P + 1]; pack p is ``members[offsets[p]:offsets[p + 1]]``.
        members: int64[N]; sample ids.
    """

    offsets: IntArray
    members: IntArray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> IntArray:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.members[self.offsets[index] : self.offsets[index + 1]]

    def sums(self, values: npt.ArrayLike) -> IntArray:
        """int64[P]: the sum of a value of the samples over each row.

        Args:
            values: int[samples].
        """
        total: IntArray = np.concatenate([[0], np.cumsum(np.asarray(values, dtype=np.int64)[self.members])])
        sums: IntArray = total[self.offsets[1:]] - total[self.offsets[:-1]]
        return sums

    def in_order(self, rows: IntArray) -> Packs:
        """The same rows in another order, or some of them."""
        if len(self) == len(self.members) and bool((np.diff(self.offsets) == 1).all()):
            return Packs(np.arange(len(rows) + 1), self.members[rows])
        sizes = np.diff(self.offsets)[rows]
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], sizes)
        return Packs(offsets, self.members[np.repeat(self.offsets[:-1][rows], sizes) + within])


def joined(parts: Sequence[Packs]) -> Packs:
    """Rows behind rows."""
    if len(parts) == 1:
        return parts[0]
    sizes = np.concatenate([np.zeros(0, np.int64), *(np.diff(part.offsets) for part in parts)])
    members = np.concatenate([np.zeros(0, np.int64), *(part.members for part in parts)])
    return Packs(np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64), members)


@dataclass(frozen=True, eq=False)
class Slots:
    """A packing that knows lengths only: each slot is a position in a list of samples.

    `plan_slots` makes it for samples sorted by length. Any order of samples of one length may be poured into it, which
    is how an epoch gets new companions at no cost.

    Attributes:
        offsets: int64[P + 1].
        positions: int64[N].
    """

    offsets: IntArray
    positions: IntArray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def fill(self, samples: IntArray) -> Packs:
        """Pour samples in.

        Args:
            samples: int64[N], the list that positions point into; `EMPTY` leaves a slot empty.
        """
        members = samples[self.positions]
        taken = members != EMPTY
        if taken.all():
            return Packs(self.offsets, members)
        return Packs(np.concatenate([[0], np.cumsum(taken)])[self.offsets], members[taken])


@dataclass(frozen=True, slots=True)
class _Contents:
    """What a group of equal packs holds: ``copies`` samples of ``length`` on top of ``below``."""

    below: _Contents | None
    length: int
    copies: int


_Groups = list[tuple[_Contents, int]]
"""Groups of equal packs as (contents, number of packs)."""


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
    lengths = _checked(lengths, capacity)
    if not len(lengths):
        return one_each(0)
    capacity = _that_matters(lengths, capacity)
    histogram = np.bincount(lengths, minlength=capacity + 1)
    groups = _best_fit(histogram, capacity)
    if _num_packs(groups) > _fewest(histogram, capacity):
        exact, rest = _exact_fits(histogram, capacity)
        groups = min(groups, exact + _best_fit(rest, capacity), key=_num_packs)
    return _lay_out(groups, histogram)


def next_fit(lengths: npt.ArrayLike, capacity: int) -> Slots:
    """Packs of neighbours: samples keep their order, and a pack ends before the first that does not fit."""
    lengths = _checked(lengths, capacity)
    end = np.cumsum(lengths)
    # The first sample of the pack after the one that begins at each sample.
    follower = np.searchsorted(end, end - lengths + capacity, side="right").tolist()
    offsets = [0]
    while offsets[-1] < len(lengths):
        offsets.append(follower[offsets[-1]])
    return Slots(np.array(offsets, dtype=np.int64), np.arange(len(lengths), dtype=np.int64))


def one_each(num_samples: int) -> Slots:
    """No packing: a row for each sample."""
    return Slots(np.arange(num_samples + 1, dtype=np.int64), np.arange(num_samples, dtype=np.int64))


def fill(packs: Packs, lengths: npt.ArrayLike, capacity: int) -> float:
    """Share of the packs' capacity that holds tokens, between 0 and 1."""
    return float(packs.sums(lengths).sum() / (len(packs) * capacity)) if len(packs) else 0.0


def fewest_packs(lengths: npt.ArrayLike, capacity: int) -> int:
    """A number of packs that no packing can beat; at least ``ceil(tokens / capacity)``.

    It counts that two samples longer than half a pack never share one, and that a sample of k tokens does not fit
    beside one longer than capacity - k (bound L2 of Martello and Toth, "Lower bounds and reduction procedures for the
    bin packing problem", 1990).
    """
    lengths = _checked(lengths, capacity)
    capacity = _that_matters(lengths, capacity)
    return _fewest(np.bincount(lengths, minlength=capacity + 1), capacity)


def _checked(lengths: npt.ArrayLike, capacity: int) -> IntArray:
    lengths = np.asarray(lengths, dtype=np.int64)
    if len(lengths):
        assert lengths.min() >= 1, "an empty sample cannot be packed"
        assert lengths.max() <= capacity, f"a sample of {lengths.max()} tokens does not fit a pack of {capacity}"
    return lengths


def _that_matters(lengths: IntArray, capacity: int) -> int:
    """The capacity, or all tokens where they fit into one pack: time and memory grow with what is returned."""
    return min(capacity, max(1, int(lengths.sum())))


def _num_packs(groups: _Groups) -> int:
    return sum(number for _, number in groups)


def _fewest(histogram: IntArray, capacity: int) -> int:
    """`fewest_packs` of int64[capacity + 1] samples by length; the maximum of the bound over every k."""
    num_upto, tokens_upto = np.cumsum(histogram), np.cumsum(histogram * np.arange(capacity + 1))
    half = capacity // 2
    k = np.arange(half + 1)
    alone = num_upto[capacity] - num_upto[capacity - k]
    long = num_upto[capacity - k] - num_upto[half]
    tokens_of_long = tokens_upto[capacity - k] - tokens_upto[half]
    tokens_of_short = tokens_upto[half] - np.where(k > 0, tokens_upto[k - 1], 0)
    overflow = np.maximum(tokens_of_short - (long * capacity - tokens_of_long), 0)
    return int((alone + long - (-overflow // capacity)).max())


def _best_fit(histogram: IntArray, capacity: int) -> _Groups:
    """Best fit decreasing.

    ``open_packs[room]`` lists the groups with ``room`` tokens left and ``rooms`` the rooms in use, sorted. The fullest
    pack that takes a sample stays the fullest until no other sample of this length fits, so a whole group is filled
    at once with ``room // length`` samples each. A group's room at least halves each time, which bounds the work by
    (distinct lengths) x log(capacity) steps.
    """
    open_packs: dict[int, list[tuple[_Contents | None, int]]] = {}
    rooms: list[int] = []
    finished: _Groups = []

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


_NODES_PER_PACK = 100
"""Partial packs that are tried before a length is given up; with 30, a skewed million kept 10 packs in 122,000 more."""
_BRANCHES = 3
"""Next samples that are tried at each of them, from long to short."""
_WORK = 250_000_000
"""Bound of the whole search, in comparisons of one byte: about 0.15 seconds."""


def _exact_fits(histogram: IntArray, capacity: int) -> tuple[_Groups, IntArray]:
    """Packs without a gap, and the int64[capacity + 1] samples by length that are left over.

    From long to short, each length is the first of its packs. Contents once found are used as often as there are
    samples for them, after which a length at least is used up.
    """
    left = histogram.astype(np.int64)
    gaps = _Gaps(left, max_nodes=_WORK // (capacity + 5000))
    given_up: list[tuple[int, int]] = []
    groups: _Groups = []
    for first in np.flatnonzero(histogram)[::-1].tolist():
        while left[first]:
            gaps.take(first)
            others = gaps.fill(capacity - first)
            gaps.give_back(first)
            if others is None:
                given_up.append((first, int(left[first])))
                gaps.remove(first, int(left[first]))
                break
            lengths, copies = np.unique([first, *others], return_counts=True)
            number = int((left[lengths] // copies).min())
            contents = None
            for length, count in zip(lengths.tolist(), copies.tolist(), strict=True):
                gaps.remove(length, number * count)
                contents = _Contents(contents, length, count)
            assert contents is not None
            groups.append((contents, number))
    for length, count in given_up:
        left[length] += count
    return groups, left


class _Gaps:
    """Finds samples that fill a gap to the last token.

    Args:
        left: int64[capacity + 1], samples left of each length; changed by every method but `fill`.
        max_nodes: after so many partial packs nothing is found any more.
    """

    def __init__(self, left: IntArray, max_nodes: int) -> None:
        self.left = left
        self.there = left > 0
        self.shortest = int(np.flatnonzero(self.there)[0])
        self.nodes_left = max_nodes

    def take(self, length: int) -> None:
        self.remove(length, 1)

    def remove(self, length: int, count: int) -> None:
        self.left[length] -= count
        self.there[length] = self.left[length] > 0

    def give_back(self, length: int) -> None:
        self.left[length] += 1
        self.there[length] = True

    def fill(self, gap: int) -> tuple[int, ...] | None:
        """Lengths that are left and add up to ``gap``; None when none were found in time."""
        before = self.nodes_left
        self.nodes_left = min(before, _NODES_PER_PACK)
        found = self._search(gap)
        self.nodes_left += before - min(before, _NODES_PER_PACK)
        return found

    def _search(self, gap: int) -> tuple[int, ...] | None:
        """One sample, else two (all pairs at once), else a long one and again."""
        if gap == 0:
            return ()
        if self.nodes_left <= 0:
            return None
        self.nodes_left -= 1
        if self.there[gap]:
            return (gap,)
        if gap < 2 * self.shortest:
            return None
        half = (gap + 1) // 2
        pairs = np.flatnonzero(self.there[half : gap + 1] & self.there[gap - half :: -1])
        for longer in (half + pairs[-2:][::-1]).tolist():
            if 2 * longer != gap or self.left[longer] > 1:
                return longer, gap - longer
        for length in np.flatnonzero(self.there[: gap - self.shortest + 1])[-_BRANCHES:][::-1].tolist():
            self.take(length)
            rest = self._search(gap - length)
            self.give_back(length)
            if rest is not None:
                return length, *rest
        return None


def _lay_out(groups: _Groups, histogram: IntArray) -> Slots:
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
