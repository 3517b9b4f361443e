"""Where rows come from: what a dataset's `path` names is found, and read as rows with their origin.

A path is tried as a file, folder or glob in the working directory, then beside the YAML; then as a URL; then as a
dataset of the Hugging Face hub.
"""

from __future__ import annotations

import glob
import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import pyarrow as pa

from whet.config import DatasetConfig
from whet.core.errors import DataError, Problem
from whet.core.log import say
from whet.core.nearest import nearest
from whet.data.readers import COMPRESSIONS, ENDINGS, READERS, BadRow, Row, decompressed

__all__ = ["BadRow", "Row", "Source", "locate", "open_source", "read_json_lines"]

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

_SPLIT = re.compile(r"(?P<name>[\w.-]+)(?:\[(?P<begin>-?\d+%?)?:(?P<end>-?\d+%?)?\])?")
_DESCRIPTION = re.compile(r"(readme|licen[cs]e)(\.(md|txt|text))?$", re.IGNORECASE)
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


class Source(Protocol):
    """Rows, and a hash that changes when they do."""

    @property
    def name(self) -> str:
        """What reports call it."""
        ...

    def rows(self) -> Iterator[Row]:
        """Every row in order. Raises DataError where a file cannot be read at all."""
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
        return _Files(dataset.path, _readable(files, dataset, where), _Selection.of(dataset, where))
    if "://" in dataset.path:
        return _Files(dataset.path, (_remote(dataset, where),), _Selection.of(dataset, where, whole="a URL"))
    found = _find(dataset.path, folder)
    if not found:
        if _HUB_ID.fullmatch(dataset.path) and not _ending(dataset.path)[0]:
            return _Hub(dataset, where)
        raise DataError(Problem(where, f"no file or folder '{dataset.path}'", _advice(dataset.path, folder)))
    if len(found) == 1 and found[0].is_dir():
        return _locate_in_folder(found[0], dataset, where)
    files = [_LocalFile(path, _label(path)) for path in found if path.is_file()]
    whole = "a file" if len(files) == 1 else "a glob"
    return _Files(dataset.path, _readable(files, dataset, where), _Selection.of(dataset, where, whole=whole))


def read_json_lines(path: str | Path, limit: int | None = None) -> list[Mapping[str, Any]]:
    """The first ``limit`` rows (all by default) of one local file of JSON, an object a line.

    Raises:
        DataError: the file cannot be read, or one of these rows is broken.
    """
    file = _LocalFile(Path(path).expanduser(), str(path))
    rows: list[Mapping[str, Any]] = []
    for row in itertools.islice(_read(file, "jsonl"), limit):
        if isinstance(row.value, BadRow):
            raise DataError(Problem(row.place, f"{row.value.reason} ({row.value.detail})", "mend the row"))
        rows.append(row.value)
    return rows


@dataclass(frozen=True, slots=True)
class _LocalFile:
    path: Path
    label: str

    def open(self) -> BinaryIO:
        return self.path.open("rb")

    def hash_into(self, digest: Any) -> None:
        with self.path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())


@dataclass(frozen=True, slots=True)
class _RemoteFile:
    label: str

    def open(self) -> BinaryIO:
        import fsspec

        return cast(BinaryIO, fsspec.open(self.label, "rb").open())

    def hash_into(self, digest: Any) -> None:
        """What the file system says about the file's version (an ETag, a time), so that it need not be fetched."""
        from fsspec.core import url_to_fs

        system, path = url_to_fs(self.label)
        digest.update(str(system.ukey(path)).encode())


_File = _LocalFile | _RemoteFile


@dataclass(frozen=True)
class _Selection:
    """Which rows of a file source are read: a slice of them, then one shard."""

    begin: str | None = None
    end: str | None = None
    shards: int = 1
    shard: int = 0

    @classmethod
    def of(cls, dataset: DatasetConfig, where: str, whole: str | None = None) -> _Selection:
        """From `split`, `shards` and `shards_idx`; ``whole`` names a source that has no split but train."""
        split = _SPLIT.fullmatch(dataset.split or "train")
        if split is None:
            raise DataError(Problem(where, f"split '{dataset.split}' is not understood", "write it as train[10:20%]"))
        if whole and split["name"] != "train":
            fix = "leave `split` out, or name the file that holds it as `path`"
            raise DataError(Problem(where, f"'{dataset.path}' is {whole} and has no split '{split['name']}'", fix))
        return cls(split["begin"], split["end"], dataset.shards or 1, dataset.shards_idx or 0)

    def apply(self, rows: Iterator[Row]) -> Iterator[Row]:
        if self.begin or self.end:
            bounds = (self.begin, self.end)
            if any(bound and (bound.startswith("-") or bound.endswith("%")) for bound in bounds):
                everything = list(rows)
                rows = iter(everything[slice(*(_position(bound, len(everything)) for bound in bounds))])
            else:
                rows = itertools.islice(rows, *(int(bound) if bound else None for bound in bounds))
        return itertools.islice(rows, self.shard, None, self.shards)


@dataclass(frozen=True)
class _Files:
    """Files read one after the other."""

    name: str
    files: tuple[tuple[_File, str], ...]
    selection: _Selection

    def rows(self) -> Iterator[Row]:
        return self.selection.apply(itertools.chain.from_iterable(_read(file, reader) for file, reader in self.files))

    def identity(self) -> str:
        digest = hashlib.sha256(repr(self.selection).encode())
        for file, reader in self.files:
            digest.update(f"\0{file.label}\0{reader}\0".encode())
            try:
                file.hash_into(digest)
            except OSError as error:
                raise _unreadable(file.label, error) from error
        return digest.hexdigest()


@dataclass(frozen=True)
class _Saved:
    """A folder written by `datasets`' ``save_to_disk``."""

    name: str
    path: Path
    selection: _Selection

    def rows(self) -> Iterator[Row]:
        import datasets

        try:
            dataset = datasets.load_from_disk(str(self.path))
        except (OSError, ValueError) as error:
            raise _unreadable(_label(self.path), error) from error
        return self.selection.apply(_numbered(dataset, _label(self.path)))

    def identity(self) -> str:
        digest = hashlib.sha256(repr(self.selection).encode())
        for path in sorted(self.path.glob("*")):
            if path.is_file():
                _LocalFile(path, path.name).hash_into(digest)
        return digest.hexdigest()


class _Hub:
    """A dataset of the hub, fetched by `datasets` when it is first needed."""

    def __init__(self, dataset: DatasetConfig, where: str) -> None:
        self._config, self._where = dataset, where
        self._loaded: Any = None
        self.name = f"{dataset.path}/{dataset.name}" if dataset.name else dataset.path

    def rows(self) -> Iterator[Row]:
        shards = self._config.shards or 1
        rows = _numbered(self._dataset(), self._config.path)
        return itertools.islice(rows, self._config.shards_idx or 0, None, shards)

    def identity(self) -> str:
        digest = hashlib.sha256(f"{self._config.shards}/{self._config.shards_idx}".encode())
        for entry in self._dataset().cache_files:
            _LocalFile(Path(entry["filename"]), "").hash_into(digest)
        digest.update(str(len(self._dataset())).encode())
        return digest.hexdigest()

    def _dataset(self) -> Any:
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded

    def _load(self) -> Any:
        import datasets

        config = self._config
        data_files = list(_as_tuple(config.data_files)) if config.data_files else None
        try:
            return datasets.load_dataset(
                config.path, config.name, split=config.split or "train", revision=config.revision, data_files=data_files
            )
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            found = (
                f"'{config.path}' is no file or folder here, and as a dataset of the hub it cannot be had ({reason})"
            )
            fix = "check the path; for the hub check the name, the network, HF_HUB_OFFLINE and, if private, HF_TOKEN"
            raise DataError(Problem(self._where, found, fix)) from error


def _locate_in_folder(path: Path, dataset: DatasetConfig, where: str) -> Source:
    split = (dataset.split or "train").split("[")[0]
    if (path / "dataset_dict.json").is_file():
        if not (path / split).is_dir():
            splits = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
            raise DataError(Problem(where, f"'{dataset.path}' has no split '{split}'", f"it has: {', '.join(splits)}"))
        return _Saved(dataset.path, path / split, _Selection.of(dataset, where))
    if (path / "state.json").is_file() and (path / "dataset_info.json").is_file():
        return _Saved(dataset.path, path, _Selection.of(dataset, where, whole="one saved dataset"))
    patterns = _as_tuple(dataset.data_files) if dataset.data_files else ("**/*",)
    files = _matching(path, patterns, None, where)
    if not dataset.data_files:
        files = [file for file in files if _ending(file.path.name)[0] or dataset.ds_type]
        files = _of_split(_without_descriptions(files, path), path, split, where)
    if not files:
        fix = f"it may hold: {', '.join(sorted(ENDINGS))}"
        raise DataError(Problem(where, f"the folder '{dataset.path}' holds no file of rows", fix))
    return _Files(dataset.path, _readable(files, dataset, where), _Selection.of(dataset, where))


def _without_descriptions(files: list[_LocalFile], folder: Path) -> list[_LocalFile]:
    """The files of a folder without its README and licence, which say what the rows are and hold none."""
    left_out = [file for file in files if _DESCRIPTION.match(file.path.name)]
    if not left_out or len(left_out) == len(files):
        return files
    say(f"{folder}: not reading {', '.join(file.label for file in left_out)}; name it in `data_files` to read it")
    return [file for file in files if file not in left_out]


def _of_split(files: list[_LocalFile], folder: Path, split: str, where: str) -> list[_LocalFile]:
    """The files of a folder that belong to a split, by the words in their names; files that name none are train."""

    def split_of(file: _LocalFile) -> str:
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


def _matching(base: Path, patterns: Iterable[str], folder: Path | None, where: str) -> list[_LocalFile]:
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
    return [_LocalFile(path, _label(path)) for path in files]


def _readable(files: list[_LocalFile], dataset: DatasetConfig, where: str) -> tuple[tuple[_File, str], ...]:
    return tuple((file, _reader_name(file.path.name, dataset, where)) for file in files)


def _remote(dataset: DatasetConfig, where: str) -> tuple[_File, str]:
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
    known = _ending(file)[0]
    if dataset.ds_type == "json" or dataset.path == "json":
        return "jsonl" if known == "jsonl" else "json"
    reader = dataset.ds_type or _BUILDERS.get(dataset.path) or known
    if reader is None:
        fix = f"set `ds_type`, or use a file that ends in one of: {', '.join(sorted(ENDINGS))}"
        raise DataError(Problem(where, f"the format of '{file}' is not told by its name", fix))
    return reader


def _ending(file: str) -> tuple[str | None, str]:
    """The reader for a file's name, and its compression's ending: ``a.jsonl.gz`` -> ("jsonl", ".gz")."""
    path = Path(file.lower())
    compression = path.suffix if path.suffix in COMPRESSIONS else ""
    return ENDINGS.get((path.with_suffix("") if compression else path).suffix), compression


def _read(file: _File, reader: str) -> Iterator[Row]:
    try:
        with file.open() as stream:
            yield from READERS[reader](decompressed(stream, _ending(file.label)[1]), file.label)
    except (OSError, pa.ArrowInvalid) as error:
        raise _unreadable(file.label, error) from error


def _unreadable(label: str, error: Exception) -> DataError:
    reason = getattr(error, "strerror", None) or str(error).strip().splitlines()[0]
    return DataError(Problem(label, f"cannot be read ({reason})", "check that the file is whole and may be read"))


def _numbered(rows: Iterable[dict[str, Any]], label: str) -> Iterator[Row]:
    return (Row(number, label, value, by_line=False) for number, value in enumerate(rows, start=1))


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


def _label(path: Path) -> str:
    return str(path)


def _as_tuple(value: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value or ())


def _position(bound: str | None, total: int) -> int | None:
    if not bound:
        return None
    return round(total * int(bound[:-1]) / 100) if bound.endswith("%") else int(bound)
