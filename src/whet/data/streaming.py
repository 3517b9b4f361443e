"""Datasets that are larger than the disk: read while the model trains, with nothing written down.

    source --chunks()--> Feed (one dataset, a chunk in memory) --> Stream (all of them, mixed) --> LookAhead (windows of
    samples, shuffled and packed) --> the rows of the run

What comes after a place depends on the config, the seed and the place alone, so a run goes on from a checkpoint with
the very rows that it would have seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from whet.config import Config
from whet.config.resolve import ResolvedRun
from whet.data.admission import Limits
from whet.data.feed import Feed, FeedMark, FeedRules, StreamSample
from whet.data.fingerprint import fingerprint
from whet.data.interleave import next_of, whole_weights
from whet.data.mixing import By
from whet.data.order import Order
from whet.data.packing import Packs
from whet.data.prepare import Part, Preparation, prepare


@dataclass(frozen=True, slots=True)
class StreamMark:
    """How far a stream has been read.

    Attributes:
        epoch: times that all datasets have been read to their ends; 0 where they are mixed by weights.
        feeds: of each dataset.
    """

    epoch: int
    feeds: tuple[FeedMark, ...]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        return cls(values["epoch"], tuple(FeedMark.from_dict(feed) for feed in values["feeds"]))

    def as_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "feeds": [feed.as_dict() for feed in self.feeds]}


class Stream:
    """One endless sequence of samples from several datasets.

    With weights each dataset has its share at any moment, to within one sample, and one that ends begins again. Without
    them the datasets take turns until each has ended, or come one after the other (``sequential``); then all begin
    again.

    Args:
        feeds: the datasets, at the places that ``epoch`` goes with.
        weights: of each; None without.
        by: what shares and turns count.
    """

    def __init__(
        self, feeds: Sequence[Feed], weights: Sequence[float] | None, by: By, *, sequential: bool, epoch: int = 0
    ) -> None:
        self._feeds, self._by, self._sequential = feeds, by, sequential
        self._weights = None if weights is None else whole_weights(weights)
        self.epoch = epoch
        self._next: Feed | None = None

    @property
    def num_held(self) -> int:
        """Samples in memory that have not been taken."""
        return sum(feed.num_held for feed in self._feeds)

    def take(self) -> StreamSample:
        """The next sample; raises DataError as `Feed`."""
        feed = self.peek()
        self._next = None
        sample = feed.take()
        feed.dealt += sample.num_tokens if self._by == "tokens" else 1
        return sample

    def mark(self) -> StreamMark:
        """From where to go on after what has been taken."""
        return StreamMark(self.epoch, tuple(feed.mark() for feed in self._feeds))

    def close(self) -> None:
        """Close the files that are open; nothing is read after it."""
        for feed in self._feeds:
            feed.close()

    def peek(self) -> Feed:
        """The dataset that gives the next sample, which is in memory then; a `mark` is asked for before, or after it is
        taken."""
        if self._next is None:
            self._next = self._chosen()
        return self._next

    def _chosen(self) -> Feed:
        heads = self._heads()
        if not heads:
            self.epoch += 1
            for feed in self._feeds:
                feed.begin_epoch()
                feed.dealt = 0
            heads = self._heads()
        numbers = list(heads)
        weights = [1 if self._weights is None else self._weights[number] for number in numbers]
        lengths = [heads[number] if self._by == "tokens" else 1 for number in numbers]
        chosen = next_of(weights, [self._feeds[number].dealt for number in numbers], lengths)
        return self._feeds[numbers[chosen]]

    def _heads(self) -> dict[int, int]:
        """Tokens of the next sample of each dataset that may give it."""
        heads: dict[int, int] = {}
        for number, feed in enumerate(self._feeds):
            length = feed.head()
            if length is None and self._weights is not None:
                feed.begin_epoch()
                length = feed.head()
            if length is not None:
                heads[number] = length
                if self._sequential:
                    break
        return heads


@dataclass(frozen=True)
class StreamSetup:
    """Everything that a stream is made of.

    Attributes:
        parts: the datasets.
        rules: of each.
        weights: of each; None where the config has none.
        window: samples that are shuffled and packed together (`streaming_multipack_buffer_size`).
    """

    config: Config
    parts: Sequence[Part]
    rules: Sequence[FeedRules]
    weights: tuple[float, ...] | None
    window: int
    sequence_len: int
    packed: bool
    seed: int

    @classmethod
    def of(cls, config: Config, resolved: ResolvedRun, tokenizer: Any) -> Self:
        """Find the datasets and make their encoders.

        Raises:
            DataError: a source cannot be found.
            ConfigError: a format or chat template does not exist.
        """
        data = config.data
        alone = config.model_copy(update={"data": data.model_copy(update={"test_datasets": ()})})
        parts = Preparation.of(alone, resolved, tokenizer).parts
        weights = tuple(row.weight for row in data.datasets if row.weight is not None)
        rules = [
            FeedRules(
                Limits(
                    resolved.sequence_len,
                    data.min_sample_len,
                    "split" if part.encoder.cuts_long_rows else data.excess_length_strategy,
                ),
                bad_rows_end=data.on_bad_row == "raise",
                long_rows_end=data.excess_length_strategy == "raise",
            )
            for part in parts
        ]
        return cls(
            config,
            parts,
            rules,
            weights or None,
            data.streaming_multipack_buffer_size,
            resolved.sequence_len,
            resolved.sample_packing,
            resolved.seed,
        )

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(part.name for part in self.parts)

    @property
    def asked(self) -> tuple[float | None, ...]:
        """The share that the config asks of each dataset; None where it says nothing."""
        if self.weights is None:
            return (None,) * len(self.parts)
        return tuple(weight / sum(self.weights) for weight in self.weights)

    def stream(self, mark: StreamMark | None = None) -> Stream:
        """The samples from the beginning, or from a mark on."""
        marks = [None] * len(self.parts) if mark is None else mark.feeds
        feeds = [
            Feed(part, number, rules, found)
            for number, (part, rules, found) in enumerate(zip(self.parts, self.rules, marks, strict=True))
        ]
        data = self.config.data
        return Stream(
            feeds,
            self.weights,
            data.mixing_by,
            sequential=data.order == "sequential",
            epoch=0 if mark is None else mark.epoch,
        )

    def rows(self, lengths: Sequence[int], window: int) -> Packs:
        """The rows that the samples of a window make, in order.

        Args:
            lengths: tokens of each sample.
            window: its number; with the seed it decides the order.
        """
        data, packing = self.config.data, self.config.packing
        return Order(
            np.array(lengths, dtype=np.int64),
            self.sequence_len,
            packed=self.packed,
            micro_batch_size=1,
            seed=self.seed,
            shuffle=data.shuffle_merged_datasets and not data.curriculum_sampling,
            neighbours=packing.sample_packing_sequentially,
        ).epoch(window)

    def described(self) -> list[str]:
        """A line for each dataset: its name, and its share where one is asked for."""
        unit = self.config.data.mixing_by
        shares = ("" if asked is None else f", {asked:.1%} of the {unit}" for asked in self.asked)
        return [f"{name}{share}" for name, share in zip(self.names, shares, strict=True)]

    def encoding(self) -> str:
        """Of what decides which samples a chunk gives: it too must be the same. Not of whet's own code, which a run
        that goes on with another version must be able to differ in."""
        inputs = [
            {**{name: value for name, value in part.inputs.items() if name != "code"}, "limits": asdict(rules.limits)}
            for part, rules in zip(self.parts, self.rules, strict=True)
        ]
        return fingerprint({"datasets": inputs})

    def identity(self) -> dict[str, Any]:
        """The keys that must be the same in a run that goes on from a checkpoint."""
        data, packing = self.config.data, self.config.packing
        return {
            "datasets": list(self.names),
            "weights": None if self.weights is None else list(self.weights),
            "mixing_by": data.mixing_by,
            "order": data.order,
            "streaming_multipack_buffer_size": self.window,
            "sequence_len": self.sequence_len,
            "sample_packing": self.packed,
            "sample_packing_sequentially": packing.sample_packing_sequentially,
            "shuffle_merged_datasets": data.shuffle_merged_datasets and not data.curriculum_sampling,
            "seed": self.seed,
        }


@dataclass(frozen=True, eq=False)
class StreamedSet:
    """What a streamed run trains on and is evaluated on: in the place of a `whet.data.store.PreparedSet`.

    Attributes:
        path: of the prepared test datasets; None without them.
        manifest: theirs, and what the stream is made of.
        train: the stream.
        validation: a `Split` of the test datasets; None without them.
    """

    path: Path | None
    manifest: Mapping[str, Any]
    train: StreamSetup
    validation: Any


def open_streamed(config: Config, resolved: ResolvedRun, tokenizer: Any) -> StreamedSet:
    """The datasets of a stream, found and not yet read; test datasets are prepared as always.

    Raises:
        DataError, ConfigError: as `StreamSetup.of` and `whet.data.prepare.prepare`.
    """
    setup = StreamSetup.of(config, resolved, tokenizer)
    manifest: dict[str, Any] = {"stream": setup.identity()}
    if not config.data.test_datasets:
        return StreamedSet(None, manifest, setup, None)
    tests_alone = config.model_copy(update={"data": config.data.model_copy(update={"datasets": ()})})
    prepared = prepare(tests_alone, resolved, tokenizer)
    return StreamedSet(prepared.path, {**prepared.manifest, **manifest}, setup, prepared.validation)
