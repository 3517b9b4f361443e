"""Encoded chunks -> the samples of a prepared set: limits, duplicates, the training and the validation split.

Works on arrays of lengths and hashes; ids are read only where rows are compared for near duplicates or cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from whet.core.errors import DataError, Problem
from whet.data.admission import Limits, Strategy, account_for, numbers_of
from whet.data.chunk_file import ChunkAccount, ChunkFile
from whet.data.chunks import Chunk
from whet.data.duplicates import near_duplicates, overlap
from whet.data.ledger import DUPLICATE, IN_TRAINING, NEAR_DUPLICATE, Ledger
from whet.data.minhash import signatures
from whet.data.readers import place
from whet.data.store import COLUMNS, Index, IntArray

Hashes = npt.NDArray[np.uint64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class SetOptions:
    """All that decides, beside the encoded rows, which samples a set has. Every field is part of the set's name.

    Attributes:
        sequence_len, eval_sequence_len: most tokens of a sample, in training and of test datasets.
        excess_length_strategy: what becomes of longer ones.
        min_sample_len: fewest tokens.
        exact_deduplication: keep one of equal rows.
        near_deduplication: similarity from which rows count as repeated; None: they are not compared.
        eval_overlap: what to do about test rows that are training rows too.
        val_set_size: share, or number, of samples to validate on.
        val_set_from: "random" draws them by content and seed, "tail" takes the last.
        shuffle_before_merging: shuffle each dataset once.
        seed: of what is drawn; None where nothing is.
    """

    sequence_len: int
    eval_sequence_len: int
    excess_length_strategy: Strategy
    min_sample_len: int
    exact_deduplication: bool = False
    near_deduplication: float | None = None
    eval_overlap: Literal["report", "drop", "raise"] = "report"
    val_set_size: float = 0.0
    val_set_from: Literal["random", "tail"] = "random"
    shuffle_before_merging: bool = False
    seed: int | None = None


@dataclass(frozen=True)
class EncodedChunk:
    """A chunk, the account of its encoding, and the file that holds it."""

    chunk: Chunk
    account: ChunkAccount
    path: Path


@dataclass(frozen=True)
class EncodedPart:
    """A dataset with all its chunks.

    Attributes:
        name: in reports.
        where: place in the YAML of its path.
        is_test: one of `test_datasets`.
        cuts_long_rows: its long rows are split, whatever the strategy.
        chunks: in order.
    """

    name: str
    where: str
    is_test: bool
    cuts_long_rows: bool
    chunks: Sequence[EncodedChunk]


@dataclass(frozen=True, eq=False)
class Assembly:
    """The samples of a set.

    Attributes:
        index: see `whet.data.store.COLUMNS`; chunks are numbered through all parts.
        train, validation: sample numbers; validation None without one.
        ledgers: the account of each part.
        findings: what else a person wants to know, for the manifest.
    """

    index: Index
    train: IntArray
    validation: IntArray | None
    ledgers: Sequence[Ledger]
    findings: Mapping[str, Any] = field(default_factory=dict)


def assemble(parts: Sequence[EncodedPart], options: SetOptions, where: Mapping[str, str]) -> Assembly:
    """Decide which samples a set has.

    Args:
        parts: training datasets, then test datasets.
        options: see `SetOptions`.
        where: places in the YAML of `val_set_size` and `test_datasets`, for errors.

    Raises:
        DataError: nothing would be left to train or to validate on, or test rows are training rows and may not be.
    """
    table = _Table.of(parts, options)
    findings: dict[str, Any] = {}
    if options.exact_deduplication:
        table = table.without(table.repeated(), DUPLICATE)
    if options.near_deduplication is not None:
        table, findings["near_duplicates"] = _without_near_duplicates(table, options.near_deduplication)
    if any(part.is_test for part in parts):
        table, findings["eval_overlap"] = _checked_overlap(table, options, where)
    table.settle()
    train, validation = _divided(table, parts, options, where)
    return Assembly(table.columns, train, validation, table.ledgers, findings)


@dataclass(frozen=True, eq=False)
class _Table:
    """The samples that are still in, and where the others went.

    Attributes:
        columns: of the index.
        digests, draws: uint64[N, 2], uint64[N], of the rows they come from.
        is_test: bool[N].
        parts: the datasets.
        ledgers: theirs.
        chunks: of all parts, as the index numbers them.
    """

    columns: Index
    digests: Hashes
    draws: Hashes
    is_test: Flags
    parts: Sequence[EncodedPart]
    ledgers: Sequence[Ledger]
    chunks: Sequence[EncodedChunk]

    @classmethod
    def of(cls, parts: Sequence[EncodedPart], options: SetOptions) -> _Table:
        """Every sample within the limits."""
        blocks: list[dict[str, npt.NDArray[Any]]] = []
        ledgers = [Ledger(part.name) for part in parts]
        chunks: list[EncodedChunk] = []
        for number, (part, ledger) in enumerate(zip(parts, ledgers, strict=True)):
            most = options.eval_sequence_len if part.is_test else options.sequence_len
            strategy = "split" if part.cuts_long_rows else options.excess_length_strategy
            limits = Limits(most, options.min_sample_len, strategy)
            for chunk in part.chunks:
                block = _block(chunk, limits, ledger)
                count = len(block["row"])
                blocks.append(
                    {
                        **block,
                        "chunk": np.full(count, len(chunks), np.int32),
                        "source": np.full(count, number, np.int16),
                        "is_test": np.full(count, part.is_test),
                    }
                )
                chunks.append(chunk)
        columns = {name: _joined([block[name] for block in blocks], kind) for name, kind in COLUMNS.items()}
        digests = np.concatenate([np.zeros((0, 2), np.uint64), *(block["digests"] for block in blocks)])
        draws = _joined([block["draws"] for block in blocks], np.uint64)
        is_test = _joined([block["is_test"] for block in blocks], np.bool_)
        return cls(columns, digests, draws, is_test, parts, ledgers, chunks)

    def __len__(self) -> int:
        return len(self.draws)

    def first_pieces(self) -> Flags:
        """bool[N]: whether a sample is the first of its encoded row."""
        chunk, row = self.columns["chunk"], self.columns["row"]
        flags = np.ones(len(self), dtype=np.bool_)
        flags[1:] = (chunk[1:] != chunk[:-1]) | (row[1:] != row[:-1])
        return flags

    def first_samples(self) -> Flags:
        """bool[N]: whether a sample is the first of a row of its dataset, which may be several encoded rows."""
        chunk, number = self.columns["chunk"], self.columns["number"]
        flags = np.ones(len(self), dtype=np.bool_)
        flags[1:] = (chunk[1:] != chunk[:-1]) | (number[1:] != number[:-1])
        return flags

    def repeated(self) -> Flags:
        """bool[N]: whether an equal row comes before the sample's."""
        firsts = np.flatnonzero(self.first_pieces())
        keys = np.ascontiguousarray(self.digests[firsts]).view("V16").ravel()
        _, kept = np.unique(keys, return_index=True)
        repeated = np.ones(len(firsts), dtype=np.bool_)
        repeated[kept] = False
        return self.spread(repeated)

    def spread(self, rows: Flags) -> Flags:
        """A flag of each row, given to all samples of the row."""
        return rows[np.cumsum(self.first_pieces()) - 1] if len(self) else np.zeros(0, np.bool_)

    def without(self, flags: Flags, reason: str, details: Mapping[int, str] | None = None) -> _Table:
        """The table without the flagged samples, which are entered in their ledgers once a row."""
        gone = np.flatnonzero(flags & self.first_pieces())
        for part, ledger in enumerate(self.ledgers):
            mine = gone[self.columns["source"][gone] == part]
            if len(mine):
                examples = ((self.place(at), (details or {}).get(at, "")) for at in mine.tolist())
                ledger.drops(reason).add_many(len(mine), examples)
        kept = ~flags
        return _Table(
            {name: column[kept] for name, column in self.columns.items()},
            self.digests[kept],
            self.draws[kept],
            self.is_test[kept],
            self.parts,
            self.ledgers,
            self.chunks,
        )

    def place(self, sample: int) -> str:
        """The row that a sample comes from."""
        chunk = self.chunks[int(self.columns["chunk"][sample])].chunk
        return place(chunk.file, int(self.columns["number"][sample]), chunk.by_line)

    def settle(self) -> None:
        """Count in the ledgers what is kept."""
        rows, source = self.first_samples(), self.columns["source"]
        for part, ledger in enumerate(self.ledgers):
            ledger.kept = int(np.count_nonzero(rows & (source == part)))
            ledger.samples = int(np.count_nonzero(source == part))


def _block(encoded: EncodedChunk, limits: Limits, ledger: Ledger) -> dict[str, npt.NDArray[Any]]:
    """The columns of one chunk's samples; its other rows go to the ledger."""
    chunk, account = encoded.chunk, encoded.account
    file = ChunkFile(encoded.path)
    admitted = account_for(chunk, account.rows, account.faults, file, limits, ledger)
    numbers = numbers_of(chunk, file.line)
    return {
        "row": admitted.row,
        "begin": admitted.begin,
        "end": admitted.end,
        "num_supervised": admitted.num_supervised,
        "number": numbers[admitted.row],
        "digests": file.digests[admitted.row],
        "draws": file.draws[admitted.row],
    }


def _joined(arrays: Sequence[npt.NDArray[Any]], kind: type[np.generic]) -> npt.NDArray[Any]:
    joined: npt.NDArray[Any] = np.concatenate([np.zeros(0, kind), *arrays]).astype(kind, copy=False)
    return joined


# -- rows that repeat each other -----------------------------------------------------------------------------------


def _signatures(table: _Table, samples: IntArray) -> npt.NDArray[np.uint32] | None:
    """MinHash signatures of the rows of some samples (in order); None for samples that are no single text."""
    parts = []
    for number in np.unique(table.columns["chunk"][samples]).tolist():
        file = ChunkFile(table.chunks[number].path)
        if file.kind != "tokens":
            return None
        ids, offsets = file.flat("input_ids")
        rows = table.columns["row"][samples[table.columns["chunk"][samples] == number]]
        parts.append(signatures(ids, offsets)[rows])
    return np.concatenate(parts) if parts else np.zeros((0, 1), np.uint32)


def _tokens(table: _Table, samples: IntArray, number: int) -> npt.NDArray[np.int32]:
    """The whole row of a sample."""
    sample = int(samples[number])
    file = ChunkFile(table.chunks[int(table.columns["chunk"][sample])].path)
    ids: npt.NDArray[np.int32] = file.sequence("input_ids", int(table.columns["row"][sample]))
    return ids


def _without_near_duplicates(table: _Table, threshold: float) -> tuple[_Table, dict[str, Any]]:
    """Near duplicates among the training rows, and among the test rows; the first of each kind stays."""
    firsts = np.flatnonzero(table.first_pieces())
    flags = np.zeros(len(firsts), dtype=np.bool_)
    details: dict[int, str] = {}
    pairs: list[tuple[str, str]] = []
    for wanted in (False, True):
        mine = np.flatnonzero(table.is_test[firsts] == wanted)
        samples = firsts[mine]
        found = _signatures(table, samples)
        if found is None or not len(mine):
            continue
        earlier = near_duplicates(found, threshold, partial(_tokens, table, samples))
        flags[mine] = earlier >= 0
        for at in np.flatnonzero(earlier >= 0).tolist():
            if len(pairs) < 20:
                pair = table.place(int(samples[at])), table.place(int(samples[earlier[at]]))
                pairs.append(pair)
                details[int(samples[at])] = f"nearly repeats {pair[1]}"
    report = {"threshold": threshold, "rows": int(flags.sum()), "examples": pairs}
    return table.without(table.spread(flags), NEAR_DUPLICATE, details), report


def _checked_overlap(table: _Table, options: SetOptions, where: Mapping[str, str]) -> tuple[_Table, dict[str, Any]]:
    """Test rows that are training rows too: reported, dropped or refused."""
    firsts = np.flatnonzero(table.first_pieces())
    train, test = firsts[~table.is_test[firsts]], firsts[table.is_test[firsts]]
    near: tuple[Any, Any] = (None, None)
    if options.near_deduplication is not None:
        near = (_signatures(table, train), _signatures(table, test))
    both = np.concatenate([train, test])
    found = overlap(
        table.digests[train],
        table.digests[test],
        *near,
        threshold=options.near_deduplication or 0.8,
        tokens=lambda number: _tokens(table, both, number),
    )
    pairs = [(table.place(int(test[a])), table.place(int(train[b]))) for a, b in found.examples()]
    report = {"rows": len(test), "exact": found.num_exact, "near": found.num_near, "examples": pairs}
    if not len(found.rows) or options.eval_overlap == "report":
        return table, report
    if options.eval_overlap == "raise":
        named = ", ".join(f"{one} = {other}" for one, other in pairs)
        problem = f"{len(found.rows):,} test rows are training rows too ({named})"
        fix = "take them out, or set eval_overlap to drop or report"
        raise DataError(Problem(where["test_datasets"], problem, fix, "eval_overlap"))
    flags = np.zeros(len(firsts), dtype=np.bool_)
    flags[np.flatnonzero(table.is_test[firsts])[found.rows]] = True
    return table.without(table.spread(flags), IN_TRAINING), report


# -- training and validation -----------------------------------------------------------------------------------------


def _divided(
    table: _Table, parts: Sequence[EncodedPart], options: SetOptions, where: Mapping[str, str]
) -> tuple[IntArray, IntArray | None]:
    """Sample numbers to train and to validate on."""
    train, test = np.flatnonzero(~table.is_test), np.flatnonzero(table.is_test)
    validation = test if len(test) else None
    if any(part.is_test and part.chunks for part in parts) and validation is None:
        repeats = any(DUPLICATE in ledger.dropped or IN_TRAINING in ledger.dropped for ledger in table.ledgers)
        if repeats:
            found = "every row of the test datasets is also a row of the training datasets"
            raise DataError(Problem(where["test_datasets"], found, "use rows that are not trained on"))
    if options.val_set_size and len(table):
        lengths = table.columns["end"] - table.columns["begin"]
        allowed = lengths <= options.eval_sequence_len
        draws = drawn(table.draws, options.seed or 0)
        if options.val_set_from == "tail":
            rows = np.cumsum(table.first_samples())
            draws = (rows[-1] - rows).astype(np.uint64)
        train, validation = draw_validation(draws, allowed, options.val_set_size, where["val_set_size"])
    if options.shuffle_before_merging:
        train = _shuffled_within(train, table.columns["source"], options.seed or 0)
    return train, validation


def drawn(draws: Hashes, seed: int) -> Hashes:
    """uint64[N]: a number for each row from its content and the seed alone (the finalizer of splitmix64)."""
    with np.errstate(over="ignore"):
        mixed = draws + np.uint64((seed * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) % 2**64)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        result: Hashes = mixed ^ (mixed >> np.uint64(31))
    return result


def draw_validation(draws: Hashes, allowed: Flags, val_set_size: float, where: str) -> tuple[IntArray, IntArray]:
    """Split samples in training and validation.

    The samples with the smallest draws are taken; as a draw comes from the seed and a row's content, the same rows are
    taken in whatever order, and from whatever files, they were read. Samples of one row, and of equal rows, have one
    draw and are not parted: a few more than asked for may be taken.

    Args:
        draws: uint64[N].
        allowed: bool[N], samples that may be taken (no longer than eval_sequence_len).
        val_set_size: a share of all samples, below 1, or a number of them.

    Returns:
        Sample numbers of both, each in order, each at least one.

    Raises:
        DataError: nothing would be left to train on, or too few samples may be taken.
    """
    count = max(1, round(len(draws) * val_set_size)) if val_set_size < 1 else int(val_set_size)
    if count >= len(draws):
        found = f"val_set_size {val_set_size:g} takes all {len(draws):,} samples, nothing is left to train on"
        raise DataError(Problem(where, found, "set it lower, or to 0 for no validation"))
    candidates = np.flatnonzero(allowed)
    if count > len(candidates):
        found = f"val_set_size {val_set_size:g} takes {count:,} samples, only {len(candidates):,} fit eval_sequence_len"
        raise DataError(Problem(where, found, "set it lower, or raise eval_sequence_len"))
    last = np.partition(draws[candidates], count - 1)[count - 1]
    mask = allowed & (draws <= last)
    # Whatever shares a draw with a sample that is validated on may not be trained on.
    left = (draws > last) | (~allowed & ~np.isin(draws, draws[mask]))
    if not left.any():
        found = f"val_set_size {val_set_size:g} takes all samples: the rows are equal, nothing is left to train on"
        raise DataError(Problem(where, found, "set it lower, or to 0 for no validation"))
    return np.flatnonzero(left), np.flatnonzero(mask)


def _shuffled_within(indices: IntArray, sources: npt.NDArray[np.integer], seed: int) -> IntArray:
    """Each dataset's samples in a random order of their own, the datasets in their order."""
    key = np.array([seed % 2**64, 2**64 - 1], dtype=np.uint64)
    random = np.random.Philox(key=key).random_raw(len(indices))
    shuffled: IntArray = indices[np.lexsort((random, sources[indices]))]
    return shuffled
