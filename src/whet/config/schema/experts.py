"""How the experts of mixture models are computed and stored."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from whet.config.schema.base import Section


class ExpertsSection(Section):
    """Keys about mixtures of experts; none has a meaning for a model without experts."""

    experts_implementation: Literal["auto", "whet_experts", "grouped_mm", "batched_mm", "eager"] = Field(
        "auto",
        description="Who computes the experts: whet_experts (chosen by auto: adapters beside the weights, nothing "
        "merged), or one of transformers' own.",
    )
    expert_backend: Literal["auto", "scattermoe", "sonicmoe", "grouped_mm", "batched_mm", "eager"] = Field(
        "auto",
        description="Axolotl's word for experts_implementation; scattermoe and sonicmoe are served by whet_experts.",
    )
    use_scattermoe: bool = Field(False, description="Axolotl's switch for grouped experts; served by whet_experts.")
    use_sonicmoe: bool = Field(False, description="Axolotl's switch for grouped experts; served by whet_experts.")
    moe_grouped_backend: Literal["auto", "grouped_mm", "triton", "loop"] = Field(
        "auto",
        description="How whet_experts multiplies: PyTorch's grouped product or whet's Triton kernels on CUDA, a loop "
        "over the experts elsewhere.",
    )
