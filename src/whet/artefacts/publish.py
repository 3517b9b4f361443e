"""A folder is written beside its place and renamed when it is whole, so that a broken one is never found there."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from whet.core.disk import sync
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

    What killed processes have left beside ``output`` is removed first.
    Where a `ParityError` comes out of the block, the folder is kept as ``<output>.FAILED-PARITY``, and what stood at
    ``output`` before stays there.

    Raises:
        ArtefactError: it cannot be written.
        ParityError: that of the block, with the place it is kept at.
    """
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        _clear_leftovers(output)
        with _folder(output.parent, f".{output.name}.{_PARTIAL}-") as partial:
            try:
                yield partial
            except ParityError as error:
                failed = output.with_name(output.name + FAILED)
                _rename(partial, failed)
                raise kept_at(failed, error) from error
            _rename(partial, output)
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


_PARTIAL, _OLD, _LOCK = "partial", "old", ".lock"


@contextmanager
def published_into(folder: Path, what: str, last: Sequence[str], replaced: Sequence[str] = ()) -> Iterator[Path]:
    """A folder to write files into that are moved to ``folder`` at the end, each whole.

    The files by which such a result is known come last, and earlier ones of that name go first, so that a move that is
    cut short leaves nothing that is taken for a result: neither half of one nor a mixture of two.

    Args:
        last: names of these files, in order.
        replaced: patterns of names of files that belong to a result: an earlier one's are removed.

    Raises:
        ArtefactError: it cannot be written; ``folder`` is as it was, unless the system refuses a rename.
    """
    prefix = f".{what.replace(' ', '-')}.{_PARTIAL}-"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _clear(folder, prefix)
        with _folder(folder, prefix) as partial:
            yield partial
            _move_files(partial, folder, last, replaced)
    except OSError as error:
        raise ArtefactError(
            Problem("", f"the {what} cannot be written to '{folder}' ({error})", "make room there, or choose another")
        ) from error


def set_apart(folder: Path, names: Iterable[str], what: str) -> Path:
    """Move these files into ``<folder>/<what>.FAILED-PARITY``, so that nothing takes them for a result."""
    failed = folder / (what + FAILED)
    shutil.rmtree(failed, ignore_errors=True)
    failed.mkdir()
    for name in names:
        if (folder / name).exists():
            os.replace(folder / name, failed / name)
    sync(folder)
    return failed


@contextmanager
def scratch(parent: Path, name: str) -> Iterator[Path]:
    """A hidden folder for what is needed for a while; those that killed processes have left are removed first."""
    _clear(parent, f".{name}-")
    with _folder(parent, f".{name}-") as folder:
        yield folder


def _move_files(partial: Path, folder: Path, last: Sequence[str], replaced: Sequence[str]) -> None:
    names = sorted(path.relative_to(partial).as_posix() for path in partial.rglob("*") if path.is_file())
    for name in names:
        sync(partial / name)
    for name in last:
        (folder / name).unlink(missing_ok=True)
    for old in [path for pattern in replaced for path in folder.glob(pattern) if path.name not in names]:
        old.unlink(missing_ok=True)
    for name in sorted(names, key=lambda name: last.index(name) if name in last else -1):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial / name, folder / name)
    sync(folder)


@contextmanager
def _folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder, locked as long as this process lives, and removed in the end.

    The lock is on a file beside it, opened for writing: NFS refuses an exclusive lock on what is open for reading, and
    a folder can be opened for nothing else. It is taken before there is a folder, and goes after it.
    """
    descriptor, lock = _locked_file(parent, prefix)
    folder = lock.with_suffix("")
    try:
        folder.mkdir(mode=0o700)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def _locked_file(parent: Path, prefix: str) -> tuple[int, Path]:
    while True:
        descriptor, name = tempfile.mkstemp(_LOCK, prefix, parent)
        with suppress(OSError):  # a file system without locks: nobody clears up there
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.path.exists(name):  # else one that clears up was quicker with the lock
            return descriptor, Path(name)
        os.close(descriptor)


def _abandoned(parent: Path, prefix: str) -> Iterator[Path]:
    """Folders whose process is gone, one after the other; each is removed when the next is asked for."""
    left = [path for path in parent.iterdir() if path.name.startswith(prefix)]
    for folder in sorted({path.with_suffix("") if path.suffix == _LOCK else path for path in left}):
        lock = folder.with_name(folder.name + _LOCK)
        with _lock_of(lock) as is_free:
            if is_free:
                if folder.is_dir():
                    yield folder
                    shutil.rmtree(folder, ignore_errors=True)
                lock.unlink(missing_ok=True)


@contextmanager
def _lock_of(file: Path) -> Iterator[bool]:
    """Whether no living process has the file locked; this one has, inside the block."""
    try:
        descriptor = os.open(file, os.O_RDWR)
    except FileNotFoundError:  # its owner removes it last
        yield True
        return
    except OSError:
        yield False
        return
    try:
        yield _is_taken(descriptor)
    finally:
        os.close(descriptor)


def _is_taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # another has it, or there are no locks
        return False
    return True


def _clear(parent: Path, prefix: str) -> None:
    for _ in _abandoned(parent, prefix):
        pass


def _clear_leftovers(output: Path) -> None:
    """What a killed process was about to publish goes; what it was about to replace comes back, if nothing has."""
    for folder in _abandoned(output.parent, f".{output.name}.{_OLD}-"):
        if not output.exists() and (folder / output.name).is_dir():
            (folder / output.name).rename(output)
    _clear(output.parent, f".{output.name}.{_PARTIAL}-")


def _rename(partial: Path, output: Path) -> None:
    # mkdtemp makes the folder private; what is published is an ordinary one.
    partial.chmod(0o755)
    for path in [*partial.rglob("*"), partial]:
        sync(path)  # a name must not be on the disk before what it names
    if not output.is_dir():
        partial.rename(output)
    else:
        with _folder(output.parent, f".{output.name}.{_OLD}-") as old:
            output.rename(old / output.name)
            try:
                partial.rename(output)
            except OSError:
                (old / output.name).rename(output)
                raise
    sync(output.parent)
