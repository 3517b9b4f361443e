"""What ``whet check`` looks at before a run: one file a check, one line each in the table, run in its order."""

from __future__ import annotations

from whet.core.registry import Registry

_TABLE = {
    "output": "whet.checks.output:check",
    "packages": "whet.checks.packages:check",
    "model": "whet.checks.model:check",
    "tokenizer": "whet.checks.tokenizer:check",
    "adapter": "whet.checks.adapter:check",
    "data": "whet.checks.data:check",
    "plan": "whet.checks.plan:check",
}

CHECKS = Registry("checks", _TABLE)


def in_order() -> list[str]:
    """The names as the table lists them, then those contributed by other packages."""
    return [*_TABLE, *(name for name in CHECKS if name not in _TABLE)]
