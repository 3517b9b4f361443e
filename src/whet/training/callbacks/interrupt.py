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
from transformers.trainer_utils import IntervalStrategy

from whet.core.errors import Problem, StoppedAsAsked
from whet.core.log import say
from whet.training.callbacks.due_evaluation import DueEvaluation, EvaluationCut
from whet.training.callbacks.triggers import Asked, TriggerFiles

SAME_SIGNAL_SECONDS = 1.0
"""torchrun passes the terminal's Ctrl-C on to ranks that have had it from the terminal already."""


class TrainingInterrupted(StoppedAsAsked):
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

    An evaluation that a signal comes in is cut, and one that would follow the last step is left out; both are made when
    the run is resumed.

    Args:
        clock: seconds of a monotonic clock.
        triggers: files that ask for the same, and for a checkpoint without a stop.
        due: remembers an evaluation that is not made.
        settle: raises what a checkpoint of the background has failed with, on all ranks.
        has_failed: whether it has failed, on this rank.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        *,
        triggers: TriggerFiles | None = None,
        due: DueEvaluation | None = None,
        settle: Callable[[], None] = lambda: None,
        has_failed: Callable[[], bool] = lambda: False,
    ) -> None:
        self._clock, self._triggers, self._due = clock, triggers, due
        self._settle, self._has_failed = settle, has_failed
        self._first_at = 0.0
        self._previous: dict[signal.Signals, Any] = {}
        self._steps = False
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
            when = "after this step, with a checkpoint" if self._steps else "before the first step"
            say(f"stopping {when}; once more ends at once")
        elif self._clock() - self._first_at > SAME_SIGNAL_SECONDS:
            raise KeyboardInterrupt

    def is_asked_to_stop(self) -> bool:
        """Whether this rank has received a signal."""
        return self.received is not None

    def raise_if_asked(self, args: TrainingArguments, state: TrainerState) -> None:
        """Before the first step, on all ranks: end a run that was asked to stop while it was loading.

        Raises:
            TrainingInterrupted: nothing of it is in its folder yet.
        """
        number = _agreed(args, (self.received or 0,))[0]
        if number:
            found = f"stopped by {_called(number)} before its first step"
            raise TrainingInterrupted(
                Problem(f"step {state.global_step}", found, "start it again: nothing is lost"), number
            )
        self._steps = True

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._triggers is not None and args.process_index == 0:
            self._triggers.clear()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        asked = Asked()
        if self._triggers is not None and args.process_index == 0:
            asked = self._triggers.asked(state.global_step)
        told = (self.received or 0, int(asked.stop), int(asked.checkpoint), int(self._has_failed()))
        number, stop, checkpoint, failed = _agreed(args, told)
        if failed:
            self._settle()
        if checkpoint:
            control.should_save = True
        if (number or stop) and state.global_step < state.max_steps:
            self.received = number or None
            self.stop_at(state.global_step, control, self._evaluates_after(args, state, control))

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if _agreed(args, (self.received or 0,))[0]:
            raise EvaluationCut

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.stopped_at is not None:  # leaving the loop looks like the end of an epoch
            control.should_evaluate = control.should_save = False

    def stop_at(self, step: int, control: TrainerControl, evaluation_is_due: bool) -> None:
        """Save and end after a step, and leave its evaluation for the resumed run."""
        self.stopped_at = step
        if self._due is not None:
            self._due.is_due = evaluation_is_due
        control.should_evaluate = False
        control.should_save = control.should_training_stop = True

    def raise_if_stopped(self, output_dir: str, save_only_model: bool) -> None:
        """After training: tell how the run ended, if it was stopped.

        Raises:
            TrainingInterrupted: by a signal.
            StoppedAsAsked: by a file.
        """
        if self.stopped_at is None:
            return
        by = _called(self.received) if self.received else f"{self._triggers and self._triggers.stop}"
        found = f"stopped by {by}; {output_dir}/checkpoint-{self.stopped_at} is saved"
        fix = "go on with the same command and --resume-from-checkpoint"
        if save_only_model:
            fix = "it holds the weights only (save_only_model), so the run cannot be resumed"
        if self.stopped_at == 0:
            found, fix = f"stopped by {by} before the first step", "start it again: nothing is lost"
        problem = Problem(f"step {self.stopped_at}", found, fix)
        raise TrainingInterrupted(problem, self.received) if self.received else StoppedAsAsked(problem)

    @staticmethod
    def _evaluates_after(args: TrainingArguments, state: TrainerState, control: TrainerControl) -> bool:
        """Whether an evaluation would follow this step, or the epoch that it ends."""
        ends_epoch = state.epoch is not None and float(state.epoch).is_integer()
        return control.should_evaluate or (ends_epoch and args.eval_strategy == IntervalStrategy.EPOCH)


def _called(number: int) -> str:
    """A signal as whoever sent it knows it."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def _agreed(args: TrainingArguments, told: tuple[int, ...]) -> tuple[int, ...]:
    """The greatest number that any rank tells, for each; all ranks act after the same step."""
    if args.world_size == 1:
        return told
    numbers = torch.tensor(told, device=args.device)
    torch.distributed.all_reduce(numbers, op=torch.distributed.ReduceOp.MAX)
    return tuple(numbers.tolist())
