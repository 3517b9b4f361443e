"""What is published replaces what was there as a whole, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from whet.artefacts.publish import published
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
