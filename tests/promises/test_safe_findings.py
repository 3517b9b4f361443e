"""Whatever has broken whet once when it was fuzzed, and the seeds it was fuzzed from: each is read, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzzing.targets import FINDINGS, TARGETS, inputs


@pytest.mark.parametrize("name", TARGETS)
def test_every_seed_and_every_finding(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for content in inputs(name).values():
        TARGETS[name].read(tmp_path, content)


def test_every_finding_has_a_target() -> None:
    assert {path.name for path in FINDINGS.iterdir()} <= {*TARGETS}
