"""A copy of a run's state in the host's memory, which the next optimiser step cannot change."""

from __future__ import annotations

import copy
from typing import Any

import torch

KEPT_BYTES = 2 * 2**30
"""Copies up to this size keep their memory for the next one: new pages cost several times the copying itself."""

_PLAIN = (torch.Tensor, torch.nn.Parameter)


class HostCopies:
    """Copies nested values, tensors into memory that is used again by the next copy.

    Two tensors that are the same memory in the original are one tensor in the copy, so that tied weights stay tied.
    A copy is to be used up before the next is begun.

    From a GPU, copies are enqueued behind what the step has enqueued on the current stream, and `finish` waits for that
    stream: what is enqueued later (the next step) cannot come before them, and nobody reads them before they are there.

    Attributes:
        num_bytes: of the copy.
        kept_bytes: memory that is there already for the next one.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[torch.Size, torch.dtype], list[torch.Tensor]] = {}
        self._free: dict[tuple[torch.Size, torch.dtype], list[torch.Tensor]] = {}
        self._made: dict[tuple[Any, ...], torch.Tensor] = {}
        self._devices: set[torch.device] = set()
        self.num_bytes = self.kept_bytes = 0

    def begin(self) -> None:
        """Begin a new copy; what the last one gave out may be overwritten from here on."""
        self._free = {key: list(buffers) for key, buffers in self._buffers.items()}
        self._made.clear()
        self._devices.clear()
        self.num_bytes = 0

    def finish(self) -> None:
        """Wait until every tensor has arrived from its device."""
        for device in self._devices:
            if device.type == "cuda":
                torch.cuda.current_stream(device).synchronize()
        self._made.clear()
        if self.num_bytes > KEPT_BYTES:  # its memory goes with those who have been given it
            self._buffers.clear()
            self._free.clear()
            self.kept_bytes = 0

    def copied(self, value: Any) -> Any:
        """A deep copy."""
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if isinstance(value, dict):
            made = copy.copy(value)  # of its own kind, with its attributes
            for key, item in value.items():
                made[key] = self.copied(item)
            return made
        if type(value) in (list, tuple):
            return type(value)(self.copied(item) for item in value)
        return copy.deepcopy(value)

    def _tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        if hasattr(tensor, "__tensor_flatten__"):  # it holds others
            return self._wrapper(tensor)
        tensor = tensor.detach()
        if type(tensor) not in _PLAIN or tensor.layout is not torch.strided or tensor.is_quantized:
            self.num_bytes += tensor.numel() * tensor.element_size()
            return tensor.to("cpu", copy=True)
        same = (tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and same in self._made:
            return self._made[same]
        self.num_bytes += tensor.numel() * tensor.element_size()
        buffer = self._buffer(tensor)
        buffer.copy_(tensor, non_blocking=tensor.device.type == "cuda")
        self._devices.add(tensor.device)
        self._made[same] = buffer
        return buffer

    def _wrapper(self, tensor: Any) -> torch.Tensor:
        """A quantised state, of the tensors that it is made of: torchao's are not copied by ``to(copy=True)``.

        They are its own and not those of ``tensor.detach()``: of some it makes new ones, whose place in memory is
        another tensor's as soon as they are gone.
        """
        names, context = tensor.__tensor_flatten__()
        parts = {name: self._tensor(getattr(tensor, name)) for name in names}
        made: torch.Tensor = type(tensor).__tensor_unflatten__(parts, context, tensor.size(), tensor.stride())
        return made

    def _buffer(self, tensor: torch.Tensor) -> torch.Tensor:
        key = (tensor.shape, tensor.dtype)
        if free := self._free.get(key):
            return free.pop()
        # Pinned memory takes a GPU's state several times as fast as other memory.
        made = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type == "cuda")
        self._buffers.setdefault(key, []).append(made)
        self.kept_bytes += made.numel() * made.element_size()
        return made


def state_bytes(value: Any) -> int:
    """Bytes of all tensors in nested values, shared memory counted once."""
    seen: set[tuple[Any, ...]] = set()

    def count(item: Any) -> int:
        if isinstance(item, torch.Tensor):
            key = (id(item),) if type(item) not in _PLAIN else (item.data_ptr(), item.dtype, item.shape, item.stride())
            if key in seen:
                return 0
            seen.add(key)
            return item.numel() * item.element_size()
        if isinstance(item, dict):
            return sum(map(count, item.values()))
        return sum(map(count, item)) if isinstance(item, list | tuple) else 0

    return count(value)
