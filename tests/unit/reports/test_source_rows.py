"""Rows read again by place, from files of every kind."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from whet.config import make_config
from whet.reports.source_rows import read_rows, split_place

ROWS = [{"text": f"row {number}"} for number in range(1, 6)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def write(path: Path) -> None:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(LINES.encode()))
    elif path.suffix == ".json":
        path.write_text(json.dumps(ROWS))
    else:
        path.write_text(LINES)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.parquet"])
def test_the_row_of_a_place_is_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / name)
    config = make_config(
        {"base_model": "m", "learning_rate": 1e-4, "datasets": [{"path": name, "type": "completion", "field": "text"}]},
        check_files=False,
    )
    found = read_rows(config, "datasets", 0, [(name, 4), (name, 2), (name, 77)])
    assert found == {(name, 2): ROWS[1], (name, 4): ROWS[3]}


def test_what_is_gone_or_broken_since_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"text": 1}\n{broken\n[2]\n')
    config = make_config(
        {"base_model": "m", "learning_rate": 1e-4, "datasets": [{"path": "a.jsonl", "type": "completion"}]},
        check_files=False,
    )
    assert read_rows(config, "datasets", 0, [("a.jsonl", number) for number in (1, 2, 3, 9)]) == {
        ("a.jsonl", 1): {"text": 1}
    }
    (tmp_path / "a.jsonl").unlink()
    assert read_rows(config, "datasets", 0, [("a.jsonl", 1)]) == {}


def test_a_place_is_a_file_and_a_number() -> None:
    assert split_place("data/a.jsonl:12", 12) == ("data/a.jsonl", 12)
    assert split_place("data/a1.parquet, row 1", 1) == ("data/a1.parquet", 1)
