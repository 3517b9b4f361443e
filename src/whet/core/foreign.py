"""Files that whet writes, when they come from somebody else: they may hold anything in the place of anything."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from whet.core.errors import ArtefactError, Problem, WhetError

OF_ANOTHER_SHAPE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError)
"""What Python raises where a value is not of the kind that was written."""


@contextmanager
def as_whet_writes(where: str, found: str, fix: str, kind: type[WhetError] = ArtefactError) -> Iterator[None]:
    """Within it, a value of another kind than whet writes is an error that says so, and no fault of whet's.

    Args:
        where, found, fix: of the problem; what was met is added to ``found``.
        kind: of the error.

    Raises:
        WhetError: a value is of another kind.
    """
    try:
        yield
    except OF_ANOTHER_SHAPE as error:
        told = f"{type(error).__name__}: {str(error)[:200]}"
        raise kind(Problem(where, f"{found} ({told})", fix)) from error
