"""The prepared set on disk: which samples there are and how they are split, over chunk files that hold their ids.

    <folder>/
      index.arrow        a line for each sample: its chunk and row, the tokens it is cut to, where it comes from
      train.npy          int64: which samples train, in order
      validation.npy     the same for validation; absent without it
      chunks/            the chunk files (`whet.data.chunk_file`), hard links into the pool
      manifest.json      what made the set, what it holds, what was dropped; written last

A folder appears whole, by rename, or not at all. Opening reads the index and no sample.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from whet.core.disk import sha256, sync
from whet.core.errors import DataError, Problem
from whet.core.foreign import as_whet_writes
from whet.core.secrets import redacted
from whet.data.buffers import as_arrow, as_numpy
from whet.data.chunk_file import ChunkFile
from whet.data.readers import place
from whet.data.samples import Kind

IntArray = npt.NDArray[np.int64]

INDEX, MANIFEST, CHUNKS = "index.arrow", "manifest.json", "chunks"
FORMAT_VERSION = 2
_MODIFIED = "modified_ns"
"""In the manifest: when each file was written. Linking and renaming leave a file's time, writing to it does not."""

COLUMNS: Mapping[str, type[np.integer]] = {
    "chunk": np.int32,
    "row": np.int32,
    "begin": np.int32,
    "end": np.int32,
    "num_supervised": np.int32,
    "source": np.int16,
    "number": np.int64,
}
"""Columns of the index.

chunk and row say where the sample's ids are, begin and end which of its tokens it keeps (of a preference: end is the
most tokens of the prompt and either answer), num_supervised how many of them are targets, source its dataset, and
number the row of the dataset's file that it comes from.
"""

Index = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file that samples come from, and whether its rows are counted by line."""

    path: str
    by_line: bool


class Samples:
    """All samples of a set. Pickles as its folder, so that it may be sent to other processes.

    Attributes:
        kind: what they are.
        index: the columns of `COLUMNS`, views of the file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        manifest = read_manifest(folder)
        self.kind: Kind = manifest["kind"]
        self._chunk_names = [chunk["name"] for chunk in manifest["chunks"]]
        self._chunk_files = [SourceFile(chunk["file"], chunk["by_line"]) for chunk in manifest["chunks"]]
        self.index: Index = read_index(folder / INDEX)
        self._open: dict[int, ChunkFile] = {}

    def __len__(self) -> int:
        return len(self.index["chunk"])

    def __reduce__(self) -> tuple[type[Samples], tuple[Path]]:
        return Samples, (self.folder,)

    def chunk(self, number: int) -> ChunkFile:
        """A chunk file, opened when it is first asked for."""
        if number not in self._open:
            self._open[number] = ChunkFile(self.folder / CHUNKS / self._chunk_names[number])
        return self._open[number]

    def sequence(self, column: str, sample: int) -> npt.NDArray[Any]:
        """An array of a sample, not cut; ids are views of the file."""
        chunk, row = int(self.index["chunk"][sample]), int(self.index["row"][sample])
        return self.chunk(chunk).sequence(column, row)

    def kept(self, column: str, sample: int) -> npt.NDArray[Any]:
        """An array of a sample, cut to the tokens that it keeps."""
        return self.sequence(column, sample)[int(self.index["begin"][sample]) : int(self.index["end"][sample])]

    def extra(self, sample: int) -> Any:
        """What a sample has beside arrays."""
        return self.chunk(int(self.index["chunk"][sample])).extra(int(self.index["row"][sample]))

    def place(self, sample: int) -> str:
        """The row that a sample comes from."""
        file = self._chunk_files[int(self.index["chunk"][sample])]
        return place(file.path, int(self.index["number"][sample]), file.by_line)


@dataclass(frozen=True, eq=False)
class _Subset:
    """Some samples of a set, in order."""

    samples: Samples
    indices: IntArray
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.indices)

    def __reduce__(self) -> tuple[type[_Subset], tuple[Samples, IntArray, tuple[str, ...]]]:
        return type(self), (self.samples, self.indices, self.names)

    @cached_property
    def lengths(self) -> npt.NDArray[np.int32]:
        """int32[N]: tokens of each sample; of a preference, those of the prompt and the longer answer."""
        index = self.samples.index
        lengths: npt.NDArray[np.int32] = (index["end"] - index["begin"])[self.indices]
        return lengths

    @cached_property
    def source(self) -> npt.NDArray[np.int16]:
        """int16[N]: index into `names`."""
        return self._column("source")

    @cached_property
    def row(self) -> IntArray:
        """int64[N]: the row's number in its file (a line number where the file has lines)."""
        return self._column("number")

    @cached_property
    def supervised(self) -> npt.NDArray[np.int32]:
        """int32[N]: targets of each sample; its first token is never one."""
        return self._column("num_supervised")

    def _column(self, name: str) -> npt.NDArray[Any]:
        column: npt.NDArray[Any] = self.samples.index[name][self.indices]
        return column

    def place(self, index: int) -> str:
        """The row that a sample comes from: ``chat.jsonl:12``."""
        return self.samples.place(int(self.indices[index]))


class Split(_Subset):
    """Samples to train or to evaluate on.

    ``len(split)``, ``lengths``, ``supervised``, ``source``, ``row``, ``names`` and ``tokens(i)``.
    """

    def tokens(self, index: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        """ids int32[T] (a read-only view of the file) and supervised bool[T], True at targets."""
        sample = int(self.indices[index])
        return self.samples.kept("input_ids", sample), self.samples.kept("supervised", sample)

    def cut_tokens(self, index: int) -> npt.NDArray[np.int32]:
        """int32: the ids of the sample's row that lie behind it, which `sequence_len` cut away; for looking at."""
        sample = int(self.indices[index])
        ids: npt.NDArray[np.int32] = self.samples.sequence("input_ids", sample)[
            int(self.samples.index["end"][sample]) :
        ]
        return ids


class PreferenceSplit(_Subset):
    """Prompts with a preferred and a rejected answer."""

    def pair(self, index: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """ids of prompt, chosen and rejected, each int32."""
        sample = int(self.indices[index])
        prompt, chosen, rejected = (
            self.samples.sequence(name, sample) for name in ("prompt_ids", "chosen_ids", "rejected_ids")
        )
        room = int(self.samples.index["end"][sample]) - len(prompt)
        return prompt, chosen[:room], rejected[:room]


class UnpairedSplit(_Subset):
    """Prompts with one answer, wanted or not."""

    def answer(self, index: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], bool]:
        """ids of prompt and completion, int32, and whether the completion is wanted."""
        sample = int(self.indices[index])
        prompt, completion = (self.samples.sequence(name, sample) for name in ("prompt_ids", "completion_ids"))
        room = int(self.samples.index["end"][sample]) - len(prompt)
        return prompt, completion[:room], bool(self.samples.extra(sample))


class StepwiseSplit(_Subset):
    """Solutions whose steps are judged."""

    def steps(self, index: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """ids int32[T], bool[T] True at the last token of each judged step, bool[T] True where it is right."""
        sample = int(self.indices[index])
        ids, judged, right = (self.samples.kept(name, sample) for name in ("input_ids", "supervised", "right"))
        return ids, judged, right


class PromptSplit(_Subset):
    """Prompts to be answered in training."""

    def prompt(self, index: int) -> tuple[npt.NDArray[np.int32], Mapping[str, Any]]:
        """ids int32[T] of the prompt, and the row's other columns (``answer`` among them where there is one)."""
        sample = int(self.indices[index])
        return self.samples.sequence("prompt_ids", sample), self.samples.extra(sample) or {}


AnySplit = Split | PreferenceSplit | UnpairedSplit | StepwiseSplit | PromptSplit

_SPLITS: Mapping[Kind, type[AnySplit]] = {
    "tokens": Split,
    "preference": PreferenceSplit,
    "unpaired": UnpairedSplit,
    "stepwise": StepwiseSplit,
    "prompts": PromptSplit,
}


@dataclass(frozen=True, eq=False)
class PreparedSet:
    """A prepared set: where it is, what its manifest says, its splits."""

    path: Path
    manifest: Mapping[str, Any]
    train: Any
    validation: Any


def write_index(path: Path, index: Index) -> None:
    """Write the columns of `COLUMNS` to an Arrow file."""
    columns = [as_arrow(np.asarray(index[name], dtype=dtype)) for name, dtype in COLUMNS.items()]
    batch = pa.record_batch(columns, names=list(COLUMNS))
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)


def read_index(path: Path) -> Index:
    """The columns of an index, as views of the file."""
    try:
        batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
    except (OSError, pa.ArrowInvalid) as error:
        found = f"the index of a prepared set cannot be read ({error})"
        raise DataError(Problem(str(path), found, "delete this folder and prepare again")) from error
    return {name: as_numpy(batch.column(name), dtype) for name, dtype in COLUMNS.items()}


def write_indices(folder: Path, split: Literal["train", "validation"], indices: npt.ArrayLike) -> None:
    """Say which samples a split holds."""
    np.save(folder / f"{split}.npy", np.asarray(indices, dtype=np.int64))


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write ``manifest.json``, with size, SHA-256 and time of every file; of the chunks the first two are given.

    Args:
        manifest: at least ``kind``, ``datasets`` (the names that samples refer to by number) and ``chunks``, each with
            name, file, by_line, bytes and sha256.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file())
    hashes = {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in files}
    names = [*hashes, *(f"{CHUNKS}/{chunk['name']}" for chunk in manifest["chunks"])]
    times = {name: (folder / name).stat().st_mtime_ns for name in names}
    # What names the set's files and rows is read again, and stands as it is; the names of remote ones hold no secret.
    facts = {**redacted(dict(manifest)), "chunks": manifest["chunks"]}
    written = {"format": FORMAT_VERSION, **facts, "hashes": hashes, _MODIFIED: times}
    text = json.dumps(written, indent=2, ensure_ascii=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def link_chunk(source: Path, folder: Path, name: str) -> None:
    """Give a set a chunk file of the pool; a copy where the file system has no hard links."""
    target = folder / CHUNKS / name
    target.parent.mkdir(exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        sync(target)


def publish(folder: Path, final: Path) -> None:
    """Give a finished folder its name, in place of an older one if there is one, with its bytes on the disk first."""
    for path in folder.iterdir():
        sync(path)
    sync(folder)
    older = folder.with_name(f"{folder.name}.older")  # a name that no reader takes for a set, even half removed
    if final.exists():
        os.rename(final, older)
    os.rename(folder, final)
    sync(final.parent)
    shutil.rmtree(older, ignore_errors=True)


def mark_used(folder: Path) -> None:
    """Note in the folder's time that the set is used now; in vain where the folder is not ours."""
    with contextlib.suppress(OSError):
        os.utime(folder)


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
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(manifest, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        found = f"not a prepared set ({error})"
        raise DataError(Problem(str(path), found, "prepare again: `whet preprocess`")) from error
    if manifest.get("format") != FORMAT_VERSION:
        found = f"written in format {manifest.get('format')}, this version reads {FORMAT_VERSION}"
        raise DataError(Problem(str(path), found, "prepare again: `whet preprocess`"))
    return manifest


def open_prepared(folder: Path) -> PreparedSet:
    """Open a published set.

    Raises:
        DataError: the folder holds no readable set, or a file is not as it was written.
    """
    manifest = read_manifest(folder)
    with as_whet_writes(
        str(folder / MANIFEST), "not as whet writes it", "delete this folder and prepare again", DataError
    ):
        times = manifest.get(_MODIFIED, {})
        written = dict(manifest["hashes"]) | {f"{CHUNKS}/{chunk['name']}": chunk for chunk in manifest["chunks"]}
        for name, entry in written.items():
            damage = _damage(folder / name, entry, times.get(name))
            if damage:
                raise DataError(Problem(str(folder / name), damage, "delete this folder and prepare again"))
    samples, names = Samples(folder), tuple(manifest["datasets"])
    make = _SPLITS[samples.kind]

    def split(name: str) -> AnySplit:
        path = folder / f"{name}.npy"
        try:
            return make(samples, np.load(path, mmap_mode="r"), names)
        except ValueError as error:
            found = f"a split of a prepared set cannot be read ({error})"
            raise DataError(Problem(str(path), found, "delete this folder and prepare again")) from error

    has_validation = (folder / "validation.npy").exists()
    return PreparedSet(folder, manifest, split("train"), split("validation") if has_validation else None)


def _damage(path: Path, entry: Mapping[str, Any], modified_ns: int | None) -> str:
    """What is wrong with a file; empty where nothing is.

    A file of the right size and time is taken for what was written; one of another time is read and hashed.
    """
    try:
        status = path.stat()
        if status.st_size == entry["bytes"] and status.st_mtime_ns != modified_ns:
            if sha256(path) != entry["sha256"]:
                return "other bytes than those that were written"
            if modified_ns is not None:
                with contextlib.suppress(OSError):
                    os.utime(path, ns=(status.st_atime_ns, modified_ns))  # a copy: it need not be hashed again
        size = status.st_size
    except FileNotFoundError:
        size = 0
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    return "" if size == entry["bytes"] else f"{size:,} bytes long, {entry['bytes']:,} were written"


def number_columns(rows: Sequence[Sequence[int]]) -> Index:
    """Lines of an index, in the order of `COLUMNS`, as its columns; for the small sets that tests make by hand."""
    table = np.array(rows, dtype=np.int64).reshape(-1, len(COLUMNS))
    return {name: table[:, at].astype(dtype) for at, (name, dtype) in enumerate(COLUMNS.items())}
