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
from whet.data.files import LocalFile, stamp_of, unreadable_as_data_error
from whet.data.readers import Row, without_nulls
from whet.data.selection import Selection

ROWS_PER_BATCH = 1000


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
        except ValueError as error:
            found = f"cannot be read ({error})"
            raise DataError(Problem(label, found, "check that the folder is whole and may be read")) from error
        return self.selection.apply(lambda: rows_of_table(dataset, label))

    def chunks(self) -> Iterator[Chunk]:
        return chunks_of_lines(map(line_of, self.rows()))

    def stamp(self) -> str | None:
        stamps = [file.stamp() for file in self._files()]
        return None if None in stamps else stamp_of(str(self.path), self.selection, stamps)

    def _files(self) -> list[LocalFile]:
        return [LocalFile(path, str(path)) for path in sorted(self.path.glob("*")) if path.is_file()]


class HubSource:
    """A dataset of the hub, or several configurations of one, fetched by `datasets` when they are first needed."""

    def __init__(self, dataset: DatasetConfig, where: str, selection: Selection) -> None:
        self._config, self._where, self._selection = dataset, where, selection
        self._names = dataset.name if isinstance(dataset.name, tuple) else (dataset.name,)
        self._loaded: list[Any] = []
        self.name = f"{dataset.path}/{'+'.join(name for name in self._names if name)}".rstrip("/")

    def rows(self) -> Iterator[Row]:
        """Every chosen row in order. Raises DataError where the dataset cannot be had."""
        tables = list(zip(self._labels(), self._datasets(), strict=True))
        return self._selection.apply(
            lambda: itertools.chain.from_iterable(rows_of_table(table, label) for label, table in tables)
        )

    def chunks(self) -> Iterator[Chunk]:
        return chunks_of_lines(map(line_of, self.rows()))

    def stamp(self) -> str | None:
        """From the files that `datasets` keeps of it; None if it keeps it in memory."""
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
                split=config.split or "train",
                revision=config.revision,
                data_files=list(data_files) if data_files else None,
            )
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            raise DataError(self._problem(error)) from error

    def _problem(self, error: Exception) -> Problem:
        path = self._config.path
        lines = str(error).strip().splitlines()
        reason = lines[0] if lines else type(error).__name__
        if "not found. Available:" in reason or reason.startswith(("Config name is missing", "Unknown split")):
            rest = " ".join(line.strip() for line in lines[1:3])
            found = f"the dataset '{path}' of the hub was found, and not what is asked of it ({reason} {rest}".rstrip()
            return Problem(self._where, f"{found})", "set `name` (the configuration) and `split` to ones that it has")
        found = f"'{path}' is no file or folder here, and as a dataset of the hub it cannot be had ({reason})"
        fix = "check the path; for the hub check the name, the network, HF_HUB_OFFLINE and, if private, HF_TOKEN"
        return Problem(self._where, found, fix)


def rows_of_table(dataset: Any, label: str) -> Iterator[Row]:
    """The rows of a `datasets.Dataset`, whose structs lose the nulls that its columns gave them."""
    numbers = itertools.count(1)
    for batch in dataset.iter(batch_size=ROWS_PER_BATCH):
        names = list(batch)
        for values in zip(*batch.values(), strict=True):
            row = {name: without_nulls(value) for name, value in zip(names, values, strict=True)}
            yield Row(next(numbers), label, row, by_line=False)
