"""The record of a run is JSON that any program reads, whatever was noted."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from whet.record import RECORD_NAME, RunRecord


@dataclass(frozen=True, slots=True)
class Fact:
    share: float
    inner: tuple[Any, ...]


def test_every_value_is_written_as_strict_json(tmp_path: Path) -> None:
    record = RunRecord(tmp_path)
    noted = {"loss": float("nan"), 3: Path("a"), "fact": Fact(0.5, (True, None, float("inf")))}
    record.note("result", MappingProxyType(noted))
    record.finish("finished")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    read = json.loads((tmp_path / RECORD_NAME).read_text(), parse_constant=refuse)
    assert read["result"] == {"loss": None, "3": "a", "fact": {"share": 0.5, "inner": [True, None, None]}}
    assert read["outcome"] == "finished"
