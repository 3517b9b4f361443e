"""Which samples of a chunk are kept, cut, split or dropped: arrays in, arrays out; and the account of its rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from whet.data.chunk_file import EncodedRows, Fault
from whet.data.chunks import Chunk
from whet.data.ledger import NOTHING_LEFT, PARTLY, SAME_LEFT, TOO_LONG, TOO_SHORT, UNSUPERVISED, Ledger, Tally
from whet.data.readers import place

Strategy = Literal["drop", "truncate", "raise", "split"]
CUT, SPLIT = "cut at sequence_len", "split at sequence_len"
Ints = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a sample must keep to.

    Attributes:
        most: tokens a sample may have.
        fewest: tokens it must have.
        strategy: what becomes of a longer one; "split" makes several samples of it (of a preference: as "truncate"),
            "raise" drops it here and lets the preparation end with an error.
    """

    most: int
    fewest: int
    strategy: Strategy


@dataclass(frozen=True, eq=False)
class Admitted:
    """The samples of a chunk that stay.

    Attributes:
        row: int32[K], their rows in the chunk file, in order; a row that is split stands there several times.
        begin, end: int32[K], the tokens that each keeps.
        num_supervised: int32[K], targets among them.
        dropped: reason -> rows of the chunk file that give nothing.
        done: what was done -> rows of the chunk file that were cut or split.
    """

    row: Ints
    begin: Ints
    end: Ints
    num_supervised: Ints
    dropped: dict[str, Ints] = field(default_factory=dict)
    done: dict[str, Ints] = field(default_factory=dict)


def admit(chunk: EncodedRows, limits: Limits) -> Admitted:
    """Apply the limits to every sample of a chunk."""
    tokens, supervised = chunk.num_tokens, chunk.num_supervised
    rows = np.arange(len(tokens), dtype=np.int32)
    limited = chunk.kind != "prompts"  # what is answered in training may have any length, and has no targets yet
    short = (tokens < limits.fewest) & limited
    empty = ~short & (supervised == 0) & limited
    long = ~short & ~empty & (tokens > limits.most) & limited
    whole = rows[~short & ~empty & ~long]
    dropped = {UNSUPERVISED: rows[empty]}
    pieces: list[_Piece] = []
    done = ""
    if limits.strategy in ("drop", "raise"):
        dropped[TOO_LONG] = rows[long]
    else:
        done = SPLIT if limits.strategy == "split" and chunk.kind == "tokens" else CUT
        outcomes = {row: _pieces(chunk, row, limits, split=done == SPLIT) for row in rows[long].tolist()}
        pieces = [piece for outcome in outcomes.values() if not isinstance(outcome, str) for piece in outcome]
        for reason in (NOTHING_LEFT, SAME_LEFT):
            lost = [row for row, outcome in outcomes.items() if outcome == reason]
            dropped[reason] = np.array(lost, dtype=np.int32)
    dropped[TOO_SHORT] = rows[short]
    cut = np.array(pieces, dtype=np.int32).reshape(-1, 4).T
    row = np.concatenate([whole, cut[0]])
    order = np.argsort(row, kind="stable")
    begin = np.concatenate([np.zeros(len(whole), np.int32), cut[1]])[order]
    end = np.concatenate([tokens[whole], cut[2]])[order]
    targets = np.concatenate([supervised[whole], cut[3]])[order]
    was_cut = {done: np.unique(cut[0])} if done else {}
    return Admitted(row[order], begin, end, targets, _filled(dropped), _filled(was_cut))


def account_for(
    chunk: Chunk, num_rows: int, faults: Mapping[str, Fault], rows: EncodedRows, limits: Limits, ledger: Ledger
) -> Admitted:
    """Apply the limits to a chunk, and enter all of its rows that are not whole samples in a ledger.

    Where a row gave several samples and some of them are kept, the others are no dropped row but a part of one.

    Args:
        chunk: for the places of its rows.
        num_rows: its lines that are rows, encoded or not.
        faults: reason -> those of them that could not be encoded.
        rows: those that could.
    """
    ledger.read += num_rows + len(chunk.faults)
    for line, fault in chunk.faults:
        ledger.drop(fault.reason, place(chunk.file, line, chunk.by_line), fault.detail, bad=True)
    for reason, found in faults.items():
        named = ((place(chunk.file, _number(chunk, line), chunk.by_line), detail) for line, detail in found.examples)
        ledger.drops(reason, bad=found.bad).add_many(found.count, named)
    admitted, lengths = admit(rows, limits), rows.num_tokens
    numbers = numbers_of(chunk, rows.line)
    for tally, lost in _losses(admitted, rows.line, ledger):
        first = lost[np.unique(rows.line[lost], return_index=True)[1]]
        tally.add_many(len(first), _named(chunk, numbers[first], lengths[first]), lengths[lost])
    return admitted


def _losses(admitted: Admitted, line: Ints, ledger: Ledger) -> Iterator[tuple[Tally, Ints]]:
    """The tallies of what a chunk lost, each with the rows of the chunk file that it is to count.

    A row whose samples are dropped for several reasons is entered for the first of them.
    """
    kept = np.isin(line, line[admitted.row])
    entered = np.zeros(len(line), dtype=np.bool_)
    for reason, lost in admitted.dropped.items():
        bad = reason == UNSUPERVISED
        whole, partly = lost[~kept[lost] & ~entered[lost]], lost[kept[lost]]
        entered |= np.isin(line, line[whole])
        if len(whole):
            yield ledger.drops(reason, bad=bad), whole
        if len(partly):
            yield ledger.cuts(PARTLY + reason, bad=bad), partly
    for done, cut in admitted.done.items():
        yield ledger.cuts(done), cut


def numbers_of(chunk: Chunk, lines: Ints) -> npt.NDArray[np.int64]:
    """int64[N]: the number in its file of each line of a chunk."""
    if chunk.numbers is None:
        return lines.astype(np.int64) + chunk.first
    return np.asarray(chunk.numbers, dtype=np.int64)[lines]


def _number(chunk: Chunk, line: int) -> int:
    return int(numbers_of(chunk, np.array([line], dtype=np.int32))[0])


def _named(chunk: Chunk, numbers: npt.NDArray[np.int64], lengths: Ints) -> Iterator[tuple[str, str]]:
    for number, length in zip(numbers.tolist(), lengths.tolist(), strict=True):
        yield place(chunk.file, number, chunk.by_line), f"{length} tokens"


def _filled(rows: dict[str, Ints]) -> dict[str, Ints]:
    return {name: values for name, values in rows.items() if len(values)}


_Piece = tuple[int, int, int, int]
"""(row, begin, end, targets)"""


def _pieces(chunk: EncodedRows, row: int, limits: Limits, *, split: bool) -> Sequence[_Piece] | str:
    """What is kept of a sample that is too long, or why nothing is."""
    if chunk.kind in ("preference", "unpaired"):
        names = ("chosen_ids", "rejected_ids") if chunk.kind == "preference" else ("completion_ids",)
        room = limits.most - len(chunk.sequence("prompt_ids", row))
        answers = [chunk.sequence(name, row)[: max(room, 0)] for name in names]
        if not all(map(len, answers)):
            return NOTHING_LEFT
        if len(answers) == 2 and np.array_equal(answers[0], answers[1]):
            return SAME_LEFT
        return [(row, 0, limits.most, sum(map(len, answers)))]
    supervised = chunk.sequence("supervised", row)
    begins = range(0, len(supervised), limits.most) if split else range(1)
    first = 0 if chunk.kind == "stepwise" else 1  # the first token of a text is predicted by nothing
    pieces = [(begin, min(begin + limits.most, len(supervised))) for begin in begins]
    counted = [(row, begin, end, int(np.count_nonzero(supervised[begin + first : end]))) for begin, end in pieces]
    return [piece for piece in counted if piece[2] - piece[1] >= limits.fewest and piece[3]] or NOTHING_LEFT
