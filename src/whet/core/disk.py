"""Files whose bytes must be known and must be there after a power cut."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class NotWritten(OSError):
    """A file or folder cannot be written; ``strerror`` says why."""


@contextmanager
def writing() -> Iterator[None]:
    """Whatever the system refuses meanwhile is a write: raised as `NotWritten`, to be told from other errors of it."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)  # pyarrow adds words of its own
        raise NotWritten(error.errno, reason) from error


def sha256(path: Path) -> str:
    """Hexadecimal digest of a file; hashing leaves the interpreter free for other threads."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
