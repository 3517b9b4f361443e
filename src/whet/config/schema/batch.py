"""How many rows make a step."""

from __future__ import annotations

from pydantic import Field

from whet.config.schema.base import Positive, Section


class BatchSection(Section):
    """Keys about batches."""

    micro_batch_size: Positive = Field(1, description="Rows in one forward pass, on each device.")
    gradient_accumulation_steps: Positive | None = Field(None, description="Forward passes to one step; 1 by default.")
    batch_size: Positive | None = Field(
        None, description="Rows in one step on all devices; gives gradient_accumulation_steps."
    )
    eval_batch_size: Positive | None = Field(None, description="As micro_batch_size, in evaluation.")
