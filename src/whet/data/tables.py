"""Sources that the package `datasets` reads: what its ``save_to_disk`` wrote, and datasets of the hub."""

from __future__ import annotations

import hashlib
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
        return None if None in stamps else stamp_of(self.selection, stamps)

    def identity(self) -> str:
        digest = hashlib.sha256(repr(self.selection).encode())
        for file in self._files():
            file.hash_into(digest)
        return digest.hexdigest()

    def _files(self) -> list[LocalFile]:
        return [LocalFile(path, str(path)) for path in sorted(self.path.glob("*")) if path.is_file()]


class HubSource:
    """A dataset of the hub, fetched by `datasets` when it is first needed."""

    def __init__(self, dataset: DatasetConfig, where: str, selection: Selection) -> None:
        self._config, self._where, self._selection = dataset, where, selection
        self._loaded: Any = None
        self.name = f"{dataset.path}/{dataset.name}" if dataset.name else dataset.path

    def rows(self) -> Iterator[Row]:
        """Every chosen row in order. Raises DataError where the dataset cannot be had."""
        dataset = self._dataset()
        return self._selection.apply(lambda: rows_of_table(dataset, self._config.path))

    def chunks(self) -> Iterator[Chunk]:
        return chunks_of_lines(map(line_of, self.rows()))

    def stamp(self) -> str | None:
        """From the files that `datasets` keeps of it; None if it keeps it in memory."""
        files = [LocalFile(Path(entry["filename"]), self.name) for entry in self._dataset().cache_files]
        stamps = [file.stamp() for file in files]
        if not stamps or None in stamps:
            return None
        return stamp_of(self._selection, self.name, self._config.split, len(self._dataset()), stamps)

    def identity(self) -> str:
        digest = hashlib.sha256(repr(self._selection).encode())
        for entry in self._dataset().cache_files:
            LocalFile(Path(entry["filename"]), "").hash_into(digest)
        digest.update(str(len(self._dataset())).encode())
        return digest.hexdigest()

    def _dataset(self) -> Any:
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded

    def _load(self) -> Any:
        import datasets

        config = self._config
        data_files = [config.data_files] if isinstance(config.data_files, str) else config.data_files
        try:
            return datasets.load_dataset(
                config.path,
                config.name,
                split=config.split or "train",
                revision=config.revision,
                data_files=list(data_files) if data_files else None,
            )
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            found = (
                f"'{config.path}' is no file or folder here, and as a dataset of the hub it cannot be had ({reason})"
            )
            fix = "check the path; for the hub check the name, the network, HF_HUB_OFFLINE and, if private, HF_TOKEN"
            raise DataError(Problem(self._where, found, fix)) from error


def rows_of_table(dataset: Any, label: str) -> Iterator[Row]:
    """The rows of a `datasets.Dataset`, whose structs lose the nulls that its columns gave them."""
    numbers = itertools.count(1)
    for batch in dataset.iter(batch_size=ROWS_PER_BATCH):
        names = list(batch)
        for values in zip(*batch.values(), strict=True):
            row = {name: without_nulls(value) for name, value in zip(names, values, strict=True)}
            yield Row(next(numbers), label, row, by_line=False)
