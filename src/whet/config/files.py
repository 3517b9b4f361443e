"""Files that a config names: where they are, and which are missing.

A path is looked for in the working folder, as Axolotl does, then beside the YAML. A name such as ``org/model`` is a
hub id and nothing here asks the hub.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from whet.config.config import Config
from whet.config.schema import DatasetConfig
from whet.config.source import MOST_BYTES, Node
from whet.config.user_code import code_name, found_file
from whet.core.disk import read_small
from whet.core.errors import Problem
from whet.core.nearest import nearest

_ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".txt", ".jinja", ".gz", ".zst", ".yaml")
PATH_KEYS = (
    "base_model",
    "base_model_config",
    "tokenizer_config",
    "chat_template_jinja",
    "lora_model_dir",
    "deepspeed",
    "score_dataset",
)
_LONGEST_NAME = 255
"""Bytes in one part of a path, on every usual file system."""

ROW_PATH_KEYS = ("path", "chat_template_jinja")


def is_local(name: str) -> bool:
    """Whether a name can only be a local path, not a hub id or a URL.

    >>> [is_local(name) for name in ("./x.jsonl", "data/x.jsonl", "a/b/c", "~/m", "org/name", "s3://b/x.json")]
    [True, True, True, True, False, False]
    """
    if "://" in name:
        return False
    return name.startswith((".", "/", "~")) or name.endswith(_ENDINGS) or name.count("/") > 1 or "*" in name


def is_template_text(text: str) -> bool:
    """Whether a `chat_template_jinja` is the template itself, not the name of its file."""
    return "{" in text or "\n" in text


def located(entries: Mapping[str, Node], folder: Path) -> dict[str, Node]:
    """The entries with each path that exists beside the YAML, and not in the working folder, replaced by that one."""
    found = dict(entries)
    for key in PATH_KEYS:
        if key in found:
            found[key] = _located(found[key], folder)
    for key in ("datasets", "test_datasets"):
        if key in found and found[key].items is not None:
            rows = tuple(_located_row(row, folder) for row in found[key].items or ())
            found[key] = replace(found[key], value=rows)
    return found


def _located_row(row: Node, folder: Path) -> Node:
    if row.entries is None:
        return row
    entries = {name: _located(node, folder) if name in ROW_PATH_KEYS else node for name, node in row.entries.items()}
    return replace(row, value=entries)


def _located(node: Node, folder: Path) -> Node:
    text = node.value
    if not isinstance(text, str) or "://" in text or is_template_text(text):
        return node
    expanded = str(Path(text).expanduser()) if text.startswith("~") else text
    if _exists(expanded):
        return node if expanded == text else replace(node, value=expanded, plain=None)
    beside = str(folder / expanded)
    return replace(node, value=beside, plain=None) if _exists(beside) else node


def _exists(path: str) -> bool:
    try:
        return Path(path).exists() or ("*" in path and bool(glob.glob(path, recursive=True)))
    except (OSError, ValueError):  # a text too long for a file's name, or with a NUL in it
        return False


def _can_exist(path: str) -> bool:
    """Whether a file system takes the path at all."""
    return "\0" not in path and all(len(part.encode(errors="replace")) <= _LONGEST_NAME for part in Path(path).parts)


def missing_files(config: Config) -> list[Problem]:
    """Every named file or folder that is not there or cannot be, and a DeepSpeed file that is not JSON."""
    problems: list[Problem | None] = [
        _missing(config, (key,), config.value(key))
        for key in ("base_model", "base_model_config", "tokenizer_config", "lora_model_dir")
    ]
    problems.append(_no_file(config, ("score_dataset",), config.score.score_dataset))
    problems.append(_missing_template(config, ("chat_template_jinja",), config.template.chat_template_jinja))
    resume = config.loop.resume_from_checkpoint
    if isinstance(resume, str):
        problems.append(_missing(config, ("resume_from_checkpoint",), resume, must_be_local=True))
    for key, rows in (("datasets", config.data.datasets), ("test_datasets", config.data.test_datasets)):
        for index, row in enumerate(rows):
            problems.append(_missing(config, (key, index, "path"), row.path))
            problems.append(_missing_template(config, (key, index, "chat_template_jinja"), row.chat_template_jinja))
            problems.append(_missing_code(config, (key, index, "type"), row.type))
            problems.append(_missing_code(config, (key, index, "input_transform"), row.input_transform))
            problems.extend(_missing_data_files(config, key, index, row))
    problems.append(_bad_deepspeed(config))
    problems += [
        _no_path(config, (key,))
        for key in ("output_dir", "dataset_prepared_path")
        if config.value(key) is not None and not _can_exist(config.value(key))
    ]
    return [problem for problem in problems if problem is not None]


def _missing(
    config: Config, path: tuple[str | int, ...], name: str | None, *, must_be_local: bool = False
) -> Problem | None:
    if name is not None and not _can_exist(name):
        return _no_path(config, path)
    if name is None or _exists(name) or not (must_be_local or is_local(name)):
        return None
    if Path(name).is_symlink():
        found = f"{_shown(path)}: '{name}' is a link to '{Path(name).readlink()}', which is not there"
        return Problem(config.where(path), found, "mend the link, or name the file itself", str(path[0]))
    return Problem(config.where(path), f"{_shown(path)}: there is no '{name}'", _nearby(Path(name)), str(path[0]))


def _no_path(config: Config, path: tuple[str | int, ...]) -> Problem:
    found = f"{_shown(path)} is no path: a name in it is longer than {_LONGEST_NAME} bytes, or holds a NUL"
    return Problem(config.where(path), found, "write the path of a file or folder", str(path[0]))


def _no_file(config: Config, path: tuple[str | int, ...], name: str | None) -> Problem | None:
    if name is None or not _exists(name) or not Path(name).is_dir():
        return _missing(config, path, name, must_be_local=True)
    return Problem(config.where(path), f"{_shown(path)}: '{name}' is a folder", "name a file in it", str(path[0]))


def _shown(path: tuple[str | int, ...]) -> str:
    return str(path[0]) if len(path) == 1 else f"{path[0]}[{path[1]}].{path[2]}"


def _missing_template(config: Config, path: tuple[str | int, ...], text: str | None) -> Problem | None:
    return None if text is None or is_template_text(text) else _no_file(config, path, text)


def _missing_code(config: Config, path: tuple[str | int, ...], name: object) -> Problem | None:
    """The Python file of a type of the user's own, where it is not there."""
    code = code_name(name) if isinstance(name, str) else None
    if code is None or code.file is None or not code.function or found_file(code.file, config.file):
        return None
    return Problem(
        config.where(path), f"{_shown(path)}: there is no '{code.file}'", _nearby(Path(code.file)), str(path[0])
    )


def _missing_data_files(config: Config, key: str, index: int, row: DatasetConfig) -> list[Problem | None]:
    """Files inside a local folder; those of a hub dataset are the hub's to know."""
    folder = Path(row.path)
    if not row.data_files or not folder.is_dir():
        return []
    names = (row.data_files,) if isinstance(row.data_files, str) else row.data_files
    return [
        _missing(config, (key, index, "data_files"), str(folder / name), must_be_local=True)
        for name in names
        if not is_local(name) or not _exists(name)
    ]


def _nearby(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"the folder '{folder}' does not exist; paths count from the working folder, then from the YAML's"
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        return f"the folder '{folder}' cannot be listed: {error.strerror}"
    close = nearest(path.name, names)
    return f"did you mean '{folder / close}'?" if close else "paths count from the working folder, then from the YAML's"


def _bad_deepspeed(config: Config) -> Problem | None:
    name = config.distributed.deepspeed
    if not isinstance(name, str):
        return None
    where = config.where("deepspeed")
    absent = _no_file(config, ("deepspeed",), name)
    if absent is not None:
        return absent
    try:
        settings = json.loads(read_small(Path(name), MOST_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        return Problem(where, f"deepspeed: '{name}' is not JSON: {error}", "correct the file", "deepspeed")
    if not isinstance(settings, dict):
        return Problem(where, f"deepspeed: '{name}' holds no JSON object", "write {...} in it", "deepspeed")
    return None
