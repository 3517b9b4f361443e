"""Files whose bytes must be known and must be there after a power cut."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4


class NotWritten(OSError):
    """A file or folder cannot be written; ``strerror`` says why."""


@contextmanager
def writing() -> Iterator[None]:
    """Whatever the system refuses meanwhile is a write: raised as `NotWritten`, to be told from other errors of it."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)  # pyarrow adds words of its own
        raise NotWritten(error.errno, reason) from error


FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Of the errors of a write, those that room cures."""

# What libraries below us say, in exceptions that are no OSError, when the system refuses a write: safetensors 0.8
# ("I/O error: No space left on device (os error 28)"), and PyTorch 2.13's zip writer, which knows no reason.
_REFUSALS = ("os error", "code: 28", "No space left on device")
_ZIP_REFUSALS = ("PytorchStreamWriter failed", "file write failed", "unexpected pos", "iostream error")


def refused_write(error: BaseException) -> str | None:
    """Why the system refused a write, where an exception says that it did; None for any other exception."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    text = str(error)
    if any(words in text for words in _ZIP_REFUSALS):
        return "the system refused the write, as it does on a full disk"
    if not any(words in text for words in _REFUSALS):
        return None
    return os.strerror(errno.ENOSPC) if "No space left" in text or "code: 28" in text else text.splitlines()[0]


def link_leading_out(folder: Path) -> Path | None:
    """A symbolic link in a folder, or in a folder of it, whose target lies outside; None if there is none.

    What is written to such a name goes elsewhere. The folder itself may be reached by a link.
    """
    home = folder.resolve()
    entries = list(folder.iterdir())
    entries += [inner for path in entries if path.is_dir() and not path.is_symlink() for inner in path.iterdir()]
    links = sorted(path for path in entries if path.is_symlink())
    return next((path for path in links if not path.resolve().is_relative_to(home)), None)


def read_small(path: Path, most_bytes: int) -> bytes:
    """All bytes of a file that is small by its nature; more than that are not read, of a device that never ends either.

    Raises:
        OSError: it cannot be read, or is longer.
    """
    with path.open("rb") as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise OSError(errno.EFBIG, f"it is longer than {most_bytes:,} bytes")
    return content


def sha256(path: Path) -> str:
    """Hexadecimal digest of a file; hashing leaves the interpreter free for other threads."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def replace_text(path: Path, text: str, *, has_other_writers: bool = False) -> None:
    """Write a small file so that whoever reads it finds the old one or the new one whole, after a power cut too.

    Args:
        has_other_writers: others may write it at the same time, so what is written first has a name that is nobody
            else's. With one writer it is ``<name>.tmp``, of which a kill leaves one at most.

    Raises:
        OSError: it cannot be written; the old one is as it was.
    """
    temporary = path.with_name(f"{path.name}.{uuid4().hex}.tmp" if has_other_writers else f"{path.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        sync(temporary)
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)  # a part of it, on a disk that is full
        raise


_NO_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.ENOSYS})


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's entries, are on the disk.

    Some file systems (CIFS, shared folders of virtual machines, some of FUSE) cannot be asked that of a folder; there
    it is left to them.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC or not path.is_dir():
            raise
    finally:
        os.close(descriptor)
