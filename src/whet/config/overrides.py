"""Values from the environment (`WHET_*`, and a `.env` file) and from the command line."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from whet.config.fitting import Shape, shape_of
from whet.config.known_keys import ALIASES, RENAMED, every_name
from whet.config.origins import Origin
from whet.config.scalars import resolve_scalar
from whet.config.schema import SECTIONS, fields, owner
from whet.config.source import MOST_BYTES, Node, parse_flow
from whet.config.tree import Setting
from whet.core.disk import read_small
from whet.core.errors import Problem

PREFIX = "WHET_"


def key_path(name: str) -> tuple[str, ...]:
    """The place that a name of an option or variable stands for.

    >>> key_path("learning-rate"), key_path("lora.r"), key_path("special-tokens.pad-token")
    (('learning_rate',), ('lora_r',), ('special_tokens', 'pad_token'))
    >>> key_path("optimizer.learning_rate"), key_path("datasets.0.path")
    (('learning_rate',), ('datasets', '0', 'path'))
    """
    parts = name.replace("-", "_").split(".")
    if len(parts) > 1 and parts[0] in SECTIONS and parts[1] in fields() and owner(parts[1]) == parts[0]:
        parts = parts[1:]
    known = {*fields(), *every_name()}
    for length in range(1, len(parts) + 1):
        key = "_".join(parts[:length])
        if key in known:
            return (ALIASES.get(key) or RENAMED.get(key) or key, *parts[length:])
    is_prefix = any(key.startswith(f"{parts[0]}_") for key in known)  # --lora.rr was meant for lora_r
    return ("_".join(parts),) if is_prefix else tuple(parts)


def from_command_line(words: Sequence[str]) -> tuple[list[Setting], list[Problem]]:
    """Read ``--key value``, ``--key=value``, ``--switch`` and ``--no-switch``.

    A value in [..] or {..} is YAML, unless the key takes text.
    """
    settings: list[Setting] = []
    problems: list[Problem] = []
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if not word.startswith("--") or len(word) < 3:
            problems.append(Problem("command line", f"'{word}' belongs to no option", "write --key value"))
            continue
        name, equals, text = word[2:].partition("=")
        origin = Origin("command line", f"--{name}")
        if equals:
            settings.append(_setting(key_path(name), text, origin))
        elif position < len(words) and not words[position].startswith("--"):
            settings.append(_setting(key_path(name), words[position], origin))
            position += 1
        else:
            path, value = _switch(name)
            if not _is_switch(path):
                key = ".".join(path).replace("_", "-")
                problems.append(Problem(f"--{name}", f"{'.'.join(path)} is no switch", f"write --{key} VALUE"))
                continue
            settings.append(Setting(path, Node(value, origin, plain=str(value).lower())))
    return _gathered(settings), problems


_REPEATABLE = ("allow_change",)
"""Lists that grow with each time that the option is written; of other options the last one counts."""


def _gathered(settings: Sequence[Setting]) -> list[Setting]:
    """The settings, with what was written of a repeatable option in one list."""
    gathered = [setting for setting in settings if setting.path not in {(key,) for key in _REPEATABLE}]
    for key in _REPEATABLE:
        nodes = [setting.node for setting in settings if setting.path == (key,)]
        if nodes:
            items = tuple(item for node in nodes for item in (node.items or (node,)))
            gathered.append(Setting((key,), Node(items, nodes[-1].origin)))
    return gathered


def _switch(name: str) -> tuple[tuple[str, ...], bool]:
    if name.startswith(("no-", "no_")):
        path = key_path(name[3:])
        if path[0] in fields() or path[0] in every_name():
            return path, False
    return key_path(name), True


def from_environment(environ: Mapping[str, str] | None) -> tuple[list[Setting], list[Problem]]:
    """Read ``WHET_LEARNING_RATE=1e-4``; ``__`` goes into a block: ``WHET_DATASETS__0__PATH``.

    Args:
        environ: the variables; None takes those of the process over those of a ``.env`` in the working folder.
    """
    found: dict[str, tuple[str, str]] = {}
    problems: list[Problem] = []
    if environ is None:
        found, problems = _dotenv(Path(".env"))
        environ = os.environ
    found.update({name: (text, f"environment variable {name}") for name, text in environ.items()})
    settings = [
        _setting(key_path(name.removeprefix(PREFIX).lower().replace("__", ".")), text, Origin("environment", where))
        for name, (text, where) in sorted(found.items())
        if name.startswith(PREFIX)
    ]
    return settings, problems


def _dotenv(path: Path) -> tuple[dict[str, tuple[str, str]], list[Problem]]:
    """Our variables in a ``.env``, with their places, and its lines that look like ours and cannot be read."""
    if not path.is_file():
        return {}, []
    from dotenv.parser import parse_stream

    try:
        text = read_small(path, MOST_BYTES).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        return {}, [Problem(str(path), f"the file cannot be read: {error}", "save it as UTF-8, or remove it")]
    found: dict[str, tuple[str, str]] = {}
    problems: list[Problem] = []
    for binding in parse_stream(io.StringIO(text)):
        line = binding.original.line
        if PREFIX in binding.original.string and (binding.error or binding.value is None):
            problems.append(Problem(f"{path}:{line}", "the line cannot be read", "write NAME=value"))
        elif binding.key:
            found[binding.key] = (binding.value or "", f"{path}:{line} {binding.key}")
    return found, problems


def _setting(path: tuple[str, ...], text: str, origin: Origin) -> Setting:
    if text[:1] in ("[", "{") and not _takes_text(path):
        node = parse_flow(text, origin)
        if node is not None:
            return Setting(path, node)
    return Setting(path, Node(resolve_scalar(text), origin, plain=text))


def _takes_text(path: Sequence[str]) -> bool:
    """Whether the place wants text, so that brackets are part of it."""
    shape = _shape_at(path)
    return str in shape.scalars and shape.items is None and shape.pairs is None and not shape.anything


def _is_switch(path: Sequence[str]) -> bool:
    """Whether the place may be true or false; one that is not known is told as that, elsewhere."""
    shape = _shape_at(path)
    return bool in shape.scalars or shape.anything


def _shape_at(path: Sequence[str]) -> Shape:
    field = fields().get(path[0])
    annotation: Any = field.annotation if field else Any
    for part in path[1:]:
        shape = shape_of(annotation)
        if shape.block is not None and part in shape.block.model_fields:
            annotation = shape.block.model_fields[part].annotation
        elif shape.items is not None:
            annotation = shape.items
        elif shape.pairs is not None:
            annotation = shape.pairs[1]
        else:
            annotation = Any
    return shape_of(annotation)
