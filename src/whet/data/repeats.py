"""Encoded rows that repeat each other, exactly or nearly: within training data, within test data, across both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from whet.core.errors import DataError, Problem
from whet.data.chunk_file import ChunkFile
from whet.data.duplicates import Tokens, near_duplicates, overlap
from whet.data.ledger import DUPLICATE, IN_TRAINING, NEAR_DUPLICATE
from whet.data.minhash import NUM_HASHES, Ids, Offsets, signatures
from whet.data.sample_table import EncodedChunk, SampleTable
from whet.data.samples import Kind
from whet.data.store import IntArray

_PARTS: Mapping[Kind, Sequence[str]] = {
    "tokens": ("input_ids",),
    "preference": ("prompt_ids", "chosen_ids", "rejected_ids"),
    "unpaired": ("prompt_ids", "completion_ids"),
    "stepwise": ("input_ids",),
    "prompts": ("prompt_ids",),
}
"""Kind -> the ids that are compared, behind each other."""

_ROLE = 1 << 28
"""Added to the ids of an answer, and twice to those of an unwanted one, so that it is like none of another role: a pair
with its answers exchanged says the opposite. No vocabulary is so large."""

_PAIRS_NAMED = 20
_FILES_OPEN = 512


def without_duplicates(table: SampleTable) -> SampleTable:
    """Each encoded row once among the training data, and once among the test data: the first one."""
    firsts = table.firsts()
    keys = np.ascontiguousarray(table.digests[firsts]).view("V16").ravel()
    repeated = np.ones(len(firsts), dtype=np.bool_)
    for mine in _by_use(table, firsts):
        repeated[mine[np.unique(keys[mine], return_index=True)[1]]] = False
    return table.without(table.spread(repeated), DUPLICATE)


def without_near_duplicates(table: SampleTable, threshold: float) -> tuple[SampleTable, dict[str, Any]]:
    """As `without_duplicates` for encoded rows that are alike, and what was found of them.

    Args:
        threshold: similarity from which rows count as repeated.
    """
    firsts, texts = table.firsts(), _Texts(table.chunks)
    flags = np.zeros(len(firsts), dtype=np.bool_)
    details: dict[int, str] = {}
    pairs: list[tuple[str, str]] = []
    for mine in filter(len, _by_use(table, firsts)):
        chunk, row = (table.columns[name][firsts[mine]] for name in ("chunk", "row"))
        earlier = near_duplicates(texts.signatures(chunk, row), threshold, texts.reader(chunk, row))
        alike = np.flatnonzero(earlier >= 0)
        flags[mine[alike]] = True
        for at in alike[: max(0, _PAIRS_NAMED - len(pairs))].tolist():
            one, other = int(firsts[mine[at]]), int(firsts[mine[earlier[at]]])
            pairs.append((table.place(one), table.place(other)))
            details[one] = f"nearly repeats {pairs[-1][1]}"
    found = table.spread(flags)
    report = {"threshold": threshold, "rows": table.num_rows(found), "examples": pairs}
    return table.without(found, NEAR_DUPLICATE, details), report


def without_overlap(
    table: SampleTable, treatment: Literal["report", "drop", "raise"], threshold: float | None, where: str
) -> tuple[SampleTable, dict[str, Any]]:
    """Test rows that are training rows too: reported, dropped or refused; and what was found of them.

    Args:
        threshold: similarity from which rows count as equal; None: equal ones alone.
        where: place of the test datasets in the YAML.

    Raises:
        DataError: there are such rows and they are refused.
    """
    firsts = table.firsts()
    train, test = _by_use(table, firsts)
    both = firsts[np.concatenate([train, test])]
    if threshold is None:
        found = overlap(table.digests[firsts[train]], table.digests[firsts[test]])
    else:
        texts, chunk, row = _Texts(table.chunks), table.columns["chunk"][both], table.columns["row"][both]
        signed = texts.signatures(chunk, row)
        near = signed[: len(train)], signed[len(train) :]
        digests = table.digests[firsts[train]], table.digests[firsts[test]]
        found = overlap(*digests, *near, threshold=threshold, tokens=texts.reader(chunk, row))
    shared = firsts[test[found.rows]]
    num_shared, num_exact = table.num_rows(shared), table.num_rows(firsts[test[found.exact]])
    pairs = [(table.place(int(firsts[test[a]])), table.place(int(firsts[train[b]]))) for a, b in found.examples()]
    report = {
        "rows": table.num_rows(table.is_test),
        "exact": num_exact,
        "near": num_shared - num_exact,
        "examples": pairs,
    }
    if not num_shared or treatment == "report":
        return table, report
    if treatment == "raise":
        named = ", ".join(f"{one} = {other}" for one, other in pairs)
        problem = f"{num_shared:,} test rows are training rows too ({named})"
        fix = "take them out, or set eval_overlap to drop or report"
        raise DataError(Problem(where, problem, fix, "eval_overlap"))
    flags = np.zeros(len(firsts), dtype=np.bool_)
    flags[test[found.rows]] = True
    return table.without(table.spread(flags), IN_TRAINING), report


def _by_use(table: SampleTable, firsts: IntArray) -> tuple[IntArray, IntArray]:
    """Numbers of the encoded rows of the training data, and of the test data."""
    is_test = table.is_test[firsts]
    return np.flatnonzero(~is_test), np.flatnonzero(is_test)


class _Texts:
    """The ids of encoded rows, as they are compared."""

    def __init__(self, chunks: Sequence[EncodedChunk]) -> None:
        self._file: Callable[[int], ChunkFile] = lru_cache(_FILES_OPEN)(lambda chunk: ChunkFile(chunks[chunk].path))

    def signatures(self, chunk: npt.NDArray[np.int32], row: npt.NDArray[np.int32]) -> npt.NDArray[np.uint32]:
        """uint32[E, K]: MinHash signatures of rows, given by their chunks, in order, and their rows in these."""
        found = np.zeros((len(row), NUM_HASHES), np.uint32)
        borders = [*np.flatnonzero(np.diff(chunk, prepend=-1)).tolist(), len(chunk)]
        for begin, end in pairwise(borders):
            file = self._file(int(chunk[begin]))
            found[begin:end] = signatures(*_flat(file))[row[begin:end]]
        return found

    def reader(self, chunk: npt.NDArray[np.int32], row: npt.NDArray[np.int32]) -> Tokens:
        """What gives the ids of one of these rows, by its number among them."""

        def read(number: int) -> Ids:
            file, at = self._file(int(chunk[number])), int(row[number])
            names = _PARTS[file.kind]
            if len(names) == 1:
                ids: Ids = file.sequence(names[0], at)
                return ids
            roles = zip(names, _roles(file, at), strict=True)
            ids = np.concatenate([file.sequence(name, at) + np.int32(role) for name, role in roles])
            return ids

        return read


def _roles(file: ChunkFile, row: int) -> Sequence[int]:
    """What is added to the ids of each part of a row."""
    if file.kind == "unpaired":
        return 0, _ROLE if file.extra(row) else 2 * _ROLE
    return 0, _ROLE, 2 * _ROLE


def _flat(file: ChunkFile) -> tuple[Ids, Offsets]:
    """The ids of all rows of a file behind each other, and offsets int64[N + 1]."""
    columns = [file.flat(name) for name in _PARTS[file.kind]]
    if len(columns) == 1:
        return columns[0]
    roles = np.array([_roles(file, row) for row in range(len(file))], dtype=np.int32).reshape(-1, len(columns))
    lengths = [np.diff(offsets) for _, offsets in columns]
    offsets = np.concatenate([[0], np.cumsum(sum(lengths))])
    ids = np.empty(offsets[-1], dtype=np.int32)
    begins = offsets[:-1].copy()
    for (values, starts), length, role in zip(columns, lengths, roles.T, strict=True):
        to = np.repeat(begins - starts[:-1], length) + np.arange(len(values))
        ids[to] = values + np.repeat(role, length)
        begins += length
    return ids, offsets
