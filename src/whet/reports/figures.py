"""Figures of a whole prepared set, from its arrays alone: histograms, and the first epoch's packs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from whet.config.resolve import ResolvedRun
from whet.data.packing import Packs
from whet.methods.inputs import training_order

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

LENGTH_BINS = 30
SHARE_BINS = 20
PACKS_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of values between edges.

    Attributes:
        edges: bins + 1 of them.
        counts: name of a series -> how many of its values fall in each bin.
        open_ended: values beyond the last edge are in the last bin.
    """

    edges: tuple[float, ...]
    counts: Mapping[str, tuple[int, ...]]
    open_ended: bool = False


@dataclass(frozen=True, slots=True)
class PacksShown:
    """The packs of the first epoch, in the order of training.

    Attributes:
        capacity: tokens a pack may hold.
        count: packs of an epoch.
        fill: share of their capacity that holds tokens, over all packs.
        fills: histogram of the packs' own shares.
        first: the first few packs, as numbers of training samples.
        first_lengths, first_datasets: tokens of each of these samples, and the number of its dataset.
    """

    capacity: int
    count: int
    fill: float
    fills: Histogram
    first: tuple[tuple[int, ...], ...]
    first_lengths: tuple[tuple[int, ...], ...]
    first_datasets: tuple[tuple[int, ...], ...]


def length_histogram(lengths: Mapping[str, IntArray]) -> Histogram:
    """Lengths in tokens of each split, in equal bins up to the 99th percentile; the tail is in the last bin."""
    everything = np.concatenate(list(lengths.values()))
    longest = int(everything.max(initial=1))
    step = _nice_step(float(np.percentile(everything, 99)) / LENGTH_BINS) if len(everything) else 1
    bins = max(1, min(LENGTH_BINS, math.ceil((longest + 1) / step)))
    edges = np.arange(bins + 1, dtype=np.float64) * step
    return _histogram(lengths, edges, open_ended=longest >= float(edges[-1]))


def share_histogram(shares: Mapping[str, FloatArray]) -> Histogram:
    """Supervised shares of each split, in steps of 5%."""
    return _histogram(shares, np.linspace(0, 1, SHARE_BINS + 1))


def packs_of(resolved: ResolvedRun, train: Any) -> PacksShown | None:
    """The packs that the first epoch trains on; None where samples are not packed."""
    if not resolved.sample_packing:
        return None
    order = training_order(resolved, train)
    packs = order.epoch(0)
    sizes = pack_sizes(packs, order.lengths)
    fills = sizes / resolved.sequence_len
    first = [packs[number] for number in range(min(PACKS_SHOWN, len(packs)))]
    return PacksShown(
        resolved.sequence_len,
        len(packs),
        float(fills.mean()),
        fill_histogram(fills),
        tuple(tuple(members.tolist()) for members in first),
        tuple(tuple(order.lengths[members].tolist()) for members in first),
        tuple(tuple(train.source[members].tolist()) for members in first),
    )


def fill_histogram(fills: FloatArray) -> Histogram:
    """Fill of packs in steps of 1%, from where all but a hundredth of them lie; in steps of 5% if that is low."""
    lowest = math.floor(float(np.percentile(fills, 1)) * 20) / 20 if len(fills) else 0.0
    lowest = min(lowest, 0.9)
    bins = round((1 - lowest) * (100 if lowest >= 0.7 else 20))
    return _histogram({"packs": fills}, np.linspace(lowest, 1, bins + 1))


def pack_sizes(packs: Packs, lengths: IntArray) -> IntArray:
    """int64[P]: tokens in each pack."""
    totals = np.concatenate([[0], np.cumsum(lengths[packs.members])])
    sizes: IntArray = np.diff(totals[packs.offsets])
    return sizes


def _histogram(series: Mapping[str, npt.NDArray[Any]], edges: FloatArray, *, open_ended: bool = False) -> Histogram:
    """Bins hold their lower edge; the first and the last also what lies beyond them."""
    counts = {}
    for name, values in series.items():
        place = np.searchsorted(edges, values, side="right") - 1
        binned = np.bincount(np.clip(place, 0, len(edges) - 2), minlength=len(edges) - 1)
        counts[name] = tuple(binned.tolist())
    return Histogram(_plain(edges), counts, open_ended)


def _plain(edges: Sequence[float] | FloatArray) -> tuple[float, ...]:
    return tuple(round(float(edge), 4) for edge in edges)


def _nice_step(step: float) -> int:
    """The next of 1, 2, 5, 10, 20, 50, ...

    >>> [_nice_step(x) for x in (0.3, 3, 30, 61)]
    [1, 5, 50, 100]
    """
    if step <= 1:
        return 1
    power = 10 ** math.floor(math.log10(step))
    return int(next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step))
