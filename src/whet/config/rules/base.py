"""What a rule is, and what rules are written with."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from whet.config.config import Config
from whet.core.errors import Problem
from whet.core.registry import Registry

Place = tuple[str | int, ...]
Rule = Callable[[Config], Problem | None]


def at(config: Config, key: str, found: str, fix: str) -> Problem:
    """A problem at the place of a key."""
    return Problem(config.where(key), found, fix, key)


def clash(config: Config, first: str, second: str, fix: str) -> Problem | None:
    """Both keys are written although one rules the other out."""
    if not (config.is_set(first) and config.is_set(second)):
        return None
    return at(config, second, f"{second} is written, and so is {first} ({config.where(first)})", fix)


def first_set(config: Config, keys: Iterable[str]) -> str | None:
    """The first of the keys that is written."""
    return next((key for key in keys if config.is_set(key)), None)


def shown_place(place: Place) -> str:
    """A place inside datasets as a person writes it: datasets[0].type.format."""
    return str(place[0]) if len(place) == 1 else ".".join([f"{place[0]}[{place[1]}]", *map(str, place[2:])])


def contributed(kind: str, name: str) -> bool:
    """Whether another package brings the name, by the entry-point group ``whet.<kind>``."""
    return name in Registry(kind, {})
