"""What was warned of while something ran: whet's own warnings, Python's, and those that libraries log."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from whet.core.secrets import redact

MOST_WARNINGS = 100
"""Different warnings that are kept; of others only the number is."""

LONGEST_WARNING = 1000
"""Characters."""


@dataclass
class Warned:
    """A warning and how often it was said.

    Attributes:
        source: the logger ("whet", "transformers.trainer"), or the category of a Python warning.
    """

    source: str
    text: str
    count: int = 1


class Heard:
    """The warnings so far.

    Args:
        on_new: called after one that was not heard before.
    """

    def __init__(self, on_new: Callable[[Heard], None] = lambda heard: None) -> None:
        self._on_new = on_new
        self._lock = threading.RLock()
        self._found: dict[tuple[str, str], Warned] = {}
        self._beyond = 0

    def add(self, source: str, text: str) -> None:
        """Take one down."""
        text = redact(text.strip())[:LONGEST_WARNING]
        with self._lock:
            known = self._found.get((source, text))
            if known is not None:
                known.count += 1
                return
            if len(self._found) >= MOST_WARNINGS:
                self._beyond += 1
                return
            self._found[source, text] = Warned(source, text)
        self._on_new(self)

    def told(self) -> list[Warned]:
        """The warnings in the order in which they were heard first; the last entry says how many more there were."""
        with self._lock:
            found = [Warned(each.source, each.text, each.count) for each in self._found.values()]
            beyond = [Warned("whet", "further warnings, not kept", self._beyond)] if self._beyond else []
            return found + beyond


@contextmanager
def hearing(heard: Heard, loggers: tuple[str, ...]) -> Iterator[Heard]:
    """Within it, warnings are taken down as well as shown, in this process.

    Args:
        loggers: whose warnings, and those of the loggers below them; also where the level on the terminal is higher.
    """
    listener = _Listener(heard)
    opened = [_opened(logging.getLogger(name), listener) for name in loggers]
    as_usual = warnings.showwarning

    def show(message: Any, category: type[Warning], *place: Any, **more: Any) -> None:
        heard.add(category.__name__, str(message))
        as_usual(message, category, *place, **more)

    warnings.showwarning = show
    try:
        yield heard
    finally:
        if warnings.showwarning is show:
            warnings.showwarning = as_usual
        for close in opened:
            close()


def _opened(logger: logging.Logger, listener: logging.Handler) -> Callable[[], None]:
    """Let a logger speak to the listener from WARNING on, and to its other handlers as before; returns what ends it."""
    level, handlers = logger.level, [(handler, handler.level) for handler in logger.handlers]
    threshold = logger.getEffectiveLevel()
    if threshold > logging.WARNING:
        for handler, own in handlers:
            handler.setLevel(max(own, threshold))
        logger.setLevel(logging.WARNING)
    logger.addHandler(listener)

    def close() -> None:
        logger.removeHandler(listener)
        if threshold > logging.WARNING:
            logger.setLevel(level)
            for handler, own in handlers:
                handler.setLevel(own)

    return close


class _Listener(logging.Handler):
    def __init__(self, heard: Heard) -> None:
        super().__init__(logging.WARNING)
        self._heard = heard

    def handle(self, record: logging.LogRecord) -> bool:
        """Without the handler's lock, as `Heard` has its own. Who hears of a new warning may hold a lock and warn,
        as `RunRecord` does; two threads that came to the two locks in different orders would wait for each other."""
        self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        self._heard.add(record.name, record.getMessage())
