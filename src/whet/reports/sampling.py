"""Which samples of a prepared set are shown: a seeded draw, spread over datasets and splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, order=True, slots=True)
class Chosen:
    """A sample: the name of its split, and its number there."""

    split: str
    number: int


def draw(splits: Mapping[str, Any], count: int, seed: int) -> list[Chosen]:
    """Choose ``count`` samples; all of them if there are fewer.

    Every dataset of every split gets an equal part, and what a small one cannot fill goes to the others, so that a
    small dataset beside a large one is seen. The same arguments choose the same samples.

    Args:
        splits: name -> `Split`.

    Returns:
        Samples in order of split and number.
    """
    groups = [
        (name, np.flatnonzero(split.source == source)) for name, split in splits.items() for source in _sources(split)
    ]
    chosen: list[Chosen] = []
    for number, ((name, members), part) in enumerate(
        zip(groups, shares([len(m) for _, m in groups], count), strict=True)
    ):
        chosen += [Chosen(name, int(member)) for member in np.sort(members[_drawn(len(members), part, seed, number)])]
    order = list(splits)
    return sorted(chosen, key=lambda each: (order.index(each.split), each.number))


def shares(sizes: Sequence[int], count: int) -> list[int]:
    """Divide ``count`` among groups as equally as their sizes allow.

    >>> shares([3, 100, 100], 13)
    [3, 5, 5]
    >>> shares([1, 2], 10)
    [1, 2]
    """
    parts = [0] * len(sizes)
    left = count
    waiting = sorted(range(len(sizes)), key=lambda group: sizes[group])
    for done, group in enumerate(waiting):
        parts[group] = min(sizes[group], left // (len(waiting) - done))
        left -= parts[group]
    return parts


def _sources(split: Any) -> list[int]:
    present: list[int] = np.unique(split.source).tolist()
    return present


def _drawn(size: int, count: int, seed: int, stream: int) -> IntArray:
    if count >= size:
        return np.arange(size)
    key = np.array([seed % 2**64, stream], dtype=np.uint64)
    random = np.random.Philox(key=key).random_raw(size)
    return np.argpartition(random, count)[:count] if count else np.zeros(0, np.int64)


def find(splits: Mapping[str, Any], place: str) -> list[Chosen]:
    """The samples that come from a row, named as ``chat.jsonl:12`` (with or without the file's folder).

    >>> from types import SimpleNamespace
    >>> split = SimpleNamespace(row=np.array([1, 2]), place=lambda i: f"data/chat.jsonl:{i + 1}")
    >>> find({"train": split}, "chat.jsonl:2")
    [Chosen(split='train', number=1)]
    """
    digits = place[len(place.rstrip("0123456789")) :]
    if not digits:
        return []
    found = []
    for name, split in splits.items():
        for number in np.flatnonzero(split.row == int(digits)).tolist():
            full = split.place(number)
            if full == place or full.endswith("/" + place):
                found.append(Chosen(name, number))
    return found
