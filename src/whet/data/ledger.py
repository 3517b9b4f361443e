"""What became of every row: read, kept, cut, dropped; each drop with its reason and examples of where."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from whet.core.errors import Problem

EXAMPLES_KEPT = 5

TOO_LONG = "longer than sequence_len"
TOO_SHORT = "shorter than min_sample_len"
NOTHING_LEFT = "no supervised token left after cutting"
SAME_LEFT = "answers are equal after cutting"
UNSUPERVISED = "nothing to train"
DUPLICATE = "exact duplicate"
NEAR_DUPLICATE = "near duplicate"
IN_TRAINING = "also in the training data"
REPEATS = (DUPLICATE, NEAR_DUPLICATE, IN_TRAINING)
"""Reasons that say nothing against a row but that it is there already."""

PARTLY = "dropped in part: "
"""Before a reason for which some samples of a row were dropped, and others kept."""

REWRITTEN = "the template rewrites earlier turns"
HISTORY_CHOICE = (
    "set `explode_turns: true` in the dataset (each answer its own sample, rendered as when the model answers), "
    "or `keep_history: true` (the text as the template writes it)"
)
FIXES = {REWRITTEN: HISTORY_CHOICE}
"""Reason -> what to do about it, where mending the rows is not it."""


@dataclass
class Tally:
    """How many rows, and the first few of them.

    Attributes:
        count: exact.
        examples: (place, detail) of the first rows.
        shortest, longest: tokens of the shortest and longest such row, where tokens are the matter; 0 elsewhere.
        bad: the rows could not be used at all; `on_bad_row` decides whether that ends the preparation.
    """

    count: int = 0
    examples: list[tuple[str, str]] = field(default_factory=list)
    shortest: int = 0
    longest: int = 0
    bad: bool = False

    def add(self, place: str, detail: str = "", tokens: int = 0) -> None:
        self.count += 1
        if len(self.examples) < EXAMPLES_KEPT:
            self.examples.append((place, detail))
        if tokens:
            self.shortest = min(tokens, self.shortest or tokens)
            self.longest = max(tokens, self.longest)

    def add_many(
        self, count: int, examples: Iterable[tuple[str, str]], tokens: npt.NDArray[np.integer] | None = None
    ) -> None:
        """Count rows of which only the first few are named; ``tokens`` are the lengths of all of them."""
        self.count += count
        room = EXAMPLES_KEPT - len(self.examples)
        self.examples += list(islice(examples, max(0, room)))
        if tokens is not None and len(tokens):
            shortest = int(tokens.min())
            self.shortest = min(shortest, self.shortest or shortest)
            self.longest = max(int(tokens.max()), self.longest)

    def merge(self, other: Tally) -> None:
        """Count what another tally has counted after this one."""
        self.count += other.count
        self.examples += other.examples[: EXAMPLES_KEPT - len(self.examples)]
        self.shortest = min((length for length in (self.shortest, other.shortest) if length), default=0)
        self.longest = max(self.longest, other.longest)
        self.bad |= other.bad

    @property
    def places(self) -> str:
        """``a.jsonl:3, 9, b.jsonl:1 and 12 more``."""
        named, previous = "", ""
        for place, _ in self.examples:
            file = place.rstrip("0123456789")
            named += f"{', ' if named else ''}{place.removeprefix(file) if file == previous else place}"
            previous = file
        more = self.count - len(self.examples)
        return f"{named} and {more:,} more" if more else named


@dataclass
class Ledger:
    """The account of one dataset, in rows of its files: every row that was read is kept, or dropped for one reason.

    Attributes:
        name: the dataset.
        read: rows read, bad ones included.
        kept: rows of which something is kept.
        samples: samples made of them; a row may give several, and a long text may become several.
        dropped: reason -> rows of which nothing is kept.
        cut: what was done -> rows that lost something, or were split at `sequence_len`.
    """

    name: str
    read: int = 0
    kept: int = 0
    samples: int = 0
    dropped: dict[str, Tally] = field(default_factory=dict)
    cut: dict[str, Tally] = field(default_factory=dict)

    def drops(self, reason: str, *, bad: bool = False) -> Tally:
        """The tally of rows that give no sample for this reason."""
        return self.dropped.setdefault(reason, Tally(bad=bad))

    def cuts(self, done: str, *, bad: bool = False) -> Tally:
        """The tally of rows of which only a part is kept, or that became several samples."""
        return self.cut.setdefault(done, Tally(bad=bad))

    def drop(self, reason: str, place: str, detail: str = "", tokens: int = 0, bad: bool = False) -> None:
        """Count a row that gives no sample."""
        self.drops(reason, bad=bad).add(place, detail, tokens)

    @property
    def num_dropped(self) -> int:
        return sum(tally.count for tally in self.dropped.values())

    def merge(self, other: Ledger) -> None:
        """Enter what another ledger has of rows that come after this one's."""
        self.read += other.read
        self.kept += other.kept
        self.samples += other.samples
        for reason, tally in other.dropped.items():
            self.drops(reason, bad=tally.bad).merge(tally)
        for done, tally in other.cut.items():
            self.cuts(done, bad=tally.bad).merge(tally)

    def as_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        def tallies(entries: Mapping[str, Any]) -> dict[str, Tally]:
            return {
                reason: Tally(**{**entry, "examples": [(place, detail) for place, detail in entry["examples"]]})
                for reason, entry in entries.items()
            }

        return cls(**{**values, "dropped": tallies(values["dropped"]), "cut": tallies(values["cut"])})


def bad_row_problems(ledger: Ledger) -> Iterator[Problem]:
    """One problem for each reason for which rows, or some of their samples, could not be used."""
    fix = "mend the rows, or set `on_bad_row: drop` to leave them out and count them"
    for reason, tally in (*ledger.dropped.items(), *ledger.cut.items()):
        if tally.bad:
            yield _problem(reason, tally, FIXES.get(reason, fix))


def too_long_problem(ledger: Ledger, sequence_len: int) -> Problem | None:
    """For `excess_length_strategy: raise`: the rows that exceed the limit."""
    tally = Tally()
    for found in (ledger.dropped.get(TOO_LONG), ledger.cut.get(PARTLY + TOO_LONG)):
        tally.merge(found or Tally())
    if not tally.count:
        return None
    fix = f"raise sequence_len to {tally.longest}, or set `excess_length_strategy` to drop or truncate"
    return _problem(f"{TOO_LONG} {sequence_len}", tally, fix)


def nothing_kept_problem(ledger: Ledger, where: str, sequence_len: int) -> Problem | None:
    """A dataset that gives no sample at all, and why. One that only repeats other rows is no problem."""
    if ledger.kept or any(reason in ledger.dropped for reason in REPEATS):
        return None
    if not ledger.read:
        return Problem(where, f"'{ledger.name}' has no rows", "check the file, or take it out of the datasets")
    rows = "the only row" if ledger.read == 1 else f"all {ledger.read:,} rows"
    if list(ledger.dropped) == [TOO_LONG]:
        tally = ledger.dropped[TOO_LONG]
        verb = "is" if ledger.read == 1 else "are"
        found = f"'{ledger.name}': {rows} {verb} {TOO_LONG} {sequence_len} (shortest {tally.shortest} tokens)"
        fix = f"raise sequence_len to at least {tally.shortest}, or set `excess_length_strategy: truncate`"
        return Problem(where, found, fix)
    reasons = "; ".join(f"{tally.count:,} {reason} ({tally.places})" for reason, tally in ledger.dropped.items())
    found = f"'{ledger.name}': {rows} dropped: {reasons}"
    if ledger.dropped.keys() <= {TOO_LONG, NOTHING_LEFT, SAME_LEFT}:
        return Problem(where, found, "raise sequence_len: what these rows teach lies behind it")
    return Problem(where, found, "mend the rows, or check the dataset's `type` and fields")


def _problem(reason: str, tally: Tally, fix: str) -> Problem:
    (place, detail), *others = tally.examples
    found = f"{reason} ({detail})" if detail else reason
    if others:
        rest = Tally(tally.count - 1, others)
        found = f"{found}; {tally.count:,} rows, also {rest.places}"
    return Problem(place, found, fix)
