"""What a format is, and how it reads a field of a row and complains about it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from whet.config.config import Config
from whet.config.schema.data import DatasetConfig
from whet.config.tasks import bare_type, task_of
from whet.core.errors import RowError
from whet.core.types import Sample
from whet.data.templates.traced import Source, trace

Row = Mapping[str, Any]


#: What a format says that needs the chat template of the config.
CONFIGURED = "configured"


class Format(Protocol):
    """Reads the rows of one dataset.

    Attributes:
        template: the chat template its samples are rendered with: `CONFIGURED`, the name of a shipped one, or None
            where the samples are text or tokens already.
        cuts_long_rows: a row may be longer than a sample; it is cut into several rather than dropped.
    """

    @property
    def template(self) -> str | None: ...

    @property
    def cuts_long_rows(self) -> bool: ...

    def read(self, row: Row) -> Sample:
        """The sample in a row.

        Raises:
            RowError: the row is not of this format.
        """


def format_identity(format_: Format) -> str:
    """What decides, beside the options and whet's own code, what a format makes of a row; "" for one of ours.

    A format that runs a user's code has ``identity() -> str``: a hash of that code, which is part of the name of what
    is prepared with it.
    """
    identity: Callable[[], str] | None = getattr(format_, "identity", None)
    return "" if identity is None else identity()


class MakeFormat(Protocol):
    """An entry of the table of formats: options in, a format out."""

    def __call__(self, dataset: DatasetConfig, config: Config) -> Format: ...


def type_name(dataset: DatasetConfig, config: Config) -> str:
    """The type's name and style, without the path of Axolotl's modules before it; "" where it is no name."""
    return bare_type(dataset.type, task_of(config)) if isinstance(dataset.type, str) else ""


def trains_on_inputs(dataset: DatasetConfig, config: Config) -> bool:
    """Whether prompts are trained: what the dataset says, else the config."""
    return config.data.train_on_inputs if dataset.train_on_inputs is None else dataset.train_on_inputs


def required(row: Row, *names: str) -> Any:
    """The value of the first of these fields that the row has and that is not null.

    Raises:
        RowError: "missing field", with the fields the row does have.
    """
    for name in names:
        value = row.get(name)
        if value is not None:
            return value
    wanted = " or ".join(f"'{name}'" for name in names)
    empty = [name for name in names if name in row]
    state = "is null" if empty else f"is not in the row; it has {', '.join(map(str, row)) or 'no fields'}"
    raise RowError("missing field", f"{wanted} {state}")


def text(row: Row, *names: str) -> str:
    """A required field that is a string."""
    value = required(row, *names)
    if not isinstance(value, str):
        raise RowError("wrong type", f"{' or '.join(repr(name) for name in names)} is {kind(value)}, not a string")
    return value


def optional_text(row: Row, name: str) -> str:
    """A string field that may be missing or null; then empty."""
    return "" if row.get(name) is None else text(row, name)


def own(row: Row, *names: str) -> str:
    """As `text`, marked as the row's own: where it stands in a prompt of ours it may hold no control token."""
    marked: str = trace(text(row, *names), Source(0, names[0]))
    return marked


def flag(row: Row, name: str) -> bool:
    """A required field that is true or false, as `as_flag` has it."""
    return as_flag(required(row, name), f"'{name}'")


def as_flag(value: Any, shown: str) -> bool:
    """A value that is true or false, or 1 or 0, or the text of one (CSV has nothing else)."""
    if isinstance(value, bool) or (isinstance(value, int) and value in (0, 1)):
        return bool(value)
    if isinstance(value, str) and value.strip().lower() in ("true", "false", "1", "0"):
        return value.strip().lower() in ("true", "1")
    raise RowError("wrong type", f"{shown} is {kind(value)}, not true or false")


def listed(row: Row, *names: str) -> list[Any]:
    """A required field that is a list, or the JSON text of one."""
    value = parsed(required(row, *names))
    if type(value) is list:
        return value
    if isinstance(value, str | Mapping) or not isinstance(value, Sequence):
        raise RowError("wrong type", f"{' or '.join(repr(name) for name in names)} is {kind(value)}, not a list")
    return list(value)


def parsed(value: Any) -> Any:
    """The object in a string that is the JSON of an object or a list; anything else as it is."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("{", "["):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


def kind(value: Any) -> str:
    """What a JSON value is called, with its article.

    >>> kind(3), kind(None), kind({})
    ('a number', 'null', 'an object')
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, Mapping):
        return "an object"
    return "a list" if isinstance(value, list | tuple) else f"a value of type {type(value).__name__}"
