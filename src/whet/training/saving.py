"""How a trainer's checkpoints are made: the state is copied, written beside, and published (promise G10).

`PublishingTrainer` takes the place of transformers' `_save_checkpoint`, whose files it writes with transformers' own
functions. What it does not write is ``training_args.bin``, a pickle; run.json says what the arguments were.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerControl, TrainerState
from transformers.trainer import OPTIMIZER_NAME, SCALER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import SaveStrategy

from whet.core.disk import FULL
from whet.core.errors import Problem, TrainingStopped
from whet.core.log import warn
from whet.distributed.hardware import available_memory_bytes
from whet.model.resized import is_resized
from whet.training.callbacks.due_evaluation import EvaluationCut
from whet.training.callbacks.interrupt import Interrupt
from whet.training.callbacks.saving import SaveBeside
from whet.training.host_copy import HostCopies, state_bytes
from whet.training.optimizers.averages import use_averages
from whet.training.publishing import STAGING, published_name, staging
from whet.training.room import Room
from whet.training.writer import CheckpointWriter, Part

LINES_KEPT = 1000
"""Lines of the log in memory and in a checkpoint, the newest ones; ``metrics.jsonl`` has all."""


class PublishingTrainer(Trainer):
    """A trainer whose checkpoints are published whole, or not at all.

    Attributes:
        checkpoints: writes and publishes them.
        writes_in_background: whether training goes on while a checkpoint is written. Sharded models are always written
            at once, because every rank takes part.
        interrupt: what a signal is told to, while a run is trained.
    """

    control: TrainerControl  # what the base class makes, for the type checker

    writes_in_background = False
    _checkpoints: CheckpointWriter | None = None
    _room: Room | None = None
    _copies: HostCopies | None = None
    _is_staging = False
    _saved_step: int | None = None
    interrupt: Interrupt | None = None

    @property
    def checkpoints(self) -> CheckpointWriter:
        if self._checkpoints is None:
            self._checkpoints = CheckpointWriter(Path(self.args.output_dir or "."))
        return self._checkpoints

    @checkpoints.setter
    def checkpoints(self, writer: CheckpointWriter) -> None:
        self._checkpoints = writer

    @property
    def room(self) -> Room:
        """The disk that they are written to."""
        if self._room is None:
            self._room = Room(self.checkpoints.output_dir)
        return self._room

    @room.setter
    def room(self, room: Room) -> None:
        self._room = room

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs, start_time)
        # transformers appends for ever. Nothing of a run looks further back: the best metric, the count of early
        # stopping and the tokens seen are kept by themselves, and trackers are told each line as it comes.
        del self.state.log_history[:-LINES_KEPT]

    def settle(self) -> None:
        """Wait until the checkpoint that is being written is published; all ranks end here if it cannot be.

        Raises:
            SavingFailed: it could not be written.
        """
        with self.together():
            self.checkpoints.wait()

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        step, output_dir = self.state.global_step, self.checkpoints.output_dir
        self.settle()
        self._note_best(about_to_be=step)
        parts = self._staged_by_transformers(model, trial) if self.saves_together() else self._own_parts(step)
        with self.together(), self.checkpoints.or_discarded(step):
            if not self.args.save_only_model and not self.saves_together():
                self._save_rng_state(str(staging(output_dir, step)))  # every rank its own
        with self.together():
            if self.args.should_save:
                best_folder = Path(self.state.best_model_checkpoint) if self.state.best_model_checkpoint else None
                background = self._copies is not None and not self.saves_together()
                self.checkpoints.write(step, parts, best=best_folder, background=background)
        self._saved_step = step

    def _note_best(self, about_to_be: int | None = None) -> None:
        """Where the best model is, if it is saved, or is the one about to be."""
        if self.state.best_global_step:
            best = published_name(self.checkpoints.output_dir, self.state.best_global_step)
            if self.state.best_global_step == about_to_be or best.is_dir():
                self.state.best_model_checkpoint = str(best)

    def saves_together(self) -> bool:
        """Whether every rank holds, and writes, a part of the model."""
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def _own_parts(self, step: int) -> list[Part]:
        """What writes a checkpoint of a model that each rank has whole; copies, if training goes on meanwhile.

        Raises:
            SavingFailed: there is no room for it, and nobody has made any.
        """
        return self._parts_and_values(step)[0]

    def rehearsed_parts(self) -> tuple[list[Part], dict[str, torch.Tensor], dict[str, Any]]:
        """What would write a checkpoint now, and the weights and states that must be read from it."""
        return self._parts_and_values(self.state.global_step)

    def _parts_and_values(self, step: int) -> tuple[list[Part], dict[str, torch.Tensor], dict[str, Any]]:
        self.store_flos()
        use_averages(self.optimizer)  # what is saved are the weights for use
        beside = self._beside()
        weights, untouched, states = self._weights() if self.args.should_save else ({}, {}, {})
        with self.together():
            num_bytes = state_bytes([weights, states])
            reason = self.room.wait_for(num_bytes, f"the checkpoint of step {step}") if self.args.should_save else None
            if reason is not None:
                raise self.checkpoints.failure(step, reason)
        if not self.args.should_save:
            return [], {}, {}
        self._copies = self._room_to_copy(num_bytes)
        if self._copies is not None:
            self._copies.begin()
            weights, states = self._copies.copied(weights), self._copies.copied(states)
            self._copies.finish()
        state = self._state_to_save()

        def write_weights(folder: Path) -> None:
            self._save(str(folder), state_dict={**untouched, **weights})

        def write_states(folder: Path) -> None:
            for name, value in states.items():
                torch.save(value, folder / name)

        def write_progress(folder: Path) -> None:
            state.save_to_json(str(folder / TRAINER_STATE_NAME))

        return [write_weights, write_states, *beside, write_progress], weights, states

    def _beside(self) -> list[Part]:
        """Taken on every rank, which may take part in it, and written by the first."""
        return [each.take() for each in self.callback_handler.callbacks if isinstance(each, SaveBeside)]

    def _weights(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, Any]]:
        """What training changes, what it leaves alone, and the states by the names that transformers loads them from.

        The second is for an adapted model, whose `save_pretrained` looks for the adapter in all weights; those that
        only quantised layers have are left out.
        """
        model: Any = self.model
        states = self._states()
        adapters = getattr(model, "peft_config", None)
        if adapters is None:
            return model.state_dict(), {}, states
        weights: dict[str, torch.Tensor] = {}
        untouched: dict[str, torch.Tensor] = {}
        for name, tensor in (*model.named_parameters(remove_duplicate=False), *_persistent_buffers(model)):
            is_changed = tensor.requires_grad or not adapters.keys().isdisjoint(name.split("."))
            (weights if is_changed else untouched)[name] = tensor.detach()
        return weights, untouched, states

    def _states(self) -> dict[str, Any]:
        """Optimizer, schedule and scaler."""
        if self.args.save_only_model:
            return {}
        assert self.optimizer is not None
        assert self.lr_scheduler is not None
        states = {OPTIMIZER_NAME: self.optimizer.state_dict(), SCHEDULER_NAME: self.lr_scheduler.state_dict()}
        if (scaler := getattr(self.accelerator, "scaler", None)) is not None:
            states[SCALER_NAME] = scaler.state_dict()
        return states

    def _room_to_copy(self, num_bytes: int) -> HostCopies | None:
        """Where to copy to; None where there is no memory for it, and training has to wait for the disk."""
        if not self.writes_in_background:
            return None
        there = self._copies.kept_bytes if self._copies is not None else 0
        if num_bytes - there > available_memory_bytes() // 2:
            warn("checkpoints are written while training waits: this machine has no memory for a copy of the state")
            self.writes_in_background = False
            return None
        return self._copies or HostCopies()

    def _state_to_save(self) -> TrainerState:
        """The trainer's state, so that the next step does not change it."""
        found: dict[str, list[dict[str, Any]]] = {}
        for each in [*self.callback_handler.callbacks, self.control]:
            if isinstance(each, ExportableState):
                found.setdefault(type(each).__name__, []).append(each.state())
        self.state.stateful_callbacks = {
            name: copy.deepcopy(states[0] if len(states) == 1 else states) for name, states in found.items()
        }
        state = copy.copy(self.state)
        state.log_history = [*self.state.log_history]  # its entries are written once
        return state

    # --- what an evaluation must not undo -----------------------------------------------------------------------------

    def _maybe_log_save_evaluate(self, loss: Any, norm: Any, model: Any, trial: Any, *args: Any, **kw: Any) -> None:
        """Under `save_strategy: best` transformers forgets, after an evaluation, that a checkpoint was asked for."""
        is_saved_already = self._saved_step == self.state.global_step  # as the best: once is enough
        if is_saved_already and not self.control.should_evaluate:
            self.control.should_save = False
        is_asked = self.control.should_save
        try:
            super()._maybe_log_save_evaluate(loss, norm, model, trial, *args, **kw)
        except EvaluationCut:
            assert self.interrupt is not None
            self.interrupt.stop_at(self.state.global_step, self.control, evaluation_is_due=True)
            is_asked, self._saved_step = True, None
        if is_asked and self._saved_step != self.state.global_step:
            self._save_checkpoint(model, trial)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    def _finalize_training(self, *args: Any) -> Any:
        """The step that a run ends after is saved, by early stopping too: its weights may become the result, which may
        find no room."""
        if self.args.save_strategy != SaveStrategy.NO and self._saved_step != self.state.global_step:
            self._save_checkpoint(self.model_wrapped, None)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)
        return super()._finalize_training(*args)

    def evaluate_as_due(self) -> None:
        """The evaluation after the step that a run is resumed from, with what follows from it."""
        metrics = self._evaluate(None, None)
        if self._determine_best_metric(metrics, None):
            self._note_best()

    def is_cut(self) -> bool:
        """Whether an evaluation shall end now, as this rank has heard."""
        return self.interrupt is not None and self.interrupt.is_asked_to_stop()

    def raise_if_cut(self) -> None:
        """After an evaluation, on all ranks.

        Raises:
            EvaluationCut: some rank has not finished it.
        """
        if self.interrupt is None:
            return
        cut = torch.tensor(int(self.is_cut()), device=self.args.device)
        if self.args.world_size > 1:
            torch.distributed.all_reduce(cut, op=torch.distributed.ReduceOp.MAX)
        if int(cut):
            raise EvaluationCut

    # --- sharded models: transformers writes, every rank takes part ---------------------------------------------------

    def _staged_by_transformers(self, model: torch.nn.Module, trial: Any) -> list[Part]:
        self._copies, self._is_staging = None, True
        best = self.state.best_model_checkpoint
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._is_staging = False
        self.state.best_model_checkpoint = best  # transformers has found it where it was written
        beside = self._beside()
        if not self.args.should_save:
            return []
        state = self._state_to_save()
        return [*beside, lambda folder: state.save_to_json(str(folder / TRAINER_STATE_NAME))]

    def _get_output_dir(self, trial: Any) -> str:
        folder: str = super()._get_output_dir(trial)
        return str(Path(folder) / STAGING) if self._is_staging else folder

    # --- what transformers would have done otherwise ------------------------------------------------------------------

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir or ".")
        model: Any = self.model
        if hasattr(model, "peft_config") and self.args.should_save and not self.saves_together():
            # Left to itself, PEFT asks the hub with each checkpoint whether the embedding was resized.
            resized = is_resized(model.get_base_model())
            model.save_pretrained(str(folder), state_dict=state_dict, save_embedding_layers=resized)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(str(folder))
            return
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)

    @contextlib.contextmanager
    def together(self, doing: str = "write the checkpoint") -> Iterator[None]:
        """What is done within is done on all ranks when it is left, or all of them end.

        Args:
            doing: what it is, for the ranks that did not fail.

        Raises:
            TrainingStopped: it failed on another rank. What failed here comes as it is.
        """
        if self.args.world_size == 1:
            yield
            return
        failure: BaseException | None = None
        try:
            yield
        except Exception as error:  # noqa: BLE001  raised again below, after the other ranks know
            failure = error
        failed = torch.tensor(int(failure is not None), device=self.args.device)
        torch.distributed.all_reduce(failed, op=torch.distributed.ReduceOp.MAX)
        if failure is not None:
            raise failure
        if int(failed):
            found, fix = f"another rank could not {doing}", "see what it says"
            raise TrainingStopped(Problem(f"step {self.state.global_step}", found, fix))


@contextlib.contextmanager
def written_to_the_end(trainer: Trainer) -> Iterator[None]:
    """Whatever ends the training within: a checkpoint that is being written is finished, unless the user insists.

    A full disk ends it cleanly, whatever file it was that had no room.

    Raises:
        SavingFailed: it could not be written.
    """
    if not isinstance(trainer, PublishingTrainer):
        yield
        return
    try:
        yield
    except KeyboardInterrupt:  # the second Ctrl-C
        trainer.checkpoints.abandon()
        raise
    except BaseException as error:
        try:
            trainer.checkpoints.wait()
        except TrainingStopped as lost:
            warn(str(lost))
        if isinstance(error, OSError) and error.errno in FULL:  # metrics, the losses of an evaluation
            raise trainer.checkpoints.failure_elsewhere(trainer.state.global_step, error) from error
        raise
    trainer.settle()


def _persistent_buffers(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                yield f"{prefix}.{name}" if prefix else name, buffer
