"""Which files of a folder hold rows, wherever the folder is."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol, Self

from whet.config import DatasetConfig
from whet.core.errors import DataError, Problem
from whet.core.log import say
from whet.core.nearest import nearest
from whet.data.files import File, LocalFile, ending
from whet.data.readers import ENDINGS
from whet.data.selection import split_name

_OTHER_SPLITS = {
    "test": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
}
"""Words in a file's name that say it is not for training."""

_DESCRIPTION = re.compile(r"(readme|licen[cs]e)(\.(md|txt|text))?$|dataset_infos?\.json$", re.IGNORECASE)
_FAMILIES = {"jsonl": "JSON", "json": "JSON", "csv": "CSV", "text": "text", "parquet": "Parquet", "arrow": "Arrow"}


@dataclass(frozen=True, slots=True)
class Entry:
    """A file, and its path from the folder that it was found in."""

    path: str
    file: File

    @property
    def stem(self) -> str:
        """The path without the endings that tell format and compression."""
        path = PurePosixPath(self.path)
        compression = ending(self.path)[1]
        return str((path.with_suffix("") if compression else path).with_suffix(""))


class Folder(Protocol):
    """A place that holds files and folders."""

    @property
    def label(self) -> str:
        """As the user would name it."""
        ...

    def has(self, name: str) -> bool:
        """Whether it holds a file of that name."""
        ...

    def inner(self, name: str) -> Self | None:
        """The folder of that name in it, if there is one."""
        ...

    def folders(self) -> list[str]:
        """Names of the folders in it."""
        ...

    def files(self, pattern: str) -> list[Entry]:
        """Files that match, in the order of their names; hidden ones are left out."""
        ...


@dataclass(frozen=True, slots=True)
class LocalFolder:
    """A folder of this machine."""

    path: Path

    @property
    def label(self) -> str:
        return str(self.path)

    def has(self, name: str) -> bool:
        return (self.path / name).is_file()

    def inner(self, name: str) -> LocalFolder | None:
        return LocalFolder(self.path / name) if (self.path / name).is_dir() else None

    def folders(self) -> list[str]:
        return sorted(entry.name for entry in self.path.iterdir() if entry.is_dir())

    def files(self, pattern: str) -> list[Entry]:
        """Files that match, which an absolute pattern, or one with ``..``, may find elsewhere."""
        paths = local_matches(pattern, self.path)
        files = sorted(path for path in paths if path.is_file() and not path.name.startswith("."))
        return [Entry(Path(os.path.relpath(path, self.path)).as_posix(), LocalFile(path, str(path))) for path in files]


def local_matches(pattern: str, root: Path) -> list[Path]:
    """What a pattern finds, from a folder on.

    Raises:
        DataError: below ``**`` a link leads back to a folder that it is in, so files would be found again and again.
    """
    if "**" in pattern:
        for folder, names, _ in os.walk(root / pattern.partition("**")[0], followlinks=True):
            for link in (Path(folder, name) for name in names if os.path.islink(Path(folder, name))):
                if link.parent.resolve().is_relative_to(link.resolve()):
                    found = f"a link to '{link.readlink()}', a folder that it is in: files would be found again"
                    raise DataError(Problem(str(link), found, "remove the link, or name the files without **"))
    return [root / match for match in glob.glob(pattern, root_dir=root, recursive=True)]


def files_of_rows(folder: Folder, dataset: DatasetConfig, where: str) -> list[File]:
    """The files of a folder to read: those that `data_files` names, or all of the split that `split` names.

    Raises:
        DataError: there are none, or it cannot be told which of them are meant.
    """
    if dataset.data_files:
        return named_files(folder, as_tuple(dataset.data_files), where)
    entries = [entry for entry in folder.files("**/*") if ending(entry.path)[0] or dataset.ds_type]
    entries = _of_split(_without_descriptions(entries, folder), folder, split_name(dataset), where)
    if not entries:
        fix = f"it may hold: {', '.join(sorted(ENDINGS))}"
        raise DataError(Problem(where, f"the folder '{folder.label}' holds no file of rows", fix))
    if not dataset.ds_type:
        _refuse_mixture(entries, folder, where)
    return [entry.file for entry in entries]


def named_files(folder: Folder, patterns: Iterable[str], where: str) -> list[File]:
    """The files of a folder that match patterns, each once. Raises DataError for a pattern that none matches."""
    files: dict[str, File] = {}
    for pattern in patterns:
        entries = folder.files(pattern)
        if not entries:
            close = nearest(pattern, (entry.path for entry in folder.files("**/*")))
            fix = f"did you mean '{close}'?" if close else f"name files of the folder '{folder.label}'"
            named = pattern if os.path.isabs(pattern) else f"{folder.label}/{pattern}"
            raise DataError(Problem(where, f"data_files: no file '{named}'", fix))
        files |= {entry.path: entry.file for entry in entries}
    return list(files.values())


def as_tuple(value: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value or ())


def _without_descriptions(entries: list[Entry], folder: Folder) -> list[Entry]:
    """The files of a folder without its README and licence, which say what the rows are and hold none."""
    left_out = [entry for entry in entries if _DESCRIPTION.match(PurePosixPath(entry.path).name)]
    if not left_out or len(left_out) == len(entries):
        return entries
    say(f"{folder.label}: not reading {_listed(left_out)}; name it in `data_files` to read it")
    return [entry for entry in entries if entry not in left_out]


def _of_split(entries: list[Entry], folder: Folder, split: str, where: str) -> list[Entry]:
    """The files of a folder that belong to a split, by the words in their names; files that name none are train."""
    wanted = [entry for entry in entries if _split_of(entry) == _OTHER_SPLITS.get(split, split)]
    if entries and not wanted:
        names = ", ".join(sorted({_split_of(entry) for entry in entries}))
        found = f"no file in '{folder.label}' is of the split '{split}'"
        raise DataError(Problem(where, found, f"set `split:` to one of: {names}"))
    left_out = [entry for entry in entries if entry not in wanted]
    if left_out:
        say(f"{folder.label}: reading the split '{split}' ({len(wanted)} files), not {_listed(left_out)}")
    return wanted


def _split_of(entry: Entry) -> str:
    words = re.split(r"[^a-z]+", entry.path.lower())
    return next((_OTHER_SPLITS[word] for word in words if word in _OTHER_SPLITS), "train")


def _refuse_mixture(entries: Sequence[Entry], folder: Folder, where: str) -> None:
    """Raise for files of several formats: they are as often the same rows twice, or no rows, as more rows."""
    stems = Counter(entry.stem for entry in entries)
    twice = [entry for entry in entries if stems[entry.stem] > 1]
    if twice:
        same = [entry for entry in twice if entry.stem == twice[0].stem]
        found = f"the folder '{folder.label}' holds {_listed(same)}, which may be the same rows twice"
        raise DataError(Problem(where, found, f"name what to read: `data_files: [{same[0].path}]`"))
    formats = Counter(_FAMILIES[ending(entry.path)[0] or "text"] for entry in entries)
    if len(formats) > 1:
        counts = ", ".join(f"{count} {name}" for name, count in formats.most_common())
        found = f"the folder '{folder.label}' mixes files of several formats ({counts})"
        most = formats.most_common(1)[0][0]
        example = next(entry.path for entry in entries if _FAMILIES[ending(entry.path)[0] or "text"] == most)
        pattern = f"**/*{''.join(PurePosixPath(example).suffixes[-2 if ending(example)[1] else -1 :])}"
        raise DataError(Problem(where, found, f"name what to read: `data_files: '{pattern}'`"))


def _listed(entries: Sequence[Entry]) -> str:
    names = ", ".join(entry.file.label for entry in entries[:5])
    return names + (f" and {len(entries) - 5} more" if len(entries) > 5 else "")
