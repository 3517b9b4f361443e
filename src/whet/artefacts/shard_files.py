"""Tensors of a distributed checkpoint, written as safetensors: one file in memory at a time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from whet.artefacts.dcp import DistributedCheckpoint, Stored
from whet.core.disk import refused_write
from whet.core.errors import ArtefactError, Problem


@dataclass(frozen=True)
class Written:
    """What was written: the type of most weights, and how many tensors, files and bytes."""

    dtype: str
    tensors: int
    shards: int
    bytes: int


def write_shards(
    folder: Path,
    stem: str,
    tensors: Mapping[str, Stored],
    opened: DistributedCheckpoint,
    dtype: str | None,
    shard_bytes: int | None,
) -> Written:
    """Write the tensors to ``<stem>.safetensors``, or in several files with an index, each read back and compared.

    Raises:
        OSError: the system refused it.
        ArtefactError: what is read back is not what was written.
    """
    shards = divide(tensors, dtype, shard_bytes)
    sizes = {name: stored_bytes(stored, dtype) for name, stored in tensors.items()}
    places: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"{stem}.safetensors" if len(shards) == 1 else f"{stem}-{number:05}-of-{len(shards):05}.safetensors"
        read = opened.read([tensors[name] for name in names])
        content = {name: _cast(read.pop(tensors[name].key), dtype) for name in names}
        try:
            save_file(content, folder / file, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(refused_write(error) or str(error)) from error  # `published` says it
        _check_written(folder / file, content)
        places |= dict.fromkeys(names, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": dict(sorted(places.items()))}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    kinds = [dtype or str(each.dtype).removeprefix("torch.") for each in tensors.values()]
    return Written(max(set(kinds), key=kinds.count), len(tensors), len(shards), sum(sizes.values()))


def divide(tensors: Mapping[str, Stored], dtype: str | None, shard_bytes: int | None) -> list[list[str]]:
    """The names, in files of at most so many bytes; a larger tensor has a file of its own."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, stored in tensors.items():
        more = stored_bytes(stored, dtype)
        if shard_bytes is not None and shards[-1] and size + more > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += more
    return shards


def stored_bytes(stored: Stored, dtype: str | None) -> int:
    """Size of a tensor in the type it is written in (its own, for None)."""
    kept = stored.dtype if dtype is None or not stored.dtype.is_floating_point else getattr(torch, dtype)
    return torch.Size(stored.shape).numel() * kept.itemsize


def _cast(tensor: torch.Tensor, dtype: str | None) -> torch.Tensor:
    return tensor if dtype is None or not tensor.is_floating_point() else tensor.to(getattr(torch, dtype))


def _check_written(file: Path, content: Mapping[str, torch.Tensor]) -> None:
    with safe_open(file, framework="pt") as written:
        different = [name for name, tensor in content.items() if not torch.equal(written.get_tensor(name), tensor)]
    if different:
        found = f"{different[0]} is another after it is read back from '{file.name}'"
        raise ArtefactError(Problem("", found, "nothing was written; check the disk"))
