"""What is synced is on the disk, or the caller hears of it; a folder that cannot be synced ends nothing."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from whet.core import disk
from whet.core.disk import replace_text, sync


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EBADF])
def test_a_file_system_that_syncs_no_folders_is_taken_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    file = tmp_path / "file"
    file.touch()

    def refusing(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refusing)
    sync(tmp_path)
    with pytest.raises(OSError, match=os.strerror(number)):
        sync(file)


def test_a_disk_that_fails_is_told_of_folders_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        sync(tmp_path)


def test_of_two_writers_neither_takes_what_the_other_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "shared"

    def while_another_has_begun(path: Path) -> None:
        monkeypatch.setattr(disk, "sync", failing)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            replace_text(file, "", has_other_writers=True)

    def failing(path: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(disk, "sync", while_another_has_begun)
    replace_text(file, "mine", has_other_writers=True)
    assert [path.name for path in tmp_path.iterdir()] == ["shared"]
    assert file.read_text() == "mine"
