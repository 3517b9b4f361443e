"""Which rows of a source are read: a slice of them, then one part of several."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from whet.config import DatasetConfig
from whet.core.errors import DataError, Problem

T = TypeVar("T")

_MOST = sys.maxsize // 2
"""More rows than there are; `itertools.islice` adds two such numbers."""

_SPLIT = re.compile(r"(?P<name>[\w.-]+)(?:\[(?P<begin>-?\d+%?)?:(?P<end>-?\d+%?)?\])?")


@dataclass(frozen=True, slots=True)
class Selection:
    """A slice, then the rows after the first ``skip``, then every so manieth row, once for each pair of ``parts``.

    Attributes:
        begin, end: bounds as `split` writes them: ``100``, ``-100``, ``10%``.
        skip: rows passed over at the beginning.
        parts: (how many parts, which of them), one after the other.
    """

    begin: str | None = None
    end: str | None = None
    skip: int = 0
    parts: tuple[tuple[int, int], ...] = ()

    @property
    def is_everything(self) -> bool:
        return self == Selection()

    def apply(self, read: Callable[[], Iterator[T]]) -> Iterator[T]:
        """The chosen ones of what ``read`` gives; it is read twice where a bound counts from the end."""
        rows = read()
        if self.begin or self.end:
            bounds = (self.begin, self.end)
            if any(bound and (bound.startswith("-") or bound.endswith("%")) for bound in bounds):
                total = sum(1 for _ in read())
                begin, end = (_position(bound, total) for bound in bounds)
            else:
                begin, end = (min(int(bound), _MOST) if bound else None for bound in bounds)
            rows = itertools.islice(rows, begin, end)
        if self.skip:
            rows = itertools.islice(rows, min(self.skip, _MOST), None)
        for number, index in self.parts:
            rows = itertools.islice(rows, min(index, _MOST), None, min(number, _MOST))
        return rows


def selection_of(
    dataset: DatasetConfig,
    where: str,
    *,
    whole: str | None = None,
    part: tuple[int, int] | None = None,
    sliced: bool = True,
) -> Selection:
    """What a dataset's row of the YAML chooses.

    Args:
        dataset: its `split`, `skip`, `shards` and `shards_idx` are read.
        where: the place of its `path` in the YAML, for errors.
        whole: what the source is called if it has no split but train ("a file").
        part: (how many, which) part of every source this run reads.
        sliced: False if the slice in `split` is applied by another.

    Raises:
        DataError: the split is not understood, or the source has no such split.
    """
    split = _SPLIT.fullmatch(dataset.split or "train")
    if sliced:
        if split is None:
            raise DataError(Problem(where, f"split '{dataset.split}' is not understood", "write it as train[10:20%]"))
        if whole and split["name"] != "train":
            fix = "leave `split` out, or name the file that holds it as `path`"
            raise DataError(Problem(where, f"'{dataset.path}' is {whole} and has no split '{split['name']}'", fix))
    shards = ((dataset.shards, dataset.shards_idx or 0),) if dataset.shards else ()
    parts = shards + ((part,) if part else ())
    if not sliced or split is None:
        return Selection(skip=dataset.skip, parts=parts)
    return Selection(split["begin"], split["end"], dataset.skip, parts)


def slice_of(dataset: DatasetConfig, where: str) -> Selection:
    """The slice in a dataset's `split` alone; raises as `selection_of`."""
    whole = selection_of(dataset, where)
    return Selection(whole.begin, whole.end)


def split_name(dataset: DatasetConfig) -> str:
    """The name of the split without its slice; ``train`` if none is written."""
    return (dataset.split or "train").split("[")[0]


def _position(bound: str | None, total: int) -> int | None:
    """A bound as a position from the beginning, which islice can take."""
    if not bound:
        return None
    position = round(total * int(bound[:-1]) / 100) if bound.endswith("%") else int(bound)
    return max(0, total + position) if position < 0 else position
