"""What of a folder of prepared sets nothing has used for a while: found for a person, and removed at their word only.

A set is used when a command opens it, which its folder's time notes. A chunk file is used by the sets that it is linked
into, and when a set is made from it, which the time of its account notes.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from whet.config import Config
from whet.core.errors import DataError, Problem
from whet.data import store
from whet.data.prepare import POOL, SCANS

SECONDS_OF_DAY = 24 * 3600.0

Thing = Literal["set", "chunk file", "scan", "unfinished"]


@dataclass(frozen=True, slots=True)
class Unused:
    """Something that may go.

    Attributes:
        what: a prepared set, a chunk file of the pool, what a scan found, or what a killed process left.
        path: its folder or file.
        num_bytes: that its removal gives back; of a set, without the chunk files that the pool or other sets have too.
        days: since it was last used.
    """

    what: Thing
    path: Path
    num_bytes: int
    days: float


def find_unused(folder: Path, days: float, now: float) -> list[Unused]:
    """Sets, chunk files and scans that were not used for so many days.

    Args:
        folder: `dataset_prepared_path`.
        now: seconds since 1970.
    """

    def age(path: Path) -> float:
        return (now - path.stat().st_mtime) / SECONDS_OF_DAY

    sets = [path.parent for path in sorted(folder.glob(f"[!.]*/{store.MANIFEST}"))]
    found = [Unused("set", path, _own_bytes(path), age(path)) for path in sets if age(path) > days]
    links = Counter(_inode(file) for unused in found for file in (unused.path / store.CHUNKS).iterdir())
    for path in sorted(folder.glob(f"{POOL}/*/[!.]*.arrow")):
        account = path.with_suffix(".json")
        last = age(account if account.exists() else path)
        if last > days and path.stat().st_nlink - links[_inode(path)] <= 1:
            found.append(Unused("chunk file", path, path.stat().st_size, last))
    for what, pattern in _OTHERS:
        paths = sorted(folder.glob(pattern))
        found += [Unused(what, path, _bytes(path), age(path)) for path in paths if age(path) > days]
    return found


_OTHERS: Sequence[tuple[Thing, str]] = (
    ("scan", f"{SCANS}/[!.]*.json"),
    ("unfinished", f"{SCANS}/.*"),
    ("unfinished", f"{POOL}/*/.*"),
    ("unfinished", ".*"),
)


def clean(config: Config, folder: Path, days: float, *, remove: bool = True) -> list[Unused]:
    """What was not used for so many days; removed, unless that is not wanted.

    Raises:
        DataError: it cannot be read or removed.
    """
    try:
        unused = find_unused(folder, days, time.time())
        if remove:
            remove_all(unused)
    except OSError as error:
        found = f"'{error.filename or folder}' cannot be removed ({error.strerror or error})"
        fix = "ask whoever owns it, or set `dataset_prepared_path` to a folder of yours"
        raise DataError(Problem(config.where("dataset_prepared_path"), found, fix)) from error
    return unused


def remove_all(unused: Sequence[Unused]) -> None:
    """Remove them. One that has gone meanwhile is passed over; a set goes whole, by a rename first.

    Raises:
        OSError: a file may not be removed.
    """
    for one in unused:
        if one.what == "set":
            hidden = one.path.with_name(f".{one.path.name}.removed")
            one.path.rename(hidden)
            shutil.rmtree(hidden)
        elif one.path.is_dir():
            shutil.rmtree(one.path)
        else:
            if one.what == "chunk file":  # which is none without its account
                one.path.with_suffix(".json").unlink(missing_ok=True)
            one.path.unlink(missing_ok=True)
    for pool in {one.path.parent for one in unused if one.what == "chunk file"}:
        if not any(pool.iterdir()):
            pool.rmdir()


def _inode(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in _files(path))


def _own_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in _files(folder) if file.stat().st_nlink == 1)


def _files(path: Path) -> Iterator[Path]:
    return (file for file in path.rglob("*") if file.is_file()) if path.is_dir() else iter((path,))
