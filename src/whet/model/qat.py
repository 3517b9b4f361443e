"""Quantisation-aware training: forward passes see the weights (and inputs) as `whet quantize` will write them.

The float weights stay what is trained, checkpointed and saved; gradients pass the rounding as if it were not there
(the straight-through estimator, Bengio et al. 2013, https://arxiv.org/abs/1308.3432).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from whet.config import Config
from whet.config.resolve import ResolvedRun
from whet.core.errors import ModelError, Problem
from whet.model.loss import innermost
from whet.model.schemes import (
    Scheme,
    embedding_config,
    refusal,
    require_torchao,
    scheme_to_train_for,
    torchao_config,
    undivided_layer,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class StraightThrough(torch.nn.Module):
    """A rounding that torchao has as a tensor and not as a fake quantizer; the gradient is that of the identity.

    Args:
        rounded: a tensor without gradient -> the same in the numbers of the format, in the tensor's own dtype.
    """

    def __init__(self, rounded: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.rounded = rounded
        self.enabled = True  # as torchao's fake quantizers are switched

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        if not self.enabled:
            return value
        exact = value.detach()
        return value + (self.rounded(exact).to(value.dtype) - exact)


def install(model: torch.nn.Module, config: Config, resolved: ResolvedRun) -> str | None:
    """Round the linear layers of the config's block `qat`, the head left out; a lever (`whet.model.levers`).

    Raises:
        ModelError: torchao is not installed, the groups do not divide a layer, or only another GPU can do it.
    """
    scheme = scheme_to_train_for(config)
    if scheme is None:
        return None
    require_torchao(config, "qat")
    base = innermost(model)
    _check(base, scheme, config, resolved)
    num_layers = _swap(base, scheme)
    after = config.quant.qat.fake_quant_after_n_steps if config.quant.qat else None
    begins = f", from step {after + 1} on" if after else ""
    return f"qat: {num_layers} layers are trained with {scheme}{begins}; `whet quantize` writes them so"


def set_rounding(model: torch.nn.Module, enabled: bool) -> None:
    """Switch the rounding of every layer."""
    for module in model.modules():
        for name in ("weight_fake_quantizer", "activation_fake_quantizer"):
            quantizer = getattr(module, name, None)
            if quantizer is not None:
                quantizer.enabled = enabled


def _check(model: PreTrainedModel, scheme: Scheme, config: Config, resolved: ResolvedRun) -> None:
    if wrong := undivided_layer(model, scheme):
        raise ModelError(Problem(config.where("qat"), f"qat: {wrong}", "write a group_size that does", "qat"))
    in_kernels = scheme.weight in ("nvfp4", "mxfp4") and scheme.activation is not None
    if in_kernels and (refused := refusal(scheme, resolved.hardware)):
        raise ModelError(Problem(config.where("qat"), f"qat: {refused[0]}", refused[1], "qat"))


def _swap(model: PreTrainedModel, scheme: Scheme) -> int:
    """Replace the layers by torchao's that round; parameters stay the same objects. Returns how many there are."""
    from torchao.quantization import quantize_
    from torchao.quantization.qat import FakeQuantizedLinear, QATConfig

    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    quantize_(
        model,
        _prepare(scheme),
        filter_fn=lambda module, name: isinstance(module, torch.nn.Linear) and module is not head,
    )
    layers = [module for module in model.modules() if _rounds(module)]
    for layer in layers:
        if isinstance(layer, FakeQuantizedLinear):
            _add_straight_through(layer, scheme)
    if scheme.embedding:
        prepare = QATConfig(embedding_config(scheme), step="prepare")
        quantize_(model, prepare, filter_fn=lambda module, name: module is embedding)
    return len(layers)


def _prepare(scheme: Scheme) -> Any:
    """torchao's config of the layers while they are trained."""
    from torchao import quantization as ao
    from torchao.quantization.qat import Float8FakeQuantizeConfig, IntxFakeQuantizeConfig, QATConfig

    match (scheme.weight, scheme.activation):
        case ("int8", None) | ("int8", "int8") if scheme.group_size is None:
            weight = IntxFakeQuantizeConfig(torch.int8, ao.PerAxis(0), is_symmetric=True)
            return QATConfig(weight_config=weight, step="prepare")
        case ("int8", None):
            weight = IntxFakeQuantizeConfig(torch.int8, ao.PerGroup(scheme.group_size), is_symmetric=True)
            return QATConfig(weight_config=weight, step="prepare")
        case ("fp8", activation):
            rows = Float8FakeQuantizeConfig(granularity=ao.PerRow())
            return QATConfig(activation_config=rows if activation else None, weight_config=rows, step="prepare")
        case ("nvfp4", None):
            rows = Float8FakeQuantizeConfig(granularity=ao.PerRow())  # its place is taken by `_add_straight_through`
            return QATConfig(weight_config=rows, step="prepare")
    return QATConfig(torchao_config(scheme), step="prepare")


def _add_straight_through(layer: Any, scheme: Scheme) -> None:
    if (scheme.weight, scheme.activation, scheme.group_size) == ("int8", "int8", None):
        layer.activation_fake_quantizer = StraightThrough(_in_int8_rows)
    elif (scheme.weight, scheme.activation) == ("nvfp4", None):
        layer.weight_fake_quantizer = StraightThrough(_in_nvfp4)


def _in_int8_rows(value: torch.Tensor) -> torch.Tensor:
    """Each token's vector with a scale of its own, symmetric about zero, as `Int8DynamicActivationInt8WeightConfig`."""
    from torchao.quantization import Int8Tensor, PerRow

    rounded: torch.Tensor = Int8Tensor.from_hp(value, granularity=PerRow()).dequantize()
    return rounded


def _in_nvfp4(value: torch.Tensor) -> torch.Tensor:
    """Blocks of 16 with a scale in 8 bits, and one scale for the tensor, as `NVFP4WeightOnlyConfig`."""
    from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale

    scale = per_tensor_amax_to_scale(value.abs().max())
    rounded: torch.Tensor = NVFP4Tensor.to_nvfp4(value, per_tensor_scale=scale).dequantize()
    return rounded


def _rounds(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Linear) and (
        hasattr(module, "weight_fake_quantizer") or hasattr(module, "weight_config")
    )
