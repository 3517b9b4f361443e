"""The commit of a config's folder, and whether what was run is what was committed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from whet.core.revision import revision_of


def git(folder: Path, *words: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    return subprocess.run(
        ["git", "-C", str(folder), *identity, *words], check=True, capture_output=True, text=True
    ).stdout


def test_a_revision_tells_committed_from_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    config = tmp_path / "my.yaml"
    config.write_text("seed: 1\n")
    assert revision_of(config) is None

    git(tmp_path, "init", "-q", "-b", "trunk")
    git(tmp_path, "remote", "add", "origin", "https://me:hunter2@host/a.git")
    unborn = revision_of(config)
    assert unborn is not None
    assert (unborn.commit, unborn.file_is_committed) == (None, False)

    git(tmp_path, "add", "my.yaml")
    git(tmp_path, "commit", "-q", "-m", "first")
    clean = revision_of(config)
    assert clean is not None
    assert clean.commit == git(tmp_path, "rev-parse", "HEAD").strip()
    assert (clean.branch, clean.dirty, clean.file_is_committed) == ("trunk", False, True)
    assert clean.remote == "https://host/a.git"

    config.write_text("seed: 2\n")
    changed = revision_of(config)
    assert changed is not None
    assert (changed.dirty, changed.file_is_committed) == (True, False)
