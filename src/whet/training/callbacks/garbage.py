"""Collect Python's garbage at times of the run's choosing (`gc_collect_steps`)."""

from __future__ import annotations

from gc import collect
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class CollectGarbage(TrainerCallback):
    """Python's collector, every so many steps and before each evaluation.

    Args:
        every: in optimiser steps; below 1 only at epochs' ends and before evaluations.
    """

    def __init__(self, every: int) -> None:
        self._every = every

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if control.should_evaluate or (self._every > 0 and state.global_step % self._every == 0):
            collect()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        collect()
