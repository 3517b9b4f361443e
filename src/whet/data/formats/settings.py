"""The options that a user's own function is given, and which of them it asked for before rows are read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import Any

from pydantic import BaseModel

from whet.config.config import Config
from whet.config.schema import fields
from whet.core.errors import ConfigError, Problem


class Asked:
    """Names of the options that a function has asked for.

    A prepared set is named by their values, before its rows are read. So once rows are read (`close`) only these may be
    asked for again. Every process that encodes makes the function, and closes this, anew: no other has to watch it.

    Args:
        problem: what is wrong when an option is asked for late, given its name.
    """

    def __init__(self, problem: Callable[[str], Problem]) -> None:
        self._names: set[str] = set()
        self._problem = problem
        self._is_closed = False

    def close(self) -> None:
        self._is_closed = True

    def note(self, name: str) -> None:
        """An option is asked for.

        Raises:
            ConfigError: for the first time, and rows are read already.
        """
        if self._is_closed and name not in self._names:
            raise ConfigError(self._problem(name))
        self._names.add(name)


class Settings(Mapping[str, Any]):
    """Options whose names are attributes and keys; one that is not there is None, as Axolotl's are.

    An option is looked up when it is asked for, so what a function reads is known, and what it does not read does not
    name the prepared set.

    Args:
        names: of the options.
        value: of a name.
        asked: notes what is asked for.
        prefix: stands before the names there.
    """

    def __init__(self, names: Collection[str], value: Callable[[str], Any], asked: Asked, prefix: str = "") -> None:
        self._names, self._value, self._asked, self._prefix = names, value, asked, prefix

    @classmethod
    def of_config(cls, config: Config, asked: Asked) -> Settings:
        """All options, by their names at the top level of the YAML."""
        return cls(fields(), config.value, asked)

    @classmethod
    def of_block(cls, block: BaseModel, asked: Asked, name: str) -> Settings:
        """Those of a block, which is called ``name``."""
        return cls(type(block).model_fields, partial(getattr, block), asked, f"{name}.")

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            raise KeyError(name)
        self._asked.note(f"{self._prefix}{name}")
        return self._given(self._value(name), f"{self._prefix}{name}")

    def _given(self, value: Any, name: str) -> Any:
        """A value as the function sees it: blocks as settings, also those in lists."""
        if isinstance(value, BaseModel):
            return Settings.of_block(value, self._asked, name)
        if isinstance(value, dict):
            return Settings(value, value.__getitem__, self._asked, f"{name}.")
        if isinstance(value, tuple) and any(isinstance(item, BaseModel) for item in value):
            return tuple(self._given(item, f"{name}[{number}]") for number, item in enumerate(value))
        return value

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self.get(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
