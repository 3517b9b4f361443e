"""The loss of a token, and who computes the output head."""

from __future__ import annotations

from pydantic import Field

from whet.config.schema.base import NaturalNumber, Positive, PositiveNumber, Section


class LossSection(Section):
    """Keys about the loss of supervised fine-tuning. An evaluation is always the plain cross-entropy."""

    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Share of a target's probability that is spread over the whole vocabulary."
    )
    z_loss_coefficient: NaturalNumber = Field(
        0.0,
        description="Weight of the squared log of the softmax's normaliser; 1e-4 is usual.",
    )
    use_dft: bool = Field(False, description="Weight each token by its own probability (dynamic fine-tuning).")
    use_eaft: bool = Field(
        False,
        description="Weight each token by the entropy of the model's guess (entropy-adaptive fine-tuning).",
    )
    eaft_alpha: PositiveNumber = Field(1.0, description="Power of that entropy, which is from 0 to 1.")
    eaft_k: int = Field(20, ge=2, description="Likeliest tokens whose entropy it is.")
    chunked_cross_entropy: bool | None = Field(
        None, description="Compute the output head in chunks of positions, whose logits alone exist; always so."
    )
    chunked_cross_entropy_num_chunks: Positive | None = Field(
        None, description="How many chunks; by default as few as a fixed number of bytes allows."
    )
    cut_cross_entropy: bool | None = Field(
        None, description="Let the package cut-cross-entropy compute the head on CUDA; elsewhere whet's own does."
    )
    liger_fused_linear_cross_entropy: bool | None = Field(
        None, description="Let the package liger-kernel compute the head on CUDA; elsewhere whet's own does."
    )
    liger_cross_entropy: bool | None = Field(None, description="The same as liger_fused_linear_cross_entropy.")
    liger_use_token_scaling: bool = Field(False, description="Liger's name of use_dft.")
    flash_attn_cross_entropy: bool | None = Field(None, description="Axolotl's switch for a fused loss; always so.")
    flash_attn_cross_entropy_loss: bool | None = Field(None, description="The same as flash_attn_cross_entropy.")
    plugins: tuple[str, ...] | None = Field(
        None, description="Axolotl's plugins; those for Liger, cut-cross-entropy and fused experts are not needed here."
    )
