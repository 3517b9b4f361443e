"""The optimizer and the learning rate over time."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from whet.config.scalars import resolve_scalar
from whet.config.schema.base import Natural, NaturalNumber, Positive, PositiveNumber, Section, Share


class LrGroup(Section):
    """Parameters with a learning rate of their own."""

    name: str = Field(min_length=1, description="Name of the group.")
    modules: tuple[str, ...] = Field(min_length=1, description="Parts of parameter names that belong to it.")
    lr: NaturalNumber = Field(description="Its learning rate.")


class OptimizerSection(Section):
    """Keys about the optimizer and its schedule."""

    optimizer: str = Field("adamw_torch_fused", description="Name of the optimizer.")
    learning_rate: PositiveNumber = Field(description="Highest learning rate of the schedule.")
    weight_decay: NaturalNumber = Field(0.0, description="Decoupled weight decay; norms and biases are left out.")
    optim_args: dict[str, Any] | None = Field(None, description="More arguments of the optimizer: mapping or k=v,k=v.")
    adam_beta1: float | None = Field(None, ge=0, lt=1, description="Decay of the gradient's running mean.")
    adam_beta2: float | None = Field(None, ge=0, lt=1, description="Decay of the squared gradient's running mean.")
    adam_beta3: float | None = Field(None, ge=0, lt=1, description="Decay of CAME's mean of how sure it is.")
    adam_epsilon: PositiveNumber | None = Field(None, description="Added to Adam's denominator.")
    adam_epsilon2: PositiveNumber | None = Field(None, description="Added to CAME's measure of how sure it is.")
    optim_target_modules: str | tuple[str, ...] | None = Field(
        None, description="Modules whose gradients GaLore and APOLLO project: parts of names; all_linear by default."
    )
    dion_lr: PositiveNumber | None = Field(None, description="Dion: learning rate of the matrices.")
    dion_momentum: float | None = Field(None, ge=0, lt=1, description="Dion: momentum of the matrices; 0.95 if empty.")
    dion_rank_fraction: float = Field(1.0, gt=0, le=1, description="Dion: rank over the smaller side of a matrix.")
    dion_rank_multiple_of: Positive = Field(1, description="Dion: the rank is rounded up to a multiple of this.")
    grokfast_alpha: float | None = Field(
        None, ge=0, lt=1, description="Grokfast: decay of the gradient's running mean; turns the filter on; 0.98 usual."
    )
    grokfast_lamb: NaturalNumber | None = Field(
        None, description="Grokfast: weight of that mean, added to each gradient; turns the filter on; 2 is usual."
    )
    embedding_lr: PositiveNumber | None = Field(None, description="Learning rate of the embeddings.")
    embedding_lr_scale: PositiveNumber | None = Field(None, description="The same, as a multiple of learning_rate.")
    lr_groups: tuple[LrGroup, ...] | None = Field(None, description="Groups of modules, each with its learning rate.")
    lr_scheduler: str = Field("cosine", description="Shape of the learning rate over the run.")
    lr_scheduler_kwargs: dict[str, Any] | None = Field(None, description="Further arguments of the scheduler.")
    warmup_steps: Natural | None = Field(None, description="Steps over which the learning rate rises from 0.")
    warmup_ratio: Share | None = Field(None, description="The same, as a share of all steps.")
    cosine_min_lr_ratio: Share | None = Field(None, description="Lowest learning rate, as a share of the highest.")
    cosine_constant_lr_ratio: Share | None = Field(
        None, description="Share of the steps after which the lowest learning rate is held."
    )
    lr_quadratic_warmup: bool = Field(False, description="Let the warm-up rise with the square of the step.")
    jagged_restart_steps: Positive | None = Field(
        None, description="Restart the learning rate every so many steps, whatever the schedule."
    )
    jagged_restart_warmup_steps: Natural | None = Field(
        None, description="Steps over which the learning rate rises again after a restart."
    )
    jagged_restart_anneal_steps: Natural | None = Field(
        None, description="Steps over which the learning rate falls before a restart."
    )

    @field_validator("optim_args", mode="before")
    @classmethod
    def _pairs(cls, value: Any) -> Any:
        """Read the short form ``a=1,b=2``."""
        if not isinstance(value, str):
            return value
        pairs = [part.split("=", 1) for part in value.split(",") if part.strip()]
        if any(len(pair) != 2 for pair in pairs):
            raise ValueError("write a mapping, or pairs as in momentum=0.9,nesterov=true")
        return {name.strip(): resolve_scalar(text.strip()) for name, text in pairs}
