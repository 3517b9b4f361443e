"""The weight files of a base model, read a tensor at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors import safe_open

from whet.model.weight_files import INDEX, weight_files


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its dtype as safetensors calls it ("BF16") and its shape."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Shard:
    """One file, and its tensors in the order they lie in it."""

    path: Path
    tensors: dict[str, Stored]

    @contextmanager
    def opened(self) -> Iterator[Any]:
        """safetensors' view of the file: `get_tensor` reads one."""
        with safe_open(self.path, framework="pt") as file:
            yield file


def find_shards(source: str, revision: str | None, subfolder: str = "") -> list[Shard] | None:
    """The files that transformers would load from a folder or the hub; None where they are no safetensors."""
    folder = (Path(source) if Path(source).is_dir() else _download(source, revision, subfolder)) / subfolder
    return [_read_header(file) for file in weight_files(folder)] or None


def _download(name: str, revision: str | None, subfolder: str) -> Path:
    start = f"{subfolder}/" if subfolder else ""
    patterns = [f"{start}model*.safetensors", f"{start}{INDEX}"]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise OSError(str(error)) from error


def _read_header(path: Path) -> Shard:
    with safe_open(path, framework="pt") as file:
        slices = {name: file.get_slice(name) for name in file.offset_keys()}
        return Shard(path, {name: Stored(each.get_dtype(), tuple(each.get_shape())) for name, each in slices.items()})
