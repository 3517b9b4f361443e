"""Layers of values laid over one another: the tree of the file, then the environment, then the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from whet.config.origins import Origin, Replaced
from whet.config.source import Node
from whet.core.errors import Problem

Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Setting:
    """One value for one place of the tree, from the environment or the command line."""

    path: Path
    node: Node


def plant(values: Mapping[str, Any]) -> Node:
    """A tree of plain Python values; each is said to stand where its dotted path is."""
    return _planted(values, "")


def _planted(value: Any, path: str) -> Node:
    origin = Origin("file", path)
    if isinstance(value, Mapping):
        inner = {str(key): replace(_planted(item, f"{path}.{key}".lstrip(".")), key=key) for key, item in value.items()}
        return Node(inner, origin)
    if isinstance(value, list | tuple):
        return Node(tuple(_planted(item, f"{path}.{index}") for index, item in enumerate(value)), origin)
    return Node(value, origin, plain=None if isinstance(value, str) or value is None else str(value))


def overlay(root: Node, settings: Sequence[Setting]) -> tuple[Node, list[Problem]]:
    """Put each setting in its place, later ones over earlier ones; a value that gives way is remembered."""
    problems: list[Problem] = []
    for setting in settings:
        try:
            root = _placed(root, setting.path, setting.node)
        except _NoPlaceError as error:
            problems.append(Problem(setting.node.origin.where, error.found, error.fix, setting.path[0]))
    return root, problems


class _NoPlaceError(Exception):
    def __init__(self, found: str, fix: str) -> None:
        super().__init__(found)
        self.found, self.fix = found, fix


def _placed(node: Node | None, path: Path, leaf: Node) -> Node:
    if not path:
        return leaf if node is None else replace(leaf, key=node.key, origin=_over(node, leaf.origin))
    head, rest = path[0], path[1:]
    if node is not None and node.items is not None:
        items = list(node.items)
        index = _index(head, len(items))
        if index == len(items):
            items.append(_placed(None, rest, leaf))
        else:
            items[index] = _placed(items[index], rest, leaf)
        return replace(node, value=tuple(items))
    if head.isdigit() and (node is None or node.value is None):
        _index(head, 0)
        return Node((_placed(None, rest, leaf),), leaf.origin, key=None if node is None else node.key)
    if node is not None and node.entries is None and node.value is not None:
        raise _NoPlaceError(f"'{head}' cannot be set inside the single value {node.raw()!r}", "set the whole value")
    entries = {} if node is None or node.entries is None else dict(node.entries)
    placed = _placed(entries.get(head), rest, leaf)
    entries[head] = replace(placed, key=head) if placed.key is None else placed
    return Node(entries, leaf.origin) if node is None else replace(node, value=entries, plain=None)


def _index(word: str, length: int) -> int:
    if not word.isdigit() or int(word) > length:
        last = f"{length} appends one" if length else "0 makes the first"
        raise _NoPlaceError(f"'{word}' is no place in a list of {length}", f"count from 0; {last}")
    return int(word)


def _over(old: Node, origin: Origin) -> Origin:
    if old.value is None:
        return origin
    return replace(origin, replaced=(*old.origin.replaced, Replaced(old.raw(), old.origin.where)))


def origins_of(entries: Mapping[str, Node]) -> dict[str, Origin]:
    """Dotted path of every value that was written -> its origin. An empty value counts as not written."""
    found: dict[str, Origin] = {}

    def walk(node: Node, path: str) -> None:
        if node.value is None:
            return
        found[path] = node.origin
        for name, inner in (node.entries or {}).items():
            walk(inner, f"{path}.{name}")
        for index, inner in enumerate(node.items or ()):
            walk(inner, f"{path}.{index}")

    for name, node in entries.items():
        walk(node, name)
    return found
