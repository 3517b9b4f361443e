"""Rows read again from their source, by place: a prepared set keeps tokens, and a person asks who said them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import orjson

from whet.config import Config, DatasetConfig
from whet.core.errors import DataError
from whet.data.readers import UTF8_MARK, BadRow
from whet.data.sources import locate_row

Key = Literal["datasets", "test_datasets"]
Place = tuple[str, int]
"""A file as the ledger names it, and the number of the row in it."""


def split_place(place: str, row: int) -> Place:
    """The file of a place.

    >>> split_place("a.jsonl:12", 12), split_place("b.parquet, row 3", 3)
    (('a.jsonl', 12), ('b.parquet', 3))
    """
    return place.removesuffix(str(row)).removesuffix(", row ").removesuffix(":"), row


def read_rows(config: Config, key: Key, number: int, places: Iterable[Place]) -> dict[Place, Mapping[str, Any]]:
    """The rows at these places of one dataset, as far as they can still be read.

    Args:
        key, number: of the dataset in the config.
        places: of the rows.

    A plain file of JSON lines is read without parsing what is not asked for; other sources are read up to the last of
    the rows. What would have to be fetched again is left alone.
    """
    wanted = set(places)
    dataset: DatasetConfig = getattr(config.data, key)[number]
    found: dict[Place, Mapping[str, Any]] = {}
    for file in {file for file, _ in wanted}:
        if Path(file).suffix in (".jsonl", ".ndjson") and Path(file).is_file():
            found |= _json_lines(file, {number for name, number in wanted if name == file})
    missing = wanted - set(found)
    if missing and "://" not in dataset.path:
        found |= _from_source(config, key, number, missing)
    return found


def _json_lines(file: str, numbers: set[int]) -> dict[Place, Mapping[str, Any]]:
    found: dict[Place, Mapping[str, Any]] = {}
    last = max(numbers)
    try:
        with Path(file).open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if number in numbers and isinstance(value := _parsed(line), dict):
                    found[file, number] = value
                if number == last:
                    break
    except OSError:
        return {}
    return found


def _parsed(line: bytes) -> Any:
    try:
        return orjson.loads(line.removeprefix(UTF8_MARK))
    except orjson.JSONDecodeError:
        return None


def _from_source(config: Config, key: Key, number: int, wanted: set[Place]) -> dict[Place, Mapping[str, Any]]:
    found: dict[Place, Mapping[str, Any]] = {}
    try:
        for row in locate_row(config, key, number).rows():
            if (row.file, row.number) in wanted and not isinstance(row.value, BadRow):
                found[row.file, row.number] = row.value
                if len(found) == len(wanted):
                    break
    except DataError:
        return found
    return found
