"""A tracker that is lost while a run goes on does not end it: its figures are in metrics.jsonl, for `whet push`."""

from __future__ import annotations

import copy
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import MLflowCallback, TensorBoardCallback, WandbCallback

from whet.config.resolve import ResolvedRun
from whet.core.errors import ArtefactError, Problem
from whet.core.log import warn
from whet.training.tracking import stays_here
from whet.training.uploads import Receiver, Upload, UploadQueue, push_command

LAST_SECONDS = 60.0
"""Seconds that a tracker gets at the end of a run for what it has not taken yet."""

_KINDS: dict[type[TrainerCallback], tuple[str, str]] = {
    MLflowCallback: ("mlflow", "use_mlflow"),
    WandbCallback: ("wandb", "use_wandb"),
    TensorBoardCallback: ("tensorboard", "use_tensorboard"),
}
_BEGINNING = frozenset({"on_init_end", "on_train_begin"})


def guard_trackers(trainer: Trainer, resolved: ResolvedRun) -> None:
    """Put a `GuardedTracker` around each tracker of a trainer; those that ask others come first."""
    callbacks = trainer.callback_handler.callbacks
    places = [number for number, callback in enumerate(callbacks) if type(callback) in _KINDS]
    guarded = [GuardedTracker(callbacks[number], resolved) for number in places]
    for number, tracker in zip(places, sorted(guarded, key=lambda each: each.is_local), strict=True):
        callbacks[number] = tracker


class GuardedTracker(TrainerCallback):
    """Hands every event to a tracker, and takes what goes wrong there.

    What goes wrong when training begins is an error, for the user is there to mend it; later it is a warning, and the
    tracker gets no more. MLflow answers over the network: its events are handled by a thread, in their order, so that
    training does not wait for them.

    Attributes:
        lost_at: the step since which it gets no more; None while it does.
        is_local: whether it writes to this machine alone, as a rule into the output folder.
    """

    def __init__(self, tracker: TrainerCallback, resolved: ResolvedRun) -> None:
        self.tracker = tracker
        self.name, self._switch = _KINDS[type(tracker)]
        self._config, self._queue = resolved.config, UploadQueue(Path(resolved.output_dir))
        self.lost_at: int | None = None
        self.is_local = stays_here(self.name)
        self._worker = _Worker() if self.name == "mlflow" else None
        self._source = ""

    def _event(
        self, event: str, args: TrainingArguments, state: TrainerState, control: TrainerControl, options: dict[str, Any]
    ) -> None:
        if self.lost_at is not None:
            return
        handle: Callable[..., Any] = getattr(self.tracker, event)
        if self._worker is None:
            self._handle(event, handle, args, state, control, options)
            return
        # It is handled later: what changes until then is copied.
        state = copy.copy(state)
        options = {**options, **({"logs": dict(options["logs"])} if options.get("logs") else {})}
        # Checkpoints that are copied to MLflow (`hf_mlflow_log_artifacts`) must be there until they are.
        is_waited_for = event == "on_save" and bool(getattr(self.tracker, "_log_artifacts", False))
        handled = self._worker.put(lambda: self._handle(event, handle, args, state, control, options))
        if event in _BEGINNING:
            handled.wait()
            if self._worker.error is not None:
                raise self._worker.error
        elif is_waited_for:
            handled.wait()
        elif event == "on_train_end" and not handled.wait(LAST_SECONDS):
            self._lose(state.global_step, TimeoutError(f"no answer for {LAST_SECONDS:.0f} seconds"))

    def _handle(
        self,
        event: str,
        handle: Callable[..., Any],
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        options: dict[str, Any],
    ) -> None:
        if self.lost_at is not None:
            return
        try:
            handle(args, state, control, **options)
            if event == "on_train_begin" and state.is_world_process_zero:
                self._source = self._name_of_run()
        # Any error of a tracker's library: none of them is worth a run.
        except Exception as error:
            if event in _BEGINNING:
                raise self._unreachable(error) from error
            self._lose(state.global_step, error)

    def _name_of_run(self) -> str:
        """By which `whet push` finds the tracker's run again."""
        if isinstance(self.tracker, MLflowCallback):
            self.tracker._async_log = False  # its own threads would fail without telling anyone
            return str(self.tracker._ml_flow.active_run().info.run_id)
        if isinstance(self.tracker, WandbCallback) and self.tracker._wandb.run is not None:
            return str(self.tracker._wandb.run.dir)
        return ""

    def _lose(self, step: int, error: Exception) -> None:
        self.lost_at = step
        found = f"{self.name} takes no more figures ({_reason(error)}); the run goes on, metrics.jsonl has them all"
        fix = "look at its folder, it is written on this machine"
        if self.name != "tensorboard":
            to: Receiver = "mlflow" if self.name == "mlflow" else "wandb"
            self._queue.add(Upload(to, self._source, step=step, reason=_reason(error)))
            fix = f"when it is there again: {push_command(self._config)}"
        warn(Problem(f"step {step}", found, fix, self._switch))

    def _unreachable(self, error: Exception) -> ArtefactError:
        found = f"{self.name} cannot be used ({_reason(error)})"
        fix = f"check its address, or write {self._switch}: false; metrics.jsonl has the figures in any case"
        return ArtefactError(Problem(self._config.where(self._switch), found, fix, self._switch))


def _forwarding(event: str) -> Callable[..., None]:
    def forward(
        self: GuardedTracker, args: TrainingArguments, state: TrainerState, control: TrainerControl, **options: Any
    ) -> None:
        self._event(event, args, state, control, options)

    return forward


for _name in [name for name in dir(TrainerCallback) if name.startswith("on_")]:
    setattr(GuardedTracker, _name, _forwarding(_name))


class _Worker:
    """A thread that does one thing after the other. A daemon: a process that ends does not wait for it.

    Attributes:
        error: what the last thing raised.
    """

    def __init__(self) -> None:
        self.error: Exception | None = None
        self._tasks: queue.SimpleQueue[tuple[Callable[[], None], threading.Event]] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="tracker", daemon=True).start()

    def put(self, task: Callable[[], None]) -> threading.Event:
        """Do it when its turn comes; the event says that it is done."""
        done = threading.Event()
        self._tasks.put((task, done))
        return done

    def _work(self) -> None:
        while True:
            task, done = self._tasks.get()
            try:
                task()
            except ArtefactError as error:
                self.error = error
            finally:
                done.set()


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
