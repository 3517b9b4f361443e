"""What is published replaces what was there as a whole, or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from whet.artefacts.publish import published, published_into
from whet.core.errors import ArtefactError


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    for name in ("old", "new"):
        with published(tmp_path / "out", "model") as partial:
            (partial / name).touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_was_there_is_put_back_where_its_place_cannot_be_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, rename = tmp_path / "out", Path.rename
    output.mkdir()
    (output / "old").touch()

    def failing(self: Path, target: Path) -> Path:
        if ".partial-" in self.name:
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(ArtefactError, match="cannot be written"), published(output, "model") as partial:
        (partial / "new").touch()
    assert [path.name for path in output.iterdir()] == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_process_left_is_cleared_and_what_it_was_replacing_comes_back(tmp_path: Path) -> None:
    (tmp_path / ".out.partial-killed").mkdir()
    (tmp_path / ".out.old-killed" / "out").mkdir(parents=True)
    (tmp_path / ".out.old-killed" / "out" / "before").touch()
    with pytest.raises(RuntimeError), published(tmp_path / "out", "model"):
        raise RuntimeError("this one fails too")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["before"]


def test_leftovers_are_cleared_by_locks_that_nfs_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process leaves its lock file and no lock; NFS refuses an exclusive lock on what is open for reading."""
    lock = fcntl.flock

    def flock_of_nfs(descriptor: int, operation: int) -> None:
        if operation & fcntl.LOCK_EX and fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock_of_nfs)
    (tmp_path / ".out.partial-killed.lock").touch()
    (tmp_path / ".out.partial-killed").mkdir()
    (tmp_path / ".out.partial-sooner.lock").touch()
    with published(tmp_path / "out", "model") as mine:
        (mine / "mine").touch()
        with published(tmp_path / "out", "model") as theirs:
            (theirs / "theirs").touch()
        assert mine.is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_what_another_process_is_writing_stays(tmp_path: Path) -> None:
    with published(tmp_path / "out", "model") as mine:
        (mine / "mine").touch()
        with published(tmp_path / "out", "model") as theirs:
            (theirs / "theirs").touch()
        assert mine.is_dir()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_weights_of_an_earlier_result_do_not_stay_beside_the_new_ones(tmp_path: Path) -> None:
    for names in (["model-1", "model-2", "index"], ["model-1"]):
        with published_into(tmp_path, "trained model", last=(), replaced=("model-*", "index")) as partial:
            for name in names:
                (partial / name).touch()
        (tmp_path / "notes").touch()
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names, "notes"])


def test_files_go_into_a_folder_whole_and_what_they_are_known_by_comes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("old")
    (tmp_path / "notes").touch()
    moved: list[str] = []
    replace = os.replace

    def recording(old: Path, new: Path) -> None:
        assert not (tmp_path / "config.json").exists()
        moved.append(new.name)
        replace(old, new)

    monkeypatch.setattr(os, "replace", recording)
    with published_into(tmp_path, "trained model", last=("config.json",)) as partial:
        for name in ("config.json", "weights", "a.json"):
            (partial / name).touch()
        assert (tmp_path / "config.json").read_text() == "old"
    assert moved == ["a.json", "weights", "config.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "config.json", "notes", "weights"]
