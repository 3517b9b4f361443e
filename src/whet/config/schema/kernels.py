"""Fast forms of parts of a model; each is used where it gives the same numbers, unless it is switched off."""

from __future__ import annotations

from pydantic import Field

from whet.config.schema.base import Section


class KernelsSection(Section):
    """Keys about fast forms of layers."""

    liger_rms_norm: bool | None = Field(
        None, description="Fused RMS normalisation; where it applies by default, false never."
    )
    liger_rope: bool | None = Field(None, description="Rotary embedding without temporaries; as liger_rms_norm.")
    liger_glu_activation: bool | None = Field(
        None, description="Gated MLPs that keep less for the backward pass; as liger_rms_norm."
    )
