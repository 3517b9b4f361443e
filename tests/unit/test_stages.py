"""The stages of a run where several ranks, or several runs, meet in one folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.tiny_training import make_resolved

from whet import stages


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
