"""End the run when evaluations get no better, counting those before a resume too."""

from __future__ import annotations

from typing import Any

from transformers import EarlyStoppingCallback

from whet.training.carried import Carried


class EarlyStopping(Carried, EarlyStoppingCallback):
    """As transformers' own. Its patience is always the config's; only the count comes from a checkpoint."""

    carried_as = "early_stopping"

    def carried(self) -> dict[str, int]:
        return {"evaluations_without_better": self.early_stopping_patience_counter}

    def carry_on(self, value: Any) -> None:
        self.early_stopping_patience_counter = value["evaluations_without_better"]

    @property
    def is_over(self) -> bool:
        """Whether the run that is resumed had ended by it."""
        over: bool = self.early_stopping_patience_counter >= self.early_stopping_patience
        return over
