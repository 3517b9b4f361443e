"""The numbers the run computes in."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from whet.config.schema.base import Section


class PrecisionSection(Section):
    """Keys about precision."""

    bf16: Literal["auto", "full"] | bool = Field(
        "auto", description="Mixed precision in bfloat16; auto: where the device has it. full is the same as true."
    )
    fp16: bool = Field(False, description="Mixed precision in float16, with loss scaling.")
    bfloat16: bool = Field(False, description="Weights and arithmetic in bfloat16, no mixed precision.")
    float16: bool = Field(False, description="Weights and arithmetic in float16, no mixed precision.")
    float32: bool = Field(False, description="Weights and arithmetic in float32.")
    torch_dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="Type the weights are loaded in; by default what the other keys of precision make of it."
    )
    fp8: bool = Field(
        False,
        description="Products of linear layers in 8-bit floats, by torchao, on GPUs that have them (Ada, Hopper).",
    )
    fp32_norms: bool = Field(False, description="Norms keep float32 weights and arithmetic in a model of 16 bits.")
    fp32_norm_classes: tuple[str, ...] | None = Field(
        None, description="Parts of the class names of these norms; RMSNorm and LayerNorm by default."
    )
    tf32: Literal["auto"] | bool = Field("auto", description="Allow CUDA's TensorFloat-32 in float32 products.")
