"""Few bits: loading the base model in them, training for them (qat), writing the result in them (quantization)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from whet.config.schema.base import Natural, NaturalNumber, Positive, Section

NumberFormat = Literal["int4", "int8", "fp8", "float8", "float8_e4m3fn", "nvfp4", "mxfp4"]
"""Names of number formats; fp8, float8 and float8_e4m3fn are one."""


class QuantizationConfig(Section):
    """The block `quantization:`: in which numbers `whet quantize` writes the trained model."""

    weight_dtype: NumberFormat = Field("int8", description="Numbers of the weights of linear layers.")
    activation_dtype: NumberFormat | None = Field(
        None, description="Numbers that a layer's input is rounded to before it is multiplied; empty: it is not."
    )
    quantize_embedding: bool = Field(False, description="Write the input embedding in few bits too (weights alone).")
    group_size: Positive | None = Field(
        None,
        description="Weights that share a scale; by default 32 for int4, 16 for nvfp4, a whole row for int8 and fp8.",
    )


class QatConfig(QuantizationConfig):
    """The block `qat:`: train with weights rounded as `whet quantize` will round them."""

    fake_quant_after_n_steps: Natural | None = Field(
        None, description="Steps that are trained without rounding first; 0 by default."
    )


class QuantSection(Section):
    """Keys about quantised loading."""

    load_in_8bit: bool = Field(False, description="Load the base model's linear layers in 8 bits; needs an adapter.")
    load_in_4bit: bool = Field(False, description="Load the base model's linear layers in 4 bits; needs an adapter.")
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = Field("nf4", description="The 4-bit number format.")
    bnb_4bit_compute_dtype: Literal["float32", "float16", "bfloat16"] | None = Field(
        None, description="Type in which 4-bit layers multiply; the run's own type by default."
    )
    bnb_4bit_use_double_quant: bool = Field(True, description="Quantise the scales of the 4-bit blocks too.")
    bnb_4bit_quant_storage: Literal["uint8", "float32", "float16", "bfloat16"] | None = Field(
        None, description="Type in which packed 4-bit weights are declared; uint8 by default."
    )
    llm_int8_threshold: NaturalNumber | None = Field(
        None, description="Inputs above it are multiplied in 16 bits by 8-bit layers; 6.0 by default."
    )
    embeddings_skip_upcast: bool = Field(
        False, description="Leave the input embedding of a quantised model in 16 bits; float32 by default."
    )
    gptq: bool = Field(False, description="The base model is stored in GPTQ, which its config.json must say.")
    model_quantization_config: Literal["Mxfp4Config", "FineGrainedFP8Config"] | None = Field(
        None, description="Class of transformers for reading or quantising the base model."
    )
    model_quantization_config_kwargs: dict[str, Any] | None = Field(
        None, description="Its arguments, such as {dequantize: true}."
    )
    bnb_config_kwargs: dict[str, Any] | None = Field(None, description="Further arguments of BitsAndBytesConfig.")
    qat: QatConfig | None = Field(
        None, description="Quantisation-aware training of the full weights: forward passes see them rounded."
    )
    quantization: QuantizationConfig | None = Field(
        None, description="What `whet quantize` makes of the trained model; the block qat by default."
    )
