"""The encoded rows of one chunk, in an Arrow IPC file with an account of the others beside it.

    <pool>/<recipe>/<digest>.arrow    every row that could be encoded, whole: no length limit is applied here
    <pool>/<recipe>/<digest>.json     what could not, sizes and hashes; written last, so that a file without it is none

The pool is shared by all prepared sets of a folder: a chunk is encoded once for a recipe (tokenizer, template, options,
code), whatever sets it is a part of.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from whet.core.disk import sha256, sync, writing
from whet.core.errors import DataError, Problem
from whet.data.buffers import as_arrow, as_digests, as_lists, as_numpy, as_texts
from whet.data.ledger import EXAMPLES_KEPT
from whet.data.samples import KINDS, EncodedSample, Kind, digest, extra

_IDS, _FLAGS = pa.list_(pa.int32()), pa.list_(pa.bool_())
_TYPES = {"supervised": _FLAGS, "right": _FLAGS}
_SCALARS: Sequence[tuple[str, pa.DataType]] = (
    ("num_supervised", pa.int32()),
    ("num_tokens", pa.int32()),
    ("line", pa.int32()),
    ("digest", pa.binary(16)),
    ("draw", pa.uint64()),
)
_MODIFIED = "modified_ns"
"""In the account: when the file was written. Linking and renaming leave a file's time, writing to it does not."""


@dataclass
class Fault:
    """Rows of a chunk that give no sample, for one reason: how many, and (line, detail) of the first few.

    Attributes:
        bad: they cannot be used; else the user's own code left them out.
    """

    count: int = 0
    examples: list[tuple[int, str]] = field(default_factory=list)
    bad: bool = True

    def add(self, line: int, detail: str) -> None:
        self.count += 1
        if len(self.examples) < EXAMPLES_KEPT:
            self.examples.append((line, detail))


@dataclass(frozen=True)
class ChunkAccount:
    """What a chunk file holds, and what its chunk held beside it.

    Attributes:
        kind: of its samples.
        rows: rows read.
        samples: samples in the file.
        faults: reason -> the rows that gave none.
        engine: what turned texts into ids, and why.
        num_bytes, sha256: of the file.
    """

    kind: Kind
    rows: int
    samples: int
    faults: Mapping[str, Fault]
    engine: str
    num_bytes: int
    sha256: str


class EncodedRows(Protocol):
    """The encoded rows of one chunk, in a file or in memory."""

    @property
    def kind(self) -> Kind:
        """Of the samples."""
        ...

    @property
    def num_supervised(self) -> npt.NDArray[np.int32]:
        """int32[N]: targets of each sample."""
        ...

    @property
    def num_tokens(self) -> npt.NDArray[np.int32]:
        """int32[N]: tokens of each sample."""
        ...

    @property
    def line(self) -> npt.NDArray[np.int32]:
        """int32[N]: the line of the chunk that each sample comes from, from 0."""
        ...

    def sequence(self, name: str, row: int) -> npt.NDArray[Any]:
        """A sample's ids, or its flags."""
        ...


class ChunkWriter:
    """Collects the encoded rows of one chunk, and is them (`EncodedRows`) until they are written.

    Args:
        kind: of its samples.
    """

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self._names = KINDS[kind][1]
        self._has_extras = kind in ("unpaired", "prompts")
        self._arrays: list[list[npt.NDArray[Any]]] = [[] for _ in self._names]
        self._scalars = array("i")
        self._digests: list[bytes] = []
        self._draws: list[int] = []
        self._extras: list[bytes] = []
        self.rows = 0
        self.faults: dict[str, Fault] = {}

    def add(self, line: int, samples: Sequence[EncodedSample]) -> None:
        """A row and its samples; ``line`` is its number in the chunk, from 0."""
        self.rows += 1
        draw = 0
        for sample in samples:
            for column, name in zip(self._arrays, self._names, strict=True):
                column.append(getattr(sample, name))
            mark = digest(sample)
            draw = draw or int.from_bytes(mark[:8], "little")  # one for all samples of a row
            self._scalars.extend((sample.num_supervised, sample.num_tokens, line))
            self._digests.append(mark)
            self._draws.append(draw)
            if self._has_extras:
                self._extras.append(extra(sample))

    @property
    def num_supervised(self) -> npt.NDArray[np.int32]:
        return self._numbers(0)

    @property
    def num_tokens(self) -> npt.NDArray[np.int32]:
        return self._numbers(1)

    @property
    def line(self) -> npt.NDArray[np.int32]:
        return self._numbers(2)

    def sequence(self, name: str, row: int) -> npt.NDArray[Any]:
        """A sample's ids, or its flags; a view of what may be the ids of the whole chunk."""
        return self._arrays[self._names.index(name)][row]

    def _numbers(self, column: int) -> npt.NDArray[np.int32]:
        return np.array(self._scalars, dtype=np.int32).reshape(-1, 3)[:, column]

    def fault(self, line: int, reason: str, detail: str, *, bad: bool = True) -> None:
        """A row that gives no sample."""
        self.rows += 1
        self.faults.setdefault(reason, Fault(bad=bad)).add(line, detail)

    def write(self, folder: Path, name: str, engine: str) -> ChunkAccount:
        """Publish the chunk file and its account; another process may do the same at once.

        Raises:
            NotWritten: no room, or the folder may not be written to.
        """
        with writing():
            return self._written(folder, name, engine)

    def _written(self, folder: Path, name: str, engine: str) -> ChunkAccount:
        folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
        os.close(handle)
        try:
            path = Path(temporary)
            self._write_arrow(path)
            account = ChunkAccount(
                self.kind,
                self.rows,
                len(self._digests),
                self.faults,
                engine,
                path.stat().st_size,
                sha256(path),
            )
            sync(path)
            path.chmod(0o644)
            modified_ns = path.stat().st_mtime_ns
            os.replace(path, folder / f"{name}.arrow")
            path.write_bytes(orjson.dumps({**asdict(account), _MODIFIED: modified_ns}))
            sync(path)
            path.chmod(0o644)
            os.replace(path, folder / f"{name}.json")
        finally:
            Path(temporary).unlink(missing_ok=True)
        return account

    def _write_arrow(self, path: Path) -> None:
        names = self._names
        lists = [
            as_lists(column, np.bool_ if name in _TYPES else np.int32)
            for name, column in zip(names, self._arrays, strict=True)
        ]
        numbers = np.array(self._scalars, dtype=np.int32).reshape(-1, 3).T
        columns = [
            *lists,
            *map(as_arrow, numbers),
            as_digests(self._digests),
            as_arrow(np.array(self._draws, dtype=np.uint64)),
        ]
        fields = [(name, _TYPES.get(name, _IDS)) for name in names] + list(_SCALARS)
        if self._has_extras:
            columns.append(as_texts(self._extras))
            fields.append(("extra", pa.binary()))
        schema = pa.schema(fields)
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
            writer.write_batch(pa.record_batch(columns, schema=schema))


def read_account(folder: Path, name: str) -> ChunkAccount | None:
    """The account of a published chunk file; None if there is none, or the file is not what was written.

    A file of the right size and time is taken for what was written; one of another time is read and hashed.
    """
    path = folder / f"{name}.arrow"
    try:
        values = orjson.loads((folder / f"{name}.json").read_bytes())
        status, modified_ns = path.stat(), values.pop(_MODIFIED)
        if status.st_size != values["num_bytes"]:
            return None
        if status.st_mtime_ns != modified_ns:
            if sha256(path) != values["sha256"]:
                return None
            with contextlib.suppress(OSError):
                os.utime(path, ns=(status.st_atime_ns, modified_ns))  # a copy: it need not be hashed again
        faults = {
            reason: Fault(fault["count"], [(line, detail) for line, detail in fault["examples"]], fault["bad"])
            for reason, fault in values.pop("faults").items()
        }
        return ChunkAccount(**values, faults=faults)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def reuse(folder: Path, name: str) -> ChunkAccount | None:
    """As `read_account`, for a set that is being made: the account's time says when the chunk was last used."""
    account = read_account(folder, name)
    if account is not None:
        with contextlib.suppress(OSError):
            os.utime(folder / f"{name}.json")
    return account


class ChunkFile:
    """A chunk file, memory-mapped: arrays are views of it.

    Attributes:
        kind: of its samples.
        num_supervised, num_tokens, line: int32[N].
        digests: uint64[N, 2], equal for equal samples.
        draws: uint64[N], equal for samples of equal rows.

    Raises:
        DataError: the file is not whole.
    """

    def __init__(self, path: Path) -> None:
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
            batch = reader.get_batch(0)
        except (OSError, pa.ArrowInvalid) as error:
            found = f"the prepared samples cannot be read ({error})"
            raise DataError(Problem(str(path), found, "delete this folder and prepare again")) from error
        names = set(reader.schema.names)
        fitting = [kind for kind, (_, columns) in KINDS.items() if names.issuperset(columns)]
        self.kind: Kind = max(fitting, key=lambda kind: len(KINDS[kind][1]))
        self._lists = {name: Lists(batch.column(name)) for name in KINDS[self.kind][1]}
        self.num_supervised, self.num_tokens, self.line = (
            as_numpy(batch.column(name), np.int32) for name in ("num_supervised", "num_tokens", "line")
        )
        self._digests = batch.column("digest")
        self.draws: npt.NDArray[np.uint64] = as_numpy(batch.column("draw"), np.uint64)
        self._extra = batch.column("extra") if "extra" in names else None

    def __len__(self) -> int:
        return len(self.num_tokens)

    @property
    def digests(self) -> npt.NDArray[np.uint64]:
        if not len(self):
            return np.zeros((0, 2), np.uint64)
        return np.frombuffer(self._digests.buffers()[1], np.uint64)[: 2 * len(self)].reshape(-1, 2)

    def sequence(self, name: str, row: int) -> npt.NDArray[Any]:
        """A sample's ids as a view of the file, or its flags."""
        return self._lists[name][row]

    def flat(self, name: str) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        """All ids of a column behind each other, and offsets int64[N + 1]."""
        return self._lists[name].flat()

    def extra(self, row: int) -> Any:
        """What the sample has beside arrays: its label, or its columns; None without."""
        text = self._extra[row].as_py() if self._extra is not None else b""
        return orjson.loads(text) if text else None


class Lists:
    """A list column of one record batch, as flat values and offsets. Ids are views of the memory map."""

    def __init__(self, array: pa.ListArray) -> None:
        self._offsets = as_numpy(array.offsets, np.int32)
        self._is_bits = pa.types.is_boolean(array.type.value_type)
        values = array.values
        if self._is_bits:
            self._values = np.frombuffer(values.buffers()[1], dtype=np.uint8) if len(values) else np.zeros(0, np.uint8)
        else:
            self._values = as_numpy(values, np.int32)

    def flat(self) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        assert not self._is_bits
        return self._values, self._offsets.astype(np.int64)

    def __getitem__(self, index: int) -> npt.NDArray[Any]:
        begin, end = int(self._offsets[index]), int(self._offsets[index + 1])
        if not self._is_bits:
            return self._values[begin:end]
        octets = self._values[begin // 8 : -(-end // 8)]
        shift = begin % 8
        return np.unpackbits(octets, bitorder="little")[shift : shift + end - begin].view(np.bool_)
