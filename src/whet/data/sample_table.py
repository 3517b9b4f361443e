"""The samples of all datasets while it is decided which of them a set has, and the account of the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from whet.data.admission import Limits, account_for, numbers_of
from whet.data.chunk_file import ChunkAccount, ChunkFile
from whet.data.chunks import Chunk
from whet.data.ledger import PARTLY, Ledger
from whet.data.readers import place
from whet.data.store import COLUMNS, Index, IntArray

Hashes = npt.NDArray[np.uint64]
Flags = npt.NDArray[np.bool_]


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
class SampleTable:
    """The samples that are still in, and where the others went.

    A row of a dataset gives one encoded row or several (each answer of a conversation, say), which stand in its chunk
    file; an encoded row gives one sample, or several where it is split. What is compared are encoded rows; what is
    counted are rows of datasets.

    Attributes:
        columns: of the index, in the order of the datasets.
        digests, draws: uint64[N, 2], uint64[N], of the encoded rows that samples come from.
        is_test: bool[N].
        ledgers: of each dataset; `kept` and `samples` are not counted yet.
        chunks: of all datasets, as the index numbers them.
    """

    columns: Index
    digests: Hashes
    draws: Hashes
    is_test: Flags
    ledgers: Sequence[Ledger]
    chunks: Sequence[EncodedChunk]

    @classmethod
    def of(cls, parts: Sequence[EncodedPart], limits: Sequence[Limits]) -> SampleTable:
        """Every sample within the limits of its dataset."""
        blocks: list[dict[str, npt.NDArray[Any]]] = []
        ledgers = [Ledger(part.name) for part in parts]
        chunks: list[EncodedChunk] = []
        for number, (part, limit, ledger) in enumerate(zip(parts, limits, ledgers, strict=True)):
            for chunk in part.chunks:
                block = _block(chunk, limit, ledger)
                count = len(block["row"])
                block["chunk"] = np.full(count, len(chunks), np.int32)
                block["source"] = np.full(count, number, np.int16)
                block["is_test"] = np.full(count, part.is_test)
                blocks.append(block)
                chunks.append(chunk)
        columns = {name: _joined([block[name] for block in blocks], kind) for name, kind in COLUMNS.items()}
        digests = np.concatenate([np.zeros((0, 2), np.uint64), *(block["digests"] for block in blocks)])
        draws = _joined([block["draws"] for block in blocks], np.uint64)
        is_test = _joined([block["is_test"] for block in blocks], np.bool_)
        return cls(columns, digests, draws, is_test, ledgers, chunks)

    def __len__(self) -> int:
        return len(self.draws)

    def firsts(self) -> IntArray:
        """int64[E]: the first sample of each encoded row."""
        return np.flatnonzero(self._begins("row"))

    def spread(self, encoded: Flags) -> Flags:
        """bool[N]: a flag of each encoded row, given to all of its samples."""
        flags: Flags = encoded[np.cumsum(self._begins("row")) - 1]
        return flags

    def rows(self) -> IntArray:
        """int64[N]: the row of a dataset that each sample comes from, counted from 0 through all datasets."""
        return np.cumsum(self._begins("number")) - 1

    def num_rows(self, samples: npt.NDArray[np.integer | np.bool_]) -> int:
        """How many rows of datasets some samples come from."""
        return len(np.unique(self.rows()[samples]))

    def without(self, flags: Flags, reason: str, details: Mapping[int, str] | None = None) -> SampleTable:
        """The table without the flagged samples, whose rows are entered in their ledgers.

        Args:
            flags: bool[N].
            reason: that ledgers give.
            details: sample -> what to say of it as an example.
        """
        rows = self.rows()
        is_kept = np.zeros(int(rows[-1]) + 1 if len(rows) else 0, dtype=np.bool_)
        is_kept[rows[~flags]] = True
        gone = np.flatnonzero(flags)
        gone = gone[np.unique(rows[gone], return_index=True)[1]]  # one for each row
        for source in np.unique(self.columns["source"][gone]).tolist():
            mine = gone[self.columns["source"][gone] == source]
            ledger, in_part = self.ledgers[source], is_kept[rows[mine]]
            for lost, is_part in ((mine[~in_part], False), (mine[in_part], True)):
                if len(lost):
                    examples = ((self.place(at), (details or {}).get(at, "")) for at in lost.tolist())
                    tally = ledger.cuts(PARTLY + reason) if is_part else ledger.drops(reason)
                    tally.add_many(len(lost), examples)
        columns = {name: column[~flags] for name, column in self.columns.items()}
        kept = self.digests[~flags], self.draws[~flags], self.is_test[~flags]
        return SampleTable(columns, *kept, self.ledgers, self.chunks)

    def place(self, sample: int) -> str:
        """The row that a sample comes from."""
        chunk = self.chunks[int(self.columns["chunk"][sample])].chunk
        return place(chunk.file, int(self.columns["number"][sample]), chunk.by_line)

    def settle(self) -> None:
        """Count in the ledgers what is kept."""
        begins, source = self._begins("number"), self.columns["source"]
        for part, ledger in enumerate(self.ledgers):
            ledger.kept = int(np.count_nonzero(begins & (source == part)))
            ledger.samples = int(np.count_nonzero(source == part))

    def _begins(self, column: str) -> Flags:
        """bool[N]: whether a sample is of another chunk, or has another value in a column, than the one before it."""
        chunk, value = self.columns["chunk"], self.columns[column]
        flags: Flags = np.ones(len(self), dtype=np.bool_)
        flags[1:] = (chunk[1:] != chunk[:-1]) | (value[1:] != value[:-1])
        return flags


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
