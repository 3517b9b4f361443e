"""The draw: the same for the same seed, spread over datasets, and everything where there is little."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from whet.reports.sampling import Chosen, draw, find, shares


def split(*sizes: int) -> Any:
    """Datasets of these sizes, one behind the other."""
    source = np.repeat(np.arange(len(sizes), dtype=np.int16), sizes)
    return SimpleNamespace(source=source, row=np.arange(1, len(source) + 1), place=lambda i: f"data/chat.jsonl:{i + 1}")


def test_a_seed_chooses_the_same_samples_again_and_another_seed_others() -> None:
    splits = {"train": split(1000, 500), "validation": split(100)}
    assert draw(splits, 60, seed=1) == draw(splits, 60, seed=1)
    assert draw(splits, 60, seed=1) != draw(splits, 60, seed=2)


def test_a_small_dataset_is_seen_beside_a_large_one() -> None:
    splits = {"train": split(10_000, 20)}
    chosen = draw(splits, 100, seed=0)
    assert len(chosen) == 100
    assert sum(each.number >= 10_000 for each in chosen) == 20


def test_few_samples_are_all_shown_in_order() -> None:
    splits = {"train": split(3, 2), "validation": split(2)}
    everything = [Chosen("train", number) for number in range(5)] + [
        Chosen("validation", number) for number in range(2)
    ]
    assert draw(splits, 100, seed=0) == everything


@given(st.lists(st.integers(0, 50), max_size=6), st.integers(0, 200))
def test_shares_give_all_there_is_to_give_and_leave_no_one_behind(sizes: list[int], count: int) -> None:
    parts = shares(sizes, count)
    assert sum(parts) == min(count, sum(sizes))
    assert all(0 <= part <= size for part, size in zip(parts, sizes, strict=True))
    unfilled = [part for part, size in zip(parts, sizes, strict=True) if part < size]
    assert not unfilled or max(unfilled) - min(unfilled) <= 1
    assert not unfilled or max(parts) - min(unfilled) <= 1


def test_a_row_is_found_by_its_place_with_or_without_its_folder() -> None:
    splits = {"train": split(30)}
    assert find(splits, "chat.jsonl:12") == find(splits, "data/chat.jsonl:12") == [Chosen("train", 11)]
    assert find(splits, "hat.jsonl:12") == []
    assert find(splits, "chat.jsonl") == []
