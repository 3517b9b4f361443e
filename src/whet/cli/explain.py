"""``whet config explain``: each value and the place it comes from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from whet.cli.tables import print_rows
from whet.config import Config, ResolvedRun, explain, resolve
from whet.config.schema import fields as config_keys

# Fields of a ResolvedRun that are not values of the run.
_NOT_VALUES = frozenset({"config", "hardware", "choices"})


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table."""

    key: str
    value: str
    origin: str


def print_explanation(config: Config, *, every_key: bool) -> None:
    """Print what was written, then what follows from it on this machine.

    Raises:
        ConfigError: the written values cannot be resolved on this machine.
    """
    from whet.distributed.hardware import probe

    resolved = resolve(config, probe())
    lines = [*explain_written(config, every_key=every_key), *explain_derived(resolved)]
    print_rows(("key", "value", "origin"), [(line.key, line.value, line.origin) for line in lines])


def explain_written(config: Config, *, every_key: bool) -> Iterator[Line]:
    """The values in the order of the schema; those nobody wrote only if ``every_key``."""
    for row in explain(config):
        if every_key or row.origin.kind != "default":
            yield Line(row.key, as_yaml(row.value), str(row.origin))


def explain_derived(resolved: ResolvedRun) -> Iterator[Line]:
    """What was decided for this machine, where it is not simply what was written."""
    known = config_keys()
    for field in fields(resolved):
        if field.name in _NOT_VALUES:
            continue
        value = getattr(resolved, field.name)
        as_written = field.name in known and resolved.config.value(field.name) == value
        if not as_written:
            yield Line(
                field.name, as_yaml(value), f"derived: {resolved.choices.get(field.name, 'from the values above')}"
            )


def as_yaml(value: Any) -> str:
    """A value as it would be written in the YAML, on one line.

    >>> as_yaml(True), as_yaml(None), as_yaml("adamw_torch"), as_yaml(("q_proj",)), as_yaml("")
    ('true', 'null', 'adamw_torch', '["q_proj"]', '""')
    """
    if isinstance(value, str) and value and value.isprintable():
        return value
    return json.dumps(value, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:
    """What json does not know: mappings that cannot be written to, and values that name themselves."""
    try:
        return dict(value)
    except (TypeError, ValueError):
        return str(value)
