"""What a manifest says beside the ledgers: keys that a set may or may not have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class NearDuplicates:
    """What is known of rows that nearly equal others.

    Attributes:
        lines: (name, value), to be shown.
        places: rows that are named as nearly the same as another.
    """

    lines: tuple[tuple[str, str], ...] = ()
    places: frozenset[str] = frozenset()


def engine_notes(manifest: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """The engine that encoded each dataset, and why; empty where the manifest does not say."""
    return _lines(manifest.get("engines"))


def near_duplicates(manifest: Mapping[str, Any]) -> NearDuplicates:
    """What the manifest says of near-duplicates."""
    value = manifest.get("near_duplicates")
    return NearDuplicates(_lines(value), frozenset(_strings(value)))


def _lines(value: Any) -> tuple[tuple[str, str], ...]:
    if isinstance(value, Mapping):
        return tuple((str(name), _said(inner)) for name, inner in value.items())
    if isinstance(value, list):
        return tuple((str(number), _said(inner)) for number, inner in enumerate(value, start=1))
    return (("", _said(value)),) if value else ()


def _said(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{name}: {_said(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(_said, value))
    return str(value)


def _strings(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [text for inner in value.values() for text in _strings(inner)]
    if isinstance(value, list):
        return [text for inner in value for text in _strings(inner)]
    return [value] if isinstance(value, str) else []
