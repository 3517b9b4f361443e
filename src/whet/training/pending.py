"""The figures of steps that are not logged yet, and the sums behind the run's last line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from whet.training.carried import Carried


class PendingFigures(Carried, TrainerCallback):
    """Brings back what transformers forgets: the loss since the last logged step, and of the whole run.

    Without it the first loss that is logged after a resume is that of fewer steps, and ``train_loss`` in the end is the
    mean of this process's steps.
    """

    carried_as = "pending_figures"

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._value: dict[str, Any] | None = None
        self._first_step = 0

    @property
    def knows_whole_run(self) -> bool:
        """Whether the sum of losses is that of all steps, those before a resume included."""
        return self._value is not None or self._first_step == 0

    def carried(self) -> dict[str, Any]:
        trainer = self._trainer
        return {
            "loss": trainer._tr_loss.item(),  # of this rank; nats per supervised token, summed over steps
            "total_loss": trainer._total_loss_scalar,
            "last_logged": trainer._globalstep_last_logged,
        }

    def carry_on(self, value: Any) -> None:
        self._value = value

    def shared_out(self, of_ranks: Sequence[Any], num_ranks: int) -> list[Any]:
        """The mean to each: in the end the mean over the ranks is logged."""
        mean = sum(each["loss"] for each in of_ranks) / len(of_ranks)
        return [{**of_ranks[0], "loss": mean}] * num_ranks

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._first_step = state.global_step  # transformers keeps it since 5.18
        if self._value is None:
            return
        trainer = self._trainer
        trainer._tr_loss.fill_(self._value["loss"])
        trainer._total_loss_scalar = self._value["total_loss"]
        trainer._globalstep_last_logged = self._value["last_logged"]
