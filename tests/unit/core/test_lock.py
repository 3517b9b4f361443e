"""Two processes never hold one folder, and a dead one never does."""

from __future__ import annotations

import multiprocessing
import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from whet.core.lock import NAME, FolderLock, Locked

SPAWN = multiprocessing.get_context("spawn")  # a process of its own, that imports nothing heavy


def hold(folder: str, parent: Connection) -> None:
    with FolderLock(Path(folder)):
        parent.send(os.getpid())
        parent.recv()


@pytest.fixture
def holder(tmp_path: Path):  # type: ignore[no-untyped-def]
    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=hold, args=(str(tmp_path), theirs))
    process.start()
    yield process, ours
    process.kill()
    process.join()


def test_the_second_is_told_who_the_first_is(tmp_path: Path, holder) -> None:  # type: ignore[no-untyped-def]
    process, pipe = holder
    pid = pipe.recv()
    with pytest.raises(Locked, match=rf"process {pid} on .+ since 20\d\d-"):
        FolderLock(tmp_path)
    pipe.send("go")
    process.join()
    assert not (tmp_path / NAME).exists()
    with FolderLock(tmp_path) as lock:
        assert lock.died is None


def test_a_killed_one_is_taken_over_from(tmp_path: Path, holder) -> None:  # type: ignore[no-untyped-def]
    process, pipe = holder
    pid = pipe.recv()
    os.kill(pid, signal.SIGKILL)
    process.join()
    assert (tmp_path / NAME).exists()
    with FolderLock(tmp_path) as lock:
        assert lock.died is not None
        assert f"process {pid} " in lock.died
        assert lock.is_real


def test_a_file_system_without_locks_keeps_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno
    import fcntl

    def refuse(*args: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with FolderLock(tmp_path) as lock:
        assert not lock.is_real
