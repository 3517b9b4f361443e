"""Rows out of columns (Parquet, Arrow) as they were before they became columns."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import orjson
import pyarrow as pa


def rows_of_batch(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """The rows of columns as they were written before they became columns.

    Structs give every row the members of all rows, as nulls: a message without `tool_calls` comes back with
    ``tool_calls: null``, and a tool's parameters with the names of every other tool's. Those nulls are left out, at
    any depth. Columns of JSON text are parsed, maps become objects, bytes become text, and numbers that JSON has no
    word for (NaN, infinity) null.

    Raises:
        pyarrow.ArrowInvalid: the columns are not what their file says.
    """
    # A file of others may lie about where its texts begin: read without asking, they are memory of something else.
    batch.validate(full=True)
    rows: list[dict[str, Any]] = batch.to_pylist()
    converters = [(field.name, converter) for field in batch.schema if (converter := _converter(field.type))]
    for row in rows:
        for name, converter in converters:
            row[name] = converter(row[name])
    return rows


def _converter(kind: pa.DataType) -> Callable[[Any], Any] | None:
    """What makes a column's value of Python the value that was written; None where it is that already."""
    if isinstance(kind, pa.JsonType):
        return _parsed
    if isinstance(kind, pa.BaseExtensionType):
        return _converter(kind.storage_type)
    types = pa.types
    if types.is_binary(kind) or types.is_large_binary(kind):
        return as_text
    if types.is_floating(kind):
        return _finite
    if types.is_struct(kind):
        members = {member.name: _converter(member.type) or _same for member in kind}
        return lambda value: value and {key: members[key](item) for key, item in value.items() if item is not None}
    if types.is_map(kind):
        of_item = _converter(kind.item_type) or _same
        return lambda value: None if value is None else {key: of_item(item) for key, item in value}
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        of_value = _converter(kind.value_type)
        return of_value and (lambda value: value and [of_value(item) for item in value])
    return None


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


def _same(value: Any) -> Any:
    return value


def _parsed(value: str | None) -> Any:
    try:
        return value and orjson.loads(value)
    except orjson.JSONDecodeError:
        return value


def as_text(value: Any) -> str | None:
    """The text of a value that JSON has no word for; some writers store text as bytes.

    >>> as_text("né".encode()), as_text(b"\\xff"), as_text(None)
    ('né', '<1 bytes>', None)
    """
    if not isinstance(value, bytes):
        return None if value is None else str(value)
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return f"<{len(value)} bytes>"
