"""The prepared set on disk: samples in Arrow IPC files, read through memory maps, with a manifest beside them.

    <folder>/
      samples.arrow      every kept sample, in the order of the sources
      train.npy          int64: which samples train, in order
      validation.npy     the same for validation; absent without it
      manifest.json      what made the set, what it holds, what was dropped; written last

A folder appears whole, by rename, or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from whet.core.disk import sha256, sync
from whet.core.errors import DataError, Problem
from whet.data.readers import place

Kind = Literal["tokens", "preference"]
IntArray = npt.NDArray[np.int64]

SAMPLES, MANIFEST = "samples.arrow", "manifest.json"
FORMAT_VERSION = 1
TOKENS_PER_RECORD_BATCH = 4_000_000
"""16 MB of ids: large enough that a sample's cost is its own bytes, small enough to hold while writing."""

_ORIGIN_FIELDS = [("num_supervised", pa.int32()), ("source", pa.int16()), ("file", pa.int32()), ("row", pa.int64())]
_IDS = pa.list_(pa.int32())
_FIELDS: dict[Kind, list[tuple[str, pa.DataType]]] = {
    "tokens": [("input_ids", _IDS), ("supervised", pa.list_(pa.bool_()))],
    "preference": [("prompt", _IDS), ("chosen", _IDS), ("rejected", _IDS)],
}


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a sample comes from: indices of its dataset and file, and its row (a line number where there are lines)."""

    source: int
    file: int
    row: int


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file that samples come from, and whether its rows are counted by line."""

    path: str
    by_line: bool


class SampleWriter:
    """Appends samples to an Arrow IPC file, a record batch at a time. A context manager.

    Args:
        path: the file to make.
        kind: "tokens" for input ids and targets, "preference" for a prompt and two answers.
    """

    def __init__(self, path: Path, kind: Kind) -> None:
        self.kind = kind
        self._schema = pa.schema([*_FIELDS[kind], *_ORIGIN_FIELDS])
        self._file = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._file, self._schema)
        self._sequences: list[list[npt.NDArray[Any]]] = [[] for _ in _FIELDS[kind]]
        self._origins: list[tuple[int, int, int, int]] = []
        self._num_tokens = 0
        self.num_samples = 0

    def add(self, sequences: Sequence[npt.NDArray[Any]], num_supervised: int, origin: Origin) -> None:
        """Append a sample.

        Args:
            sequences: one array per list column of the kind: (input_ids, supervised) or (prompt, chosen, rejected).
            num_supervised: targets in it.
        """
        for column, sequence in zip(self._sequences, sequences, strict=True):
            column.append(sequence)
        self._origins.append((num_supervised, origin.source, origin.file, origin.row))
        self._num_tokens += sum(map(len, sequences))
        self.num_samples += 1
        if self._num_tokens >= TOKENS_PER_RECORD_BATCH:
            self._flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if kind is None:
            self._flush()
        self._writer.close()
        self._file.close()

    def _flush(self) -> None:
        if not self._origins:
            return
        lists = [
            _list_array(column, dtype.value_type)
            for column, (_, dtype) in zip(self._sequences, _FIELDS[self.kind], strict=True)
        ]
        columns = np.array(self._origins, dtype=np.int64).T
        origins = [pa.array(values).cast(dtype) for values, (_, dtype) in zip(columns, _ORIGIN_FIELDS, strict=True)]
        self._writer.write_batch(pa.record_batch([*lists, *origins], schema=self._schema))
        for column in self._sequences:
            column.clear()
        self._origins.clear()
        self._num_tokens = 0


class Samples:
    """All samples of a file, memory-mapped; opening reads lengths and origins, a sample's ids only when asked.

    Pickles as its path, so that it may be sent to other processes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
        except (OSError, pa.ArrowInvalid) as error:
            found = f"the prepared samples cannot be read ({error})"
            raise DataError(Problem(str(path), found, "delete this folder and prepare again")) from error
        batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
        self.kind: Kind = "tokens" if "input_ids" in reader.schema.names else "preference"
        self._columns = {name: [_Lists(batch.column(name)) for batch in batches] for name, _ in _FIELDS[self.kind]}
        self._first = np.concatenate([[0], np.cumsum([batch.num_rows for batch in batches])]).astype(np.int64)
        self.num_supervised = _column(batches, "num_supervised", np.int32)
        self.source = _column(batches, "source", np.int16)
        self.file = _column(batches, "file", np.int32)
        self.row = _column(batches, "row", np.int64)

    def __len__(self) -> int:
        return int(self._first[-1])

    def __reduce__(self) -> tuple[type[Samples], tuple[Path]]:
        return Samples, (self.path,)

    def lengths(self, column: str) -> npt.NDArray[np.int32]:
        """int32[N]: tokens of a list column."""
        return np.concatenate([np.zeros(0, np.int32), *(lists.lengths() for lists in self._columns[column])])

    def sequence(self, column: str, index: int) -> npt.NDArray[Any]:
        """A sample's ids as a view of the file, or its booleans."""
        batch = int(np.searchsorted(self._first, index, side="right")) - 1
        return self._columns[column][batch][index - int(self._first[batch])]


@dataclass(frozen=True, eq=False)
class _Subset:
    """Some samples of a file, in order."""

    samples: Samples
    indices: IntArray
    names: tuple[str, ...]
    files: tuple[SourceFile, ...]

    def __len__(self) -> int:
        return len(self.indices)

    def __reduce__(self) -> tuple[type[_Subset], tuple[Samples, IntArray, tuple[str, ...], tuple[SourceFile, ...]]]:
        return type(self), (self.samples, self.indices, self.names, self.files)

    @cached_property
    def source(self) -> npt.NDArray[np.int16]:
        """int16[N]: index into `names`."""
        return self.samples.source[self.indices]

    @cached_property
    def row(self) -> IntArray:
        """int64[N]: the row's number in its file (a line number where the file has lines)."""
        return self.samples.row[self.indices]

    @cached_property
    def supervised(self) -> npt.NDArray[np.int32]:
        """int32[N]: targets of each sample; its first token is never one."""
        return self.samples.num_supervised[self.indices]

    def place(self, index: int) -> str:
        """The row that a sample comes from: ``chat.jsonl:12``."""
        position = self.indices[index]
        file = self.files[self.samples.file[position]]
        return place(file.path, int(self.samples.row[position]), file.by_line)


class Split(_Subset):
    """Samples to train or to evaluate on.

    ``len(split)``, ``lengths``, ``supervised``, ``source``, ``row``, ``names`` and ``tokens(i)``.
    """

    @cached_property
    def lengths(self) -> npt.NDArray[np.int32]:
        """int32[N]: tokens of each sample."""
        return self.samples.lengths("input_ids")[self.indices]

    def tokens(self, index: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        """ids int32[T] (a read-only view of the file) and supervised bool[T], True at targets."""
        position = int(self.indices[index])
        ids = self.samples.sequence("input_ids", position)
        supervised = self.samples.sequence("supervised", position)
        return ids, supervised


class PreferenceSplit(_Subset):
    """Prompts with a preferred and a rejected answer."""

    @cached_property
    def lengths(self) -> npt.NDArray[np.int32]:
        """int32[N]: tokens of the prompt and the longer answer."""
        answers = np.maximum(self.samples.lengths("chosen"), self.samples.lengths("rejected"))
        lengths: npt.NDArray[np.int32] = self.samples.lengths("prompt") + answers
        return lengths[self.indices]

    def pair(self, index: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """ids of prompt, chosen and rejected, each int32."""
        position = int(self.indices[index])
        prompt, chosen, rejected = (self.samples.sequence(name, position) for name, _ in _FIELDS["preference"])
        return prompt, chosen, rejected


@dataclass(frozen=True, eq=False)
class PreparedSet:
    """A prepared set: where it is, what its manifest says, its splits."""

    path: Path
    manifest: Mapping[str, Any]
    train: Split | PreferenceSplit
    validation: Split | PreferenceSplit | None


def write_indices(folder: Path, split: Literal["train", "validation"], indices: npt.ArrayLike) -> None:
    """Say which samples a split holds."""
    np.save(folder / f"{split}.npy", np.asarray(indices, dtype=np.int64))


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write ``manifest.json``, with the size and SHA-256 of every other file.

    Args:
        manifest: at least ``datasets``, the names that samples refer to by number, and ``files``, likewise, as
            dictionaries of `SourceFile`.
    """
    hashes = {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in sorted(folder.iterdir())}
    text = json.dumps({"format": FORMAT_VERSION, **manifest, "hashes": hashes}, indent=2, ensure_ascii=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def publish(folder: Path, final: Path) -> None:
    """Give a finished folder its name, in place of an older one if there is one, with its bytes on the disk first."""
    for path in folder.iterdir():
        sync(path)
    sync(folder)
    if final.exists():
        shutil.rmtree(final)
    os.rename(folder, final)
    sync(final.parent)


def is_published(folder: Path) -> bool:
    """Whether a whole prepared set stands in the folder."""
    return (folder / MANIFEST).is_file()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a prepared set.

    Raises:
        DataError: there is none, it is broken, or another version of whet wrote it.
    """
    path = folder / MANIFEST
    try:
        manifest = cast(dict[str, Any], json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        found = f"not a prepared set ({error})"
        raise DataError(Problem(str(path), found, "prepare again: `whet preprocess`")) from error
    if manifest.get("format") != FORMAT_VERSION:
        found = f"written in format {manifest.get('format')}, this version reads {FORMAT_VERSION}"
        raise DataError(Problem(str(path), found, "prepare again: `whet preprocess`"))
    return manifest


def open_prepared(folder: Path) -> PreparedSet:
    """Open a published set.

    Raises:
        DataError: the folder holds no readable set.
    """
    manifest = read_manifest(folder)
    for name, entry in manifest["hashes"].items():
        size = (folder / name).stat().st_size if (folder / name).exists() else 0
        if size != entry["bytes"]:
            found = f"{size:,} bytes long, {entry['bytes']:,} were written"
            raise DataError(Problem(str(folder / name), found, "delete this folder and prepare again"))
    samples = Samples(folder / SAMPLES)
    names, files = tuple(manifest["datasets"]), tuple(SourceFile(**entry) for entry in manifest["files"])
    make = Split if samples.kind == "tokens" else PreferenceSplit

    def split(name: str) -> Split | PreferenceSplit:
        return make(samples, np.load(folder / f"{name}.npy"), names, files)

    has_validation = (folder / "validation.npy").exists()
    return PreparedSet(folder, manifest, split("train"), split("validation") if has_validation else None)


class _Lists:
    """A list column of one record batch, as flat values and offsets. Ids are views of the memory map."""

    def __init__(self, array: pa.ListArray) -> None:
        self._offsets = np.asarray(array.offsets)
        self._is_bits = pa.types.is_boolean(array.type.value_type)
        values = array.values
        if self._is_bits:
            self._values = np.frombuffer(values.buffers()[1], dtype=np.uint8) if len(values) else np.zeros(0, np.uint8)
        else:
            self._values = values.to_numpy(zero_copy_only=True)

    def lengths(self) -> npt.NDArray[np.int32]:
        return np.diff(self._offsets).astype(np.int32, copy=False)

    def __getitem__(self, index: int) -> npt.NDArray[Any]:
        begin, end = int(self._offsets[index]), int(self._offsets[index + 1])
        if not self._is_bits:
            return self._values[begin:end]
        octets = self._values[begin // 8 : -(-end // 8)]
        shift = begin % 8
        return np.unpackbits(octets, bitorder="little")[shift : shift + end - begin].view(np.bool_)


def _list_array(sequences: list[npt.NDArray[Any]], dtype: pa.DataType) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum([len(sequence) for sequence in sequences])]).astype(np.int32)
    values = pa.array(np.concatenate(sequences)).cast(dtype)
    return pa.ListArray.from_arrays(pa.array(offsets), values)


def _column(batches: list[pa.RecordBatch], name: str, dtype: type[np.integer]) -> npt.NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype), *(np.asarray(batch.column(name)) for batch in batches)])
