"""When checkpoints are made, and what they hold beside transformers' files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class IntervalsOfTheConfig(TrainerCallback):
    """A resumed run takes its intervals from the checkpoint; what the config says now shall count."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        state.compute_steps(args, state.max_steps)


class SaveBeside(TrainerCallback):
    """Puts what the run needs, beside what transformers writes, into each checkpoint.

    Args:
        take: copies what is to be saved, and returns the function that writes the copy into a folder. Every rank takes;
            the first one writes, perhaps in another thread, while training goes on.
        restore: is given the folder of the checkpoint that a run goes on from, before it does.
    """

    def __init__(
        self, take: Callable[[], Callable[[Path], None]], restore: Callable[[Path], None] = lambda checkpoint: None
    ) -> None:
        self.take, self.restore = take, restore


class SaveFirstStep(TrainerCallback):
    """A checkpoint after the first step, to learn at once whether saving works."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step == 1:
            control.should_save = True
