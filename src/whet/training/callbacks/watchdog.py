"""End a run whose loss has run away."""

from __future__ import annotations

from collections import deque
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from whet.core.errors import Problem, TrainingStopped
from whet.health.watchdog import is_out_of_hand
from whet.training.carried import Carried


class LossWatchdog(Carried, TrainerCallback):
    """Stops the run when the logged loss stays above a threshold.

    Args:
        threshold: nats per supervised token.
        patience: logged losses in a row.
    """

    carried_as = "loss_watchdog"

    def __init__(self, threshold: float, patience: int) -> None:
        self._threshold, self._patience = threshold, patience
        self._losses: deque[float] = deque(maxlen=patience)

    def carried(self) -> list[float]:
        return list(self._losses)

    def carry_on(self, value: Any) -> None:
        self._losses.extend(value)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs is None or "loss" not in logs:
            return
        self._losses.append(logs["loss"])
        if is_out_of_hand(tuple(self._losses), self._threshold, self._patience):
            found = f"the loss was above loss_watchdog_threshold {self._threshold:g} {self._patience} times in a row"
            latest = ", ".join(f"{loss:.4g}" for loss in self._losses)
            raise TrainingStopped(Problem(f"step {state.global_step}", f"{found}: {latest}", "lower learning_rate"))
