"""Compressed files: the bytes that were packed, as long as they are not far more than there are packed ones."""

from __future__ import annotations

import io
from typing import Any, BinaryIO

import pyarrow as pa

from whet.core.errors import DataError, Problem

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}


def decompressed(stream: BinaryIO, ending: str, file: str) -> BinaryIO:
    """The stream as it was before compression, by the file's last ending.

    Reading it raises DataError where it is made to expand without end.
    """
    codec = COMPRESSIONS.get(ending.lower())
    if codec is None:
        return stream
    return io.BufferedReader(_Expanding(stream, pa.CompressedInputStream(stream, codec), file), _BLOCK)


MOST_EXPANDED, UNASKED_BYTES = 200, 64 << 20
"""A compressed file may become so many times as large, from so many bytes on. Text becomes 3 to 20 times as large, rows
that repeat one another up to 100 times; a file made to fill a disk or a memory, 1,000 (gzip) and far more (zstd, bz2).
"""
_BLOCK = 1 << 20


class _Expanding(io.RawIOBase):
    """Decompressed bytes, as long as they are not far more than the compressed ones."""

    def __init__(self, packed: BinaryIO, plain: Any, file: str) -> None:
        self._packed, self._plain, self._file = packed, plain, file
        self._read = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._plain.read(len(buffer))
        buffer[: len(data)] = data
        self._read += len(data)
        if self._read > UNASKED_BYTES and self._read > MOST_EXPANDED * max(self._packed.tell(), 1):
            found = f"it becomes more than {MOST_EXPANDED} times as large when it is decompressed"
            fix = "decompress it yourself if you trust it, and name that file"
            raise DataError(Problem(self._file, found, fix))
        return len(data)
