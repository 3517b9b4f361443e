"""Inspections made by hand, for tests of what is shown of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from whet.data.ledger import Ledger
from whet.data.summary import SplitFigures
from whet.reports.figures import Histogram, PacksShown
from whet.reports.inspection import Inspection, last_tokens, tokens_by_role
from whet.reports.manifest import Finding
from whet.reports.pieces import Piece
from whet.reports.rows import ShownRow, Text
from whet.reports.turns import Turn


def piece(number: int, text: str, *, special: bool = False) -> Piece:
    return Piece((number,), text, (text.encode(),), special)


def a_text(
    pieces: Sequence[Piece],
    trained: Sequence[int],
    *,
    kept: int | None = None,
    turns: Sequence[Turn] = (),
    title: str = "",
) -> Text:
    """A line; ``trained`` are positions of tokens."""
    supervised = np.zeros(sum(len(each.ids) for each in pieces), np.bool_)
    supervised[list(trained)] = True
    return Text(title, tuple(pieces), supervised, len(supervised) if kept is None else kept, tuple(turns))


def a_row(text: Text, *, number: int = 0, warnings: Sequence[str] = ()) -> ShownRow:
    supervised = int(text.supervised.sum())
    return ShownRow(f"chat.jsonl:{number + 1}", "train", number, 0, text.kept, supervised, (text,), tuple(warnings))


def an_inspection(rows: Sequence[ShownRow], *, ledger: Ledger | None = None, name: str = "my") -> Inspection:
    histogram = Histogram((0.0, 1.0), {"train": (len(rows),)})
    lengths = [row.length for row in rows]
    tokens, supervised = sum(lengths), sum(row.supervised for row in rows)
    line = SplitFigures(
        "train", len(rows), tokens, supervised, min(lengths), min(lengths), max(lengths), max(lengths), 1, 1.0
    )
    return Inspection(
        name=name,
        facts=(("config", "my.yaml"), ("sequence_len", "512")),
        datasets=("chat",),
        rows=tuple(rows),
        total=len(rows),
        splits=(line,),
        lengths=histogram,
        supervised_shares=histogram,
        packs=PacksShown(512, 1, 1.0, histogram, (tuple(range(len(rows))),), (tuple(lengths),), ((0,) * len(rows),)),
        roles=tokens_by_role(rows),
        last_tokens=last_tokens(rows),
        ledgers=(ledger or Ledger("chat", read=len(rows), kept=len(rows), samples=len(rows)),),
        engines=(),
        findings=(
            Finding("Near-duplicates", "1 row was left out.", ("left out", "repeats"), (("a.jsonl:2", "a.jsonl:1"),)),
        ),
    )
