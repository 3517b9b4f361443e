"""How often an epoch shows each dataset, and in which part of it: from the config's weights to what is dealt.

An epoch of a weighted mix has as many tokens as the datasets have together (samples, with `mixing_by: samples`); a
dataset whose share is larger than its size gives is seen more often, the others less.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from whet.config import Config
from whet.core.errors import ConfigError, Problem
from whet.core.nearest import suggestion
from whet.data.deck import Deck, denominator
from whet.data.packing import IntArray

By = Literal["tokens", "samples"]
MOST_SAMPLES_OF_AN_EPOCH = 10**9
"""Of one dataset. A plan holds a few numbers for each sample that an epoch shows: tens of GB for this many."""


@dataclass(frozen=True, slots=True)
class DatasetShare:
    """What a run sees of a dataset.

    Attributes:
        name: of the dataset.
        asked: share of the tokens (or samples) that the config asks for; None where it says nothing.
        realised: the share in the run's steps, exactly.
        times_seen: how often each of its rows is seen in the run, in the mean.
        by: what the shares are shares of.

    >>> print(DatasetShare("chat", 0.7, 0.70012, 2.345, "tokens"))
    chat: 70.01% of the tokens (70% asked), each row 2.35 times
    """

    name: str
    asked: float | None
    realised: float
    times_seen: float
    by: By = "tokens"

    def __str__(self) -> str:
        asked = "" if self.asked is None else f" ({self.asked * 100:.4g}% asked)"
        times = "once" if self.times_seen == 1 else f"{self.times_seen:.3g} times"
        return f"{self.name}: {self.realised:.2%} of the {self.by}{asked}, each row {times}"


@dataclass(frozen=True, eq=False)
class Dealt:
    """A dataset, and how much of it each part of an epoch asks for.

    Attributes:
        widths: one for each part, in units of 1/q of the deck.
    """

    deck: Deck
    widths: tuple[int, ...]

    def deal(self, part: int, epoch: int) -> IntArray:
        """int64: samples of a part of an epoch; see `Deck.deal`."""
        before = epoch * sum(self.widths) + sum(self.widths[:part])
        return self.deck.deal(before, self.widths[part])


@dataclass(frozen=True, eq=False)
class Mix:
    """Every epoch's parts, one behind the other, and what each shows.

    Attributes:
        dealt: the datasets.
        num_parts: parts of an epoch; rows never cross from one to the next.
        names: of the datasets, where shares are to be told.
        source: int[N], index into ``names``.
        asked: one for each name.
        by: what shares are shares of.
    """

    dealt: tuple[Dealt, ...]
    num_parts: int = 1
    names: tuple[str, ...] = ()
    source: npt.NDArray[np.integer] | None = None
    asked: tuple[float | None, ...] = ()
    by: By = "tokens"

    def slots(self, part: int) -> IntArray:
        """int64: the lengths of a part's slots, the same in every epoch."""
        return _concatenated([dealt.deck.slots(dealt.widths[part]) for dealt in self.dealt])

    def deal(self, part: int, epoch: int) -> IntArray:
        """int64: the sample of each slot, or `EMPTY`."""
        return _concatenated([dealt.deal(part, epoch) for dealt in self.dealt])

    def times_seen(self, num_epochs: int, num_samples: int) -> IntArray:
        """int64[N]: how often the first ``num_epochs`` epochs show each sample."""
        times = np.zeros(num_samples, dtype=np.int64)
        if num_epochs == 0:
            return times
        for dealt in self.dealt:
            times[dealt.deck.samples] = dealt.deck.times_seen(0, num_epochs * sum(dealt.widths))
        return times

    def shares(self, times_seen: IntArray, lengths: IntArray) -> tuple[DatasetShare, ...]:
        """What some steps see of each dataset.

        Args:
            times_seen: int64[N], of each sample in these steps.
            lengths: int64[N], tokens of each.
        """
        if self.source is None:
            return ()
        weights = times_seen * lengths if self.by == "tokens" else times_seen
        num_names = len(self.names)
        seen = np.bincount(self.source, weights=weights, minlength=num_names)
        times = np.bincount(self.source, weights=times_seen, minlength=num_names)
        rows = np.bincount(self.source, minlength=num_names)
        total = max(seen.sum(), 1)
        realised, often = (seen / total).tolist(), (times / np.maximum(rows, 1)).tolist()
        found = zip(self.names, self.asked, realised, often, strict=True)
        return tuple(DatasetShare(*values, self.by) for values in found)


def plain_mix(lengths: IntArray) -> Mix:
    """Every sample once in an epoch."""
    return Mix((Dealt(_whole(np.arange(len(lengths)), lengths), (1,)),))


def mix_of(
    config: Config, lengths: npt.ArrayLike, source: npt.NDArray[np.integer], names: Sequence[str], seed: int
) -> Mix:
    """The mix that a config asks for.

    Args:
        lengths: int[N], tokens of each training sample.
        source: int[N], its dataset: the number of its row in `datasets`.
        names: of the datasets, as they are reported.
        seed: decides which samples a fraction of a dataset begins with.

    Raises:
        ConfigError: a phase names a dataset that there is not, a share is asked of a dataset without samples, or an
            epoch would show nothing, or more than can be planned.
    """
    data = config.data
    lengths = np.asarray(lengths, dtype=np.int64)
    names = tuple(names[: max(len(data.datasets), 1 + int(source.max(initial=-1)))])
    tokens = np.bincount(source, weights=lengths, minlength=len(names))
    rows = np.bincount(source, minlength=len(names))
    sizes = (tokens if data.mixing_by == "tokens" else rows).astype(np.float64)
    asked, times = _asked_times(config, names, sizes)
    if problems := list(_too_much_or_nothing(config, names, rows, times.sum(axis=0))):
        raise ConfigError(problems)
    if data.order == "sequential":
        times = times.sum(axis=0) * np.eye(len(names))
        times = times[times.any(axis=1)] if times.any() else times[:1]
    dealt: list[Dealt] = []
    if (times == 1).all() and len(times) == 1:
        dealt.append(Dealt(_whole(np.arange(len(lengths)), lengths), (1,)))
    else:
        for index, wanted in enumerate(times.T):
            samples, q = np.flatnonzero(source == index), denominator(wanted.tolist())
            if len(samples):
                widths = tuple(np.round(wanted * q).astype(int).tolist())
                deck = Deck.of(samples, lengths[samples], q, widths, _random(seed, index, len(samples)))
                dealt.append(Dealt(deck, widths))
    shares = tuple(asked) if asked is not None else (None,) * len(names)
    return Mix(tuple(dealt), len(times), names, source, shares, data.mixing_by)


def _asked_times(
    config: Config, names: tuple[str, ...], sizes: npt.NDArray[np.float64]
) -> tuple[list[float] | None, npt.NDArray[np.float64]]:
    """The share asked of each dataset (None where nothing is), and float64[parts, datasets]: how often each is seen."""
    data = config.data
    if data.phases:
        shares = np.array([phase.share for phase in data.phases])[:, None] * [
            _weights(config, number, phase.weights, names) for number, phase in enumerate(data.phases)
        ]
    elif data.mixing_temperature is not None:
        shares = ((sizes / max(sizes.max(), 1)) ** (1 / data.mixing_temperature) * (sizes > 0))[None]
    elif any(row.weight is not None for row in data.datasets):
        weights = np.array([[row.weight or 0.0 for row in data.datasets]])
        shares = weights / weights.max()
    else:
        written = [row.epochs for row in data.datasets]
        times = np.array([1.0 if epochs is None else epochs for epochs in written] or [1.0] * len(names))
        seen = times * sizes
        return (seen / max(seen.sum(), 1)).tolist() if any(written) else None, times[None]
    shares = shares / shares.sum()
    if problems := list(_without_samples(config, names, sizes, shares)):
        raise ConfigError(problems)
    return shares.sum(axis=0).tolist(), shares * sizes.sum() / np.maximum(sizes, 1)


def _weights(
    config: Config, number: int, weights: Mapping[str, float], names: tuple[str, ...]
) -> npt.NDArray[np.float64]:
    """float64[datasets]: what a phase asks for, of 1."""
    if problems := [
        Problem(
            config.where(("phases", number, "weights", name)),
            f"phases[{number}].weights: there is no dataset '{name}'",
            suggestion(name, names),
            "phases",
        )
        for name in weights
        if name not in names
    ]:
        raise ConfigError(problems)
    values = np.array([weights.get(name, 0.0) for name in names], dtype=np.float64)
    values /= values.max()  # the sum of large weights would not be finite
    shares: npt.NDArray[np.float64] = values / values.sum()
    return shares


def _too_much_or_nothing(
    config: Config, names: tuple[str, ...], rows: npt.NDArray[np.integer], times: npt.NDArray[np.float64]
) -> Iterator[Problem]:
    """Datasets that an epoch would show more samples of than can be planned; epochs without a single sample.

    Args:
        rows: int64[datasets], samples of each.
        times: float64[datasets], how often an epoch shows each sample.
    """
    for index, num_samples in enumerate((rows * times).tolist()):
        if num_samples > MOST_SAMPLES_OF_AN_EPOCH:
            key = "epochs" if config.data.datasets[index].epochs is not None else "path"
            found = f"an epoch would show '{names[index]}' {times[index]:,.4g} times, {num_samples:,.4g} samples"
            fix = f"ask for less of it: an epoch may show {MOST_SAMPLES_OF_AN_EPOCH:,} samples of a dataset"
            yield Problem(config.where(("datasets", index, key)), found, fix, "datasets")
    if rows.any() and (rows * times).sum() < 1:
        index = next((index for index, row in enumerate(config.data.datasets) if row.epochs is not None), 0)
        found = f"an epoch would show {(rows * times).sum():.2g} of the {rows.sum():,} samples of all datasets"
        yield Problem(config.where(("datasets", index, "epochs")), found, "raise epochs", "datasets")


def _without_samples(
    config: Config, names: tuple[str, ...], sizes: npt.NDArray[np.float64], shares: npt.NDArray[np.float64]
) -> list[Problem]:
    return [
        Problem(
            config.where(("datasets", index, "path")),
            f"'{name}' is to be {share:.1%} of the mix, and it has no sample to train on",
            "check its rows, or take it out of the mix",
            "datasets",
        )
        for index, (name, size, share) in enumerate(zip(names, sizes, shares.sum(axis=0), strict=True))
        if share > 0 and size == 0
    ]


def _whole(samples: IntArray, lengths: IntArray) -> Deck:
    """A deck that is only ever dealt whole."""
    return Deck.of(samples, lengths, 1, (1,), np.zeros(len(samples), dtype=np.uint64))


def _random(seed: int, number: int, size: int) -> npt.NDArray[np.uint64]:
    """uint64[size]; the key's upper half is kept apart from those of epochs."""
    key = np.array([seed % 2**64, 2**63 + number], dtype=np.uint64)
    raw: npt.NDArray[np.uint64] = np.random.Philox(key=key).random_raw(size)
    return raw


def _concatenated(parts: Sequence[IntArray]) -> IntArray:
    return np.concatenate([np.zeros(0, np.int64), *parts])
