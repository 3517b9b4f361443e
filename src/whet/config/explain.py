"""Every value of a config and where it came from, for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, Secret

from whet.config.config import Config
from whet.config.origins import DEFAULT, Origin, Replaced
from whet.config.schema import fields
from whet.core.secrets import MASK, is_secret_name, redact


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the explanation.

    Attributes:
        key: the key, dotted inside blocks ("datasets.0.path").
        value: its value; secrets are masked.
        origin: where it came from, with what it replaced.
    """

    key: str
    value: Any
    origin: Origin


def explain(config: Config) -> list[Row]:
    """A row for every key, those inside blocks and rows of datasets on their own; unset keys of blocks are left out."""
    rows: list[Row] = []
    for key in fields():
        _add_rows(rows, config, key, config.value(key))
    return rows


def _add_rows(rows: list[Row], config: Config, path: str, value: Any) -> None:
    if isinstance(value, BaseModel):
        for name, inner in value:
            if f"{path}.{name}" in config.origins:
                _add_rows(rows, config, f"{path}.{name}", inner)
    elif isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
        for index, row in enumerate(value):
            _add_rows(rows, config, f"{path}.{index}", row)
    else:
        origin = config.origin(path) if path in config.origins or "." in path else DEFAULT
        rows.append(Row(path, masked(path, value), _masked_origin(path, origin)))


def _masked_origin(path: str, origin: Origin) -> Origin:
    replaced = tuple(Replaced(masked(path, old.value), old.where) for old in origin.replaced)
    return Origin(origin.kind, origin.where, replaced)


def masked(path: str, value: Any) -> Any:
    """The value with tokens, keys and passwords hidden.

    >>> masked("mlflow_tracking_uri", "https://me:hunter2@host/x")
    'https://***@host/x'
    >>> masked("overrides_of_model_kwargs", {"token": "abc", "subfolder": "x"})
    {'token': '***', 'subfolder': 'x'}
    """
    name = path.rsplit(".", 1)[-1]
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Secret):
        return MASK
    if isinstance(value, Mapping):
        return {key: masked(str(key), item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(masked(path, item) for item in value)
    if isinstance(value, str):
        return MASK if value and is_secret_name(name) else redact(value)
    return value
