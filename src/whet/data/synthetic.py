"""Rows that no file holds: the numbers of `type: _synthetic`, whose tokens its format draws."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from whet.config import DatasetConfig
from whet.data.chunks import Chunk, chunks_of_lines, line_of
from whet.data.files import stamp_of
from whet.data.readers import Row
from whet.data.selection import Selection


@dataclass(frozen=True)
class SyntheticSource:
    """``{"synthetic": 0}``, ``{"synthetic": 1}`` and so on.

    Attributes:
        length: how many.
        selection: of them.
        name: what reports call the source.
    """

    length: int
    selection: Selection
    name: str = "synthetic"

    @classmethod
    def of(cls, dataset: DatasetConfig, selection: Selection) -> SyntheticSource:
        from whet.data.formats.synthetic import DEFAULT_ROWS

        return cls(dataset.length or DEFAULT_ROWS, selection)

    def rows(self) -> Iterator[Row]:
        return self.selection.apply(self._all)

    def chunks(self) -> Iterator[Chunk]:
        return chunks_of_lines(map(line_of, self.rows()))

    def stamp(self) -> str:
        return stamp_of(self.name, self.length, self.selection)

    def _all(self) -> Iterator[Row]:
        return (Row(n + 1, self.name, {"synthetic": n}, by_line=False) for n in range(self.length))
