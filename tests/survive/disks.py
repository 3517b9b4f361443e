"""A small disk to be filled, and how a command ends on a full one."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.survive.conftest import Ended


@contextmanager
def small_disk_at(folder: Path) -> Iterator[None]:
    """A file system of 24 MB at this place; the test is skipped where this user may mount none."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this user may mount no tmpfs; writes that are made to fail stand for it")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def ends_well(ended: Ended) -> None:
    """In words, whatever was being written."""
    assert ended.code in (1, 2), ended.err
    assert "Traceback" not in ended.err, ended.err
    assert ended.errors, ended.err
    error = ended.errors[-1]
    assert "room" in error or "disk" in error or "save_total_limit" in error, error
    assert "No space left on device" in error or "full" in error or "free" in error, error
