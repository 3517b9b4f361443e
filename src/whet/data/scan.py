"""What earlier scans found: the chunks of a source, without their rows, by the source's stamp.

With it a preparation whose sources did not change reads none of their bytes.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from whet.data.chunks import Chunk
from whet.data.readers import BadRow
from whet.data.sources import Source

FORMAT_VERSION = 1
"""Of the files, and of the rule that says where chunks end."""


class ScanCache:
    """A folder with a JSON file for each stamp; several processes may use it at once."""

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)

    def find(self, stamp: str) -> list[Chunk] | None:
        """The chunks remembered for a stamp; None if there are none, or what was written is broken."""
        try:
            document = orjson.loads(self._file(stamp).read_bytes())
            if document["version"] != FORMAT_VERSION or document["stamp"] != stamp:
                return None
            return [_chunk(entry) for entry in document["chunks"]]
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def remember(self, stamp: str, chunks: Sequence[Chunk]) -> None:
        """Write the chunks' descriptions down, whole or not at all.

        A folder that cannot be written to is passed over: the next scan then reads the source again.
        """
        document = {"version": FORMAT_VERSION, "stamp": stamp, "chunks": [_entry(chunk) for chunk in chunks]}
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=".scan.", dir=self._folder)
            try:
                with os.fdopen(handle, "wb") as stream:
                    stream.write(orjson.dumps(document))
                Path(name).chmod(0o644)
                os.replace(name, self._file(stamp))
            except OSError:
                Path(name).unlink(missing_ok=True)
                raise

    def forget(self, stamp: str) -> bool:
        """Remove what was remembered for a stamp; whether there was anything, and it is gone."""
        try:
            self._file(stamp).unlink()
        except OSError:
            return False
        return True

    def _file(self, stamp: str) -> Path:
        return self._folder / f"{stamp}.json"


def descriptors(source: Source, cache: ScanCache) -> Iterator[Chunk]:
    """The chunks of a source: from the cache where its stamp is known, else by a scan that the cache remembers.

    A remembered chunk with a span can be loaded; one without raises LookupError, and its rows come from
    ``source.chunks()``. A scan that is not read to its end, or during which the source changed, is not remembered.

    Raises:
        DataError: the source cannot be read.
    """
    before = source.stamp()
    known = cache.find(before) if before is not None else None
    if known is not None:
        yield from known
        return
    seen: list[Chunk] = []
    for chunk in source.chunks():
        seen.append(replace(chunk, lines=None))
        yield chunk
    if before is not None and source.stamp() == before:
        cache.remember(before, seen)


def _entry(chunk: Chunk) -> dict[str, Any]:
    return {
        "file": chunk.file,
        "by_line": chunk.by_line,
        "first": chunk.first,
        "digest": chunk.digest,
        "span": chunk.span,
        "numbers": None if chunk.numbers is None else list(chunk.numbers),
        "faults": [(number, fault.reason, fault.detail) for number, fault in chunk.faults],
        "num_lines": chunk.num_lines,
    }


def _chunk(entry: dict[str, Any]) -> Chunk:
    span = entry["span"]
    return Chunk(
        file=entry["file"],
        by_line=entry["by_line"],
        first=entry["first"],
        digest=entry["digest"],
        span=None if span is None else (span[0], span[1], span[2]),
        numbers=entry["numbers"],
        faults=tuple((number, BadRow(reason, detail)) for number, reason, detail in entry["faults"]),
        num_lines=entry["num_lines"],
    )
