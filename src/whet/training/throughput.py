"""Tokens and seconds of the training steps, evaluations and checkpoints left out."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from whet.training.carried import Carried


class Throughput(Carried, TrainerCallback):
    """Counts while the run goes on, and gives the figures since they were last asked for.

    Args:
        clock: seconds of a monotonic clock.
        tokens_until: tokens and targets of the run's first so many steps, for a run that is resumed; without it those
            that the checkpoint carries, or else the last that it has logged.
    """

    carried_as = "tokens"

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        tokens_until: Callable[[int], tuple[int, int]] | None = None,
    ) -> None:
        self._clock = clock
        self._tokens_until = tokens_until
        self._step_began = self._training_began = clock()
        self._seconds, self._waited, self._steps = 0.0, 0.0, 0
        self._counts: list[torch.Tensor] = []
        self.tokens_seen = self.supervised_tokens_seen = 0
        self._carried: tuple[int, int] | None = None

    def carried(self) -> list[int]:
        """Tokens and targets so far, those of steps that are not logged yet included."""
        pending = torch.stack(self._counts).sum(dim=0).tolist() if self._counts else (0, 0)
        return [self.tokens_seen + pending[0], self.supervised_tokens_seen + pending[1]]

    def carry_on(self, value: Any) -> None:
        self._carried = (value[0], value[1])

    def add(self, counts: torch.Tensor) -> None:
        """Count a step: int64[2], its tokens and targets. May live on a device; read only when figures are due."""
        self._counts.append(counts)

    def begin_step(self) -> None:
        """A step begins: its samples are about to be fetched. What came since the last one is not training time."""
        self._step_began = self._clock()

    def end_fetch(self) -> None:
        """The step's samples are there: what has passed since it began was spent waiting for data."""
        self._waited += self._clock() - self._step_began

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._training_began = self._clock()
        self.tokens_seen, self.supervised_tokens_seen = self._seen_before(state)

    def whole(self, logs: Mapping[str, float]) -> dict[str, float]:
        """The figures of the whole training by our clock: transformers' is set by people and by the network.

        >>> ticks = iter([0.0, 2.0])
        >>> throughput = Throughput(clock=lambda: next(ticks))
        >>> throughput.whole({"train_runtime": -3600.0, "train_steps_per_second": -0.001, "train_loss": 0.5})
        {'train_runtime': 2.0, 'train_steps_per_second': 1.8}
        """
        seconds, theirs = self._clock() - self._training_began, logs["train_runtime"]
        rates = [name for name in logs if name.startswith("train_") and name.endswith("_per_second")]
        steady = {name: round(logs[name] * theirs / seconds, 3) for name in rates} if seconds > 0 else {}
        return {"train_runtime": round(seconds, 4), **steady}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        now = self._clock()
        self._seconds += now - self._step_began
        self._steps += 1

    def figures(self, device: torch.device) -> dict[str, float]:
        """Rates over the steps since the last call, totals of the run, and the most memory used so far.

        ``data_wait_share`` is the part of the steps' time until their samples were there.
        """
        tokens, supervised = torch.stack(self._counts).sum(dim=0).tolist() if self._counts else (0, 0)
        self.tokens_seen += tokens
        self.supervised_tokens_seen += supervised
        seconds, waited, steps = self._seconds, self._waited, self._steps
        self._counts.clear()
        self._seconds, self._waited, self._steps = 0.0, 0.0, 0
        if not steps or seconds <= 0:
            return {}
        return {
            "step_seconds": seconds / steps,
            "data_wait_share": waited / seconds,
            "tokens_per_second": tokens / seconds,
            "supervised_tokens_per_second": supervised / seconds,
            "tokens_seen": self.tokens_seen,
            "supervised_tokens_seen": self.supervised_tokens_seen,
            "peak_memory_bytes": peak_memory_bytes(device),
        }

    def _seen_before(self, state: TrainerState) -> tuple[int, int]:
        if self._tokens_until is not None:
            return self._tokens_until(state.global_step)
        if self._carried is not None:
            return self._carried
        logged = [entry for entry in state.log_history if "tokens_seen" in entry]
        return (logged[-1]["tokens_seen"], logged[-1]["supervised_tokens_seen"]) if logged else (0, 0)


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory used so far: of the accelerator, or on CPU of this process.

    MPS keeps no peak; there it is what the driver holds now.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
