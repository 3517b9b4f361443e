"""Activations wait for the backward pass on the host or in files, not on the device.

What autograd saves is caught by PyTorch's hooks for saved tensors, so the results are the same bits. Each storage is
copied once, however many operators saved a view of it; the model's parameters and small tensors stay. On CUDA the
copies run beside the computing, and in the backward pass each tensor fetches the two that were saved before it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from whet.config import Config
from whet.config.resolve import ResolvedRun
from whet.model.loss import innermost
from whet.model.memory.layers import repeated_layers
from whet.model.memory.stores import FileStore, HostStore, Store
from whet.model.memory.transfers import Background, Streams, Transfers, Waiting

SMALLEST = 16 * 1024
"""Bytes below which a tensor stays where it is: copying it costs more than it saves."""


def install(model: torch.nn.Module, config: Config, resolved: ResolvedRun) -> str | None:
    """Offload what the run's `activation_offloading` says."""
    kind = resolved.activation_offloading
    if kind == "none":
        return None
    store, transfers = _means(kind, resolved)
    if kind == "hidden_states":
        offloader = Offloader(store, transfers, smallest=SMALLEST)
        layers = [layer for layer in repeated_layers(model) if layer.gradient_checkpointing]
        for layer in layers:
            inner: Callable[..., Any] = layer._gradient_checkpointing_func  # type: ignore[assignment]
            layer._gradient_checkpointing_func = partial(_under_hooks, offloader, inner)  # type: ignore[assignment]
        return f"activation_offloading: the inputs of {len(layers)} checkpointed layers wait in host memory"
    offloader = Offloader(store, transfers, _never_moved(model), SMALLEST)
    around_forward(innermost(model).base_model, offloader)  # type: ignore[arg-type]  # of transformers
    what = "the inputs of checkpointed layers wait" if resolved.gradient_checkpointing else "activations wait"
    return f"activation_offloading: {what} in {'files' if kind == 'disk' else 'host memory'}"


def _means(kind: str, resolved: ResolvedRun) -> tuple[Store, Transfers]:
    if kind == "disk":
        folder = Path(resolved.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        return FileStore(folder), Background()
    on_gpu = resolved.device == "cuda"
    if kind == "legacy" or not on_gpu:
        return HostStore(pinned=False), Waiting()
    return HostStore(pinned=True), Streams(torch.device("cuda", resolved.hardware.local_rank))


def _never_moved(model: torch.nn.Module) -> Callable[[], set[int]]:
    """Addresses of the storages of parameters and buffers, which stay on the device."""
    return lambda: {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}


def _under_hooks(offloader: Offloader, inner: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    offloader.begin_pass()
    with saved_tensors_hooks(offloader.pack, offloader.unpack):
        return inner(*arguments, **keywords)


def around_forward(module: torch.nn.Module, offloader: Offloader) -> None:
    """Catch what is saved in the module's training forward pass, whoever calls it."""
    entered: list[saved_tensors_hooks] = []

    def enter(module: torch.nn.Module, arguments: Any) -> None:
        if module.training and torch.is_grad_enabled():
            offloader.begin_pass()
            hooks = saved_tensors_hooks(offloader.pack, offloader.unpack)
            hooks.__enter__()
            entered.append(hooks)

    def leave(module: torch.nn.Module, arguments: Any, output: Any) -> None:
        if entered:
            entered.pop().__exit__(None, None, None)

    module.register_forward_pre_hook(enter)
    module.register_forward_hook(leave, always_call=True)


class Kept:
    """A storage in its room on the host; on the device again when somebody has asked for it.

    Autograd holds it through `Packed`, and it goes when the last operator that saved a view of it has run.
    """

    def __init__(self, number: int, room: torch.Tensor, ticket: Any, device: torch.device) -> None:
        self.number, self.room, self.ticket, self.device = number, room, ticket, device
        self.begun: Any = None
        self.here: torch.Tensor | None = None


class Packed:
    """A view of a kept storage."""

    def __init__(self, kept: Kept, view: torch.Tensor) -> None:
        self.kept = kept
        self.dtype, self.offset = view.dtype, view.storage_offset()
        self.size, self.stride = view.size(), view.stride()

    def of(self, here: torch.Tensor) -> torch.Tensor:
        """The view, of the storage's bytes on the device."""
        empty = torch.empty(0, dtype=self.dtype, device=here.device)
        return empty.set_(here.untyped_storage(), self.offset, self.size, self.stride)


class Offloader:
    """The pair of hooks.

    Args:
        store: gives room on the host.
        transfers: copies.
        stay: addresses of storages that are never moved.
        smallest: in bytes.
    """

    def __init__(
        self,
        store: Store,
        transfers: Transfers,
        stay: Callable[[], set[int]] = set,
        smallest: int = SMALLEST,
    ) -> None:
        self.store, self._transfers, self._stay, self._smallest = store, transfers, stay, smallest
        self._staying: set[int] = set()
        self._count = 0
        self._kept: weakref.WeakValueDictionary[int, Kept] = weakref.WeakValueDictionary()
        self._known: dict[tuple[Any, ...], tuple[StorageWeakRef, weakref.ref[Kept]]] = {}

    def begin_pass(self) -> None:
        """Before a forward pass: parameters may have moved since the last one."""
        self._staying = self._stay()
        self._known = {key: entry for key, entry in self._known.items() if entry[1]() is not None}

    @torch.no_grad()
    def pack(self, tensor: torch.Tensor) -> torch.Tensor | Packed:
        """What autograd keeps instead of the tensor."""
        storage = tensor.untyped_storage()
        if not self._moves(tensor, storage):
            return tensor
        covers = storage.nbytes() == tensor.numel() * tensor.element_size()
        key = (storage._cdata, tensor._version, *(() if covers else (tensor.storage_offset(), *tensor.stride())))
        key = key if covers else (*key, *tensor.size())
        known = self._known.get(key)
        kept = None if known is None else known[1]()
        view = tensor if covers else tensor.clone()
        if kept is None:
            kept = self._keep(view.untyped_storage(), view.device)
            # The weak reference keeps the address from being given to another storage while it stands in the table.
            self._known[key] = (StorageWeakRef(storage), weakref.ref(kept))  # type: ignore[no-untyped-call]
        return Packed(kept, view)

    @torch.no_grad()
    def unpack(self, packed: torch.Tensor | Packed) -> torch.Tensor:
        """The tensor again, on its device."""
        if isinstance(packed, torch.Tensor):
            return packed
        kept = packed.kept
        self._begin(kept)
        if kept.here is None:
            kept.here, kept.begun = self._transfers.finish(kept.begun), None
        for number in range(kept.number - 1, kept.number - 1 - self._transfers.ahead, -1):
            before = self._kept.get(number)
            if before is not None:
                self._begin(before)
        return packed.of(kept.here)

    def _moves(self, tensor: torch.Tensor, storage: torch.UntypedStorage) -> bool:
        return (
            type(tensor) is torch.Tensor
            and tensor.layout == torch.strided
            and tensor.numel() * tensor.element_size() >= self._smallest
            and 0 not in tensor.stride()
            and storage._cdata not in self._staying
        )

    def _keep(self, storage: torch.UntypedStorage, device: torch.device) -> Kept:
        source = torch.empty(0, dtype=torch.uint8, device=device).set_(storage)
        room = self.store.room(source.numel())
        kept = Kept(self._count, room, self._transfers.put(source, room), device)
        weakref.finalize(kept, self.store.take_back, room).atexit = False
        self._kept[self._count] = kept
        self._count += 1
        return kept

    def _begin(self, kept: Kept) -> None:
        if kept.here is None and kept.begun is None:
            kept.begun = self._transfers.begin(kept.room, kept.ticket, kept.device)
