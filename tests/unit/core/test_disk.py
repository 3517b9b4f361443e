"""What is synced is on the disk, or the caller hears of it; a folder that cannot be synced ends nothing."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from whet.core.disk import sync


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
