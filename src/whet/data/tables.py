"""Sources that the package `datasets` reads: what its ``save_to_disk`` wrote, and datasets of the hub."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whet.config import DatasetConfig
from whet.core.errors import DataError, Problem
from whet.data.chunks import Chunk, chunks_of_lines, line_of
from whet.data.columns import rows_of_batch
from whet.data.files import LocalFile, stamp_of, unreadable_as_data_error
from whet.data.readers import Row
from whet.data.selection import Selection, slice_of, split_name

ROWS_PER_BATCH = 1000

_FOUND = (
    "not found. Available:",
    "Config name is missing",
    "Unknown split",
    "Unrecognized instruction format",
    "data files found in",
)
"""What `datasets` says of a dataset that it has found."""


@dataclass(frozen=True)
class SavedSource:
    """A folder written by `datasets`' ``save_to_disk``."""

    name: str
    path: Path
    selection: Selection

    def rows(self) -> Iterator[Row]:
        """Every chosen row in order. Raises DataError where the folder cannot be read."""
        import datasets

        label = str(self.path)
        try:
            with unreadable_as_data_error(label):
                dataset = datasets.load_from_disk(label)
        except (ValueError, KeyError, TypeError) as error:
            found = f"cannot be read as what `datasets` saves ({type(error).__name__}: {error})"
            raise DataError(Problem(label, found, "save the dataset again with save_to_disk")) from error
        return self.selection.apply(lambda: rows_of_table(dataset, label))

    def chunks(self) -> Iterator[Chunk]:
        return chunks_of_lines(map(line_of, self.rows()))

    def stamp(self) -> str | None:
        stamps = [file.stamp() for file in self._files()]
        return None if None in stamps else stamp_of(str(self.path), self.selection, stamps)

    def _files(self) -> list[LocalFile]:
        return [LocalFile(path, str(path)) for path in sorted(self.path.glob("*")) if path.is_file()]


class HubSource:
    """A dataset of the hub, or several configurations of one, fetched by `datasets` when they are first needed.

    Args:
        selection: of the rows; without the slice in the dataset's `split`, which is applied to each configuration.
        streamed: read it over the network as rows are asked for, and keep nothing of it.
    """

    def __init__(self, dataset: DatasetConfig, where: str, selection: Selection, *, streamed: bool = False) -> None:
        self._config, self._where, self._selection = dataset, where, selection
        self._slice = slice_of(dataset, where) if streamed else None
        self._names = dataset.name if isinstance(dataset.name, tuple) else (dataset.name,)
        self._loaded: list[Any] = []
        self.name = f"{dataset.path}/{'+'.join(name for name in self._names if name)}".rstrip("/")

    def rows(self) -> Iterator[Row]:
        """Every chosen row in order. Raises DataError where the dataset cannot be had."""
        tables = list(zip(self._labels(), self._datasets(), strict=True))
        return self._selection.apply(
            lambda: itertools.chain.from_iterable(self._rows_of(table, label) for label, table in tables)
        )

    def _rows_of(self, table: Any, label: str) -> Iterator[Row]:
        if self._slice is None:
            return rows_of_table(table, label)
        return self._slice.apply(lambda: self._fetched(rows_of_table(table, label)))

    def _fetched(self, rows: Iterator[Row]) -> Iterator[Row]:
        """Rows that come over the network, whose failures come with them."""
        try:
            yield from rows
        except Exception as error:  # beside its own, `datasets` lets through what its many libraries raise
            raise DataError(self._problem(error)) from error

    def chunks(self) -> Iterator[Chunk]:
        return chunks_of_lines(map(line_of, self.rows()))

    def stamp(self) -> str | None:
        """From the files that `datasets` keeps of it; None if it keeps none."""
        if self._slice is not None:
            return None
        stamps = [file.stamp() for file in self._files()]
        if None in stamps or not all(table.cache_files for table in self._datasets()):
            return None
        sizes = [len(table) for table in self._datasets()]
        return stamp_of(self._selection, self.name, self._config.split, sizes, stamps)

    def _labels(self) -> list[str]:
        """One for each configuration: rows are numbered in each of several."""
        path = self._config.path
        return [path if len(self._names) == 1 else f"{path}/{name}" for name in self._names]

    def _files(self) -> list[LocalFile]:
        entries = [entry for table in self._datasets() for entry in table.cache_files]
        return [LocalFile(Path(entry["filename"]), self.name) for entry in entries]

    def _datasets(self) -> list[Any]:
        if not self._loaded:
            self._loaded = [self._load(name) for name in self._names]
        return self._loaded

    def _load(self, name: str | None) -> Any:
        import datasets

        config = self._config
        data_files = [config.data_files] if isinstance(config.data_files, str) else config.data_files
        try:
            return datasets.load_dataset(
                config.path,
                name,
                split=split_name(config) if self._slice is not None else config.split or "train",
                revision=config.revision,
                data_files=list(data_files) if data_files else None,
                **({} if self._slice is None else {"streaming": True}),
            )
        except Exception as error:  # beside its own, `datasets` lets through what its many libraries raise
            raise DataError(self._problem(error)) from error

    def _problem(self, error: Exception) -> Problem:
        path = self._config.path
        cause = error.__cause__ if type(error).__name__ == "DatasetGenerationError" else None
        lines = str(cause or error).strip().splitlines()
        reason = lines[0] if lines else type(error).__name__
        if any(sign in reason for sign in _FOUND):
            found = f"the dataset '{path}' is there, and not what is asked of it ({reason})"
            return Problem(
                self._where, found, "set `name` (the configuration), `split` and `data_files` to what it has"
            )
        if not isinstance(error, OSError) and type(error).__name__ != "HFValidationError":
            found = f"the dataset '{path}' is there, and cannot be read ({reason})"
            return Problem(self._where, found, "name those of its files in `data_files` that hold the same columns")
        found = f"'{path}' is no file or folder here, and as a dataset of the hub it cannot be had ({reason})"
        fix = "check the path; for the hub check the name, the network, HF_HUB_OFFLINE and, if private, HF_TOKEN"
        return Problem(self._where, found, fix)


def rows_of_table(dataset: Any, label: str) -> Iterator[Row]:
    """The rows of a `datasets.Dataset`; pictures and sounds stay undecoded, which would take packages."""
    tables = dataset.with_format("arrow").iter(batch_size=ROWS_PER_BATCH)
    batches = itertools.chain.from_iterable(table.to_batches() for table in tables)
    rows = itertools.chain.from_iterable(map(rows_of_batch, batches))
    with unreadable_as_data_error(label):
        for number, value in enumerate(rows, start=1):
            yield Row(number, label, value, by_line=False)
