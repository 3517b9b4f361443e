"""Where rows come from: what a dataset's `path` names is found, and read as rows with their origin.

A path is tried as a URL; as a file, folder or glob in the working directory, then beside the YAML; then as a dataset
of the Hugging Face hub.
"""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import orjson

from whet.config import Config, DatasetConfig
from whet.core.errors import DataError, Problem
from whet.core.nearest import nearest
from whet.data.chunks import Chunk
from whet.data.files import File, FileSource, LocalFile, ending, read
from whet.data.folders import Folder, LocalFolder, as_tuple, files_of_rows, local_matches
from whet.data.readers import ENDINGS, BadRow, Row
from whet.data.remote import RemoteFolder, find_remote, is_url, shown
from whet.data.selection import selection_of, split_name
from whet.data.synthetic import SyntheticSource
from whet.data.tables import HubSource, SavedSource

__all__ = ["BadRow", "Chunk", "Row", "Source", "locate", "locate_row", "open_source", "read_json_lines"]

_BUILDERS = {"json": "json", "csv": "csv", "parquet": "parquet", "arrow": "arrow", "text": "text"}
"""Names that `datasets` gives its readers; as a `path` they mean: read `data_files` so."""

SYNTHETIC = "synthetic"
"""As a `path`: rows that no file holds, for `type: _synthetic`."""

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


class Source(Protocol):
    """Rows, and what tells that they have changed."""

    @property
    def name(self) -> str:
        """What reports call it."""
        ...

    def rows(self) -> Iterator[Row]:
        """Every row in order. Raises DataError where a file cannot be read at all."""
        ...

    def chunks(self) -> Iterator[Chunk]:
        """The same rows in chunks, read as it goes; raises as `rows`."""
        ...

    def stamp(self) -> str | None:
        """A cheap identity of the files and of the selection; None if only reading tells whether they changed."""
        ...


def locate_row(config: Config, key: Literal["datasets", "test_datasets"], number: int) -> Source:
    """The source of a row of `datasets` or `test_datasets`; of the former, the part that this run reads.

    Raises:
        DataError: as `locate`.
    """
    data = config.data
    dataset: DatasetConfig = getattr(data, key)[number]
    folder = Path(config.file).parent if config.file else None
    part = None
    if key == "datasets" and data.dataset_shard_num is not None:
        part = (data.dataset_shard_num, data.dataset_shard_idx or 0)
    streamed = data.streaming and key == "datasets"
    return locate(dataset, config.where((key, number, "path")), folder, part=part, streamed=streamed)


def open_source(dataset: DatasetConfig, where: str, folder: Path | None = None) -> Iterator[Row]:
    """The rows of a dataset; see `locate`."""
    return locate(dataset, where, folder).rows()


def locate(
    dataset: DatasetConfig,
    where: str,
    folder: Path | None = None,
    *,
    part: tuple[int, int] | None = None,
    streamed: bool = False,
) -> Source:
    """Find what a dataset's row of the YAML names.

    Args:
        dataset: the row of the YAML.
        where: the place of its `path` in the YAML, for errors.
        folder: the YAML's folder; relative paths are looked for in the working directory, then there.
        part: (how many, which) part of the rows to read, beside what the row itself says.
        streamed: keep nothing of a dataset of the hub.

    Raises:
        DataError: there is nothing of that name, or nothing in it that can be read.
    """
    if dataset.path == SYNTHETIC and dataset.type == "_synthetic":
        return SyntheticSource.of(dataset, selection_of(dataset, where, whole="no file", part=part))
    if dataset.path == "pandas":
        text = "'pandas' reads pickles, which run whatever code is in them"
        raise DataError(Problem(where, text, "write the table once with DataFrame.to_parquet, and name that file"))
    if dataset.path in _BUILDERS and dataset.data_files:
        files = _data_files(dataset, where, folder)
        return FileSource(dataset.path, _readable(files, dataset, where), selection_of(dataset, where, part=part))
    if is_url(dataset.path) and not dataset.path.startswith(("file://", "local://")):
        found = find_remote(dataset, dataset.path, where)
        name = shown(dataset.path)
        if isinstance(found, RemoteFolder):
            return _locate_in_folder(found, dataset, where, name, part)
        return _of_files(found, dataset, where, name, part)
    if dataset.storage_options is not None:
        text = f"storage_options are for URLs, and '{dataset.path}' is none"
        raise DataError(Problem(where, text, "remove storage_options, or write the address as s3://... or the like"))
    path = dataset.path.removeprefix("file://").removeprefix("local://")
    paths = _find(path, folder)
    if not paths:
        if _HUB_ID.fullmatch(path) and not ending(path)[0]:
            return HubSource(dataset, where, selection_of(dataset, where, sliced=False, part=part), streamed=streamed)
        raise DataError(Problem(where, f"no file or folder '{path}'", _advice(path, folder)))
    if len(paths) == 1 and paths[0].is_dir():
        return _locate_in_folder(LocalFolder(paths[0]), dataset, where, dataset.path, part)
    return _of_files(_regular(paths, where), dataset, where, dataset.path, part)


def read_json_lines(path: str | Path, limit: int | None = None) -> list[Mapping[str, Any]]:
    """The first ``limit`` rows (all by default) of one local file of JSON, an object a line.

    Raises:
        DataError: the file cannot be read, or one of these rows is broken.
    """
    file = LocalFile(Path(path).expanduser(), str(path))
    rows: list[Mapping[str, Any]] = []
    for row in itertools.islice(read(file, "jsonl"), limit):
        if isinstance(row.value, BadRow):
            raise DataError(Problem(row.place, f"{row.value.reason} ({row.value.detail})", "mend the row"))
        rows.append(row.value)
    return rows


def _of_files(
    files: Sequence[File], dataset: DatasetConfig, where: str, name: str, part: tuple[int, int] | None
) -> Source:
    kind = "a URL" if is_url(name) else "a file"
    selection = selection_of(dataset, where, whole=kind if len(files) == 1 else "a glob", part=part)
    return FileSource(name, _readable(files, dataset, where), selection)


def _locate_in_folder(
    folder: Folder, dataset: DatasetConfig, where: str, name: str, part: tuple[int, int] | None
) -> Source:
    if folder.has("dataset_dict.json"):
        split = split_name(dataset)
        inner = folder.inner(split)
        if inner is None:
            found = f"'{folder.label}' has no split '{split}'"
            raise DataError(Problem(where, found, f"it has: {', '.join(folder.folders())}"))
        return _saved(inner, dataset, where, name, whole=None, part=part)
    if folder.has("state.json") and folder.has("dataset_info.json"):
        return _saved(folder, dataset, where, name, whole="one saved dataset", part=part)
    files = files_of_rows(folder, dataset, where)
    return FileSource(name, _readable(files, dataset, where), selection_of(dataset, where, part=part))


def _saved(
    folder: Folder, dataset: DatasetConfig, where: str, name: str, *, whole: str | None, part: tuple[int, int] | None
) -> Source:
    """A folder written by `datasets`' ``save_to_disk``; of a remote one the Arrow files are read as they are."""
    selection = selection_of(dataset, where, whole=whole, part=part)
    if isinstance(folder, LocalFolder):
        return SavedSource(name, folder.path, selection)
    assert isinstance(folder, RemoteFolder)
    try:
        files = [
            folder.file(str(entry["filename"])) for entry in orjson.loads(folder.read("state.json"))["_data_files"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        found = f"'{folder.label}/state.json' is not what `datasets` writes"
        raise DataError(Problem(where, found, "save the dataset again with save_to_disk")) from error
    return FileSource(name, tuple((file, "arrow") for file in files), selection)


def _data_files(dataset: DatasetConfig, where: str, folder: Path | None) -> list[File]:
    """The files that `data_files` names by themselves, each once."""
    files: dict[str, File] = {}
    for pattern in as_tuple(dataset.data_files):
        found: Sequence[File]
        if is_url(pattern):
            remote = find_remote(dataset, pattern, where)
            if isinstance(remote, RemoteFolder):
                fix = "write the folder as `path`, or a pattern of its files"
                raise DataError(Problem(where, f"data_files: '{remote.label}' is a folder", fix))
            found = remote
        else:
            paths = _find(pattern, folder)
            if not paths:
                raise DataError(Problem(where, f"data_files: no file '{pattern}'", _advice(pattern, folder)))
            found = _regular(paths, where)
        files |= {file.label: file for file in found}
    return list(files.values())


def _regular(paths: Sequence[Path], where: str) -> list[LocalFile]:
    """The paths that are files; a pipe or device would be read once and never end."""
    files = [LocalFile(path, str(path)) for path in paths if path.is_file() and not path.name.startswith(".")]
    if len(paths) == 1 and paths[0].is_file():
        files = [LocalFile(paths[0], str(paths[0]))]
    if not files:
        only = f"'{paths[0]}' is no regular file" if len(paths) == 1 else f"none of {len(paths)} matches is a file"
        fix = "write the rows to a file: they are read more than once" if len(paths) == 1 else "end the pattern in /*"
        raise DataError(Problem(where, only, fix))
    return files


def _readable(files: Sequence[File], dataset: DatasetConfig, where: str) -> tuple[tuple[File, str], ...]:
    return tuple((file, _reader_name(file.label, dataset, where)) for file in files)


def _reader_name(file: str, dataset: DatasetConfig, where: str) -> str:
    known = ending(file)[0]
    if dataset.ds_type == "json" or dataset.path == "json":
        return "jsonl" if known == "jsonl" else "json"
    reader = dataset.ds_type or _BUILDERS.get(dataset.path) or known
    if reader is None:
        fix = f"set `ds_type`, or use a file that ends in one of: {', '.join(sorted(ENDINGS))}"
        raise DataError(Problem(where, f"the format of '{file}' is not told by its name", fix))
    return reader


def _find(path: str, folder: Path | None) -> list[Path]:
    """Existing paths of that name or glob, in the working directory or else in the folder."""
    for base in (Path(), folder):
        if base is None:
            continue
        candidate = base / Path(path).expanduser()
        if candidate.exists():
            return [candidate]
        if glob.has_magic(path):
            matches = sorted(local_matches(str(candidate), Path()))
            if matches:
                return matches
    return []


def _advice(path: str, folder: Path | None) -> str:
    """Names the file one may have meant."""
    for base in (Path(), folder):
        link = (base or Path()) / Path(path).expanduser()
        if link.is_symlink():
            return f"'{link}' is a link to {os.readlink(link)}, which is not there"
        parent = (base or Path()) / Path(path).expanduser().parent
        if parent.is_dir():
            close = nearest(Path(path).name, (entry.name for entry in parent.iterdir()))
            if close:
                return f"did you mean '{Path(path).parent / close}'?"
    places = " or ".join(str(base.resolve()) for base in dict.fromkeys((Path(), folder)) if base is not None)
    return f"paths are relative to {places}"
