"""Rows that nearly repeat an earlier row, found from their MinHash signatures without comparing every pair.

A signature is cut into bands; rows that are equal in a whole band stand in one bucket, and only rows of one bucket are
compared (locality-sensitive hashing: Indyk and Motwani, STOC 1998). Two rows of similarity s share one of b bands of r
places with probability 1 - (1 - s^r)^b. Rows are judged in order: a row is a repeat if it resembles an earlier row that
is itself kept, so what is dropped always has a like that stays, and rows that come later change nothing.

Text that many rows share (a long system prompt) makes buckets of thousands that are not alike. So a row is compared
with the first `_MOST` of its bucket only; those that come after them stand also in finer buckets, of two bands and then
of three. The work grows with the number of rows, never with its square.

Shapes: N rows, M rows to evaluate on, K places in a signature.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from whet.data.minhash import Hashes, Ids, Signatures, estimate, jaccard, mixed

IntArray = npt.NDArray[np.int64]
Tokens = Callable[[int], Ids]
"""The ids of a row, by its number."""

_RECALL = 0.95
"""Share of pairs of exactly the threshold's similarity that meet in a bucket; more similar ones meet more often."""
_MOST = 16
_LEVELS = 3
_LOOKS = 8
"""Pairs of a row whose tokens are compared, the most alike ones."""
_PAIRS_AT_ONCE = 131_072
_COMPARED_AT_ONCE = 8_192
"""4 MB of signatures on either side."""


def near_duplicates(
    signatures: Signatures, threshold: float, tokens: Tokens | None = None, *, num_reference: int = 0
) -> IntArray:
    """For each row, an earlier one that it nearly repeats.

    Args:
        signatures: uint32[N, K], in the order of the rows; may be a memory map.
        threshold: similarity from which rows count as repeats, above 0 and up to 1.
        tokens: asked for the ids of pairs that look alike, to judge them by their shingles themselves; by the estimate
            alone without it.
        num_reference: if not 0, the first rows are a reference: none of them is judged, and every other row is
            compared with them alone.

    Returns:
        int64[N]: the number of a kept (or reference) row before it, or -1: the row is the first of its kind.
    """
    resembled = np.full(len(signatures), -1, dtype=np.int64)
    # With the tokens at hand an estimate just below the threshold deserves a look; without them it is the verdict.
    error = np.sqrt(threshold * (1 - threshold) / signatures.shape[1])
    least = threshold if tokens is None else threshold - error
    for later, earlier in _equal_signatures(signatures, num_reference):
        if tokens is None or jaccard(tokens(later), tokens(earlier)) >= threshold:
            resembled[later] = earlier
    equal = np.flatnonzero(resembled >= 0)
    buckets = _buckets(signatures, np.flatnonzero(resembled < 0), threshold, num_reference)
    for laters, candidates in buckets.pairs():
        open_pairs = candidates < num_reference if num_reference else resembled[candidates] < 0
        laters, candidates = _distinct(laters[open_pairs], candidates[open_pairs], len(signatures))
        looked_at, looks = -1, 0
        for later, earlier in _most_alike_first(signatures, laters, candidates, least):
            if resembled[later] >= 0 or resembled[earlier] >= 0:
                continue
            if tokens is not None:
                looked_at, looks = later, looks + 1 if later == looked_at else 1
                if looks > _LOOKS or jaccard(tokens(later), tokens(earlier)) < threshold:
                    continue
            resembled[later] = earlier
    kept = resembled[resembled[equal]]  # an equal row whose like was found to repeat another one repeats that one
    resembled[equal] = np.where(kept >= 0, kept, resembled[equal])
    return resembled


def bands_for(threshold: float, num_hashes: int) -> tuple[int, int]:
    """How many bands of how many places: the longest bands, so the fewest false candidates, that keep the recall."""
    for width in range(num_hashes, 1, -1):
        bands = num_hashes // width
        if 1 - (1 - threshold**width) ** bands >= _RECALL:
            return bands, width
    return num_hashes, 1


@dataclass(frozen=True, eq=False)
class Overlap:
    """Evaluation rows that stand in the training rows too.

    Attributes:
        train_row: int64[M]: a training row that the evaluation row repeats, or -1.
        exact: bool[M]: it repeats it token for token.
    """

    train_row: IntArray
    exact: npt.NDArray[np.bool_]

    @property
    def num_exact(self) -> int:
        """Evaluation rows that are training rows."""
        return int(self.exact.sum())

    @property
    def num_near(self) -> int:
        """Evaluation rows that nearly are, without the exact ones."""
        return int((self.train_row >= 0).sum()) - self.num_exact

    @property
    def rows(self) -> IntArray:
        """The evaluation rows concerned, in order."""
        return np.flatnonzero(self.train_row >= 0)

    def examples(self, most: int = 5) -> list[tuple[int, int]]:
        """(evaluation row, training row) of the first ones, nearly equal ones first: those need a look."""
        order = np.argsort(self.exact[self.rows], kind="stable")[:most]
        return [(int(row), int(self.train_row[row])) for row in self.rows[order]]


def overlap(
    train_digests: Hashes,
    eval_digests: Hashes,
    train_signatures: Signatures | None = None,
    eval_signatures: Signatures | None = None,
    threshold: float = 0.8,
    tokens: Tokens | None = None,
) -> Overlap:
    """Find the evaluation rows that stand in training.

    Args:
        train_digests, eval_digests: uint64[N, 2] and uint64[M, 2], 16 bytes of hash of each row's ids.
        train_signatures, eval_signatures: uint32[N, K] and uint32[M, K]; without them only equal rows are found.
        threshold: similarity from which rows count as nearly equal.
        tokens: as for `near_duplicates`; evaluation row m is number N + m.
    """
    train_row = _positions(train_digests, eval_digests)
    exact = train_row >= 0
    if train_signatures is not None and eval_signatures is not None and len(train_digests):
        others = np.flatnonzero(~exact)
        num_train = len(train_digests)
        stacked = np.concatenate([train_signatures, eval_signatures[others]])
        number = None if tokens is None else _renumbered(tokens, num_train, others)
        train_row[others] = near_duplicates(stacked, threshold, number, num_reference=num_train)[num_train:]
    return Overlap(train_row, exact)


@dataclass(frozen=True, eq=False)
class _Buckets:
    """Which rows are to be compared: row ``later[e]`` with ``members[first[e] : first[e] + count[e]]``.

    Attributes:
        members: int32: the rows of every bucket that has more than one.
        later: int32[E], in order; first: int64[E]; count: uint8[E].
    """

    members: npt.NDArray[np.int32]
    later: npt.NDArray[np.int32]
    first: IntArray
    count: npt.NDArray[np.uint8]

    def pairs(self) -> Iterator[tuple[IntArray, IntArray]]:
        """(later, earlier) rows, all of a later row's pairs together, some hundred thousand pairs at a time."""
        if not len(self.later):
            return
        begins = np.flatnonzero(np.concatenate([[True], self.later[1:] != self.later[:-1]]))
        totals = np.add.reduceat(self.count.astype(np.int64), begins)
        batch = np.cumsum(totals) // _PAIRS_AT_ONCE
        cuts = begins[np.concatenate([[True], batch[1:] != batch[:-1]])]
        for begin, end in zip(cuts, np.append(cuts[1:], len(self.later)), strict=True):
            count = self.count[begin:end].astype(np.int64)
            ends = np.cumsum(count)
            within = np.arange(ends[-1]) - np.repeat(ends - count, count)
            earlier = self.members[np.repeat(self.first[begin:end], count) + within]
            yield np.repeat(self.later[begin:end], count).astype(np.int64), earlier.astype(np.int64)


def _buckets(signatures: Signatures, rows: IntArray, threshold: float, num_reference: int) -> _Buckets:
    """Put rows (in order) into the buckets of every band and level."""
    num_bands, width = bands_for(threshold, signatures.shape[1])
    members, laters, firsts, counts = [], [], [], []
    num_members = 0
    for band in range(num_bands):
        inside, keys = rows, np.zeros(len(rows), dtype=np.uint64)
        for level in range(min(_LEVELS, num_bands)):
            begin = (band + level) % num_bands * width
            keys = _keys(signatures, inside, keys, slice(begin, begin + width))
            order, first, rank = _grouped(keys)
            grouped = inside[order]
            judged = (rank > 0) & (grouped >= num_reference)
            members.append(grouped.astype(np.int32))
            laters.append(grouped[judged].astype(np.int32))
            firsts.append(num_members + first[judged])
            counts.append(np.minimum(rank[judged], _MOST).astype(np.uint8))
            num_members += len(grouped)
            beyond = np.sort(order[rank >= _MOST])
            inside, keys = inside[beyond], keys[beyond]
            if not len(inside):
                break
    later = np.concatenate(laters)
    by_row = np.argsort(later, kind="stable")
    return _Buckets(
        np.concatenate(members), later[by_row], np.concatenate(firsts)[by_row], np.concatenate(counts)[by_row]
    )


def _equal_signatures(signatures: Signatures, num_reference: int) -> Iterator[tuple[int, int]]:
    """(row, first row of the same signature), without those that are reference rows themselves."""
    rows = np.arange(len(signatures))
    order, first, rank = _grouped(_keys(signatures, rows, np.zeros(len(rows), dtype=np.uint64), slice(None)))
    later, earlier = order[rank > 0], order[first[rank > 0]]
    among = later >= num_reference
    if num_reference:
        among &= earlier < num_reference
    yield from zip(later[among].tolist(), earlier[among].tolist(), strict=True)


def _grouped(keys: Hashes) -> tuple[IntArray, IntArray, IntArray]:
    """Positions of keys that occur more than once, by key; where each one's group begins, and its rank in the group."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    begins = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(keys)])
    sizes = np.diff(np.append(begins, len(keys)))
    order = order[np.repeat(sizes > 1, sizes)]
    sizes = sizes[sizes > 1]
    first = np.repeat(np.cumsum(sizes) - sizes, sizes)
    return order, first, np.arange(len(order)) - first


def _keys(signatures: Signatures, rows: IntArray, keys: Hashes, columns: slice) -> Hashes:
    """Hash some columns of some rows on top of the keys that they have."""
    found = np.empty_like(keys)
    for begin in range(0, len(rows), _COMPARED_AT_ONCE):
        part = slice(begin, begin + _COMPARED_AT_ONCE)
        hashes = mixed(keys[part] + np.uint64(1))
        for column in signatures[rows[part], columns].T:
            hashes = mixed(hashes ^ column)
        found[part] = hashes
    return found


def _most_alike_first(
    signatures: Signatures, laters: IntArray, earliers: IntArray, least: float
) -> Iterator[tuple[int, int]]:
    """Pairs of an estimate from ``least``: by their later row, the most alike of its pairs first."""
    found = np.empty(len(laters))
    for begin in range(0, len(laters), _COMPARED_AT_ONCE):
        part = slice(begin, begin + _COMPARED_AT_ONCE)
        found[part] = estimate(signatures[laters[part]], signatures[earliers[part]])
    alike = np.flatnonzero(found >= least)
    alike = alike[np.lexsort((earliers[alike], -found[alike], laters[alike]))]
    yield from zip(laters[alike].tolist(), earliers[alike].tolist(), strict=True)


def _distinct(laters: IntArray, earliers: IntArray, num_rows: int) -> tuple[IntArray, IntArray]:
    """Pairs, each once, in order."""
    pairs = np.unique(laters * num_rows + earliers)
    return pairs // num_rows, pairs % num_rows


def _renumbered(tokens: Tokens, num_train: int, others: IntArray) -> Tokens:
    return lambda row: tokens(row if row < num_train else num_train + int(others[row - num_train]))


def _positions(among: Hashes, wanted: Hashes) -> IntArray:
    """int64[M]: the first row of ``among`` that is equal to each wanted one, or -1."""
    rows = np.concatenate([among, wanted])
    order = np.lexsort((rows[:, 1], rows[:, 0]))  # stable: rows of ``among`` come first
    ordered = rows[order]
    begins = np.flatnonzero(np.concatenate([[True], (ordered[1:] != ordered[:-1]).any(axis=1)])[: len(rows)])
    first = np.empty(len(rows), dtype=np.int64)
    first[order] = np.repeat(order[begins], np.diff(np.append(begins, len(rows))))
    found = first[len(among) :]
    return np.where(found < len(among), found, -1)
