"""Rows that are tokens already: ``input_ids`` and, if they want, ``labels`` and ``attention_mask``; no ``type``."""

from __future__ import annotations

from dataclasses import dataclass

from whet.config.config import Config
from whet.config.schema.data import DatasetConfig
from whet.core.errors import RowError
from whet.core.types import IGNORED, Tokens
from whet.data.formats.base import Row, kind, listed


@dataclass(frozen=True, slots=True)
class PreTokenised:
    """``labels`` hold the id itself where it is trained and -100 elsewhere; without them every token is trained."""

    template: str | None = None
    cuts_long_rows: bool = False

    def read(self, row: Row) -> Tokens:
        ids = _integers(row, "input_ids")
        if not ids:
            raise RowError("empty row", "'input_ids' is an empty list")
        labels = _integers(row, "labels") if row.get("labels") is not None else ids
        mask = _integers(row, "attention_mask") if row.get("attention_mask") is not None else [1] * len(ids)
        if not len(ids) == len(labels) == len(mask):
            found = f"{len(ids)} input_ids, {len(labels)} labels, attention_mask of {len(mask)}"
            raise RowError("lengths differ", found)
        for at, (token, label) in enumerate(zip(ids, labels, strict=True)):
            if label not in (token, IGNORED):
                found = f"label {at} is {label}; it must be {IGNORED} or the token's own id, {token}"
                raise RowError("label is not its token", f"{found} (labels are not shifted)")
        kept = [at for at, real in enumerate(mask) if real]
        return Tokens([ids[at] for at in kept], [labels[at] != IGNORED for at in kept])


def _integers(row: Row, name: str) -> list[int]:
    values = listed(row, name)
    wrong = next((value for value in values if not isinstance(value, int) or isinstance(value, bool)), None)
    if wrong is not None:
        raise RowError("wrong type", f"'{name}' holds {kind(wrong)}; it is a list of whole numbers")
    return values


def tokens(dataset: DatasetConfig, config: Config) -> PreTokenised:
    """``{input_ids, labels?, attention_mask?}``."""
    return PreTokenised()
