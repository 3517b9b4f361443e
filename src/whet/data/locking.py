"""A lock that a process holds while it makes something that others may want too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from whet.core.log import say


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold the lock of a file; the system lets go of it when the process ends, however that is.

    Yields:
        whether another process had it first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
        waited = False
    except Timeout:
        say("another process prepares this data; waiting for it")
        lock.acquire()
        waited = True
    try:
        yield waited
    finally:
        lock.release()
