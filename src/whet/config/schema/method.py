"""Training methods other than supervised fine-tuning."""

from __future__ import annotations

from pydantic import Field

from whet.config.schema.base import NaturalNumber, PositiveNumber, Section


class MethodSection(Section):
    """Keys about preference training."""

    rl: str | None = Field(
        None, description="`dpo`; empty for supervised fine-tuning. Of the other methods the data can be prepared."
    )
    reward_model: bool = Field(False, description="Rows are for a reward model; they can be prepared, not trained on.")
    process_reward_model: bool = Field(
        False, description="Rows are for a process reward model; they can be prepared, not trained on."
    )
    rl_beta: PositiveNumber | None = Field(None, description="How strongly the reference model is held to.")
    dpo_label_smoothing: float | None = Field(None, ge=0, lt=0.5, description="Share of preferences taken as wrong.")
    dpo_loss_type: tuple[str, ...] | None = Field(None, description="DPO losses to add up; sigmoid by default.")
    dpo_loss_weights: tuple[NaturalNumber, ...] | None = Field(None, description="Weight of each of dpo_loss_type.")
    precompute_ref_log_probs: bool = Field(False, description="Compute the reference's log-probabilities once, before.")
