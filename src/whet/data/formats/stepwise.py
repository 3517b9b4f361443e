"""``type: stepwise_supervised``: a solution in steps, each right or wrong; for ``process_reward_model: true``."""

from __future__ import annotations

from dataclasses import dataclass

from whet.config.config import Config
from whet.config.schema.data import DatasetConfig
from whet.core.errors import RowError
from whet.core.types import Stepwise
from whet.data.formats.base import Row, as_flag, kind, listed, text


@dataclass(frozen=True, slots=True)
class Steps:
    """``{prompt, completions: [step, ...], labels: [bool, ...]}``; the options are those of `Stepwise`."""

    separator: str = "\n"
    max_completion_length: int | None = None
    last_only: bool = False
    template: str | None = None
    cuts_long_rows: bool = False

    def read(self, row: Row) -> Stepwise:
        prompt, steps, labels = text(row, "prompt"), listed(row, "completions"), listed(row, "labels")
        if not steps:
            raise RowError("empty solution", "'completions' is an empty list")
        if len(steps) != len(labels):
            raise RowError("lengths differ", f"{len(steps)} completions, {len(labels)} labels")
        for number, step in enumerate(steps):
            if not isinstance(step, str):
                raise RowError("wrong type", f"completion {number} is {kind(step)}, not a string")
        flags = tuple(as_flag(label, f"label {number}") for number, label in enumerate(labels))
        return Stepwise(prompt, tuple(steps), flags, self.separator, self.max_completion_length, self.last_only)


def stepwise(dataset: DatasetConfig, config: Config) -> Steps:
    """The dataset's own separator, limit and labels."""
    separator = "\n" if dataset.step_separator is None else dataset.step_separator
    return Steps(separator, dataset.max_completion_length, dataset.train_on_last_step_only)
