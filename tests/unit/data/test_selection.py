"""Slices and parts choose rows: the parts of a source are all of it, each row in one of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.configs import config_with

from whet.config import DatasetConfig
from whet.data.selection import Selection
from whet.data.sources import locate, locate_row

bounds = st.none() | st.integers(-12, 12).map(str) | st.integers(0, 100).map(lambda share: f"{share}%")


@given(st.integers(0, 10), bounds, bounds, st.integers(0, 3), st.integers(1, 4))
def test_parts_hold_every_chosen_row_once(total, begin, end, skip, num):
    def rows():
        return iter(range(total))

    def position(bound):
        if bound is None:
            return None
        return round(total * int(bound[:-1]) / 100) if bound.endswith("%") else int(bound)

    chosen = list(range(total))[position(begin) : position(end)][skip:]
    parts = [list(Selection(begin, end, skip, ((num, index),)).apply(rows)) for index in range(num)]
    assert sorted(row for part in parts for row in part) == chosen


def numbers(tmp_path, **options):
    (tmp_path / "a.jsonl").write_text("".join(f'{{"n": {n}}}\n' for n in range(10)))
    source = locate(DatasetConfig(path=str(tmp_path / "a.jsonl"), **options), "")
    rows = [row.value["n"] for row in source.rows()]
    assert [row.value["n"] for chunk in source.chunks() for row in chunk.rows()] == rows
    return rows


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"skip": 8}, [8, 9]),
        ({"skip": 20}, []),
        ({"skip": 10**30}, []),
        ({"split": f"train[8:{10**30}]"}, [8, 9]),
        ({"shards": 10**30, "shards_idx": 3}, [3]),
        ({"split": "train[2:6]", "skip": 1}, [3, 4, 5]),
        ({"skip": 1, "shards": 3, "shards_idx": 1}, [2, 5, 8]),
    ],
)
def test_rows_are_skipped_after_the_slice_and_before_the_parts(tmp_path, options, expected):
    assert numbers(tmp_path, **options) == expected


def test_a_part_of_all_rows_is_a_part_of_each_training_dataset(tmp_path):
    for name in ("a", "b", "test"):
        (tmp_path / f"{name}.jsonl").write_text("".join(f'{{"n": {n}}}\n' for n in range(5)))
    config = config_with(
        {"path": f"{tmp_path}/a.jsonl"},
        {"path": f"{tmp_path}/b.jsonl", "split": "train[1:]"},
        test_datasets=(DatasetConfig(path=f"{tmp_path}/test.jsonl"),),
        dataset_shard_num=2,
        dataset_shard_idx=1,
    )

    def chosen(key, number):
        return [row.value["n"] for row in locate_row(config, key, number).rows()]

    assert chosen("datasets", 0) == [1, 3]
    assert chosen("datasets", 1) == [2, 4]
    assert chosen("test_datasets", 0) == [0, 1, 2, 3, 4]


def test_synthetic_rows_are_numbers_with_a_stamp_of_their_options():
    source = locate(DatasetConfig(path="synthetic", type="_synthetic", length=5, skip=1), "")
    assert [row.value for row in source.rows()] == [{"synthetic": number} for number in (1, 2, 3, 4)]
    longer = locate(DatasetConfig(path="synthetic", type="_synthetic", length=6, skip=1), "")
    assert source.stamp() != longer.stamp()
    assert source.stamp() == locate(DatasetConfig(path="synthetic", type="_synthetic", length=5, skip=1), "").stamp()
