"""Files of rows: local ones and those of a remote file system, opened, stamped, read and cut in chunks."""

from __future__ import annotations

import hashlib
import itertools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import pyarrow as pa

from whet.core.errors import DataError, Problem
from whet.data.chunks import Chunk, Line, changed, chunks_of_lines, chunks_of_stream, line_of, lines_of_stream
from whet.data.compression import decompressed
from whet.data.readers import ENDINGS, READERS, Row, endings, holds_json_lines
from whet.data.selection import Selection

RACY_SECONDS = 2.0
"""A file written so short a time ago may be written again without another mtime (clocks of file systems are coarse)."""

_SEEKING = ("parquet", "arrow")
"""Readers that go back and forth in a file."""


class File(Protocol):
    """Bytes with a name."""

    @property
    def label(self) -> str:
        """As the user would name it."""
        ...

    @property
    def local_path(self) -> str | None:
        """Absolute, if workers can open it."""
        ...

    def open(self, *, seekable: bool = False) -> BinaryIO: ...

    def stamp(self) -> str | None:
        """What changes when the content does, told without reading it; None if that cannot be told."""
        ...


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file of this machine."""

    path: Path
    label: str

    @property
    def local_path(self) -> str:
        return os.path.abspath(self.path)

    def open(self, *, seekable: bool = False) -> BinaryIO:
        return self.path.open("rb")

    def stamp(self) -> str | None:
        with unreadable_as_data_error(self.label):
            status = self.path.stat()
        if status.st_mtime > time.time() - RACY_SECONDS:
            return None
        # A program may give the file its old mtime back after writing to it; the ctime is the system's alone.
        return "\0".join(
            map(str, (self.local_path, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino))
        )


@dataclass(frozen=True)
class FileSource:
    """Files read one after the other.

    Attributes:
        name: what reports call the source.
        files: each with the name of its reader.
        selection: of the rows of all files together.
    """

    name: str
    files: tuple[tuple[File, str], ...]
    selection: Selection

    def rows(self) -> Iterator[Row]:
        """Every chosen row in order. Raises DataError where a file cannot be read at all."""
        return self.selection.apply(lambda: itertools.chain.from_iterable(itertools.starmap(read, self.files)))

    def chunks(self) -> Iterator[Chunk]:
        """The chosen rows as chunks; those of whole local files of JSON lines are spans."""
        if self.selection.is_everything:
            return itertools.chain.from_iterable(itertools.starmap(_chunks, self.files))
        lines = self.selection.apply(lambda: itertools.chain.from_iterable(itertools.starmap(_lines, self.files)))
        return chunks_of_lines(lines)

    def chunks_from(self, file: str, number: int, begin: int | None, first: int) -> Iterator[Chunk] | None:
        """The chunks that follow a place, without reading what stands before it where files allow that.

        Args:
            file: label of the file.
            number: chunks of the file to pass over.
            begin, first: byte and line at which the next one begins, in a local file of JSON lines.

        Returns:
            None if the place can only be found by reading everything before it.
        """
        at = next((at for at, (candidate, _) in enumerate(self.files) if candidate.label == file), None)
        if not self.selection.is_everything or at is None:
            return None
        (candidate, reader), path = self.files[at], self.files[at][0].local_path
        if begin is None or path is None:
            here: Iterator[Chunk] = itertools.islice(_chunks(candidate, reader), number, None)
        else:
            here = _chunks_from_byte(candidate, path, begin, first)
        return itertools.chain(here, itertools.chain.from_iterable(itertools.starmap(_chunks, self.files[at + 1 :])))

    def stamp(self) -> str | None:
        """Hash of the files' stamps and the selection; None if a file must be read to know it."""
        stamps = [(file.label, reader, file.stamp()) for file, reader in self.files]
        return None if any(stamp is None for *_, stamp in stamps) else stamp_of(self.selection, stamps)


def read(file: File, reader: str) -> Iterator[Row]:
    """The rows of a file. Raises DataError if it cannot be read."""
    compression = ending(file.label)[1]
    seekable = reader in _SEEKING and not compression
    with _opened(file, seekable=seekable) as stream:
        yield from READERS[reader](decompressed(stream, compression, file.label), file.label)


def ending(file: str) -> tuple[str | None, str]:
    """The reader for a file's name, and its compression's ending.

    >>> ending("data/a.jsonl.gz"), ending("notes.doc")
    (('jsonl', '.gz'), (None, ''))
    """
    of_format, of_compression = endings(file)
    return ENDINGS.get(of_format), of_compression


def stamp_of(*parts: Any) -> str:
    """One stamp from the parts that it stands for."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


@contextmanager
def unreadable_as_data_error(label: str) -> Iterator[None]:
    """Turn what readers raise for a file that is not there, not whole or not of its format into a DataError."""
    try:
        yield
    except (OSError, EOFError, pa.ArrowException, MemoryError, UnicodeDecodeError) as error:
        lines = str(error).strip().splitlines()
        reason = getattr(error, "strerror", None) or (lines[0] if lines else type(error).__name__)
        if isinstance(error, MemoryError):
            reason = "it asks for more memory than there is"
        found = f"cannot be read ({reason})"
        raise DataError(Problem(label, found, "check that the file is whole and may be read")) from error


@contextmanager
def _opened(file: File, *, seekable: bool = False) -> Iterator[BinaryIO]:
    """A file's bytes; a DataError if it cannot be read, or another program wrote to it until it was read."""
    with unreadable_as_data_error(file.label), file.open(seekable=seekable) as stream:
        before = _written(file)
        yield stream
        if _written(file) != before:
            raise DataError(changed(file.label))


def _written(file: File) -> tuple[int, int] | None:
    """Size and time of the last write of a local file."""
    if file.local_path is None:
        return None
    status = os.stat(file.local_path)
    return status.st_size, status.st_mtime_ns


def _chunks(file: File, reader: str) -> Iterator[Chunk]:
    if not _is_lines(file, reader):
        yield from chunks_of_lines(map(line_of, read(file, reader)))
        return
    compression = ending(file.label)[1]
    with _opened(file) as stream:
        path = None if compression else file.local_path
        yield from chunks_of_stream(decompressed(stream, compression, file.label), file.label, path)


def _chunks_from_byte(file: File, path: str, begin: int, first: int) -> Iterator[Chunk]:
    """The chunks of a plain file of JSON lines from one of their borders on."""
    with unreadable_as_data_error(file.label), file.open(seekable=True) as stream:
        stream.seek(begin)
        yield from chunks_of_stream(stream, file.label, path, position=begin, number=first)


def _lines(file: File, reader: str) -> Iterator[Line]:
    if not _is_lines(file, reader):
        yield from map(line_of, read(file, reader))
        return
    with _opened(file) as stream:
        yield from lines_of_stream(decompressed(stream, ending(file.label)[1], file.label), file.label)


def _is_lines(file: File, reader: str) -> bool:
    """Whether a file's lines are rows as they stand."""
    if reader != "json":
        return reader == "jsonl"
    with _opened(file) as stream:
        return holds_json_lines(decompressed(stream, ending(file.label)[1], file.label), file.label)
