"""What exactly a run did, kept as ``run.json`` in its output folder while it happens.

The record is written again after every stage, by rename, so that a run that was killed still says how far it came. It
takes plain values only: whoever knows a fact hands it over, the record never goes and looks. What is secret in it (a
token, a password in a URL) is hidden as it is written. What each section says: docs/provenance.md.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shlex
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from whet.core.disk import replace_text
from whet.core.errors import ArtefactError, Problem
from whet.core.log import warn
from whet.core.secrets import redact, redacted

RECORD_NAME = "run.json"
EARLIER_RUNS = "_earlier-runs"
SCHEMA = 1
"""Of the file, see docs/provenance.md; it grows when a section changes its meaning, not when one is added."""

RUNNING = "running"
KILLED = "ended without a word: killed, or the machine went down"
_OF_A_SESSION = ("started", "finished", "seconds", "outcome", "command", "working_folder", "versions", "platform")
_NOTED_OF_A_SESSION = ("hardware", "git", "changes", "heard", "peak_memory", "steps")
PACKAGES = (
    *("whet", "torch", "transformers", "tokenizers", "accelerate", "peft", "trl", "datasets", "bitsandbytes", "numpy"),
    *("triton", "torchao", "flash-attn", "liger-kernel", "cut-cross-entropy", "fastokens", "jinja2"),
)
"""Those that may decide what a run computes; that of an optimizer is named by the run that uses it."""


class RunRecord:
    """The record of one run, over all of its sessions: it is begun once and may be resumed many times.

    Where the folder has the record of an earlier run, that one stays as it is until `begin`: a run that is refused
    before it has changed anything changes nothing here either, but for its own line among the sessions.

    Args:
        folder: the run's output folder; None keeps the record in memory only (ranks other than the first).
        kind: what is done: "train", "merge", "quantize" ...
    """

    def __init__(self, folder: Path | None, kind: str = "train") -> None:
        self._path = folder / RECORD_NAME if folder is not None else None
        self._lock = threading.RLock()  # warnings are heard in any thread
        self._clock = time.monotonic()
        self._started = self._clock
        self._times: dict[str, float] = {}
        self._earlier = read_record(self._path) if self._path is not None else None
        self._earlier_sessions = _closed(self._earlier)
        self._resumed_from: str | None = None
        self._goes_on = False
        self._is_own = self._path is None or not self._path.exists()
        self._is_written = True
        self._facts: dict[str, Any] = {
            "schema": SCHEMA,
            "kind": kind,
            "started": _now(),
            "finished": None,
            "outcome": RUNNING,
            "command": redact(shlex.join(_command())),
            "working_folder": redact(os.getcwd()),
            "versions": installed_versions(),
            "platform": platform.platform(),
        }
        if self._path is not None:
            self._facts["begun"] = None
        self._plain: dict[str, Any] = {}  # the sections as JSON knows them; hundreds of keys, written several times
        self._write()

    @property
    def facts(self) -> Mapping[str, Any]:
        """Everything noted so far, as it was given."""
        return self._facts

    def as_json(self) -> dict[str, Any]:
        """What the file holds."""
        with self._lock:
            return {**self._facts, "times": self._rounded_times(), **self._plain, "sessions": self._sessions()}

    def note(self, section: str, facts: Any) -> None:
        """Add or replace one section and write the record."""
        with self._lock:
            self._facts[section] = facts
            self._plain[section] = redacted(_plain(facts), section)
            self._write()

    def uses(self, package: str) -> None:
        """One more package whose version is kept, if it is installed."""
        with self._lock:
            self._facts["versions"] = {**self._facts["versions"], **versions_of([package])}
            self._write()

    def lap(self, stage: str) -> None:
        """A stage has ended: keep how many seconds have gone by since the last one had, or since the start."""
        now = time.monotonic()
        self._times[stage] = self._times.get(stage, 0.0) + now - self._clock
        self._clock = now

    def resumes(self, checkpoint: Path, *, of_this_folder: bool = True) -> None:
        """The run goes on from a checkpoint; where that is the folder's, the sessions before this one are its own."""
        self._resumed_from, self._goes_on = str(checkpoint), of_this_folder

    def begin(self, archive: Path | None = None) -> None:
        """From here on the folder is this run's. The record of another run that was there goes to ``archive``.

        Args:
            archive: where that run's checkpoints were put; a new folder of `EARLIER_RUNS` if not given.

        Raises:
            ArtefactError: it cannot be moved there.
        """
        with self._lock:
            if not self._is_own and not self._goes_on:
                assert self._path is not None
                self._earlier_sessions = []
                place = archive or next_folder(self._path.parent / EARLIER_RUNS)
                try:
                    place.mkdir(parents=True, exist_ok=True)
                    os.replace(self._path, place / RECORD_NAME)
                except OSError as error:
                    found = f"the record of the run before cannot be moved to '{place}' ({error.strerror})"
                    raise ArtefactError(Problem(str(self._path), found, "name another output_dir")) from error
            self._is_own = True
            self._facts["begun"] = _now()
            self._write()

    def place(self, folder: Path) -> Path:
        """Put a record that was in memory into the folder that it is of; returns the folder."""
        with self._lock:
            self._path = folder / RECORD_NAME
            self._write()
        return folder

    @property
    def folder(self) -> Path | None:
        """Where it is written; None while it is in memory only."""
        return None if self._path is None else self._path.parent

    def finish(self, outcome: str) -> None:
        """Close the record with how the run ended: "finished", "interrupted", "stopped: ...", "failed: ..."."""
        with self._lock:
            self._facts["outcome"] = redact(outcome)
            self._facts["finished"] = _now()
            self._facts["seconds"] = round(time.monotonic() - self._started, 3)
            if self._is_own:
                self._write()
            elif self._earlier is not None:
                self._put({**self._earlier, "sessions": self._sessions()})

    def _sessions(self) -> list[dict[str, Any]]:
        """The earlier sessions, and this one in short."""
        short = {name: self._facts[name] for name in _OF_A_SESSION if name in self._facts}
        more = {name: self._plain[name] for name in _NOTED_OF_A_SESSION if name in self._plain}
        mine = {"resumed_from": self._resumed_from, **short, **more, "times": self._rounded_times()}
        return [*self._earlier_sessions, mine]

    def _rounded_times(self) -> dict[str, float]:
        return {stage: round(seconds, 3) for stage, seconds in self._times.items()}

    def _write(self) -> None:
        if self._is_own:
            self._put(self.as_json())

    def _put(self, content: Mapping[str, Any]) -> None:
        """By rename. A disk that is full must not end the run that the record is of."""
        if self._path is None:
            return
        try:
            replace_text(self._path, json.dumps(content, indent=1, allow_nan=False) + "\n")
        except OSError as error:
            was_written, self._is_written = self._is_written, False  # before the warning, which may be noted here
            if was_written:
                warn(f"{self._path} cannot be written ({error.strerror}); the run goes on without")


def read_record(path: Path) -> dict[str, Any] | None:
    """The record in a file; None where there is none, or none that can be read."""
    try:
        read = _plain(json.loads(path.read_text(encoding="utf-8")))  # which knows no infinity either
    except (OSError, ValueError, RecursionError):
        return None
    return read if isinstance(read, dict) else None


def next_folder(parent: Path) -> Path:
    """The first numbered folder in ``parent`` that is not there."""
    number = 1 + max((int(path.name) for path in parent.glob("[0-9]*") if path.name.isdecimal()), default=0)
    return parent / str(number)


def _closed(earlier: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The sessions of an earlier record; one that was still running has ended, and nobody was told how."""
    if earlier is None:
        return []
    sessions = earlier.get("sessions")
    if not isinstance(sessions, list):  # of a version that kept none
        sessions = [{name: earlier[name] for name in (*_OF_A_SESSION, *_NOTED_OF_A_SESSION) if name in earlier}]
    return [
        {**session, "outcome": KILLED} if session.get("outcome") == RUNNING else session
        for session in sessions
        if isinstance(session, dict)
    ]


def _command() -> list[str]:
    """The command line as it was typed, the interpreter left out where ``whet`` was called by name."""
    name = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python"
    return ["whet" if name == "__main__.py" else name, *sys.argv[1:]]


def installed_versions() -> dict[str, str]:
    """Versions of the installed packages that decide what a run computes."""
    return {"python": platform.python_version(), **versions_of(PACKAGES)}


def versions_of(packages: Sequence[str]) -> dict[str, str]:
    """Of the packages that are installed; whet itself is not where it runs from its sources."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _plain(value: Any) -> Any:
    """What JSON knows: dataclasses and mappings as objects, a number that is none as null, anything else as text."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
