"""How long to train, and when to log, evaluate, save and stop."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from whet.config.schema.base import Natural, NaturalNumber, Positive, PositiveNumber, Section


class DynamicCheckpointConfig(Section):
    """The block `dynamic_checkpoint:`: files that ask a running training for a checkpoint, or to end cleanly."""

    enabled: bool = Field(False, description="Look for the files.")
    check_interval: Positive = Field(10, description="Steps between two looks; at most one a second.")
    trigger_file_path: str = Field(
        "", description="File that asks for a checkpoint; axolotl_checkpoint.save in output_dir by default."
    )
    stop_file_path: str = Field(
        "", description="File that asks for a checkpoint and the end (whet's own); whet_stop in output_dir by default."
    )


class LoopSection(Section):
    """Keys about the training loop."""

    num_epochs: PositiveNumber = Field(1.0, description="Passes over the data; a fraction is allowed.")
    max_steps: Positive | None = Field(None, description="Stop after this many optimiser steps.")
    seed: int = Field(42, ge=0, lt=2**32, description="Seed of the order, the adapter's start and dropout.")
    max_grad_norm: NaturalNumber = Field(1.0, description="Gradients are scaled down to this norm; 0 leaves them.")
    logging_steps: Positive | None = Field(None, description="Log every so many steps.")
    eval_steps: Positive | PositiveNumber | None = Field(
        None, description="Evaluate every so many steps; below 1, a share of all steps."
    )
    evals_per_epoch: Positive | None = Field(None, description="Evaluate so many times an epoch.")
    eval_strategy: Literal["no", "steps", "epoch"] | None = Field(None, description="When to evaluate.")
    eval_on_start: bool | None = Field(None, description="Evaluate before the first step too.")
    save_steps: Positive | PositiveNumber | None = Field(
        None, description="Save every so many steps; below 1, a share of all steps."
    )
    saves_per_epoch: Positive | None = Field(None, description="Save so many times an epoch.")
    save_strategy: Literal["no", "steps", "epoch", "best"] | None = Field(None, description="When to save.")
    save_total_limit: Natural = Field(4, description="Checkpoints kept: the newest, the best not counted; 0 keeps all.")
    save_first_step: bool = Field(False, description="Save after the first step.")
    save_only_model: bool = Field(False, description="Save weights without the optimizer; such a run cannot resume.")
    save_wait_minutes: Natural = Field(
        10, description="On a full disk, wait so long for room before the run ends (whet's own key)."
    )
    load_best_model_at_end: bool = Field(False, description="End with the weights of the best evaluation.")
    metric_for_best_model: str | None = Field(None, description="Metric that decides the best; eval_loss by default.")
    greater_is_better: bool | None = Field(None, description="Whether a greater metric is better; told from its name.")
    early_stopping_patience: Positive | None = Field(
        None, description="Stop after this many evaluations in a row without a better metric."
    )
    resume_from_checkpoint: bool | str | None = Field(
        None, description="Folder of the checkpoint to go on from; true takes the newest in output_dir."
    )
    auto_resume_from_checkpoints: bool = Field(False, description="Go on from the newest checkpoint, if there is one.")
    allow_change: str | tuple[str, ...] | None = Field(
        None, description="Keys whose value may differ from that of the run that is resumed; also data, tokenizer."
    )
    dynamic_checkpoint: DynamicCheckpointConfig | None = Field(
        None, description="Files that ask for a checkpoint, or for a clean end, while the run goes on."
    )
    rehearse_saving: bool = Field(
        False,
        description="Try saving before the first step: save, read back in a new process, compare, delete.",
    )
    neftune_noise_alpha: PositiveNumber | None = Field(None, description="Noise on embeddings (NEFTune); 5 is usual.")
    loss_watchdog_threshold: PositiveNumber | None = Field(None, description="A loss above this is out of hand.")
    loss_watchdog_patience: Positive = Field(3, description="Steps above loss_watchdog_threshold that end the run.")
