"""Optimizers that train one set of weights and keep their average for use (Defazio et al., 2024, arXiv:2405.15682).

In the model are the weights that are trained; `use_averages` puts the average there, `optimizer.train()` (which
transformers calls before each forward pass) takes it out again.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


def use_averages(optimizer: torch.optim.Optimizer | None) -> None:
    """Put the weights for use into the model; nothing to do for an optimizer that keeps no others."""
    switch = getattr(optimizer, "eval", None)
    if callable(switch):
        switch()


class AverageAtEpochEnd(TrainerCallback):
    """The weights for use, before a run ends (each run ends with the end of an epoch, whole or not)."""

    def on_epoch_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: torch.optim.Optimizer | None = None,
        **kwargs: Any,
    ) -> None:
        use_averages(optimizer)
