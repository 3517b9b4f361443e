"""Jagged restarts: a learning rate that falls and rises again every so many steps, whatever its schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler


@dataclass(frozen=True, slots=True)
class Restarts:
    """When and how the rate restarts.

    Attributes:
        every: steps from one restart to the next.
        warmup_steps: steps of linear rise after a restart; the run's first steps are the schedule's own.
        anneal_steps: steps of linear fall before a restart.
    """

    every: int
    warmup_steps: int = 0
    anneal_steps: int = 0

    def factor(self, step: int) -> float:
        """What the schedule's rate of ``step`` (from 0) is multiplied by; never 0, so that no step is wasted.

        >>> restarts = Restarts(every=6, warmup_steps=1, anneal_steps=2)
        >>> [round(restarts.factor(step), 2) for step in range(12)]
        [1.0, 1.0, 1.0, 1.0, 0.67, 0.33, 0.5, 1.0, 1.0, 1.0, 0.67, 0.33]
        """
        cycle, position = divmod(step, self.every)
        rise = min(1.0, (position + 1) / (self.warmup_steps + 1)) if cycle else 1.0
        return rise * min(1.0, (self.every - position) / (self.anneal_steps + 1))


class RestartingScheduler(LRScheduler):
    """A schedule with restarts.

    Args:
        inner: a schedule that computes each rate from the step alone, not from the rate before.
    """

    def __init__(self, inner: LRScheduler, restarts: Restarts) -> None:  # the inner one has prepared the optimizer
        self._inner, self._restarts = inner, restarts
        self.optimizer: torch.optim.Optimizer = inner.optimizer
        self.base_lrs = inner.base_lrs
        self._scale()

    def _scale(self) -> None:
        self.last_epoch = self._inner.last_epoch
        factor = self._restarts.factor(self.last_epoch)
        self._last_lr = [rate * factor for rate in self._inner.get_last_lr()]
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def step(self, epoch: int | None = None) -> None:
        assert epoch is None
        self._inner.step()
        self._scale()

    def state_dict(self) -> dict[str, Any]:
        return {"inner": self._inner.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._inner.load_state_dict(state_dict["inner"])
        self._scale()
