"""A difference between a run and the one that it goes on from, or repeats; whether it may be, and how it is told."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from whet.config.effects import Effect

DATA, TOKENIZER, TEMPLATE, BASE, PRECISION = "data", "tokenizer", "chat_template", "base_model", "precision"
ADAPTER, ROWS = "lora_model_dir", "order_of_rows"
NAMES = (DATA, TOKENIZER, PRECISION, ROWS)
"""What may be named in `allow_change` beside keys."""

_LONGEST_VALUE = 40


@dataclass(frozen=True, slots=True)
class Change:
    """One difference.

    Attributes:
        key: what a person names to allow it.
        was, now: its values as YAML spells them.
        where: the place of the new value.
        effect: what it does to the rest of the run.
        note: a sentence about it; for what is fixed, why.
    """

    key: str
    was: str
    now: str
    where: str
    effect: Effect
    note: str = ""

    @property
    def names(self) -> set[str]:
        """Each of them allows it."""
        return {self.key, self.key.partition(".")[0], *([DATA] if self.key.startswith("datasets") else [])}

    @property
    def is_other_run(self) -> bool:
        return self.effect in (Effect.CHANGES, Effect.FIXED)


@dataclass(frozen=True)
class Verdict:
    """Differences, judged by what the user allows.

    Attributes:
        refused: would make it another run.
        allowed: would too, and were named.
        harmless: leave the numbers as they are, but for the last digits.
        unseen: do not touch what is computed.
    """

    refused: Sequence[Change] = ()
    allowed: Sequence[Change] = ()
    harmless: Sequence[Change] = ()
    unseen: Sequence[Change] = ()


def names_in(written: str | Sequence[str] | None) -> tuple[str, ...]:
    """What `allow_change` names: a list, or a text with commas; hyphens are underscores, as in options.

    >>> names_in("seed, data"), names_in(["learning-rate"])
    (('seed', 'data'), ('learning_rate',))
    """
    listed = written.split(",") if isinstance(written, str) else written or ()
    return tuple(name.strip().replace("-", "_") for name in listed if name.strip())


def judged(changes: Iterable[Change], allowed: Iterable[str]) -> Verdict:
    """Sort differences by what may become of them. What is fixed cannot be allowed."""
    names = set(allowed)
    sorted_out: dict[str, list[Change]] = {"refused": [], "allowed": [], "harmless": [], "unseen": []}
    for change in changes:
        if change.is_other_run:
            is_allowed = change.effect is Effect.CHANGES and bool(change.names & names)
            sorted_out["allowed" if is_allowed else "refused"].append(change)
        else:
            sorted_out["unseen" if change.effect is Effect.NONE else "harmless"].append(change)
    return Verdict(**sorted_out)


def table(changes: Sequence[Change]) -> str:
    """The differences in columns: key, old value, new value, where the new one is written, and what is to be said."""
    rows = [("key", "was", "is", "where", "")]
    rows += [(each.key, _shortened(each.was), _shortened(each.now), each.where, each.note) for each in changes]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]) for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def spelt(value: Any) -> str:
    """A value as YAML has it."""
    if value is None:
        return "(empty)"
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def _shortened(text: str) -> str:
    text = text.replace("\n", "\\n")
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."
