"""Where offloaded tensors are kept: in host memory, page-locked where a GPU copies from it, or in files."""

from __future__ import annotations

import os
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch

from whet.core.errors import ModelError, Problem


class Store(Protocol):
    """Gives room and takes it back.

    Attributes:
        held: bytes given and not taken back.
    """

    held: int

    def room(self, num_bytes: int) -> torch.Tensor:
        """uint8[num_bytes] on the host."""

    def take_back(self, room: torch.Tensor) -> None:
        """The room is not needed any more."""


class HostStore:
    """Host memory.

    Args:
        pinned: page-locked, so that a GPU copies beside its computing. PyTorch keeps freed pages for the next request
            of a like size, and rounds a request up to a power of two.
    """

    def __init__(self, pinned: bool) -> None:
        self._pinned = pinned
        self.held = 0

    def room(self, num_bytes: int) -> torch.Tensor:
        self.held += num_bytes
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=self._pinned)

    def take_back(self, room: torch.Tensor) -> None:
        self.held -= room.numel()


class FileStore:
    """Memory-mapped files.

    A file has no name from the moment it is mapped, so the system frees its blocks when this process ends, however it
    ends; there is nothing to clean up. Freed room is given again to the next request of the same size.

    Args:
        folder: on the disk to use.

    Raises:
        ModelError: by `room`, when the disk is full. The blocks are claimed at once: a mapped page for which there is
            no block ends a process without a word.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._free: defaultdict[int, list[torch.Tensor]] = defaultdict(list)
        self.held = 0

    def room(self, num_bytes: int) -> torch.Tensor:
        free = self._free[num_bytes]
        room = free.pop() if free else self._map(num_bytes)
        self.held += num_bytes
        return room

    def take_back(self, room: torch.Tensor) -> None:
        self.held -= room.numel()
        self._free[room.numel()].append(room)

    def _map(self, num_bytes: int) -> torch.Tensor:
        handle, name = tempfile.mkstemp(prefix=".activations-", dir=self._folder)
        try:
            _claim(handle, num_bytes)
            return torch.from_file(name, shared=True, size=num_bytes, dtype=torch.uint8)
        except OSError as error:
            found = f"activations cannot be written to {self._folder} ({error.strerror})"
            fix = "free space there, put output_dir on another disk, or write activation_offloading: true"
            raise ModelError(Problem("activation_offloading", found, fix, "activation_offloading")) from error
        finally:
            os.close(handle)
            os.unlink(name)


def _claim(handle: int, num_bytes: int) -> None:
    allocate: Callable[[int, int, int], None] | None = getattr(os, "posix_fallocate", None)  # not on macOS
    if allocate is not None:
        allocate(handle, 0, num_bytes)
    else:
        os.truncate(handle, num_bytes)
