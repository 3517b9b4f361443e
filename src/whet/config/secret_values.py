"""The values of a config that nobody should see: passwords in its URLs, and whatever is called a token or a key."""

from __future__ import annotations

from collections.abc import Iterator

from whet.config.source import Node
from whet.core.secrets import is_secret_name, secrets_of_url

_ALL_SECRET = frozenset({"storage_options"})
"""Blocks all of whose text is for the eyes of a server alone."""

_OPEN_INSIDE = frozenset({"endpoint_url", "region_name", "protocol", "project", "host", "account_name"})
"""Names in such a block whose text may be seen."""


def secrets_in(root: Node) -> Iterator[str]:
    """Each secret text of a tree, keys that the schema does not know included."""
    yield from _within(root, "", hidden=False)


def _within(node: Node, name: str, *, hidden: bool) -> Iterator[str]:
    for key, inner in (node.entries or {}).items():
        inside = (hidden and key not in _OPEN_INSIDE) or key in _ALL_SECRET or is_secret_name(key)
        yield from _within(inner, key, hidden=inside)
    for item in node.items or ():
        yield from _within(item, name, hidden=hidden)
    text = node.value if isinstance(node.value, str) else node.plain
    if text is None or isinstance(node.value, bool):
        return
    if hidden:
        yield text
    yield from secrets_of_url(text)
