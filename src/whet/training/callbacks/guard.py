"""A step whose loss or gradient is no number is dropped where it can be; three in a row end the run."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from whet.core.errors import Problem, TrainingStopped
from whet.core.log import warn
from whet.health.non_finite import StepFigures, trailing_non_finite
from whet.training.carried import Carried

LIMIT = 3
"""Steps in a row that end the run."""

ROWS_SHOWN = 8

_SKIPPED = "the step was skipped, the weights are as before"
_PARTLY_STEPPED = (
    "optimizer_in_backward had stepped the other weights by then; those with such a gradient were stepped with 0"
)
_NEVER_GOOD = "no step of the run was good: check the base model's weights, then these rows and learning_rate"


class NonFiniteGuard(Carried, TrainerCallback):
    """Looks at every step before the optimizer does.

    A bad step's gradients are dropped, so that weights and optimizer state stay finite. An optimizer that steps in the
    backward pass is too fast for that: what has become of the weights is then said, and LOMO's run ends.
    With float16 loss scaling, a gradient that overflows is part of finding the scale and left to the scaler; only the
    loss counts then.

    Args:
        step_loss: the current step's loss on this rank, as a scalar on the device; None where no one knows it.
        rows: names of the rows in the optimiser step with this number (from 1).
        scaler: tells whether the optimizer is run by a gradient scaler.
        gradient_norm: the norm of this step's gradients as clipping has computed it; None where nobody did, and then
            the guard computes it.
        output_dir: where the last good checkpoint is.
        in_backward: the optimizer's way to change weights before the guard looks: "" for none, "protected" where it
            drops a step whose loss is no number by itself (`optimizer_in_backward`), "unprotected" where weights are
            lost then (LOMO).
    """

    carried_as = "non_finite_guard"

    def __init__(
        self,
        step_loss: Callable[[], torch.Tensor | None],
        rows: Callable[[int], Sequence[str]],
        output_dir: str,
        scaler: Callable[[], bool] = lambda: False,
        gradient_norm: Callable[[], torch.Tensor | None] = lambda: None,
        in_backward: Literal["", "protected", "unprotected"] = "",
    ) -> None:
        self._step_loss, self._rows, self._scaler = step_loss, rows, scaler
        self._gradient_norm = gradient_norm
        self._in_backward = in_backward
        self._output_dir = output_dir
        self._latest: deque[StepFigures] = deque(maxlen=LIMIT)
        self.skipped: list[int] = []

    def carried(self) -> dict[str, Any]:
        latest = [[figures.step, figures.loss, figures.grad_norm] for figures in self._latest]
        return {"latest": latest, "skipped": self.skipped}

    def carry_on(self, value: Any) -> None:
        self._latest.extend(StepFigures(*figures) for figures in value["latest"])
        self.skipped = list(value["skipped"])

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: torch.nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        assert model is not None
        scaled = self._scaler()
        norm = self._norm(model)
        figures = self._measure(state.global_step + 1, torch.zeros_like(norm) if scaled else norm, args)
        self._latest.append(figures)
        if figures.is_finite:
            return
        if not scaled:
            for parameter in model.parameters():
                parameter.grad = None
        self.skipped.append(figures.step)
        self._report(figures)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A run too short for three bad steps in a row must not end as if it had trained."""
        if self.skipped and len(self.skipped) == state.global_step:
            found = f"none of the run's {state.global_step} steps could be used, so nothing was trained"
            raise TrainingStopped(Problem(f"step {state.global_step}", found, _NEVER_GOOD))

    def _norm(self, model: torch.nn.Module) -> torch.Tensor:
        """Norm of the gradients, a scalar on their device; not computed again where clipping has done so."""
        norm = self._gradient_norm()
        if norm is None:
            gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients) if gradients else torch.zeros(())
        whole: torch.Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        return whole

    def _measure(self, step: int, norm: torch.Tensor, args: TrainingArguments) -> StepFigures:
        loss, device = self._step_loss(), norm.device
        if args.world_size > 1 and device.type == "cpu":
            device = args.device
        measured = torch.stack([(loss if loss is not None else norm).float().to(device), norm.float().to(device)])
        if args.world_size > 1:
            # Ranks must agree. Gradients are averaged already; adding losses makes one that is no number everyone's.
            torch.distributed.all_reduce(measured)
        total_loss, norm_value = measured.tolist()
        return StepFigures(step, total_loss, norm_value)

    def _report(self, figures: StepFigures) -> None:
        rows = self._rows(figures.step)
        shown = ", ".join(rows[:ROWS_SHOWN]) + (f" and {len(rows) - ROWS_SHOWN} more" if len(rows) > ROWS_SHOWN else "")
        found = f"{figures.what_is_wrong()}; its rows: {shown}" if rows else figures.what_is_wrong()
        where = f"step {figures.step}"
        cure = f"lower learning_rate, or look at these rows; earlier checkpoints are kept in {self._output_dir}"
        if self._in_backward == "unprotected":
            found += "; the optimizer has changed the weights with it in the backward pass already, and they are lost"
            raise TrainingStopped(Problem(where, found, cure))
        if trailing_non_finite(self._latest) < LIMIT:
            partly = self._in_backward == "protected" and math.isfinite(figures.loss)
            warn(Problem(where, found, _PARTLY_STEPPED if partly else _SKIPPED))
            return
        if figures.step == LIMIT:
            cure = _NEVER_GOOD
        raise TrainingStopped(Problem(where, f"{LIMIT} steps in a row could not be used ({found})", cure))
