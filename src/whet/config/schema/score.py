"""An exact score before and after training."""

from __future__ import annotations

from pydantic import Field

from whet.config.schema.base import Positive, Section


class ScoreSection(Section):
    """Keys about the exact-match score (ours)."""

    score_dataset: str | None = Field(None, description="JSONL of conversations whose last answer is to be matched.")
    score_max_new_tokens: Positive = Field(64, description="Most tokens of a generated answer.")
    score_max_rows: Positive | None = Field(None, description="Rows of score_dataset to use; all by default.")
