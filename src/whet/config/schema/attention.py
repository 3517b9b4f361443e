"""Which attention runs."""

from __future__ import annotations

from pydantic import Field

from whet.config.schema.base import Section


class AttentionSection(Section):
    """Keys about attention."""

    attn_implementation: str | None = Field(
        None,
        description="Implementation: whet_documents, eager, sdpa, flash_attention_2, flash_attention_3, "
        "flex_attention or a kernel of the hub (org/name); whet chooses when empty.",
    )
