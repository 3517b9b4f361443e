"""Ends of a command that are nobody's fault: the system asks it to stop, or has no room left."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from whet.core.disk import refused_write
from whet.core.errors import Problem

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_AGAIN_SECONDS = 0.05
"""Long enough for Python to leave the finaliser in which a signal was lost."""


class Ended(KeyboardInterrupt):
    """SIGTERM or SIGHUP: handled like Ctrl-C wherever it strikes, so that files half-written are removed."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
        self.exit_code = 128 + number


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Within it SIGTERM and SIGHUP raise `Ended`; training answers them in its own way. What is ignored stays so.

    Python drops what is raised while it finalises an object, the answer to a signal too; that is asked for again.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [number for number in _signals() if signal.getsignal(number) == signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, _end)
    timers: list[threading.Timer] = []
    others_hook = sys.unraisablehook

    def not_lost(dropped: sys.UnraisableHookArgs) -> None:
        error = dropped.exc_value
        if not isinstance(error, KeyboardInterrupt) or threading.current_thread() is not threading.main_thread():
            others_hook(dropped)
            return
        number = error.number if isinstance(error, Ended) else signal.SIGINT
        if isinstance(error, Ended):
            signal.signal(number, _end)  # it was set to end the process
        timers.append(threading.Timer(_AGAIN_SECONDS, os.kill, (os.getpid(), number)))
        timers[-1].daemon = True
        timers[-1].start()

    sys.unraisablehook = not_lost
    try:
        yield
    finally:
        sys.unraisablehook = others_hook
        for timer in timers:
            timer.cancel()
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _signals() -> list[signal.Signals]:
    return [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]


def _end(number: int, frame: FrameType | None) -> None:
    # A second one, while the first is being answered, ends the process.
    signal.signal(number, signal.SIG_DFL)
    raise Ended(number)


def full_disk(error: Exception) -> Problem | None:
    """What to tell of an error that says that a disk is full; None of any other."""
    reason = refused_write(error)
    if reason is None or (isinstance(error, OSError) and error.errno not in _NO_ROOM):
        return None
    where = str(error.filename or "") if isinstance(error, OSError) else ""
    found = f"there is no room to write to ({reason})"
    return Problem(where, found, "make room there; the same command goes on with what was published before")
