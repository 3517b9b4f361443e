"""Frozen weights wait in host memory: a layer's are fetched before its turn, one layer ahead, and dropped after it.

For adapters on a model that is too large beside its activations. Each layer's weights are there in its forward pass,
and from the moment its checkpoint is computed again until the layer before it begins. Needs gradient checkpointing:
otherwise the graph would keep every layer's weights from forward to backward.

The weights leave the device in the first forward pass, so the whole model must fit there until then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import torch

from whet.config import Config
from whet.config.resolve import ResolvedRun
from whet.core.errors import ModelError, Problem
from whet.model.loss import innermost
from whet.model.memory.layers import repeated_layers


def install(model: torch.nn.Module, config: Config, resolved: ResolvedRun) -> str | None:
    """Keep the frozen weights of checkpointed layers on the host.

    Raises:
        ModelError: the model's layers cannot be told apart.
    """
    if not resolved.layer_offloading:
        return None
    layers = [layer for layer in repeated_layers(model) if layer.gradient_checkpointing]
    if not layers:
        found = f"layer_offloading: the layers of {type(innermost(model)).__name__} cannot be told apart"
        raise ModelError(Problem(config.where("layer_offloading"), found, "remove the line", "layer_offloading"))
    fetcher: Fetcher = StreamFetcher() if resolved.device == "cuda" else PlainFetcher()
    offload(layers, fetcher)
    return f"layer_offloading: the frozen weights of {len(layers)} layers wait in host memory"


class Fetcher(Protocol):
    """Brings a tensor to the device."""

    def keep(self, on_device: torch.Tensor) -> torch.Tensor:
        """The same on the host."""

    def begin(self, on_host: torch.Tensor, device: torch.device) -> Any:
        """Start to bring it back."""

    def finish(self, begun: Any) -> torch.Tensor:
        """It, ready for what is computed next."""


class PlainFetcher:
    """Copies at once; where device and host are one it still copies, so that the same can be tested there."""

    def keep(self, on_device: torch.Tensor) -> torch.Tensor:
        return on_device.detach().to("cpu", copy=True)

    def begin(self, on_host: torch.Tensor, device: torch.device) -> torch.Tensor:
        return on_host.to(device, copy=True)

    def finish(self, begun: torch.Tensor) -> torch.Tensor:
        return begun


class StreamFetcher:
    """Copies on a stream of their own, from page-locked memory."""

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None

    def keep(self, on_device: torch.Tensor) -> torch.Tensor:
        on_host = torch.empty_like(on_device, device="cpu", pin_memory=True)
        return on_host.copy_(on_device.detach())

    def begin(self, on_host: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, torch.cuda.Event]:
        self._stream = self._stream or torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        # Not before what runs now: the memory that is about to be used may only just have been freed there.
        self._stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self._stream):
            here = torch.empty_like(on_host, device=device)
            here.copy_(on_host, non_blocking=True)
            return here, self._stream.record_event()

    def finish(self, begun: tuple[torch.Tensor, torch.cuda.Event]) -> torch.Tensor:
        here, arrived = begun
        current = torch.cuda.current_stream(here.device)
        current.wait_event(arrived)
        here.record_stream(current)
        return here


class LayerWeights:
    """The frozen parameters of one layer, on the host except in its turn."""

    def __init__(self, layer: torch.nn.Module, fetcher: Fetcher) -> None:
        self._layer, self._fetcher = layer, fetcher
        self._on_host: list[tuple[torch.nn.Parameter, torch.Tensor]] = []
        self._device = torch.device("cpu")
        self._begun: list[Any] | None = None
        self._users = 0
        self._away = False
        self._held = False
        self.is_computed_again = False

    def prefetch(self) -> None:
        """Start to bring them, unless they are here or on their way."""
        if self._away and self._users == 0 and self._begun is None:
            self._begun = [self._fetcher.begin(host, self._device) for _, host in self._on_host]

    def enter(self) -> None:
        """They are on the device from here on. May be nested."""
        if self._users == 0 and self._away:
            self.prefetch()
            assert self._begun is not None
            for (parameter, _), begun in zip(self._on_host, self._begun, strict=True):
                parameter.data = self._fetcher.finish(begun)
            self._begun = None
        self._users += 1

    def leave(self) -> None:
        """They are not needed any more. What autograd saved of them stays as long as it does."""
        self._users -= 1
        if self._users:
            return
        if not self._away:
            self._take_away()
        for parameter, host in self._on_host:
            parameter.data = host

    def hold(self) -> None:
        """They are on the device until `let_go`, however often `enter` and `leave` are called meanwhile."""
        if not self._held:
            self.enter()
            self._held = True

    def let_go(self) -> None:
        """End of `hold`; harmless without it."""
        if self._held:
            self._held = False
            self.leave()

    def _take_away(self) -> None:
        frozen = [parameter for parameter in self._layer.parameters() if not parameter.requires_grad]
        self._on_host = [(parameter, self._fetcher.keep(parameter.data)) for parameter in frozen]
        self._device = next((parameter.device for parameter in frozen), self._device)
        self._away = True


def offload(layers: Sequence[torch.nn.Module], fetcher: Fetcher) -> None:
    """Fetch and drop the weights of these layers around their forward pass, and where it is computed again."""
    weights = [LayerWeights(layer, fetcher) for layer in layers]
    neighbours = [None, *weights, None]
    for layer, before, own, after in zip(layers, neighbours, weights, neighbours[2:], strict=False):
        layer.register_forward_pre_hook(partial(_enter, own, after))
        layer.register_forward_hook(partial(_leave, own), always_call=True)
        inner: Callable[..., Any] = layer._gradient_checkpointing_func  # type: ignore[assignment]  # of transformers
        layer._gradient_checkpointing_func = partial(_checkpointed, before, own, after, inner)  # type: ignore[assignment]


def _enter(own: LayerWeights, after: LayerWeights | None, module: torch.nn.Module, arguments: Any) -> None:
    own.enter()
    if own.is_computed_again:  # before transformers 5.20 a layer's hooks are inside its checkpoint
        return
    own.let_go()  # the first layer's are held from the backward pass before
    if after is not None:
        after.prefetch()


def _leave(own: LayerWeights, module: torch.nn.Module, arguments: Any, output: Any) -> None:
    own.leave()


def _checkpointed(
    before: LayerWeights | None,
    own: LayerWeights,
    after: LayerWeights | None,
    inner: Callable[..., Any],
    function: Callable[..., Any],
    *rest: Any,
) -> Any:
    """The layer's checkpoint; transformers does not run a layer's hooks when it computes it again."""
    is_again = False

    def with_weights(*arguments: Any) -> Any:
        nonlocal is_again
        if not is_again:
            is_again = True
            return function(*arguments)
        own.hold()
        if after is not None:
            after.let_go()
        if before is not None:
            before.prefetch()
        own.is_computed_again = True
        try:
            return function(*arguments)
        finally:
            own.is_computed_again = False

    return inner(with_weights, *rest)
