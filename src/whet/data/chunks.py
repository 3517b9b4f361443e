"""A source as chunks: about 4 MB of rows as JSON lines, each known by the digest of its bytes.

A chunk ends where the content of a line says so, and not at a count of bytes or rows. So a row that is edited,
inserted or taken out changes the chunk that it stands in, and the chunks after it keep their digests
(content-defined chunking: Muthitacharoen, Chen and Mazieres, "A Low-bandwidth Network File System", SOSP 2001).
"""

from __future__ import annotations

import hashlib
import heapq
import io
import itertools
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import orjson

from whet.core.errors import DataError, Problem
from whet.data.columns import as_text
from whet.data.readers import LONGEST_LINE, UTF8_MARK, BadRow, Row, bounded_lines, line_too_long, parse_line

MOST_FAULTS = 1000
"""Rows that could not be read end a chunk as lines do, so that a file of nothing else is not held in memory."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Where chunks end: after the first line beyond ``least`` bytes that is a border, before ``most`` bytes.

    A line is a border with a probability of its length over ``every``, so borders stand ``every`` bytes apart
    whether lines are short or long. A line longer than ``most`` is a chunk of its own.
    """

    least: int = 3 << 20
    most: int = 6 << 20
    every: int = 1 << 19

    def is_border(self, line: bytes) -> bool:
        """Whether a line, its line feed included, ends a chunk that is long enough."""
        return zlib.crc32(line) % self.every < len(line)

    def end(self, data: bytes, *, final: bool) -> int:
        """The end of the chunk that begins with the data; 0 if more bytes are needed to tell.

        Args:
            data: lines.
            final: nothing comes after them.
        """
        if len(data) < self.most and not final:
            return 0
        begin = data.rfind(b"\n", 0, self.least) + 1
        for line in io.BytesIO(data[begin : self.most]):
            if not line.endswith(b"\n"):
                break
            begin += len(line)
            if self.is_border(line):
                return begin
        if final and len(data) <= self.most:
            return len(data)
        return begin or data.find(b"\n") + 1 or (len(data) if final else 0)


CUT = Cut()


class FileChanged(DataError):
    """A file does not hold the rows that were found in it before."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows that follow each other in one file.

    Attributes:
        file: label of the file.
        by_line: how its rows are counted (see `Row`).
        first: number of its first line, or of its first record.
        digest: of the lines' bytes (blake2b, 16 bytes, hexadecimal): equal rows have equal digests wherever they stand.
        span: path, begin and end in bytes, of a chunk that is a part of a local file of JSON lines.
        lines: else the rows as JSON lines, each with its line feed.
        numbers: numbers of the lines, where they are not consecutive from ``first``.
        faults: numbers of rows that the reader could not read, and why; they are not among the lines.
        num_lines: lines, blank ones included.
    """

    file: str
    by_line: bool
    first: int
    digest: str
    span: tuple[str, int, int] | None = None
    lines: bytes | None = field(default=None, repr=False)
    numbers: Sequence[int] | None = None
    faults: tuple[tuple[int, BadRow], ...] = ()
    num_lines: int = 0

    @property
    def last(self) -> int:
        """Number of its last row."""
        lines = self.numbers[-1] if self.numbers else self.first + self.num_lines - 1
        return max([lines, *(number for number, _ in self.faults[-1:])])

    def load(self) -> bytes:
        """The lines, each with its line feed.

        Raises:
            DataError: the file cannot be read.
            FileChanged: it has changed since it was scanned.
            LookupError: the chunk was remembered by a `ScanCache` and its rows must be read from the source again.
        """
        if self.lines is not None:
            return self.lines
        if self.span is None:
            raise LookupError(f"{self.file}: a chunk that was remembered without its rows")
        path, begin, end = self.span
        try:
            with Path(path).open("rb") as stream:
                stream.seek(begin)
                data = _ended(stream.read(end - begin))
        except OSError as error:
            found = f"cannot be read ({error.strerror or error})"
            raise DataError(Problem(self.file, found, "check that the file is whole and may be read")) from error
        if digest_of(data) != self.digest:
            raise FileChanged(changed(self.file))
        return data

    def rows(self) -> Iterator[Row]:
        """The rows in order; those that could not be read are values too."""
        numbers = itertools.count(self.first) if self.numbers is None else self.numbers
        lines = zip(numbers, io.BytesIO(self.load()), strict=False)
        rows = (
            Row(number, self.file, parse_line(line, number if self.by_line else 0), self.by_line)
            for number, line in lines
            if not line.isspace()
        )
        if not self.faults:
            return rows
        faults = (Row(number, self.file, fault, self.by_line) for number, fault in self.faults)
        return heapq.merge(rows, faults, key=lambda row: row.number)


def digest_of(lines: bytes) -> str:
    """The digest of a chunk's lines."""
    return hashlib.blake2b(lines, digest_size=16).hexdigest()


def changed(file: str) -> Problem:
    """What to say of a file that another program writes to."""
    return Problem(file, "the file changed while it was read", "run it again when nothing writes to the file")


def chunks_of_stream(
    stream: BinaryIO, file: str, path: str | None = None, cut: Cut = CUT, *, position: int = 0, number: int = 1
) -> Iterator[Chunk]:
    """A stream of JSON lines, in one pass; memory is that of one chunk.

    Args:
        stream: the file's bytes, decompressed.
        file: its label.
        path: given for a plain local file: its chunks are then spans, whose lines a reader takes from the file.
        position, number: of the stream's first byte and line in the file, for a stream that begins at a later chunk.
    """
    data = b""
    final = False
    while True:
        while not final and len(data) < cut.most:
            block = stream.read(cut.most - len(data))
            final = not block
            data += block
        if position == 0 and data.startswith(UTF8_MARK):
            data, position = data[len(UTF8_MARK) :], len(UTF8_MARK)
            continue
        if not data:
            return
        end = cut.end(data, final=final)
        while not end:
            if len(data) > LONGEST_LINE:  # no line feed is in it
                raise DataError(line_too_long(file, number))
            block = stream.read(max(cut.most, len(data)))  # twice as much: each time it is searched from its beginning
            final = not block
            data += block
            end = cut.end(data, final=final)
        lines, data = _ended(data[:end]), data[end:]
        num_lines = lines.count(b"\n")
        if not lines.isspace():
            yield Chunk(
                file,
                by_line=True,
                first=number,
                digest=digest_of(lines),
                span=(path, position, position + end) if path else None,
                lines=None if path else lines,
                num_lines=num_lines,
            )
        position += end
        number += num_lines


@dataclass(frozen=True, slots=True)
class Line:
    """A row as it goes into a chunk: its JSON with a line feed, or why there is none."""

    number: int
    file: str
    value: bytes | BadRow
    by_line: bool = True


def line_of(row: Row) -> Line:
    """A row's columns as JSON; what JSON has no word for becomes its text, as dates do."""
    if isinstance(row.value, BadRow):
        return Line(row.number, row.file, row.value, row.by_line)
    options = orjson.OPT_NON_STR_KEYS | orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY
    try:
        value: bytes | BadRow = orjson.dumps(row.value, default=as_text, option=options)
    except orjson.JSONEncodeError as error:
        value = BadRow("cannot be written as JSON", str(error))
    return Line(row.number, row.file, value, row.by_line)


def lines_of_stream(stream: BinaryIO, file: str) -> Iterator[Line]:
    """The lines of a stream of JSON lines as they are, blank ones left out."""
    for number, line in enumerate(bounded_lines(stream, file), start=1):
        text = line.removeprefix(UTF8_MARK) if number == 1 else line
        if text and not text.isspace():
            yield Line(number, file, _ended(text))


def chunks_of_lines(lines: Iterable[Line], cut: Cut = CUT) -> Iterator[Chunk]:
    """Rows in order as chunks, none of which spans files."""
    for _, of_file in itertools.groupby(lines, key=lambda line: (line.file, line.by_line)):
        held = _Held()
        for line in of_file:
            if not isinstance(line.value, BadRow) and held.num_bytes and held.num_bytes + len(line.value) > cut.most:
                yield held.chunk()
                held = _Held()
            held.add(line)
            if held.is_full(cut):
                yield held.chunk()
                held = _Held()
        if held:
            yield held.chunk()


class _Held:
    """Lines of the chunk to come."""

    def __init__(self) -> None:
        self.num_bytes = 0
        self._lines: list[bytes] = []
        self._numbers = array("q")
        self._faults: list[tuple[int, BadRow]] = []
        self._last: Line | None = None

    def __bool__(self) -> bool:
        return self._last is not None

    def add(self, line: Line) -> None:
        self._last = line
        if isinstance(line.value, BadRow):
            self._faults.append((line.number, line.value))
        else:
            self._lines.append(line.value)
            self._numbers.append(line.number)
            self.num_bytes += len(line.value)

    def is_full(self, cut: Cut) -> bool:
        if len(self._faults) >= MOST_FAULTS:
            return True
        return self.num_bytes > cut.least and (self.num_bytes >= cut.most or cut.is_border(self._lines[-1]))

    def chunk(self) -> Chunk:
        assert self._last is not None
        lines = b"".join(self._lines)
        faults = tuple(self._faults)
        return Chunk(
            self._last.file,
            self._last.by_line,
            first=min([*self._numbers[:1], *(number for number, _ in faults[:1])]),
            digest=digest_of(lines),
            lines=lines,
            numbers=None if _is_range(self._numbers, faults) else self._numbers,
            faults=faults,
            num_lines=len(self._numbers),
        )


def _is_range(numbers: Sequence[int], faults: Sequence[tuple[int, BadRow]]) -> bool:
    """Whether numbers are consecutive from the first that a chunk names."""
    if not numbers:
        return True
    begins = not faults or numbers[0] < faults[0][0]
    return begins and numbers[-1] - numbers[0] + 1 == len(numbers)


def _ended(lines: bytes) -> bytes:
    """The lines, the last with its line feed too."""
    return lines if lines.endswith(b"\n") else lines + b"\n"
