"""From a tree of known keys to the sections of the schema, and from what Pydantic finds to our problems."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from whet.config.fitting import Shape, fit, shape_of
from whet.config.keys import Findings
from whet.config.schema import SECTIONS, Section, fields
from whet.config.source import Node
from whet.core.errors import Problem
from whet.core.nearest import nearest

REQUIRED = {
    "base_model": ("?", "add `base_model: <folder or hub id>`"),
    "learning_rate": (1.0, "add `learning_rate: 2e-4` (LoRA), or 2e-5 when every weight is trained"),
}
"""Keys without a default -> a stand-in while other problems are looked for, and the advice."""

_BOUNDS = {"greater_than": "above", "greater_than_equal": "from", "less_than": "below", "less_than_equal": "up to"}


def sections_of(entries: Mapping[str, Node], file: str, findings: Findings) -> dict[str, Section]:
    """Every section with its values; a value that is wrong is reported and stands at its default."""
    fitted = {
        name: value for name, node in entries.items() if (value := fit(node, fields()[name].annotation)) is not None
    }
    findings.problems += [
        Problem(entries[key].origin.where, f"{key} is empty", advice, key)
        if key in entries
        else Problem(file, f"{key} is missing", advice, key)
        for key, (_, advice) in REQUIRED.items()
        if key not in fitted and key not in findings.spoilt
    ]
    made: dict[str, Section] = {}
    for name, section in SECTIONS.items():
        values = {key: fitted[key] for key in section.model_fields if key in fitted}
        made[name] = _section(section, _with_stand_ins(section, values, findings), entries, findings)
    return made


def _section(
    section: type[Section], values: dict[str, Any], entries: Mapping[str, Node], findings: Findings
) -> Section:
    """The section; wrong values are reported and left out, the smallest part that can be."""
    try:
        return section.model_validate(values)
    except ValidationError as error:
        wrong = _by_place(error.errors(include_url=False), entries)
    findings.problems += [_problem(path, errors, entries) for path, errors in wrong.items()]
    findings.spoilt |= {str(path[0]) for path in wrong if len(path) == 1}
    good: Any = values
    for path in sorted(wrong, key=_deepest_first):
        lacks_path = any(error["type"] == "missing" and error["loc"][-1] == "path" for error in wrong[path])
        good = _with_path(good, path) if lacks_path else _without(good, path)
    try:
        return section.model_validate(_with_stand_ins(section, good, findings))
    except ValidationError as error:
        spoilt = {str(detail["loc"][0]) for detail in error.errors(include_url=False)} | {
            str(path[0]) for path in wrong
        }
    findings.spoilt |= spoilt
    rest = {key: value for key, value in values.items() if key not in spoilt}
    return section.model_validate(_with_stand_ins(section, rest, findings))


def _with_stand_ins(section: type[Section], values: dict[str, Any], findings: Findings) -> dict[str, Any]:
    missing = {key: REQUIRED[key][0] for key in section.model_fields if key in REQUIRED and key not in values}
    findings.spoilt |= set(missing)
    return {**values, **missing}


def _deepest_first(path: tuple[str | int, ...]) -> tuple[int, tuple[int, ...]]:
    """Items are taken out of a list from its end, so that the places before them stay."""
    return -len(path), tuple(-part if isinstance(part, int) else 0 for part in path)


def _without(value: Any, path: tuple[str | int, ...]) -> Any:
    """The value with one part of it left out."""
    head, rest = path[0], path[1:]
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if key != head or rest}
        return {key: _without(item, rest) if key == head and rest else item for key, item in kept.items()}
    if isinstance(value, list | tuple) and isinstance(head, int):
        before, after = value[:head], value[head + 1 :]
        middle = (_without(value[head], rest),) if rest else ()
        return (*before, *middle, *after)
    return value


def _with_path(values: dict[str, Any], path: tuple[str | int, ...]) -> dict[str, Any]:
    """The values with a stand-in for the path that a dataset's row lacks, so that the rows keep their numbers."""
    key, index = str(path[0]), path[1]
    rows = [{**row, "path": "?"} if number == index else row for number, row in enumerate(values[key])]
    return {**values, key: tuple(rows)}


def _by_place(
    errors: list[ErrorDetails], entries: Mapping[str, Node]
) -> dict[tuple[str | int, ...], list[ErrorDetails]]:
    """Errors by the place of the tree they are about. Pydantic adds the branch of a union to a place; we do not."""
    places: dict[tuple[str | int, ...], list[ErrorDetails]] = {}
    for error in errors:
        node: Node | None = entries.get(str(error["loc"][0]))
        path: list[str | int] = [error["loc"][0]]
        for part in error["loc"][1:]:
            inner = _child(node, part)
            if inner is not None:
                node = inner
                path.append(part)
        places.setdefault(tuple(path), []).append(error)
    # an error about a whole list or mapping says nothing beside one about an item in it
    return {
        path: found
        for path, found in places.items()
        if not any(len(other) > len(path) and other[: len(path)] == path for other in places)
        or any(error["type"] in ("missing", "value_error") for error in found)
    }


def _child(node: Node | None, part: str | int) -> Node | None:
    if node is None:
        return None
    if isinstance(part, int) and node.items is not None:
        return node.items[part] if part < len(node.items) else None
    return node.entries.get(str(part)) if node.entries is not None else None


def _problem(path: tuple[str | int, ...], errors: list[ErrorDetails], entries: Mapping[str, Node]) -> Problem:
    """One problem for all that Pydantic says about one place."""
    node = entries[str(path[0])]
    annotation: Any = fields()[str(path[0])].annotation
    for part in path[1:]:
        annotation = _inner(shape_of(annotation), part)
        node = _child(node, part) or node
    shown, shape = dotted(path), shape_of(annotation)
    where, key = node.origin.where, str(path[0])
    for error in errors:
        if error["type"] == "missing":
            name = str(error["loc"][-1])
            return Problem(where, f"{shown} has no {name}", f"add `{name}: ...`", key)
        if error["type"] == "value_error":
            return Problem(where, f"{shown} is {_found(node)}", str(error["ctx"]["error"]), key)
    return Problem(where, f"{shown} is {_found(node)}", _wanted(errors, node, shape), key)


def _wanted(errors: list[ErrorDetails], node: Node, shape: Shape) -> str:
    bounds = [f"{_BOUNDS[error['type']]} {_bound(error['ctx'])}" for error in errors if error["type"] in _BOUNDS]
    if bounds:
        return f"write {shape} {' and '.join(dict.fromkeys(bounds))}"
    words = [str(word) for word in shape.literals] + (["true", "false"] if bool in shape.scalars else [])
    if shape.literals and isinstance(node.value, str):
        close = nearest(node.value, words)
        if close:
            return f"did you mean '{close}'?"
    if any(error["type"] in ("string_too_short", "too_short") for error in errors):
        return "write at least one"
    if shape.items is not None and node.items is None and node.entries is None:
        return f"write {shape}: [{node.raw()}]"
    return f"write {shape}"


def _bound(context: Mapping[str, Any]) -> str:
    bound = next(context[name] for name in ("gt", "ge", "lt", "le") if name in context)
    return f"{bound:g}"


def _inner(shape: Shape, part: str | int) -> Any:
    if shape.block is not None and part in shape.block.model_fields:
        return shape.block.model_fields[str(part)].annotation
    if isinstance(part, int) and shape.items is not None:
        return shape.items
    return shape.pairs[1] if shape.pairs is not None else Any


def _found(node: Node) -> str:
    if node.entries is not None:
        return "a mapping"
    if node.items is not None:
        return "a list" if node.items else "an empty list"
    if node.value is None:
        return "empty"
    return f"{node.raw()!r}"


def dotted(path: tuple[str | int, ...]) -> str:
    """A path as a person writes it.

    >>> dotted(("datasets", 0, "path"))
    'datasets[0].path'
    """
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
