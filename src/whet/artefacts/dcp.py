"""Reading a checkpoint of torch.distributed.checkpoint (DCP), which each rank wrote its part of.

DCP keeps its table of contents, `.metadata`, as a pickle, and a pickle may run any code. It is read here by an
unpickler that knows the names in `_ALLOWED` and no other; the tensors are read by torch with ``weights_only=True``.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from whet.core.errors import ArtefactError, Problem
from whet.core.foreign import as_whet_writes

METADATA = ".metadata"

_DCP = "torch.distributed.checkpoint"
_ALLOWED = {
    f"{_DCP}.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    f"{_DCP}.filesystem": {"_StorageInfo", "_StoragePrefix"},
    "collections": {"OrderedDict"},
    "pathlib": {"PosixPath", "PurePosixPath", "Path"},
    "pathlib._local": {"PosixPath", "PurePosixPath", "Path"},  # where Python 3.13 has them
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
}

# What an unpickler raises at bytes that are no pickle, or one of other things than it may make.
_PICKLE_ERRORS = (
    *(pickle.UnpicklingError, AttributeError, EOFError, ImportError, LookupError, OverflowError, TypeError, ValueError),
)

_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What torch.compile, FSDP1 and activation checkpointing put into the names of the parameters below them."""

_OTHER_STATE = ("optim", "optimizer", "opt", "scheduler", "lr_scheduler", "train_state", "dataloader", "rng_state")
"""First parts of names that are no weights."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor of a checkpoint: the name it is stored by, its whole shape and its type."""

    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class DistributedCheckpoint:
    """A checkpoint folder, opened.

    Attributes:
        folder: where `.metadata` is.
        tensors: name without wrappers -> the tensor; without what belongs to an optimizer or a scheduler.
    """

    folder: Path
    tensors: Mapping[str, Stored]
    _metadata: Metadata

    def read(self, tensors: Iterable[Stored]) -> dict[str, torch.Tensor]:
        """The whole tensors, by the names they are stored by; nothing else is held in memory.

        Raises:
            ArtefactError: a part is missing or broken.
        """
        state = {each.key: torch.empty(each.shape, dtype=each.dtype) for each in tensors}
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="torch.distributed is", category=UserWarning)
                load(state, storage_reader=_Reader(self.folder, self._metadata), no_dist=True)
        except (CheckpointException, OSError, RuntimeError, *_PICKLE_ERRORS) as error:
            raise ArtefactError(
                Problem("", f"the checkpoint '{self.folder}' cannot be read: {_reason(error)}",
                        "its files are not all there, or broken; take an earlier checkpoint: --model-dir")
            ) from error  # fmt: skip
        return state


def open_checkpoint(folder: Path) -> DistributedCheckpoint:
    """Read the table of contents; no tensor is read.

    Raises:
        ArtefactError: it holds what DCP does not write, names files outside of the folder, or lacks some of its own.
    """
    metadata = _metadata(folder)
    fix = "use a checkpoint whose origin you know"
    with as_whet_writes("", f"'{folder / METADATA}' is not as torch.distributed.checkpoint writes it", fix):
        tensors = {}
        for key, entry in metadata.state_dict_metadata.items():
            if isinstance(entry, TensorStorageMetadata) and key.split(".")[0] not in _OTHER_STATE:
                tensors[_WRAPPERS.sub("", key)] = _stored(folder, key, entry)
        _check_files(folder, metadata)
    return DistributedCheckpoint(folder, tensors, metadata)


def _stored(folder: Path, key: str, entry: TensorStorageMetadata) -> Stored:
    """The tensor, of which the parts that were written must be the whole: torch leaves what none covers as it lay in
    memory."""
    whole = tuple(int(length) for length in entry.size)
    covered = 0
    for part in entry.chunks:
        ends = [begin + length for begin, length in zip(part.offsets, part.sizes, strict=True)]
        if len(ends) != len(whole) or any(not 0 <= end <= length for end, length in zip(ends, whole, strict=True)):
            raise _refused(folder / METADATA, f"has a part of {key} that lies outside of it")
        covered += math.prod(part.sizes)
    if covered != math.prod(whole) or len({tuple(part.offsets) for part in entry.chunks}) != len(entry.chunks):
        raise _refused(folder / METADATA, f"has {covered:,} of the {math.prod(whole):,} numbers of {key}")
    if not isinstance(entry.properties.dtype, torch.dtype):
        raise TypeError("a type of numbers that is none")
    return Stored(key, whole, entry.properties.dtype)


class _Reader(FileSystemReader):
    """torch's reader, with the table of contents that was read before."""

    def __init__(self, folder: Path, metadata: Metadata) -> None:
        super().__init__(folder)
        self._known = metadata

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        self._known.storage_meta = StorageMeta(load_id=self.load_id)
        return self._known


class _Unpickler(pickle.Unpickler):
    """Only what a DCP table of contents is made of."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = name in _ALLOWED.get(module, ()) or (
            module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        )
        if not allowed:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


def _refuse_bomb(content: bytes) -> None:
    """Python's unpickler makes room for as many parts as a pickle says that it has: ten bytes may take 64 GB.

    Raises:
        UnpicklingError, ValueError: it says more than it has.
    """
    for operation, argument, _ in pickletools.genops(content):
        if operation.name in ("PUT", "LONG_BINPUT") and (argument or 0) > len(content):
            raise pickle.UnpicklingError(f"it counts {argument} parts in {len(content)} bytes")


def _metadata(folder: Path) -> Metadata:
    file = folder / METADATA
    try:
        content = file.read_bytes()
        _refuse_bomb(content)
        found = _Unpickler(io.BytesIO(content)).load()
    except OSError as error:
        raise ArtefactError(Problem("", f"'{file}' cannot be read ({error})", "give a folder that can")) from error
    except _PICKLE_ERRORS as error:
        raise _refused(file, f"is no table of contents of torch.distributed.checkpoint: {_reason(error)}") from error
    if not isinstance(found, Metadata) or not isinstance(found.storage_data, dict):
        raise _refused(file, f"holds a {type(found).__name__} where a table of contents should be")
    return found


def _check_files(folder: Path, metadata: Metadata) -> None:
    names = {str(each.relative_path) for each in metadata.storage_data.values()}
    for name in sorted(names):
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise _refused(folder / METADATA, f"names a file outside of its folder ('{name}')")
    missing = [name for name in sorted(names) if not (folder / name).is_file()]
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise ArtefactError(
            Problem("", f"'{folder}' lacks {shown} of its {len(names)} files",
                    "copy the files of every rank into one folder (each machine may have written its own)")
        )  # fmt: skip


def _refused(file: Path, what: str) -> ArtefactError:
    return ArtefactError(Problem("", f"'{file}' {what}; it was not loaded", "use a checkpoint whose origin you know"))


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
