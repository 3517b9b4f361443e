"""What others are to have of a run and do not have yet: a file in the output folder, until `whet push` has sent it."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from whet.config import Config
from whet.core.disk import replace_text
from whet.core.errors import ArtefactError, Problem
from whet.core.log import warn
from whet.core.secrets import redacted

QUEUE_NAME = "uploads.json"
LOCK_NAME = ".whet-uploads-lock"

Receiver = Literal["hub", "mlflow", "wandb"]


def push_command(config: Config, folder: Path | None = None) -> str:
    """What a person types to send what waits; a config made in Python has no file to name.

    Args:
        folder: where the run has been moved to.
    """
    moved = "" if folder is None else f" --output-dir {shlex.quote(str(folder))}"
    return f"whet push {shlex.quote(config.file) if config.file else 'CONFIG'}{moved}"


@dataclass(frozen=True, slots=True)
class Upload:
    """Something to be sent.

    Attributes:
        to: who is to have it.
        source: for the hub, a folder of the output folder ("." for the result itself); for a tracker, its name of the
            run, or the folder of its log.
        place: for the hub, the folder of the repository, "" for its root. One for a place replaces an earlier one.
        step: optimiser step it was made after; for a tracker, the first step whose figures it does not have.
        reason: why it has not been sent.
    """

    to: Receiver
    source: str
    place: str = ""
    step: int = 0
    reason: str = ""

    def __str__(self) -> str:
        if self.to != "hub":
            return f"figures from step {self.step} for {self.to}"
        return "the result" if self.source == "." else f"{self.source} for {self.place or 'the repository'}"


class UploadQueue:
    """The file; it is written whole with every change, and there is none while nothing waits.

    What the system refuses to note there (a full disk) is remembered, for as long as this queue lives.

    The hub, each tracker and `whet push` have a queue of their own for the same file: they change it one by one.

    Args:
        folder: the run's output folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._path = folder, folder / QUEUE_NAME
        self._lock = threading.Lock()
        self._unnoted: tuple[Upload, ...] = ()

    def waiting(self) -> tuple[Upload, ...]:
        """What has not been sent, the oldest first.

        Raises:
            ArtefactError: the file is not what was written.
        """
        try:
            entries = json.loads(self._path.read_text(encoding="utf-8"))["waiting"]
            return (*(_upload(entry) for entry in entries), *self._unnoted)
        except FileNotFoundError:
            return self._unnoted
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            found = f"what waits to be sent cannot be read ({error})"
            raise ArtefactError(Problem(str(self._path), found, "remove the file: the result is sent again")) from error

    def add(self, upload: Upload) -> None:
        """One more; what waited for the same place is out of date."""
        with self.alone():
            place = (upload.to, upload.place)
            kept = [other for other in self.waiting() if (other.to, other.place) != place]
            if not self._write([*kept, upload]):
                others = [other for other in self._unnoted if (other.to, other.place) != place]
                self._unnoted = (*others, upload)

    def sent(self, upload: Upload) -> None:
        """It has arrived; one that came after it for the same place still waits."""
        with self.alone():
            self._unnoted = tuple(other for other in self._unnoted if not _is_same(other, upload))
            self._write([other for other in self.waiting() if not _is_same(other, upload)])

    def refused(self, upload: Upload, reason: str) -> None:
        """It has not arrived."""
        with self.alone():
            waiting = self.waiting()
            self._write([replace(other, reason=reason) if _is_same(other, upload) else other for other in waiting])

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Within it nobody else changes the file; where files have no locks, none of the threads that have this queue.

        The file of the lock stays: one that is removed may be locked by one process and made anew by the next.
        """
        with self._lock:
            descriptor = None
            try:
                with suppress(OSError):  # a full disk, a file system without locks: the queue is worth no run
                    descriptor = os.open(self.folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
                yield
            finally:
                if descriptor is not None:
                    with suppress(OSError):
                        fcntl.flock(descriptor, fcntl.LOCK_UN)  # a process that was forked meanwhile has it open, too
                    os.close(descriptor)

    def _write(self, uploads: Sequence[Upload]) -> bool:
        """Note these, which are all that waits; returns whether that could be done."""
        entries: Any = redacted([asdict(upload) for upload in uploads])
        try:
            if uploads:
                replace_text(self._path, json.dumps({"waiting": entries}, indent=1) + "\n")
            else:
                self._path.unlink(missing_ok=True)
        except OSError as error:
            warn(f"what waits to be sent cannot be noted in '{self._path}' ({error.strerror})")
            return False
        self._unnoted = ()
        return True


def _upload(entry: Any) -> Upload:
    """An entry of the file, which may have come with a stranger's folder: it names no folder but those beside it.

    Raises:
        ValueError, TypeError: it is none.
    """
    upload = Upload(**entry)
    if not all(isinstance(value, kind) for value, kind in zip(astuple(upload), (str, str, str, int, str), strict=True)):
        raise TypeError("a value of another kind")
    if upload.to not in get_args(Receiver):
        raise ValueError(f"'{upload.to}' receives nothing")
    if upload.to == "hub" and (Path(upload.source).is_absolute() or ".." in Path(upload.source).parts):
        raise ValueError(f"'{upload.source}' is no folder of this one")
    return upload


def _is_same(one: Upload, other: Upload) -> bool:
    return replace(one, reason="") == replace(other, reason="")
