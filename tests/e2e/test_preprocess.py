"""``whet preprocess`` beside preparing: why a set is made or found, and what of old ones may go."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.e2e.conftest import Whet

FOLDER = Path("last_run_prepared")


def everything() -> dict[str, int]:
    return {
        str(path): path.stat().st_size for path in FOLDER.glob("**/*") if path.is_file() and "scans" not in path.parts
    }


def test_explain_says_why_and_prepares_nothing(workspace: Path, whet: Whet) -> None:
    outcome = whet("preprocess", "my.yaml", "--explain")
    assert outcome.code == 0, outcome.err
    assert outcome.out == (
        "not prepared: last_run_prepared has no set of these datasets\nrows: its 1 chunk must be encoded\n"
    )
    assert everything() == {}
    assert whet("preprocess", "my.yaml").code == 0
    before = everything()
    assert whet("preprocess", "my.yaml", "--explain").out.startswith("prepared: last_run_prepared/")
    lines = whet("preprocess", "my.yaml", "--explain", "--sequence-len", "256").out.splitlines()
    assert lines[1:] == ["  sequence_len: 128 -> 256", "rows: its chunk file is reused"]
    assert everything() == before


@pytest.mark.parametrize("command", [("preprocess",), ("preprocess", "--explain"), ("inspect", "--terminal")])
def test_nothing_of_a_stream_is_prepared_to_be_shown(command: tuple[str, ...], workspace: Path, whet: Whet) -> None:
    name, *options = command
    outcome = whet(name, "my.yaml", *options, "--streaming", "--max-steps", "3")
    assert outcome.errors == [
        "--streaming: streaming is true, so nothing is prepared that could be shown -> write streaming: false, "
        "and split: train[:1000] in the rows of datasets to look at a part"
    ]
    assert outcome.code == 2


def test_clean_removes_what_was_not_used_for_days_and_lists_it_before(workspace: Path, whet: Whet) -> None:
    assert whet("preprocess", "my.yaml").code == 0
    assert whet("preprocess", "my.yaml", "--sequence-len", "256").code == 0
    assert whet("preprocess", "my.yaml", "--clean", "30").out == "nothing to remove\n"
    old, new = sorted(FOLDER.glob("*/manifest.json"), key=lambda path: path.stat().st_mtime)
    os.utime(old.parent, (0, 0))
    before = everything()
    listed = whet("preprocess", "my.yaml", "--clean", "30", "--explain")
    assert listed.out.startswith(f"set\t{old.parent}\t0.0 MB\t")
    assert everything() == before
    assert whet("preprocess", "my.yaml", "--clean", "30").out == listed.out
    assert not old.exists()
    assert set(everything()) == {path for path in before if not path.startswith(str(old.parent))}
    assert new.exists()


@pytest.mark.parametrize("option", ["--explain", "--clean=3"])
def test_refresh_contradicts_what_prepares_nothing(option: str, whet: Whet) -> None:
    outcome = whet("preprocess", "my.yaml", "--refresh", option)
    name = option.partition("=")[0]
    assert outcome.errors == [f"whet preprocess: --refresh prepares, {name} prepares nothing -> leave one of them out"]
    assert outcome.code == 2
