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


class SaveAfterEvaluation(TrainerCallback):
    """Takes the checkpoint of an epoch's last step when the epoch has ended, after the evaluation that ends it.

    A run that is resumed there begins with the next epoch. Taken when the step ends, the checkpoint would know nothing
    of the evaluation: neither the best metric, nor the count of early stopping, nor what a scheduler makes of it.
    A run that is asked to stop saves at once, and remembers that the evaluation is due (`DueEvaluation`).
    """

    def __init__(self) -> None:
        self._is_due = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        is_last = state.global_step >= state.max_steps
        ends_epoch = state.epoch is not None and float(state.epoch).is_integer()
        if control.should_save and (is_last or (ends_epoch and not control.should_training_stop)):
            self._is_due, control.should_save = True, False

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._is_due:
            self._is_due, control.should_save = False, True
