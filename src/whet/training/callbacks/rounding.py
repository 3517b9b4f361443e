"""When the weights of quantisation-aware training begin to be rounded."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from whet.model.qat import set_rounding


class RoundAfter(TrainerCallback):
    """Leaves weights as they are for the first steps: `fake_quant_after_n_steps`.

    Which steps those are follows from the step's number, so a resumed run does as an uninterrupted one would have.
    """

    def __init__(self, num_steps: int) -> None:
        self.num_steps = num_steps

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: torch.nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        assert model is not None
        set_rounding(model, state.global_step >= self.num_steps)

    on_step_begin = on_train_begin

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: torch.nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """The model that was trained is the rounded one, however short the run was."""
        assert model is not None
        set_rounding(model, True)
