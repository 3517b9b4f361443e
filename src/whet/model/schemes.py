"""What the blocks `qat` and `quantization` mean to torchao: how weights are rounded, and where that can run.

torchao is imported when a scheme is used, by a run whose config has one.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from whet.config import Config
from whet.config.names import FEW_BITS_GROUPS, few_bits_name
from whet.config.schema import QuantizationConfig
from whet.core.errors import ModelError, Problem
from whet.core.types import Hardware

if TYPE_CHECKING:
    import torch

INT4_GROUP = 32
"""Weights that share a scale in int4 where the config does not say; an int8 or fp8 scale is a row's."""


@dataclass(frozen=True)
class Scheme:
    """How linear layers are rounded.

    Attributes:
        weight: "int8", "int4", "fp8", "nvfp4" or "mxfp4".
        activation: the same for a layer's input, None to leave it as it is.
        group_size: weights that share a scale; None for one scale a row.
        embedding: whether the input embedding is rounded too.
        key: the block of the config it was read from.
    """

    weight: str
    activation: str | None
    group_size: int | None
    embedding: bool
    key: str

    def __str__(self) -> str:
        inputs = f", inputs in {self.activation}" if self.activation else ""
        scale = f"a scale for {self.group_size} weights" if self.group_size else "a scale for a row"
        return f"weights in {self.weight} ({scale}){inputs}" + (", the embedding too" if self.embedding else "")


def scheme_to_write(config: Config) -> Scheme | None:
    """The scheme of `quantization`, else of `qat`."""
    if config.quant.quantization is not None:
        return _scheme(config.quant.quantization, "quantization")
    return scheme_to_train_for(config)


def scheme_to_train_for(config: Config) -> Scheme | None:
    """The scheme of `qat`."""
    return None if config.quant.qat is None else _scheme(config.quant.qat, "qat")


def _scheme(block: QuantizationConfig, key: str) -> Scheme:
    weight, activation = str(few_bits_name(block.weight_dtype)), few_bits_name(block.activation_dtype)
    default = FEW_BITS_GROUPS.get((weight, activation), INT4_GROUP if weight == "int4" else None)
    return Scheme(weight, activation, block.group_size or default, block.quantize_embedding, key)


def require_torchao(config: Config, key: str) -> None:
    """
    Raises:
        ModelError: torchao is not installed.
    """
    if importlib.util.find_spec("torchao") is None:
        found = f"{key} needs the package torchao, which is not installed"
        raise ModelError(Problem(config.where(key), found, "pip install torchao", key))


def refusal(scheme: Scheme, hardware: Hardware) -> tuple[str, str] | None:
    """Why weights cannot be written in this scheme here, and what to write instead; None where they can."""
    capability = hardware.compute_capability
    here = "a CPU" if hardware.device == "cpu" else hardware.device_name or "this GPU"
    needs: dict[tuple[str, str | None], tuple[tuple[int, int], str, str]] = {
        ("fp8", "fp8"): (
            (8, 9),
            "8.9 (Ada, Hopper)",
            "leave activation_dtype out: fp8 weights alone are written anywhere",
        ),
        ("int4", "fp8"): ((9, 0), "9.0 (Hopper)", "write activation_dtype: int8"),
        ("nvfp4", "nvfp4"): (
            (10, 0),
            "10.0 (Blackwell)",
            "leave activation_dtype out: nvfp4 weights alone are written anywhere",
        ),
        ("mxfp4", "mxfp4"): ((10, 0), "10.0 (Blackwell)", "write weight_dtype: nvfp4 without activation_dtype"),
    }
    least, named, fix = needs.get((scheme.weight, scheme.activation), ((0, 0), "", ""))
    if not named or (capability is not None and capability >= least):
        return None
    products = f"{scheme.weight} weights with {scheme.activation} inputs"
    return f"{products} need a GPU of compute capability {named}, and this is {here}", fix


def undivided_layer(model: Any, scheme: Scheme) -> str | None:
    """A sentence about the layers whose inputs the groups do not divide; torchao leaves such layers as they are, or
    fails in the middle. None where there are none."""
    import torch

    head = model.get_output_embeddings()
    wrong = [
        f"{name} ({module.in_features})"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
        if scheme.group_size is not None and module.in_features % scheme.group_size
    ]
    if not wrong:
        return None
    more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    return f"groups of {scheme.group_size} weights do not divide the inputs of {wrong[0]}{more}"


def torchao_config(scheme: Scheme) -> Any:
    """torchao's config of the linear layers.

    int4 weights without rounded inputs are torchao's `IntxWeightOnlyConfig`, which runs on every device and rounds as
    quantisation-aware training does. It keeps one weight in a byte, so its files are as large as int8's.
    """
    import torch
    from torchao import quantization as ao
    from torchao.prototype import mx_formats

    granularity = ao.PerGroup(scheme.group_size) if scheme.group_size else ao.PerAxis(0)
    match (scheme.weight, scheme.activation):
        case ("int8", None):
            group = ao.PerGroup(scheme.group_size) if scheme.group_size else ao.PerRow()
            return ao.Int8WeightOnlyConfig(granularity=group)
        case ("int8", "int8") if scheme.group_size is None:
            return ao.Int8DynamicActivationInt8WeightConfig()
        case ("int8" | "int4", "int8"):
            return ao.Int8DynamicActivationIntxWeightConfig(_integer(scheme.weight), granularity)
        case ("int4", None):
            return ao.IntxWeightOnlyConfig(_integer("int4"), granularity)
        case ("int4", "fp8"):
            return ao.Float8DynamicActivationInt4WeightConfig()
        case ("fp8", None):
            return ao.Float8WeightOnlyConfig()
        case ("fp8", "fp8"):
            return ao.Float8DynamicActivationFloat8WeightConfig(granularity=ao.PerRow())
        case ("nvfp4", None):
            return mx_formats.NVFP4WeightOnlyConfig()
        case ("nvfp4", "nvfp4"):
            return mx_formats.NVFP4DynamicActivationNVFP4WeightConfig()
        case ("mxfp4", "mxfp4"):
            four = torch.float4_e2m1fn_x2
            return mx_formats.MXDynamicActivationMXWeightConfig(activation_dtype=four, weight_dtype=four)
    raise AssertionError(f"the rules let {scheme} pass")


def embedding_config(scheme: Scheme) -> Any:
    """torchao's config of the input embedding."""
    from torchao import quantization as ao

    granularity = ao.PerGroup(scheme.group_size) if scheme.group_size else ao.PerAxis(0)
    return ao.IntxWeightOnlyConfig(_integer(scheme.weight), granularity)


def _integer(name: str) -> torch.dtype:
    import torch

    dtype: torch.dtype = getattr(torch, name)  # PyTorch's annotations do not know int4
    return dtype
