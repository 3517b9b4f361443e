"""What whet says to the person at the terminal: plain sentences on standard error, once."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress

from whet.core.errors import Problem
from whet.core.printable import printable
from whet.core.secrets import redact

logger = logging.getLogger("whet")


def say(message: str) -> None:
    """Tell the user one fact of the run (a choice, a count, a file written)."""
    logger.info(message)


def warn(problem: Problem | str) -> None:
    """Tell the user something that does not stop the run and that they would want to know."""
    logger.warning(indented(problem))


LONGEST_TOLD = 4000
"""Characters of one problem; a value that somebody made a megabyte long is told by its ends."""


def indented(problem: object) -> str:
    r"""What is wrong, as `printable`; more lines of a text from elsewhere are indented, and look like no line of ours.

    >>> indented("a.jsonl:1: boom\nerror: fake")
    'a.jsonl:1: boom\n    error: fake'
    """
    text = str(problem)
    if len(text) > LONGEST_TOLD:
        half = LONGEST_TOLD // 2
        text = f"{text[:half]} ... ({len(text) - 2 * half:,} characters left out) ... {text[-half:]}"
    return printable(text).replace("\n", "\n    ")


def show_on_terminal(rank: int = 0) -> None:
    """Send whet's sentences to standard error; other ranks than 0 show warnings only."""
    if not logger.handlers:
        handler = _StandardError()
        handler.setFormatter(_Sentence())
        logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.INFO if rank == 0 else logging.WARNING)


class _StandardError(logging.Handler):
    """Writes to what ``sys.stderr`` is when a sentence is said; a live view or a test may have put another there."""

    def emit(self, record: logging.LogRecord) -> None:
        # A full disk behind ``2> log``, a terminal that was closed: no sentence is worth a run.
        with suppress(OSError, ValueError):
            sys.stderr.write(self.format(record) + "\n")


class _Sentence(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        return prefix + printable(redact(record.getMessage()))
