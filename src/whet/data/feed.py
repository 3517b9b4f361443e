"""One dataset as a stream: sample after sample, a chunk in memory at a time, with a place from which to go on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any, Self

import numpy as np

from whet.core.errors import DataError, Problem
from whet.data.admission import Admitted, Limits, account_for, numbers_of
from whet.data.chunk_file import ChunkWriter
from whet.data.chunks import Chunk
from whet.data.files import FileSource
from whet.data.ledger import Ledger, bad_row_problems, nothing_kept_problem, too_long_problem
from whet.data.prepare import Part
from whet.data.readers import place
from whet.data.samples import Flags, Ids
from whet.data.sources import Source
from whet.data.workers import encode_rows


@dataclass(frozen=True, slots=True, eq=False)
class StreamSample:
    """A sample on its way to the model.

    Attributes:
        input_ids: int32[T].
        supervised: bool[T], True at targets.
        num_supervised: targets; the first token is none.
        source: number of its dataset.
        file, row, by_line: the row that it comes from.
    """

    input_ids: Ids
    supervised: Flags
    num_supervised: int
    source: int
    file: str
    row: int
    by_line: bool

    @property
    def num_tokens(self) -> int:
        return len(self.input_ids)

    @property
    def place(self) -> str:
        """``chat.jsonl:12``."""
        return place(self.file, self.row, self.by_line)


@dataclass(frozen=True, slots=True)
class ChunkPlace:
    """Which chunk of a dataset.

    Attributes:
        number: of the chunk in its epoch, from 0.
        file: label of its file.
        in_file: number of the chunk in its file.
        begin: its first byte, where it is a part of a local file of JSON lines.
        first: number of its first row.
        digest: of its rows.
    """

    number: int
    file: str
    in_file: int
    begin: int | None
    first: int
    digest: str


@dataclass(frozen=True, slots=True)
class FeedMark:
    """How far a dataset has been read; what a feed needs to go on from there.

    Attributes:
        epoch: times that the dataset has been read to its end.
        place: the chunk that is open; None before the first of the epoch.
        taken: samples taken from it.
        dealt: tokens or samples by which the mix is kept (see `whet.data.streaming.Stream`).
        before, opened: accounts of the chunks before the open one, and of it.
    """

    epoch: int = 0
    place: ChunkPlace | None = None
    taken: int = 0
    dealt: int = 0
    before: Mapping[str, Any] = field(default_factory=dict)
    opened: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        found = values["place"]
        return cls(**{**values, "place": None if found is None else ChunkPlace(**found)})

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def ledger(self, name: str) -> Ledger:
        """The account of all rows read so far."""
        total = Ledger(name)
        for account in (self.before, self.opened):
            if account:
                total.merge(Ledger.from_dict(account))
        return total


@dataclass(frozen=True)
class FeedRules:
    """What a dataset's samples must keep to.

    Attributes:
        limits: of lengths.
        bad_rows_end: whether a row that cannot be used ends the run.
        long_rows_end: whether a sample that is too long does.
    """

    limits: Limits
    bad_rows_end: bool
    long_rows_end: bool


class Feed:
    """The samples of one dataset in order, epoch after epoch.

    Args:
        part: the dataset.
        number: of the dataset.
        mark: where to go on.

    Attributes:
        epoch: times that the dataset has been read to its end.
        dealt: see `FeedMark`; kept by the caller.

    Every method raises DataError: the source cannot be read or has changed, rows cannot be used, or a whole epoch has
    given no sample.
    """

    def __init__(self, part: Part, number: int, rules: FeedRules, mark: FeedMark | None = None) -> None:
        mark = mark or FeedMark()
        self.name = part.name
        self.epoch, self.dealt = mark.epoch, mark.dealt
        self._part, self._number, self._rules = part, number, rules
        self._before = Ledger.from_dict(mark.before) if mark.before else Ledger(part.name)
        self._open: _Opened | None = None
        self._last = mark.place
        if mark.place is None:
            self._chunks = part.source.chunks()
        else:
            self._chunks = chunks_from(part.source, mark.place)
            self._reopen(mark.place, mark.taken)

    @property
    def num_held(self) -> int:
        """Samples in memory that have not been taken."""
        return 0 if self._open is None else self._open.num_left

    def head(self) -> int | None:
        """Tokens of the next sample; None at the end of an epoch."""
        while self._open is None or not self._open.num_left:
            chunk = next(self._chunks, None)
            if chunk is None:
                self._refuse_nothing()
                return None
            self._enter(chunk, self._place_of(chunk))
        return self._open.next_length

    def take(self) -> StreamSample:
        """The next sample; there must be one."""
        assert self._open is not None
        return self._open.take(self._number)

    def begin_epoch(self) -> None:
        """Read the dataset from its beginning again."""
        self._close()
        self.epoch += 1
        self._last = None
        self._chunks = self._part.source.chunks()

    def close(self) -> None:
        """Close the files that are open; nothing is read after it."""
        self._chunks = iter(())

    def mark(self) -> FeedMark:
        """From where to go on after what has been taken."""
        before = self._before.as_dict()
        if self._open is None:
            return FeedMark(self.epoch, None, 0, self.dealt, before)
        return FeedMark(self.epoch, self._open.place, self._open.taken, self.dealt, before, self._open.ledger.as_dict())

    def _enter(self, chunk: Chunk, found: ChunkPlace) -> None:
        self._close()
        self._open = self._opened(chunk, found)
        self._last = found

    def _close(self) -> None:
        if self._open is not None:
            self._before.merge(self._open.ledger)
            self._open = None

    def _refuse_nothing(self) -> None:
        """A dataset that gives no sample would be read over and over."""
        nothing = nothing_kept_problem(self.mark().ledger(self.name), self._part.where, self._rules.limits.most)
        if nothing is not None:
            raise DataError(nothing)

    def _reopen(self, found: ChunkPlace, taken: int) -> None:
        """The chunk that was open, without the samples that were taken from it."""
        chunk = next(self._chunks, None)
        if chunk is None or chunk.digest != found.digest or chunk.file != found.file:
            problem = f"chunk {found.number + 1} of '{self.name}' holds other rows than when the checkpoint was written"
            raise DataError(Problem(found.file, problem, "put the rows back, or begin a new run"))
        self._open = self._opened(chunk, found)
        self._open.taken = taken

    def _opened(self, chunk: Chunk, found: ChunkPlace) -> _Opened:
        part, rules = self._part, self._rules
        encoded = encode_rows(chunk, part.encoder, part.recipe)
        ledger = Ledger(part.name)
        admitted = account_for(chunk, encoded.rows, encoded.faults, encoded, rules.limits, ledger)
        problems = list(bad_row_problems(ledger)) if rules.bad_rows_end else []
        too_long = too_long_problem(ledger, rules.limits.most) if rules.long_rows_end else None
        if too_long is not None:
            problems.append(too_long)
        if problems:
            raise DataError(problems)
        return _Opened(found, chunk, encoded, admitted, ledger)

    def _place_of(self, chunk: Chunk) -> ChunkPlace:
        last = self._last
        return ChunkPlace(
            number=0 if last is None else last.number + 1,
            file=chunk.file,
            in_file=0 if last is None or last.file != chunk.file else last.in_file + 1,
            begin=None if chunk.span is None else chunk.span[1],
            first=chunk.first,
            digest=chunk.digest,
        )


def chunks_from(source: Source, found: ChunkPlace) -> Iterator[Chunk]:
    """The chunks of a source from one of them on: found at once in files, by reading those before it elsewhere."""
    if isinstance(source, FileSource):
        chunks = source.chunks_from(found.file, found.in_file, found.begin, found.first)
        if chunks is not None:
            return chunks
    return islice(source.chunks(), found.number, None)


class _Opened:
    """A chunk in memory.

    Attributes:
        taken: samples taken from it.
        ledger: the account of its rows.
    """

    def __init__(
        self, found: ChunkPlace, chunk: Chunk, encoded: ChunkWriter, admitted: Admitted, ledger: Ledger
    ) -> None:
        self.place, self.ledger, self.taken = found, ledger, 0
        self._encoded, self._admitted = encoded, admitted
        self._file, self._by_line = chunk.file, chunk.by_line
        self._numbers = numbers_of(chunk, encoded.line)[admitted.row]
        ledger.kept = len(np.unique(encoded.line[admitted.row]))
        ledger.samples = len(admitted.row)

    @property
    def num_left(self) -> int:
        return len(self._admitted.row) - self.taken

    @property
    def next_length(self) -> int:
        return int(self._admitted.end[self.taken] - self._admitted.begin[self.taken])

    def take(self, source: int) -> StreamSample:
        """Copies, so that a sample does not keep its whole chunk in memory."""
        at, self.taken = self.taken, self.taken + 1
        row, begin, end = (int(column[at]) for column in (self._admitted.row, self._admitted.begin, self._admitted.end))
        ids, supervised = (self._encoded.sequence(name, row)[begin:end].copy() for name in ("input_ids", "supervised"))
        num_supervised = int(self._admitted.num_supervised[at])
        return StreamSample(ids, supervised, num_supervised, source, self._file, int(self._numbers[at]), self._by_line)
