"""The stages of a run where several ranks, or several runs, meet in one folder."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from tests.tiny_training import make_resolved

from whet import stages
from whet.core.errors import ArtefactError, ConfigError, Problem
from whet.training.publishing import seal


def test_a_rank_does_not_mind_that_another_has_removed_its_probe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch = Path.touch

    def touch_and_lose(path: Path) -> None:
        touch(path)
        path.unlink()

    monkeypatch.setattr(Path, "touch", touch_and_lose)
    assert stages.open_output(make_resolved(tmp_path / "out")) == tmp_path / "out"
    assert list((tmp_path / "out").iterdir()) == []


def test_another_run_in_the_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from whet.core import lock

    def taken(folder: Path) -> None:
        raise lock.Locked("process 77 on node3 since 2026-01-31T12:00:00+00:00")

    monkeypatch.setattr(lock, "FolderLock", taken)
    with pytest.raises(ConfigError, match=r"another run writes to output_dir '.*/out': process 77 on node3 since 2026"):
        stages.lock_output(make_resolved(tmp_path / "out"))
    stages.lock_output(make_resolved(tmp_path / "out", world_size=2, rank=1))


def test_a_result_without_room_says_which_checkpoint_has_it(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    resolved = make_resolved(tmp_path)
    with (
        pytest.raises(ArtefactError, match=r"cannot be written to '.*': No space left on device; no checkpoint holds"),
        stages._result_kept(resolved, tmp_path),
    ):
        raise ArtefactError(Problem("", "it cannot be written", "make room")) from full
    folder = tmp_path / "checkpoint-7"
    folder.mkdir()
    seal(folder, 7)
    with (
        pytest.raises(ArtefactError, match=r"No space left on device; .*/checkpoint-7 holds it -> .*--resume-from-ch"),
        stages._result_kept(resolved, tmp_path),
    ):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(ZeroDivisionError), stages._result_kept(resolved, tmp_path):
        raise ZeroDivisionError
