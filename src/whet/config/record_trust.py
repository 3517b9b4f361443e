"""What a recorded run may not do, and what must be said before it is done again: its record may be a stranger's."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from whet.config.config import Config
from whet.config.rules.rows import is_own_code
from whet.config.tasks import task_of
from whet.config.user_code import code_name
from whet.core.errors import Problem

KeyPath = tuple[str, ...]

MOST_PROCESSES = 8
"""For each core of this machine: what a record may ask for without being asked back."""

_PROCESSES = ("dataset_num_proc", "dataloader_num_workers")


def is_given_again(path: KeyPath, replaced: set[KeyPath]) -> bool:
    """Whether the command line names the place, or a block that it is in."""
    return any(path[:length] in replaced for length in range(1, len(path) + 1))


def refused_of_record(config: Config, name: str, replaced: set[KeyPath]) -> Iterator[Problem]:
    """Code and numbers of processes that the record alone asks for. Who wants them gives them again.

    Args:
        config: of the record, with the command line over it.
        name: how the record is called in errors.
        replaced: places that the command line names.
    """
    if config.model.trust_remote_code and not is_given_again(("trust_remote_code",), replaced):
        found = "trust_remote_code: code that comes with the model would run, because this record says so"
        fix = "if you trust it, say so again: --trust-remote-code; if not: --no-trust-remote-code"
        yield Problem(f"{name}: trust_remote_code", found, fix, "trust_remote_code")
    for path, code in _code_of_rows(config):
        if not is_given_again(path, replaced):
            key = ".".join(path)
            found = f"{key}: the Python function '{code}' would run, because this record names it"
            yield Problem(f"{name}: {key}", found, f"if it is yours, name it again: --{key} {code}", path[0])
    most = MOST_PROCESSES * (os.cpu_count() or 1)
    for key in _PROCESSES:
        value = config.value(key) or 0
        if value > most and not is_given_again((key,), replaced):
            found = f"{key}: {value} processes are more than {most}, {MOST_PROCESSES} for each core of this machine"
            yield Problem(f"{name}: {key}", found, f"say how many: --{key.replace('_', '-')} NUMBER", key)


def _code_of_rows(config: Config) -> Iterator[tuple[KeyPath, str]]:
    """Each place that may be a function of the user's own, and what is written there."""
    task = task_of(config)
    for key in ("datasets", "test_datasets"):
        for number, row in enumerate(config.value(key) or ()):
            if isinstance(row.type, str) and is_own_code(row.type, task):
                yield (key, str(number), "type"), row.type
            if row.input_transform is not None and code_name(row.input_transform) is not None:
                yield (key, str(number), "input_transform"), row.input_transform


def reached(config: Config) -> Iterator[str]:
    """Sentences: whom the run asks or tells, and where it writes beside its own folder."""
    for place, address in _addresses(config.values(), ""):
        yield f"it reaches {address} ({place})"
    if config.tracking.use_wandb and config.tracking.wandb_mode not in ("offline", "disabled"):
        yield "its figures go to Weights & Biases (use_wandb)"
    asked = config.loop.dynamic_checkpoint
    files = (asked.trigger_file_path, asked.stop_file_path) if asked is not None and asked.enabled else ()
    tracks = config.tracking.use_mlflow is not False and "://" not in (config.tracking.mlflow_tracking_uri or "")
    for path, words in (
        (config.tracking.mlflow_tracking_uri if tracks else None, "figures are kept in {} (mlflow_tracking_uri)"),
        (config.data.dataset_prepared_path, "prepared data is kept in {} (dataset_prepared_path)"),
        *((path, "{} is looked for and removed (dynamic_checkpoint)") for path in files),
    ):
        if path and not Path(os.path.abspath(path)).is_relative_to(Path.cwd()):
            yield words.format(path)


def _addresses(value: Any, place: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _addresses(item, f"{place}.{key}".lstrip("."))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _addresses(item, f"{place}.{number}")
    elif isinstance(value, str) and re.match(r"\s*[\w+.-]+://", value):
        yield place, value
