"""The moment before the first step: nothing refuses the run any more, and its folder becomes its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from whet.training.callbacks.interrupt import Interrupt
from whet.training.callbacks.trackers import GuardedTracker
from whet.training.rehearsal import Rehearsal
from whet.training.resuming import ResumingTrainer


class Beginning(TrainerCallback):
    """Lets the first rank take the output folder, when the checkpoint is loaded, saving is rehearsed, and the trackers
    have answered; before anything of the run is written there.

    Args:
        begin: takes it, with what another run has left there.
        resume_from: the checkpoint that the run goes on from.
        interrupt: ends the run here where a signal came while it was loading.
    """

    def __init__(
        self, trainer: Trainer, begin: Callable[[], None], resume_from: Path | None, interrupt: Interrupt
    ) -> None:
        self._trainer, self._begin, self._resume_from = trainer, begin, resume_from
        self._interrupt = interrupt

    def take_place(self) -> None:
        """Among the trainer's callbacks: behind those that may refuse, before those that write into the folder."""
        callbacks = self._trainer.callback_handler.callbacks
        refusing = [number for number, each in enumerate(callbacks) if _may_refuse(each)]
        callbacks.insert(refusing[-1] + 1 if refusing else 0, self)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self._interrupt.raise_if_asked(args, state)
        trainer = self._trainer
        if not isinstance(trainer, ResumingTrainer):
            if args.process_index == 0:
                self._begin()
            return
        with trainer.together("take the output folder"):
            if args.process_index == 0:
                self._begin()
        if self._resume_from is not None:
            trainer.find_best_beside(self._resume_from)  # it may have been set aside


def _may_refuse(callback: TrainerCallback) -> bool:
    return isinstance(callback, Rehearsal) or (isinstance(callback, GuardedTracker) and not callback.is_local)
