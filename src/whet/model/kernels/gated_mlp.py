"""A gated MLP of plain linear layers as one step of the graph: down(act(gate(x)) * up(x)).

Kept for the backward pass: x by reference, gate(x) and up(x). Autograd would keep act(gate(x)) and its product with
up(x) as well; they are computed again. Adapted layers have `whet.model.kernels.lora_mlp`.

Shapes: N tokens, I input features, M features between, O output features.
"""

from __future__ import annotations

from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import Module

from whet.model.kernels.glu import ACTIVATIONS, Activation, make_glu
from whet.model.kernels.instances import (
    GATED,
    activation_of,
    is_watched,
    own_forward,
    replace_forward,
    why_no_gated_mlp,
)

if TYPE_CHECKING:
    from whet.config import Config
    from whet.config.resolve import ResolvedRun

Tensor = torch.Tensor


class _GatedMlp(torch.autograd.Function):
    """Takes three weights[out, in] and three biases[out] or None, in the order gate, up, down."""

    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, activation: Activation, dtype: torch.dtype, *flat: Tensor | None) -> Tensor:
        ctx.activation, ctx.dtype = activation, dtype
        x, (gate, up, down) = x_NI.to(dtype), _in_pairs(flat, dtype)
        gate_NM = torch.nn.functional.linear(x, *gate)
        up_NM = torch.nn.functional.linear(x, *up)
        h_NM = make_glu(activation, gate_NM).forward(gate_NM, up_NM)
        of_weights = ctx.needs_input_grad[3] or ctx.needs_input_grad[4]
        ctx.save_for_backward(x_NI if of_weights else None, gate_NM, up_NM, *flat)
        return torch.nn.functional.linear(h_NM, *down)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor | None, ...]:
        x_NI, gate_NM, up_NM, *flat = ctx.saved_tensors
        of_x, _, _, *wanted = ctx.needs_input_grad
        (W_gate, _), (W_up, _), (W_down, _) = _in_pairs(flat, ctx.dtype)
        glu = make_glu(ctx.activation, gate_NM)
        h_NM, activated_NM = glu.again(gate_NM, up_NM)
        dW_down, db_down = _gradients(grad_NO, h_NM, wanted[2::3])
        dgate_NM = torch.mm(grad_NO, W_down, out=h_NM)  # the product is done with
        dup_NM = glu.backward_(dgate_NM, gate_NM, up_NM, activated_NM)
        dx_NI = torch.mm(dgate_NM, W_gate).addmm_(dup_NM, W_up) if of_x else None
        x = None if x_NI is None else x_NI.to(ctx.dtype)
        dW_gate, db_gate = _gradients(dgate_NM, x, wanted[0::3])
        dW_up, db_up = _gradients(dup_NM, x, wanted[1::3])
        return dx_NI, None, None, dW_gate, dW_up, dW_down, db_gate, db_up, db_down


def _in_pairs(flat: Any, dtype: torch.dtype) -> list[tuple[Tensor, Tensor | None]]:
    """Weight and bias of each layer, in the type of the products."""
    return [
        (weight.to(dtype), None if bias is None else bias.to(dtype))
        for weight, bias in zip(flat[:3], flat[3:], strict=True)
    ]


def _gradients(grad_NO: Tensor, x_NI: Tensor | None, wanted: Any) -> tuple[Tensor | None, Tensor | None]:
    """Of a layer's weight and bias, as far as they are wanted."""
    of_weight, of_bias = wanted
    dW_OI = None
    if of_weight:
        assert x_NI is not None
        dW_OI = grad_NO.t() @ x_NI
    return dW_OI, grad_NO.sum(0) if of_bias else None


def gated_mlp(x: Tensor, activation: Activation, layers: tuple[Any, Any, Any], dtype: torch.dtype) -> Tensor:
    """down(act(gate(x)) * up(x)) for ``x[..., I]``, multiplied in ``dtype``: ``dtype[..., O]``."""
    flat = [layer.weight for layer in layers] + [layer.bias for layer in layers]
    with torch.autocast(x.device.type, enabled=False):
        y_NO: Tensor = _GatedMlp.apply(x.reshape(-1, x.shape[-1]), activation, dtype, *flat)  # type: ignore[no-untyped-call]
    return y_NO.view(*x.shape[:-1], y_NO.shape[-1])


def install(model: Module, config: Config, resolved: ResolvedRun) -> str | None:
    """See `whet.model.levers`. In 16 bits on a CPU only when it is asked for: computing the product again costs more
    than it is worth there (docs/lab-notes.md)."""
    in_16_bits = (resolved.autocast_dtype or resolved.dtype) in ("bfloat16", "float16")
    default = not (resolved.device == "cpu" and in_16_bits)
    wanted = config.kernels.liger_glu_activation
    if not (default if wanted is None else wanted):
        return None
    number = sum(install_in(module) for module in model.modules())
    return f"gated MLP: {number} keep gate and up, and not their product" if number else None


def install_in(mlp: Any) -> bool:
    """Give ``mlp`` the forward of this module, if it is such an MLP and nobody else has replaced its forward."""
    layers = tuple(getattr(mlp, name, None) for name in GATED)
    if "forward" in vars(mlp) or not all(isinstance(layer, Module) and is_plain(layer) for layer in layers):
        return False
    activation = activation_of(mlp)
    if activation is None or not _is_gated_mlp(mlp):
        return False
    mlp.whet_activation = activation.name
    replace_forward(mlp, MethodType(_forward, mlp))  # a method, so that a copy of the model has its own
    return True


def is_plain(layer: Module) -> bool:
    """Whether it is the linear layer of PyTorch itself: those of QAT, float8 and 4 bits are subclasses, and others' are
    tensors of other kinds."""
    return (
        type(layer) is torch.nn.Linear
        and "forward" not in vars(layer)
        and not is_watched(layer)
        and type(layer.weight) is torch.nn.Parameter
        and layer.weight.is_floating_point()
        and layer.weight.numel() > 0  # else sharded, by someone who gathers it when the layer is called
    )


def _is_gated_mlp(mlp: Any) -> bool:
    """Tried on three random tokens, in training mode, so that a dropout is seen."""
    weight = mlp.gate_proj.weight
    if weight.is_meta:
        return False
    x = torch.randn(3, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight)
    was_training, given = mlp.training, (x,)
    try:
        with torch.no_grad():
            return why_no_gated_mlp(mlp.train(), given, {}, mlp(x)) is None
    except (TypeError, RuntimeError, ValueError, IndexError):  # another signature or shape
        return False
    finally:
        mlp.train(was_training)


def _forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The replaced forward; what it cannot serve, and what keeps nothing for a backward pass, is the class's own."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or args or kwargs:
        return own_forward(self, x, *args, **kwargs)
    layers = (self.gate_proj, self.up_proj, self.down_proj)
    is_autocast = torch.is_autocast_enabled(x.device.type)
    dtype = torch.get_autocast_dtype(x.device.type) if is_autocast else x.dtype
    if not all(is_plain(layer) and (is_autocast or layer.weight.dtype == dtype) for layer in layers):
        return own_forward(self, x)
    return gated_mlp(x, _BY_NAME[self.whet_activation], layers, dtype)


_BY_NAME = {activation.name: activation for activation in ACTIVATIONS}
