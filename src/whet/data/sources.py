"""Where rows come from: what a dataset's `path` names is found, and read as rows with their origin.

A path is tried as a file, folder or glob in the working directory, then beside the YAML; then as a URL; then as a
dataset of the Hugging Face hub.
"""

from __future__ import annotations

import glob
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from whet.config import DatasetConfig
from whet.core.errors import DataError, Problem
from whet.core.log import say
from whet.core.nearest import nearest
from whet.data.chunks import Chunk
from whet.data.files import File, FileSource, LocalFile, ending, labels, read, unreadable_as_data_error
from whet.data.readers import ENDINGS, BadRow, Row
from whet.data.selection import selection_of, split_name
from whet.data.tables import HubSource, SavedSource

__all__ = ["BadRow", "Chunk", "Row", "Source", "locate", "open_source", "read_json_lines"]

_BUILDERS = {"json": "json", "csv": "csv", "parquet": "parquet", "arrow": "arrow", "text": "text"}
"""Names that `datasets` gives its readers; as a `path` they mean: read `data_files` so."""

_OTHER_SPLITS = {
    "test": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
}
"""Words in a file's name that say it is not for training."""

_DESCRIPTION = re.compile(r"(readme|licen[cs]e)(\.(md|txt|text))?$", re.IGNORECASE)
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

    def identity(self) -> str:
        """Hash of the content."""
        ...


def open_source(dataset: DatasetConfig, where: str, folder: Path | None = None) -> Iterator[Row]:
    """The rows of a dataset; see `locate`."""
    return locate(dataset, where, folder).rows()


def locate(dataset: DatasetConfig, where: str, folder: Path | None = None) -> Source:
    """Find what a dataset's row of the YAML names.

    Args:
        dataset: the row of the YAML.
        where: the place of its `path` in the YAML, for errors.
        folder: the YAML's folder; relative paths are looked for in the working directory, then there.

    Raises:
        DataError: there is nothing of that name, or nothing in it that can be read.
    """
    if dataset.path in _BUILDERS and dataset.data_files:
        files = _matching(Path(), _as_tuple(dataset.data_files), folder, where)
        return FileSource(dataset.path, _readable(files, dataset, where), selection_of(dataset, where))
    if "://" in dataset.path:
        return FileSource(dataset.path, (_remote(dataset, where),), selection_of(dataset, where, whole="a URL"))
    found = _find(dataset.path, folder)
    if not found:
        if _HUB_ID.fullmatch(dataset.path) and not ending(dataset.path)[0]:
            return HubSource(dataset, where, selection_of(dataset, where, sliced=False))
        raise DataError(Problem(where, f"no file or folder '{dataset.path}'", _advice(dataset.path, folder)))
    if len(found) == 1 and found[0].is_dir():
        return _locate_in_folder(found[0], dataset, where)
    files = [LocalFile(path, str(path)) for path in found if path.is_file()]
    whole = "a file" if len(files) == 1 else "a glob"
    return FileSource(dataset.path, _readable(files, dataset, where), selection_of(dataset, where, whole=whole))


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


@dataclass(frozen=True, slots=True)
class _RemoteFile:
    label: str
    local_path: None = None

    def open(self) -> BinaryIO:
        import fsspec

        return cast(BinaryIO, fsspec.open(self.label, "rb").open())

    def stamp(self) -> str | None:
        from fsspec.core import url_to_fs

        system, path = url_to_fs(self.label)
        with unreadable_as_data_error(self.label):
            return str(system.ukey(path))

    def hash_into(self, digest: Any) -> None:
        """What the file system says about the file's version (an ETag, a time), so that it need not be fetched."""
        from fsspec.core import url_to_fs

        system, path = url_to_fs(self.label)
        digest.update(str(system.ukey(path)).encode())


def _locate_in_folder(path: Path, dataset: DatasetConfig, where: str) -> Source:
    split = split_name(dataset)
    if (path / "dataset_dict.json").is_file():
        if not (path / split).is_dir():
            splits = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
            raise DataError(Problem(where, f"'{dataset.path}' has no split '{split}'", f"it has: {', '.join(splits)}"))
        return SavedSource(dataset.path, path / split, selection_of(dataset, where))
    if (path / "state.json").is_file() and (path / "dataset_info.json").is_file():
        return SavedSource(dataset.path, path, selection_of(dataset, where, whole="one saved dataset"))
    patterns = _as_tuple(dataset.data_files) if dataset.data_files else ("**/*",)
    files = _matching(path, patterns, None, where)
    if not dataset.data_files:
        files = [file for file in files if ending(file.path.name)[0] or dataset.ds_type]
        files = _of_split(_without_descriptions(files, path), path, split, where)
    if not files:
        fix = f"it may hold: {', '.join(sorted(ENDINGS))}"
        raise DataError(Problem(where, f"the folder '{dataset.path}' holds no file of rows", fix))
    return FileSource(dataset.path, _readable(files, dataset, where), selection_of(dataset, where))


def _without_descriptions(files: list[LocalFile], folder: Path) -> list[LocalFile]:
    """The files of a folder without its README and licence, which say what the rows are and hold none."""
    left_out = [file for file in files if _DESCRIPTION.match(file.path.name)]
    if not left_out or len(left_out) == len(files):
        return files
    say(f"{folder}: not reading {labels(left_out)}; name it in `data_files` to read it")
    return [file for file in files if file not in left_out]


def _of_split(files: list[LocalFile], folder: Path, split: str, where: str) -> list[LocalFile]:
    """The files of a folder that belong to a split, by the words in their names; files that name none are train."""

    def split_of(file: LocalFile) -> str:
        words = re.split(r"[^a-z]+", str(file.path.relative_to(folder)).lower())
        return next((_OTHER_SPLITS[word] for word in words if word in _OTHER_SPLITS), "train")

    wanted = [file for file in files if split_of(file) == _OTHER_SPLITS.get(split, split)]
    if files and not wanted:
        names = ", ".join(sorted({split_of(file) for file in files}))
        raise DataError(
            Problem(where, f"no file in '{folder}' is of the split '{split}'", f"set `split:` to one of: {names}")
        )
    left_out = [file.label for file in files if file not in wanted]
    if left_out:
        say(f"{folder}: reading the split '{split}' ({len(wanted)} files), not {', '.join(left_out)}")
    return wanted


def _matching(base: Path, patterns: Iterable[str], folder: Path | None, where: str) -> list[LocalFile]:
    files: dict[Path, None] = {}
    for pattern in patterns:
        paths = [
            path for path in _find(str(base / pattern), folder) if path.is_file() and not path.name.startswith(".")
        ]
        if not paths and pattern != "**/*":
            raise DataError(
                Problem(where, f"data_files: no file '{base / pattern}'", _advice(str(base / pattern), folder))
            )
        files |= dict.fromkeys(paths)
    return [LocalFile(path, str(path)) for path in files]


def _readable(files: list[LocalFile], dataset: DatasetConfig, where: str) -> tuple[tuple[File, str], ...]:
    return tuple((file, _reader_name(file.path.name, dataset, where)) for file in files)


def _remote(dataset: DatasetConfig, where: str) -> tuple[File, str]:
    from fsspec import get_filesystem_class

    protocol = dataset.path.split("://")[0]
    try:
        get_filesystem_class(protocol)
    except ValueError as error:
        raise DataError(Problem(where, f"'{protocol}://' is no kind of URL", "use s3, gs, az or https")) from error
    except ImportError as error:
        raise DataError(Problem(where, f"'{protocol}://' needs a package ({error})", "install it with pip")) from error
    return _RemoteFile(dataset.path), _reader_name(dataset.path.split("?")[0], dataset, where)


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
            matches = sorted(glob.glob(str(candidate), recursive=True))
            if matches:
                return [Path(match) for match in matches]
    return []


def _advice(path: str, folder: Path | None) -> str:
    """Names the file one may have meant."""
    for base in (Path(), folder):
        parent = (base or Path()) / Path(path).expanduser().parent
        if parent.is_dir():
            close = nearest(Path(path).name, (entry.name for entry in parent.iterdir()))
            if close:
                return f"did you mean '{Path(path).parent / close}'?"
    places = " or ".join(str(base.resolve()) for base in dict.fromkeys((Path(), folder)) if base is not None)
    return f"paths are relative to {places}"


def _as_tuple(value: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value or ())
