"""A dataset dealt out like a deck of cards: how often each of its samples is seen, for any part of an epoch.

A part of an epoch asks for a dataset ``m`` times, with m = k + f: every sample k times, and a fraction f of them once
more. Each sample has a place u in [0, 1); between the running totals b and b + m it is seen

    floor(u + b + m) - floor(u + b)   times,

so over any stretch of the run every sample is seen floor or ceil of what was asked in all, and what one epoch leaves
out the next ones take. The totals are whole multiples of 1/q, so everything is exact in whole numbers.

The fraction must fit the same slots in every epoch. Samples are sorted by length and cut into strata of q neighbours;
of the q places of a stratum, an epoch takes f * q consecutive ones, and neighbours in length have places far apart. So
the k-th shortest that is taken is always about the (k / f)-th of its stratum, and a slot is planned for the longest
that can ever come.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import gcd

import numpy as np
import numpy.typing as npt

from whet.data.packing import EMPTY, IntArray

TOLERANCE = 2.5e-4
"""How far the times a dataset is seen may be from what was asked, relatively: a quarter of the promised 0.1%."""
_LARGEST_DENOMINATOR = 65536
_GOLDEN = 0.6180339887
_LARGEST_SEARCHED = 4096
"""Strata above this size get slots for their longest sample; searching for less takes size^2 operations."""


def denominator(times: Sequence[float]) -> int:
    """The smallest q such that each of the numbers is a multiple of 1/q, to within `TOLERANCE`.

    >>> denominator([2.0]), denominator([0.5, 1.75]), denominator([0.3333])
    (1, 4, 3)
    """
    asked = np.array([value for value in times if value > 0])
    if not len(asked):
        return 1
    candidates = np.arange(1, _LARGEST_DENOMINATOR + 1)
    wrong = np.zeros(len(candidates))
    for value in asked:
        wrong = np.maximum(wrong, np.abs(np.round(value * candidates) / candidates / value - 1))
    good = np.flatnonzero(wrong <= TOLERANCE)
    return int(candidates[good[0] if len(good) else wrong.argmin()])


@dataclass(frozen=True, eq=False)
class Deck:
    """The samples of a dataset, and the place of each.

    Attributes:
        samples: int64[n], ids in order of length within the strata; the stratum that is not whole stands last.
        lengths: int64[n], tokens of each.
        places: int64[n]; u of a sample is ``places / sizes``.
        sizes: int64[n], samples of its stratum.
        q: samples of a whole stratum, and units of "once".
        stride: of the places of neighbours, as a share of the stratum; see `spread`.
    """

    samples: IntArray
    lengths: IntArray
    places: IntArray
    sizes: IntArray
    q: int
    stride: float

    @classmethod
    def of(
        cls,
        samples: IntArray,
        lengths: IntArray,
        q: int,
        widths: Sequence[int],
        random: npt.NDArray[np.uint64],
    ) -> Deck:
        """Lay a dataset out.

        Args:
            samples: int64[n], ids.
            lengths: int64[n], tokens of each.
            widths: what the parts of an epoch will ask for, in units of 1/q.
            random: uint64[n], decides among samples of one length, and where each stratum begins.
        """
        if q == 1:
            return cls(samples, lengths, np.zeros_like(samples), np.ones_like(samples), 1, 0.0)
        order = np.lexsort((random, lengths))
        rest = len(order) % q  # of the shortest samples, which cost the least where a slot stays empty
        order = np.concatenate([order[rest:], order[:rest]])
        num_whole = len(order) // q
        fractions = {width % q for width in widths} - {0}
        stride = min(fractions) / q if len(fractions) == 1 else _GOLDEN
        shift = (random[:num_whole] % np.uint64(q)).astype(np.int64)[:, None]
        whole = (spread(q, stride)[None, :] + shift) % q
        places = np.concatenate([whole.ravel(), spread(rest, stride)])
        sizes = np.concatenate([np.full(num_whole * q, q), np.full(rest, rest)])
        return cls(samples[order], lengths[order], places, sizes, q, stride)

    @cached_property
    def _in_file_order(self) -> tuple[IntArray, IntArray]:
        order = np.argsort(self.samples)
        return self.samples[order], self.lengths[order]

    def times_seen(self, begin: int, end: int) -> IntArray:
        """int64[n]: how often each of ``samples`` is seen between two running totals, in units of 1/q."""
        scaled, whole = self.places * self.q, self.sizes * self.q
        return (scaled + end * self.sizes) // whole - (scaled + begin * self.sizes) // whole

    def slots(self, width: int) -> IntArray:
        """int64: lengths of the slots of a part that asks for ``width / q`` times the dataset; see `deal`."""
        copies, part = divmod(width, self.q)
        whole_copies = np.tile(self._in_file_order[1], copies)
        if part == 0:
            return whole_copies
        rest = len(self.samples) % self.q
        ranks = [self._slot_ranks(self.q, part), self._slot_ranks(rest, part)]
        num_whole = len(self.samples) // self.q
        whole = np.arange(num_whole)[:, None] * self.q + ranks[0][None, :]
        chosen = np.concatenate([whole.ravel(), num_whole * self.q + ranks[1]])
        return np.concatenate([whole_copies, self.lengths[chosen]])

    def _slot_ranks(self, size: int, part: int) -> IntArray:
        """int64: the ranks by length in a stratum that its slots must hold, where ``part / q`` of it is taken.

        A stratum that is no multiple of q long gives a sample more in some epochs; the slot of that one is its last.
        """
        always, rest = divmod(size * part, self.q)
        ranks = highest_ranks(size, always, self.stride)
        return np.concatenate([ranks, np.full(int(rest > 0), size - 1)])

    def deal(self, begin: int, width: int) -> IntArray:
        """int64: the samples that go into `slots`, none longer than its slot; `EMPTY` in the last one in some epochs.

        Args:
            begin: the running total before, in units of 1/q.
        """
        copies, part = divmod(width, self.q)
        whole_copies = np.tile(self._in_file_order[0], copies)
        if part == 0:
            return whole_copies
        more = self.samples[self.times_seen(begin, begin + part) == 1]
        num_slots = len(self.samples) // self.q * part + -(-(len(self.samples) % self.q * part) // self.q)
        unused = np.full(num_slots - len(more), EMPTY)
        return np.concatenate([whole_copies, more, unused])


def spread(size: int, stride: float) -> IntArray:
    """int64[size]: places 0 to size - 1 for sorted things, so that consecutive places hold things from everywhere.

    Neighbours stand about ``stride * size`` places apart. Where ``stride`` is the share of the places that is taken at
    a time, what is taken is as even as can be: every so many-th. The golden section is good for any share (by the
    three-gap theorem).

    >>> spread(5, 2 / 5).tolist()
    [0, 2, 4, 1, 3]
    """
    steps = [step for step in range(1, size) if gcd(step, size) == 1]
    nearest = min(steps, key=lambda step: abs(step - stride * size), default=1)
    return np.arange(size) * nearest % max(size, 1)


def highest_ranks(size: int, width: int, stride: float) -> IntArray:
    """int64[width]: of any ``width`` consecutive places of a stratum, the highest rank that the k-th lowest can have.

    >>> highest_ranks(7, 3, 3 / 7).tolist()
    [2, 4, 6]
    """
    if size > _LARGEST_SEARCHED:
        return np.full(width, size - 1)
    found = np.zeros(width, dtype=np.int64)
    covered = 0
    in_window = np.zeros(size, dtype=np.int64)  # ranks so far in the window that begins at each place
    for rank, place in enumerate(spread(size, stride).tolist()):
        begin = place - width + 1
        in_window[max(begin, 0) : place + 1] += 1
        if begin < 0:
            in_window[begin:] += 1
        everywhere = int(in_window.min())
        found[covered:everywhere] = rank
        covered = max(covered, everywhere)
    return found
