"""Tables of names: what exists is a list to read, what is used is imported on demand."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from whet.core.errors import ConfigError, Problem
from whet.core.nearest import suggestion


class Registry:
    """A table from a name to ``"module:attribute"``.

    A third party adds an entry through the entry-point group ``whet.<kind>``; a name of ours cannot be replaced.

    Args:
        kind: plural noun of what is listed ("formats"); it names the entry-point group and appears in errors.
        table: name -> ``"module:attribute"``.
    """

    def __init__(self, kind: str, table: Mapping[str, str]) -> None:
        self.kind = kind
        self._table = dict(table)

    def __contains__(self, name: str) -> bool:
        return name in self._table or name in self._contributed()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def names(self) -> list[str]:
        """Every name, ours and contributed, sorted."""
        return sorted({*self._table, *self._contributed()})

    def load(self, name: str, where: str = "") -> Any:
        """Import and return the entry.

        Args:
            name: an entry of the table.
            where: the place to name in the error, ``file:line:column`` of the config as a rule.

        Raises:
            ConfigError: no such name.
        """
        if name in self._table:
            module, attribute = self._table[name].split(":")
            return getattr(importlib.import_module(module), attribute)
        contributed = self._contributed()
        if name in contributed:
            return contributed[name].load()
        raise ConfigError(Problem(where, f"'{name}' is not among the {self.kind}", suggestion(name, self.names())))

    def _contributed(self) -> dict[str, EntryPoint]:
        return {entry.name: entry for entry in entry_points(group=f"whet.{self.kind}")}
