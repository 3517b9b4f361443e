"""What exactly a run did, kept as ``run.json`` in its output folder while it happens.

The record is written again after every stage, by rename, so that a run that was killed still says how far it came. It
takes plain values only: whoever knows a fact hands it over, the record never goes and looks. What is secret in it (a
token, a password in a URL) is hidden as it is written.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from whet.core.secrets import redact, redacted

RECORD_NAME = "run.json"
PACKAGES = (
    "whet",
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "peft",
    "trl",
    "datasets",
    "bitsandbytes",
    "numpy",
)


class RunRecord:
    """The record of one run.

    Args:
        folder: the run's output folder; None keeps the record in memory only (ranks other than the first).
    """

    def __init__(self, folder: Path | None) -> None:
        self._path = folder / RECORD_NAME if folder is not None else None
        self._facts: dict[str, Any] = {
            "started": _now(),
            "finished": None,
            "outcome": "running",
            "versions": installed_versions(),
            "platform": platform.platform(),
        }
        self._plain: dict[str, Any] = {}  # the sections as JSON knows them; hundreds of keys, written several times
        self._write()

    @property
    def facts(self) -> Mapping[str, Any]:
        """Everything noted so far."""
        return self._facts

    def note(self, section: str, facts: Any) -> None:
        """Add or replace one section and write the record."""
        self._facts[section] = facts
        self._plain[section] = redacted(_plain(facts), section)
        self._write()

    def finish(self, outcome: str) -> None:
        """Close the record with how the run ended: "finished", "interrupted", "stopped: ...", "failed: ..."."""
        self._facts["outcome"] = redact(outcome)
        self._facts["finished"] = _now()
        self._write()

    def _write(self) -> None:
        if self._path is None:
            return
        temporary = self._path.with_suffix(".json.tmp")
        temporary.write_text(
            json.dumps({**self._facts, **self._plain}, indent=1, allow_nan=False) + "\n", encoding="utf-8"
        )
        os.replace(temporary, self._path)


def installed_versions() -> dict[str, str]:
    """Versions of the installed packages that decide what a run computes."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
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
