"""One process at a time in a folder, however the one before it ended.

The lock is the kernel's own (`fcntl.lockf`): it is gone with its process, SIGKILL included, is not inherited by forked
workers, and NFS hands it to the server, so that it holds between machines. The file says who has it, for people.
"""

from __future__ import annotations

import errno
import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

NAME = ".whet-lock"
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


class Locked(Exception):
    """Another process has it.

    Attributes:
        holder: ``process 123 on host since 2026-01-31T12:00:00+00:00``.
    """

    def __init__(self, holder: str) -> None:
        self.holder = holder
        super().__init__(holder)


class FolderLock:
    """The lock of a folder, taken when it is made and given back when it is left.

    Attributes:
        died: who had it and ended without giving it back; None as a rule.
        is_real: False where the file system knows no locks, so that nobody is kept out.

    Raises:
        Locked: another process has it.
        OSError: its file cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        import fcntl

        self._path = folder / NAME
        self.died: str | None = None
        self.is_real = True
        while True:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                holder = self._holder()
                os.close(self._descriptor)
                if error.errno in _NO_LOCKS:
                    self.is_real = False
                    return
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    raise Locked(holder or "another process") from None
                raise
            if self._is_current():
                break
            os.close(self._descriptor)  # its former holder has removed the file; the next one is another file
        self.died = self._holder()
        self._write_holder()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.is_real:
            # Not opened again by name: a process loses a lock of this kind when it closes any descriptor of the file.
            self._path.unlink(missing_ok=True)
            os.close(self._descriptor)

    def _is_current(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self._path))
        except FileNotFoundError:
            return False

    def _write_holder(self) -> None:
        started = datetime.now(UTC).isoformat(timespec="seconds")
        told: dict[str, Any] = {"pid": os.getpid(), "host": socket.gethostname(), "started": started}
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps(told).encode(), 0)

    def _holder(self) -> str | None:
        try:
            told = json.loads(os.pread(self._descriptor, 4096, 0))
            return f"process {told['pid']} on {told['host']} since {told['started']}"
        except (ValueError, KeyError, TypeError):
            return None
