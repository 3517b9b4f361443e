"""PEFT's LoRA layers as the kernels of `lora` and `lora_mlp` take them, and the forwards that take their place.

Each looks at its layers every time it is called: what it cannot do at that moment (an adapter switched off, merged, two
at once) is done by the class's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any

import torch
from peft.tuners.lora.layer import Linear, LoraLayer
from torch.nn import Module

from whet.model.kernels.base_weight import compute_dtype, output_dtype, unreadable
from whet.model.kernels.glu import Activation
from whet.model.kernels.instances import is_watched, own_forward, replace_forward
from whet.model.kernels.lora import Factors, Projection, lora_linear
from whet.model.kernels.lora_mlp import Mlp, lora_mlp

_NO_ADAPTER: Factors = (None, None, None)


def why_not(layer: Module) -> str | None:
    """Why a layer stays as PEFT (or the model) has it, in words that follow "because"; None where it need not."""
    if is_watched(layer):
        return "something watches its calls"
    if not isinstance(layer, LoraLayer):
        return unreadable(layer)
    if type(layer) is not Linear and type(layer).__name__ != "Linear4bit":
        return f"it is a {type(layer).__name__} of PEFT"
    if any(layer.lora_bias.values()):
        return "its adapter has a bias"
    for name, variant in layer.lora_variant.items():
        if type(variant).__name__ != "DoraLinearVariant":
            return f"its adapter is a {type(variant).__name__}"
        if getattr(layer.lora_dropout[name], "p", 0.0):
            return "DoRA with dropout needs two products with the base weight"
    if len(layer.active_adapters) != 1:
        return "several adapters are active at once"
    return unreadable(layer.get_base_layer())


def base_of(layer: Module) -> Module:
    """The frozen layer: inside PEFT's, or ``layer`` itself."""
    return layer.get_base_layer() if isinstance(layer, LoraLayer) else layer


def as_now(layer: Module) -> tuple[Projection, Factors] | None:
    """A layer as it stands at this call; None where its own forward must do it."""
    if not isinstance(layer, LoraLayer):
        return (Projection(layer), _NO_ADAPTER) if unreadable(layer) is None else None
    if layer.disable_adapters or layer.merged or len(layer.active_adapters) != 1:
        return None
    name = layer.active_adapters[0]
    if name not in layer.lora_A:
        return None
    A = layer.lora_A[name].weight
    if A.numel() == 0 or A.device != base_of(layer).weight.device:
        return None  # sharded or offloaded by someone who gathers it in the class's own forward
    dropout = layer.lora_dropout[name]
    share = dropout.p if layer.training and isinstance(dropout, torch.nn.Dropout) else 0.0
    magnitude = layer.lora_magnitude_vector[name].weight if name in layer.lora_magnitude_vector else None
    return Projection(base_of(layer), layer.scaling[name], share), (A, layer.lora_B[name].weight, magnitude)


def hide_from_compiler(model: Module) -> None:
    """Let torch.compile break its graph at the replaced forwards instead of tracing into them."""
    for module in model.modules():
        forward = module.__dict__.get("forward")
        if isinstance(forward, MethodType) and forward.__module__ == __name__:
            module.forward = MethodType(torch.compiler.disable(forward.__func__), module)  # type: ignore[no-untyped-call]


def single_forward(layer: Module) -> Callable[..., torch.Tensor]:
    """The forward of one adapted layer."""
    return MethodType(_single_forward, layer)


def _single_forward(self: Module, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    now = None if args or kwargs else as_now(self)
    if now is None:
        return own_forward(self, x, *args, **kwargs)
    return _compute([self], [now], x)[0]


def _compute(
    layers: Sequence[Module], now: Sequence[tuple[Projection, Factors]], x: torch.Tensor
) -> list[torch.Tensor]:
    bases = [base_of(layer) for layer in layers]
    results = lora_linear(
        x, [projection for projection, _ in now], [factors for _, factors in now], compute_dtype(bases[0], x)
    )
    return [y.to(output_dtype(base, x)) for y, base in zip(results, bases, strict=True)]


class OneInput:
    """Layers that a module calls one after the other on one tensor: the first call computes all of them.

    The results wait for the calls with the same, unchanged tensor, and are dropped when the module's forward ends,
    however it ends; so nothing is kept that nobody asked for. Each layer knows it as ``whet_one_input``; it, its hooks
    and the layers' forwards are methods and attributes, so that a copy of the module has its own.
    """

    def __init__(self, parent: Module, layers: Sequence[Module]) -> None:
        self._layers = list(layers)
        self._x: torch.Tensor | None = None
        self._version = 0
        self._waiting: dict[int, torch.Tensor] = {}
        self._is_open = False
        parent.register_forward_pre_hook(self._open)
        parent.register_forward_hook(self._close, always_call=True)
        for position, layer in enumerate(self._layers):
            layer.whet_one_input = (self, position)  # type: ignore[assignment]
            replace_forward(layer, MethodType(_shared_forward, layer))

    def _open(self, *_: Any) -> None:
        self._is_open = True

    def _close(self, *_: Any) -> None:
        self._is_open, self._x = False, None
        self._waiting.clear()

    def output_of(self, position: int, x: torch.Tensor) -> torch.Tensor | None:
        """What the layer in this position makes of ``x``; None where it must be computed alone."""
        if not self._is_open or x.is_inference():
            return None
        if x is self._x and x._version == self._version and position in self._waiting:
            return self._waiting.pop(position)
        if self._waiting or not self._compute_all(x):
            return None
        return self._waiting.pop(position)

    def _compute_all(self, x: torch.Tensor) -> bool:
        now = [as_now(layer) for layer in self._layers]
        ready = [each for each in now if each is not None]
        if len(ready) < len(now):
            return False
        self._waiting = dict(enumerate(_compute(self._layers, ready, x)))
        self._x, self._version = x, x._version
        return True


def _shared_forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    shared, position = self.whet_one_input
    if not args and not kwargs:
        y: torch.Tensor | None = shared.output_of(position, x)
        if y is not None:
            return y
    if isinstance(self, LoraLayer):
        return _single_forward(self, x, *args, **kwargs)
    return own_forward(self, x, *args, **kwargs)


def mlp_forward(mlp: Any, activation: Activation) -> Callable[..., torch.Tensor]:
    """The forward of a module that is down_proj(act(gate_proj(x)) * up_proj(x))."""
    mlp.whet_lora_activation = activation
    return MethodType(_mlp_forward, mlp)


def _mlp_forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    layers = (self.gate_proj, self.up_proj, self.down_proj)
    gate, up, down = (as_now(layer) for layer in layers)
    if args or kwargs or gate is None or up is None or down is None:
        return own_forward(self, x, *args, **kwargs)
    if not any(isinstance(layer, LoraLayer) for layer in layers):  # the adapter was merged and taken off
        return own_forward(self, x)
    base = base_of(layers[0])
    three = Mlp((gate[0], up[0], down[0]), self.whet_lora_activation)
    y = lora_mlp(x, three, (gate[1], up[1], down[1]), compute_dtype(base, x))
    return y.to(output_dtype(base, x))
