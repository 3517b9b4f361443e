"""The config of a run that was recorded, to do it again: the values it had then, whatever its YAML says today."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from whet.config.config import Config
from whet.config.files import PATH_KEYS, ROW_PATH_KEYS, is_template_text
from whet.config.keys import Findings
from whet.config.load import build
from whet.config.origins import Origin
from whet.config.overrides import from_command_line, key_path
from whet.config.record_trust import is_given_again, reached, refused_of_record
from whet.config.scalars import resolve_scalar
from whet.config.schema import fields
from whet.config.source import Node
from whet.core.errors import ConfigError, Problem
from whet.core.foreign import as_whet_writes
from whet.core.secrets import MASK

_NOT_AGAIN = frozenset(
    {"resume_from_checkpoint", "auto_resume_from_checkpoints", "allow_change", "output_dir"}
    | {"hub_model_id", "hub_strategy", "hub_revision", "wandb_run_id"}
)
"""Keys that a rerun does not take over: it begins anew, elsewhere, and overwrites nothing that others look at."""


def config_of_record(
    record: Mapping[str, Any], name: str, output_dir: str, overrides: Sequence[str] = ()
) -> tuple[Config, list[str]]:
    """The config that a record was made with.

    Args:
        record: what ``run.json`` holds.
        name: how that file is called in errors.
        output_dir: of the new run, unless the overrides name another.
        overrides: words of the command line.

    Returns:
        The config, and the keys that were left out or had to be written out (a default was another one then).

    Raises:
        ConfigError: a secret that was not kept is needed, a file is not there any more, whet has no such key now; the
            record, which may be a stranger's, names code that would run.
    """
    findings = Findings()
    settings, problems = from_command_line(overrides)
    findings.problems += problems
    with as_whet_writes(name, "its values are of another kind than whet writes", "train with the YAML itself"):
        root, said = _as_written(record, name, output_dir, findings, {setting.path for setting in settings})
    try:
        config = build(root, settings, str(record.get("config_file") or ""), findings, check_files=True)
    except ConfigError as error:
        raise ConfigError([_with_cure(problem) for problem in error.problems]) from None
    problems = list(refused_of_record(config, name, {setting.path for setting in settings}))
    if problems:
        raise ConfigError(problems)
    return config, [*said, *reached(config)]


def _as_written(
    record: Mapping[str, Any], name: str, output_dir: str, findings: Findings, replaced: set[tuple[str, ...]]
) -> tuple[Node, list[str]]:
    """The tree of what was written then, and what is to be said of it."""
    written: dict[str, Any] = dict(record["written"])
    where: Mapping[str, str] = record.get("where") or {}
    said = [f"{key} is left out" for key in written if key in _NOT_AGAIN - {"output_dir"}]
    values = {key: value for key, value in written.items() if key not in _NOT_AGAIN}
    for key, value in _other_defaults(record["values"], values):
        values[key] = value
        said.append(f"{key} is {value!r}, which was the default then")
    findings.problems += _hidden(values, name, where, replaced)
    folder = record.get("working_folder")
    if isinstance(folder, str) and folder != os.getcwd():
        values = _from_there(values, Path(folder))
    entries = {key: _planted(value, f"{name}: {key}", where.get(key)) for key, value in values.items()}
    entries["output_dir"] = Node(output_dir, Origin("command line", "--output-dir"))
    return Node(entries, Origin("file", name)), said


def _other_defaults(values: Mapping[str, Any], written: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Keys that nobody wrote, and whose default is another one in this version."""
    for key, field in fields().items():
        if key in written or key in _NOT_AGAIN or key not in values or field.is_required():
            continue
        default = field.get_default(call_default_factory=True)
        plain = list(default) if isinstance(default, tuple) else default
        if plain != values[key]:
            yield key, values[key]


def _hidden(
    values: Mapping[str, Any], name: str, where: Mapping[str, str], replaced: set[tuple[str, ...]]
) -> Iterator[Problem]:
    for path in _masked_paths(values, ()):
        if is_given_again(path, replaced):
            continue
        # What no option can name is in a block that one can.
        key = ".".join(takewhile(re.compile(r"\w+").fullmatch, path))
        was = f" ({where[path[0]]})" if path[0] in where else ""
        fix = f"give it again: --{key.replace('_', '-')} VALUE"
        yield Problem(f"{name}: {key}{was}", "the value was a secret, which a record does not keep", fix, path[0])


def _masked_paths(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _masked_paths(item, (*path, str(key)))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _masked_paths(item, (*path, str(number)))
    elif isinstance(value, str) and MASK in value:
        yield path


def _from_there(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The values with each relative path that exists in the folder the run was started in made absolute."""

    def placed(value: Any) -> Any:
        if not isinstance(value, str) or "://" in value or is_template_text(value) or Path(value).is_absolute():
            return value
        try:
            return str(folder / value) if (folder / value).exists() else value
        except (OSError, ValueError):  # a text that can be no path
            return value

    found = {key: placed(value) if key in PATH_KEYS else value for key, value in values.items()}
    for key in ("datasets", "test_datasets"):
        if isinstance(found.get(key), list):
            found[key] = [
                {name: placed(value) if name in ROW_PATH_KEYS else value for name, value in row.items()}
                for row in found[key]
            ]
    return found


def _planted(value: Any, place: str, first: str | None) -> Node:
    """A tree of what JSON gave; each value says where it is in the record, and where it was written first."""
    origin = Origin("file", f"{place} ({first})" if first else place)
    if isinstance(value, Mapping):
        inner = {str(key): _entry(key, item, f"{place}.{key}", first) for key, item in value.items()}
        return Node(inner, origin)
    if isinstance(value, list):
        items = tuple(_planted(item, f"{place}.{number}", first) for number, item in enumerate(value))
        return Node(items, origin)
    return Node(value, origin, plain=None if isinstance(value, str) or value is None else str(value))


def _entry(key: str, value: Any, place: str, first: str | None) -> Node:
    """JSON has made text of every key; what YAML types as a number was one."""
    node = _planted(value, place, first)
    return Node(node.value, node.origin, node.plain, key=resolve_scalar(str(key)))


def _with_cure(problem: Problem) -> Problem:
    """A file that is gone may be somewhere else."""
    if problem.key is None or "there is no '" not in problem.found:
        return problem
    path = problem.where.partition(": ")[2].partition(" (")[0] or problem.key
    path = ".".join(key_path(path)) if path else problem.key
    return Problem(
        problem.where, problem.found, f"{problem.fix}; if it has moved: --{path.replace('_', '-')} PATH", problem.key
    )
