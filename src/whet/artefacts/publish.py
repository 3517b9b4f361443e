"""A folder is written beside its place and renamed when it is whole, so that a broken one is never found there."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from whet.core.errors import ArtefactError, ParityError, Problem

FAILED = ".FAILED-PARITY"
"""Ending of the name of what was written and is not the model that was trained."""


def check_replaceable(output: Path, marker: str, what: str) -> None:
    """Nothing but an earlier one of its kind is ever replaced.

    Args:
        marker: name of the file by which an earlier one is known.
        what: "merged model".

    Raises:
        ArtefactError: the place holds something else.
    """
    if output.is_file():
        raise ArtefactError(Problem("", f"'{output}' is a file", f"give a folder for the {what}"))
    if output.is_dir() and any(output.iterdir()) and not (output / marker).is_file():
        raise ArtefactError(
            Problem("", f"'{output}' is not empty, and what it holds is no {what} of whet", "give another folder")
        )


@contextmanager
def published(output: Path, what: str) -> Iterator[Path]:
    """A folder to write into, renamed to ``output`` at the end; removed where the writing fails.

    Where a `ParityError` comes out of the block, the folder is kept as ``<output>.FAILED-PARITY``, and what stood at
    ``output`` before stays there.

    Raises:
        ArtefactError: it cannot be written.
        ParityError: that of the block, with the place it is kept at.
    """
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{output.name}.partial-", dir=output.parent))
        try:
            try:
                yield partial
            except ParityError as error:
                failed = output.with_name(output.name + FAILED)
                _rename(partial, failed)
                raise kept_at(failed, error) from error
            _rename(partial, output)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise ArtefactError(
            Problem("", f"the {what} cannot be written to '{output}' ({error})", "make room, or choose another")
        ) from error


def kept_at(place: Path, error: ParityError) -> ParityError:
    """The error, saying where the artefact lies."""
    return ParityError(
        Problem(problem.where, f"{problem.found}; it is kept as '{place}'", problem.fix, problem.key)
        for problem in error.problems
    )


def _rename(partial: Path, output: Path) -> None:
    # mkdtemp makes the folder private; what is published is an ordinary one.
    partial.chmod(0o755)
    if output.is_dir():
        old = Path(tempfile.mkdtemp(prefix=f".{output.name}.old-", dir=output.parent))
        output.rename(old / output.name)
        try:
            partial.rename(output)
        except OSError:
            (old / output.name).rename(output)  # where even that fails, it stays in `old`
            old.rmdir()
            raise
        shutil.rmtree(old)
    else:
        partial.rename(output)
