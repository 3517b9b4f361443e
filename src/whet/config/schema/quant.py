"""Loading the base model in few bits (bitsandbytes)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from whet.config.schema.base import Section


class QuantSection(Section):
    """Keys about quantised loading."""

    load_in_8bit: bool = Field(False, description="Load the base model's linear layers in 8 bits; needs an adapter.")
    load_in_4bit: bool = Field(False, description="Load the base model's linear layers in 4 bits; needs an adapter.")
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = Field("nf4", description="The 4-bit number format.")
    bnb_4bit_compute_dtype: Literal["float32", "float16", "bfloat16"] | None = Field(
        None, description="Type in which 4-bit layers multiply; the run's own type by default."
    )
    bnb_4bit_use_double_quant: bool = Field(True, description="Quantise the scales of the 4-bit blocks too.")
    bnb_config_kwargs: dict[str, Any] | None = Field(None, description="Further arguments of BitsAndBytesConfig.")
