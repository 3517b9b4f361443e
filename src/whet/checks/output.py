"""Whether the run can write what it will write."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from whet.checks.base import Subject
from whet.core.errors import Problem

# Less than this and even a small adapter with its optimizer state may not fit.
_LITTLE_SPACE_BYTES = 1 << 30


def check(subject: Subject) -> Iterator[str | Problem]:
    """output_dir and dataset_prepared_path can be written; the space there is told."""
    config = subject.config
    folders = {"output_dir": subject.resolved.output_dir, "dataset_prepared_path": subject.resolved.prepared_path}
    for key, folder in folders.items():
        existing = _first_existing(Path(folder))
        if not existing.is_dir():
            found = f"{key}: '{existing}' is a file, and '{folder}' must be a folder"
            yield Problem(config.where(key), found, "choose another path, or move the file away", key)
        elif not os.access(existing, os.W_OK | os.X_OK):
            found = f"{key}: '{existing}' cannot be written by you"
            yield Problem(config.where(key), found, "choose a folder that is yours", key)
        else:
            free = shutil.disk_usage(existing).free
            if free < _LITTLE_SPACE_BYTES:
                found = f"{key}: only {free / 1e6:.0f} MB are free in '{existing}'"
                yield Problem(config.where(key), found, "make room, or choose another disk", key)
            yield f"{key} {folder}: {free / 1e9:.1f} GB free"


def _first_existing(path: Path) -> Path:
    return next(candidate for candidate in (path, *path.absolute().parents) if candidate.exists())
