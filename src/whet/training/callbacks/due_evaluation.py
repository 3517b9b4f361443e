"""An evaluation that a run had no time for, because it was asked to stop: made first thing when it is resumed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from whet.training.carried import Carried


class EvaluationCut(Exception):
    """The run is asked to stop and its evaluation is not finished."""


class DueEvaluation(TrainerCallback, Carried):
    """Remembers, in the checkpoint of a stop, that the evaluation after its step is still to be made.

    Args:
        evaluate: makes it, with what follows from it (the best metric, early stopping).
    """

    carried_as = "due_evaluation"

    def __init__(self, evaluate: Callable[[], None]) -> None:
        self._evaluate = evaluate
        self.is_due = False

    def carried(self) -> bool:
        return self.is_due

    def carry_on(self, value: Any) -> None:
        self.is_due = bool(value)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.is_due and state.global_step:
            self._evaluate()
        self.is_due = False
