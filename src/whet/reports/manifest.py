"""What a manifest says beside the ledgers: keys that a set may or may not have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Finding:
    """Rows that were found to be like others.

    Attributes:
        title, note: what was looked for, and what was found.
        columns: what the two places of a pair are.
        pairs: the first few.
    """

    title: str
    note: str
    columns: tuple[str, str]
    pairs: tuple[tuple[str, str], ...]


def engine_notes(manifest: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """The engine that encoded each dataset, and why; empty where the manifest does not say."""
    return tuple((str(name), str(note)) for name, note in manifest.get("engines", {}).items() if note)


def findings(manifest: Mapping[str, Any]) -> tuple[Finding, ...]:
    """Near-duplicates and evaluation rows in training, where they were looked for."""
    found = []
    if near := manifest.get("near_duplicates"):
        rows = "1 row was" if near["rows"] == 1 else f"{near['rows']:,} rows were"
        note = f"{rows} left out, at least {near['threshold']:.0%} like an earlier one that is kept."
        found.append(Finding("Near-duplicates", note, ("left out", "nearly repeats"), _pairs(near)))
    if overlap := manifest.get("eval_overlap"):
        note = (
            f"Of {overlap['rows']:,} test rows {overlap['exact']:,} are training rows, {overlap['near']:,} nearly so."
        )
        found.append(Finding("Test rows in training", note, ("test row", "training row"), _pairs(overlap)))
    return tuple(found)


def _pairs(entry: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((str(one), str(other)) for one, other in entry["examples"])
