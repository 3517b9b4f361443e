"""An `Inspection` as the JSON that the page reads. Compact: a text stands once in a table, rows are numbers.

tokens     [[id, text, flags], ...] or, for several tokens of one character, [[ids], text, flags, [hex, ...]]
rows[i].x  lines of the row, each {p: entries of `tokens`, l: run lengths of labels (masked first), c: tokens cut
           away at the end, t: [role, header, body, ...] in tokens, n: title}
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from whet import __version__
from whet.core.secrets import redact, redacted
from whet.data.ledger import Tally
from whet.reports.figures import Histogram
from whet.reports.inspection import Inspection
from whet.reports.pieces import Piece
from whet.reports.rows import WARNINGS, ShownRow, Text

SPECIAL = 1


def as_json(inspection: Inspection) -> str:
    """The inspection as JSON in ASCII that may stand in a script element: no ``<`` is in it."""
    return json.dumps(payload(inspection), ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")


def payload(inspection: Inspection) -> dict[str, Any]:
    """The inspection as plain values. Rows and their tokens are shown as they are; the rest without secrets."""
    pieces = Counter(piece for row in inspection.rows for text in row.texts for piece in text.pieces)
    entries = {piece: number for number, (piece, _) in enumerate(pieces.most_common())}
    roles = list(dict.fromkeys(turn.role for row in inspection.rows for text in row.texts for turn in text.turns))
    return {
        "name": redact(inspection.name),
        "whet": __version__,
        "facts": redacted(inspection.facts),
        "datasets": redacted(inspection.datasets),
        "total": inspection.total,
        "warnings": WARNINGS,
        "roles": roles,
        "tokens": [_token(piece) for piece in entries],
        "rows": [_row(row, entries, roles) for row in inspection.rows],
        "splits": [{**asdict(line), "name": line.name} for line in inspection.splits],
        "lengths": _histogram(inspection.lengths),
        "shares": _histogram(inspection.supervised_shares),
        "packs": _packs(inspection),
        "roleTokens": list(inspection.roles.items()),
        "lastTokens": inspection.last_tokens,
        "ledgers": [
            {
                "name": redact(ledger.name),
                "read": ledger.read,
                "kept": ledger.kept,
                "samples": ledger.samples,
                "dropped": [_tally(reason, tally) for reason, tally in ledger.dropped.items()],
                "cut": [_tally(done, tally) for done, tally in ledger.cut.items()],
            }
            for ledger in inspection.ledgers
        ],
        "engines": redacted(inspection.engines),
        "findings": redacted([asdict(finding) for finding in inspection.findings]),
    }


def run_lengths(flags: npt.NDArray[np.bool_]) -> list[int]:
    """Lengths of the runs of equal flags; the first run is of False and may be empty.

    >>> run_lengths(np.array([True, True, False]))
    [0, 2, 1]
    """
    runs = [sum(1 for _ in run) for _, run in groupby(flags.tolist())]
    return [0, *runs] if len(flags) and flags[0] else runs


def _token(piece: Piece) -> list[Any]:
    flags = SPECIAL if piece.special else 0
    if len(piece.ids) > 1:
        return [list(piece.ids), piece.text, flags, [part.hex(" ") for part in piece.parts]]
    whole = piece.text.encode() == piece.parts[0]
    return [piece.ids[0], piece.text, flags] if whole else [piece.ids[0], piece.text, flags, [piece.parts[0].hex(" ")]]


def _row(row: ShownRow, entries: dict[Piece, int], roles: list[str]) -> dict[str, Any]:
    shown = {
        "at": row.place,
        "s": row.split,
        "i": row.number,
        "d": row.dataset,
        "len": row.length,
        "sup": row.supervised,
        "x": [_text(text, entries, roles) for text in row.texts],
    }
    if row.warnings:
        shown["w"] = row.warnings
    if row.like:
        shown["like"] = row.like
    return shown


def _text(text: Text, entries: dict[Piece, int], roles: list[str]) -> dict[str, Any]:
    shown: dict[str, Any] = {"p": [entries[piece] for piece in text.pieces], "l": run_lengths(text.supervised)}
    if text.title:
        shown["n"] = text.title
    if text.num_cut:
        shown["c"] = text.num_cut
    if text.turns:
        shown["t"] = [value for turn in text.turns for value in (roles.index(turn.role), turn.header, turn.body)]
    return shown


def _histogram(histogram: Histogram) -> dict[str, Any]:
    return {"edges": histogram.edges, "counts": dict(histogram.counts), "open": histogram.open_ended}


def _packs(inspection: Inspection) -> dict[str, Any] | None:
    packs = inspection.packs
    if packs is None:
        return None
    return {
        "capacity": packs.capacity,
        "count": packs.count,
        "fill": packs.fill,
        "fills": _histogram(packs.fills),
        "first": packs.first,
        "lengths": packs.first_lengths,
        "datasets": packs.first_datasets,
    }


def _tally(name: str, tally: Tally) -> dict[str, Any]:
    return {
        "what": redact(name),
        "rows": tally.count,
        "shortest": tally.shortest,
        "longest": tally.longest,
        "examples": redacted(tally.examples),
    }
