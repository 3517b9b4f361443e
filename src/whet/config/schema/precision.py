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
    tf32: Literal["auto"] | bool = Field("auto", description="Allow CUDA's TensorFloat-32 in float32 products.")
