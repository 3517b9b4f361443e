"""Where a value came from."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["file", "environment", "command line", "default", "derived"]


@dataclass(frozen=True, slots=True)
class Replaced:
    """A value that another one took the place of."""

    value: Any
    where: str


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value came from, and what it replaced.

    Attributes:
        kind: the layer: default < file < environment < command line; `derived` from another key.
        where: the place as a person finds it: ``my.yaml:12:9``, ``environment variable WHET_SEED``, ``--seed``.
        replaced: values of lower layers that this one took the place of, lowest first.

    >>> print(Origin("file", "my.yaml:12:9"))
    my.yaml:12:9
    >>> print(Origin("command line", "--seed", (Replaced(1, "my.yaml:2:1"),)))
    --seed (replaces 1 of my.yaml:2:1)
    """

    kind: Kind
    where: str = ""
    replaced: tuple[Replaced, ...] = field(default=())

    def __str__(self) -> str:
        place = self.where or self.kind
        if not self.replaced:
            return place
        return f"{place} (replaces {', '.join(f'{_written(old.value)} of {old.where}' for old in self.replaced)})"


def _written(value: Any) -> str:
    """As YAML spells it."""
    return json.dumps(value, default=str) if not isinstance(value, str) else value


DEFAULT = Origin("default")
