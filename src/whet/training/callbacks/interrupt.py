"""Ctrl-C: finish the step, save a checkpoint, say how to go on. A second one ends at once."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from whet.core.errors import Problem, TrainingStopped
from whet.core.log import say

SAME_SIGNAL_SECONDS = 1.0
"""torchrun passes the terminal's Ctrl-C on to ranks that have had it from the terminal already."""


class TrainingInterrupted(TrainingStopped):
    """The user, or the system, asked the run to stop; exit code 128 + the signal's number, as shells have it."""

    def __init__(self, problems: Any, signal_number: int = signal.SIGINT) -> None:
        super().__init__(problems)
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.problems, self.signal_number)


def _signals() -> list[signal.Signals]:
    hang_up: signal.Signals | None = getattr(signal, "SIGHUP", None)
    is_taken = hang_up is not None and signal.getsignal(hang_up) != signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([hang_up] if hang_up is not None and is_taken else [])]


class Interrupt(TrainerCallback):
    """A context manager that takes SIGINT, SIGTERM and SIGHUP while it is entered, and a callback that acts on them.

    SIGHUP stays ignored where it is, as under nohup.

    Args:
        clock: seconds of a monotonic clock.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._first_at = 0.0
        self._previous: dict[signal.Signals, Any] = {}
        self.received: int | None = None
        self.stopped_at: int | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.getsignal(number) for number in _signals()}
            for number in self._previous:
                signal.signal(number, self._receive)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = number
            self._first_at = self._clock()
            say("stopping after this step, with a checkpoint; once more ends at once")
        elif self._clock() - self._first_at > SAME_SIGNAL_SECONDS:
            raise KeyboardInterrupt

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        number = self._agreed(args)
        if number and state.global_step < state.max_steps:
            self.received, self.stopped_at = number, state.global_step
            control.should_save = True
            control.should_training_stop = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.stopped_at is None:
            return
        # Leaving the loop looks like the end of an epoch. Where it is one, its evaluation belongs into the checkpoint.
        is_epoch_end = state.epoch is not None and float(state.epoch).is_integer()
        control.should_evaluate = control.should_evaluate and is_epoch_end
        control.should_save = control.should_evaluate

    def raise_if_stopped(self, output_dir: str, save_only_model: bool) -> None:
        """After training: tell how the run ended, if it was stopped.

        Raises:
            TrainingInterrupted: it was.
        """
        if self.stopped_at is None or self.received is None:
            return
        found = f"stopped by {signal.Signals(self.received).name}; {output_dir}/checkpoint-{self.stopped_at} is saved"
        fix = "go on with the same command and --resume-from-checkpoint"
        if save_only_model:
            fix = "it holds the weights only (save_only_model), so the run cannot be resumed"
        raise TrainingInterrupted(Problem(f"step {self.stopped_at}", found, fix), self.received)

    def _agreed(self, args: TrainingArguments) -> int:
        """The signal any rank has received, or 0; all ranks stop after the same step."""
        if args.world_size == 1:
            return self.received or 0
        number = torch.tensor(self.received or 0, device=args.device)
        torch.distributed.all_reduce(number, op=torch.distributed.ReduceOp.MAX)
        return int(number)
