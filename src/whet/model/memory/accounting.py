"""How many bytes of tensors are alive: what a lever saves, counted and not estimated.

On a GPU the allocator counts as well; here the operators are watched, so that a CPU gives the same figures.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types here
    """Counts the storages that operators make while this is entered, each once, however many views it has.

    Args:
        known: tensors whose storages do not count, such as a model's parameters.

    Attributes:
        peak: most bytes that were alive at once, after any operator.

    >>> with LiveBytes() as bytes_alive:
    ...     kept = torch.ones(100) * 2  # the ones are gone again
    >>> bytes_alive.now(), bytes_alive.peak
    (400, 800)
    """

    def __init__(self, known: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # Weak references keep the address of a freed storage from being given to another.
        self._known = {storage._cdata: StorageWeakRef(storage) for storage in map(_storage, known)}  # type: ignore[no-untyped-call]
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        results = func(*args, **(kwargs or {}))
        for result in tree_leaves(results):
            if isinstance(result, torch.Tensor):
                self._add(result.untyped_storage())
        self.peak = max(self.peak, self.now())
        return results

    def _add(self, storage: torch.UntypedStorage) -> None:
        address = storage._cdata
        if address not in self._known and address not in self._alive:
            self._alive[address] = (StorageWeakRef(storage), storage.nbytes())  # type: ignore[no-untyped-call]

    def now(self) -> int:
        """Bytes alive now."""
        self._alive = {at: entry for at, entry in self._alive.items() if not entry[0].expired()}  # type: ignore[no-untyped-call]
        return sum(num_bytes for _, num_bytes in self._alive.values())


def _storage(tensor: torch.Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()


def tensor_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the tensors' storages, each once."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())
