"""Run a trainer to its end, however it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import Trainer
from transformers.utils import logging as transformers_logging

from whet.config.resolve import ResolvedRun
from whet.core.errors import ArtefactError
from whet.model.pickled import pickles_refused
from whet.training.callbacks.beginning import Beginning
from whet.training.callbacks.due_evaluation import DueEvaluation, EvaluationCut
from whet.training.callbacks.interrupt import Interrupt
from whet.training.callbacks.progress import Progress
from whet.training.callbacks.saving import SaveAfterEvaluation, SaveBeside
from whet.training.callbacks.triggers import trigger_files
from whet.training.lost_process import others_alive
from whet.training.saving import PublishingTrainer, written_to_the_end

_ANOTHER = "it was not written by whet as it is now: go on from another checkpoint"


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What a finished training leaves.

    Attributes:
        steps: optimiser steps done, those before a resume included.
        train_loss: mean over the run's steps, in nats per supervised token.
        metrics: what transformers sums up at the end (``train_loss``, ``train_runtime`` in seconds, ...).
        best_checkpoint: the checkpoint that is loaded now, under `load_best_model_at_end`.
        stopped_early: whether early stopping ended it.
    """

    steps: int
    train_loss: float
    metrics: Mapping[str, float]
    best_checkpoint: str | None
    stopped_early: bool


def fit(
    trainer: Trainer,
    resolved: ResolvedRun,
    resume_from: Path | None = None,
    begin: Callable[[], None] = lambda: None,
) -> TrainingResult:
    """Train.

    Args:
        resume_from: a checkpoint folder, as `whet.training.checkpoint.checkpoint_to_resume` gives it.
        begin: called on the first rank when nothing can refuse the run any more, before it writes anything.

    Raises:
        TrainingInterrupted: Ctrl-C or SIGTERM; a checkpoint of the last step done is saved, if one was done.
        TrainingStopped: the run ended itself (non-finite steps, a loss out of hand).
    """
    loop = resolved.config.loop
    with others_alive(resolved):  # the first rank may have been refused a full disk
        resume_from = _told_by_first_rank(trainer, resume_from)
    with _interrupt(trainer, resolved) as interrupt, without_bars(), others_alive(resolved):
        beginning = Beginning(trainer, begin, resume_from, interrupt)
        beginning.take_place()
        trainer.add_callback(interrupt)
        saves_last = SaveAfterEvaluation()  # behind all others that ask for a checkpoint
        trainer.add_callback(saves_last)
        try:
            if resume_from is not None:
                _restore(trainer, resume_from)
            _let_interrupt_saving(trainer, interrupt)
            with _from(resume_from), written_to_the_end(trainer):
                output = trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
        except EvaluationCut:  # one before the first step
            interrupt.stopped_at = trainer.state.global_step
            interrupt.raise_if_stopped(resolved.output_dir, loop.save_only_model)
            raise
        finally:
            if isinstance(trainer, PublishingTrainer):
                trainer.interrupt = None
            trainer.remove_callback(beginning)
            trainer.remove_callback(interrupt)
            trainer.remove_callback(saves_last)
            for callback in trainer.callback_handler.callbacks:
                if isinstance(callback, Progress):
                    callback.close()
    interrupt.raise_if_stopped(resolved.output_dir, loop.save_only_model)
    return TrainingResult(
        steps=output.global_step,
        train_loss=output.metrics.get("train_loss", output.training_loss),
        metrics=output.metrics,
        best_checkpoint=trainer.state.best_model_checkpoint if loop.load_best_model_at_end else None,
        stopped_early=output.global_step < trainer.state.max_steps,
    )


def _interrupt(trainer: Trainer, resolved: ResolvedRun) -> Interrupt:
    """What signals, files and failed checkpoints of this run are told to."""
    if not isinstance(trainer, PublishingTrainer):
        return Interrupt()
    due = [each for each in trainer.callback_handler.callbacks if isinstance(each, DueEvaluation)]
    return Interrupt(
        triggers=trigger_files(resolved),
        due=due[0] if due else None,
        settle=trainer.settle,
        has_failed=lambda: trainer.checkpoints.has_failed,
    )


def _let_interrupt_saving(trainer: Trainer, interrupt: Interrupt) -> None:
    """What takes long in saving may be cut short."""
    if isinstance(trainer, PublishingTrainer):
        trainer.interrupt = interrupt
        trainer.room.is_asked_to_stop = interrupt.is_asked_to_stop


def _told_by_first_rank(trainer: Trainer, checkpoint: Path | None) -> Path | None:
    """The checkpoint that the first rank has verified; reading it once is enough."""
    if trainer.args.world_size == 1:
        return checkpoint
    told = [str(checkpoint) if checkpoint else None]
    torch.distributed.broadcast_object_list(told, device=trainer.args.device)
    return Path(told[0]) if told[0] else None


def _from(checkpoint: Path | None) -> AbstractContextManager[None]:
    """Within it, what transformers loads of the checkpoint runs no code; a file that wants to is named."""
    if checkpoint is None:
        return nullcontext()
    return pickles_refused(checkpoint, str(checkpoint), _ANOTHER, kind=ArtefactError)


def _restore(trainer: Trainer, checkpoint: Path) -> None:
    """What a checkpoint holds beside transformers' files, into the model."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, SaveBeside):
            callback.restore(checkpoint)


@contextmanager
def without_bars() -> Iterator[None]:
    """Ours is the only progress display; transformers would draw a bar for every file it writes."""
    was_on = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            transformers_logging.enable_progress_bar()
