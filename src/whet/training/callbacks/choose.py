"""The callbacks of a run, in the order in which they act."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from transformers import Trainer, TrainerCallback

from whet.config.optimizers import IN_BACKWARD, SCHEDULE_FREE
from whet.config.resolve import ResolvedRun
from whet.training.callbacks.due_evaluation import DueEvaluation
from whet.training.callbacks.early_stopping import EarlyStopping
from whet.training.callbacks.embedding_noise import EmbeddingNoise
from whet.training.callbacks.garbage import CollectGarbage
from whet.training.callbacks.guard import NonFiniteGuard
from whet.training.callbacks.layer_sampling import layer_sampling
from whet.training.callbacks.listed_modules import ListModules
from whet.training.callbacks.metrics_log import MetricsLog
from whet.training.callbacks.progress import progress_display
from whet.training.callbacks.rounding import RoundAfter
from whet.training.callbacks.saving import IntervalsOfTheConfig, SaveBeside, SaveFirstStep
from whet.training.callbacks.trackers import guard_trackers
from whet.training.callbacks.watchdog import LossWatchdog
from whet.training.carried import Carried, Memory
from whet.training.gradient_norm import GradientNorm
from whet.training.optimizers.averages import Averages
from whet.training.optimizers.each_parameter import in_backward
from whet.training.pending import PendingFigures
from whet.training.rehearsal import Rehearsal
from whet.training.room import Room, seconds_to_wait
from whet.training.saving import PublishingTrainer
from whet.training.writer import CheckpointWriter


def add_callbacks(
    trainer: PublishingTrainer,
    resolved: ResolvedRun,
    *,
    step_loss: Callable[[], torch.Tensor | None] = lambda: None,
    rows: Callable[[int], Sequence[str]] = lambda step: (),
    beside: Callable[[], Callable[[Path], None]] | None = None,
    carried: Sequence[Carried] = (),
) -> None:
    """Give a trainer the callbacks that its config asks for and that every run has.

    Args:
        step_loss, rows: what the guard against non-finite steps tells; see `NonFiniteGuard`.
        beside: takes what a checkpoint holds beside transformers' files; see `SaveBeside`.
        carried: what remembers something, beside the callbacks that do.
    """
    from transformers.trainer_callback import PrinterCallback

    trainer.remove_callback(PrinterCallback)  # transformers adds it where its own progress bar is off
    loop = resolved.config.loop
    norm = GradientNorm(known=lambda: _norm_in_backward(trainer))
    modules = ListModules(trainer)
    norm.watch(trainer.accelerator, modules.parameters)
    guard = NonFiniteGuard(
        step_loss,
        rows,
        resolved.output_dir,
        scaler=lambda: trainer.accelerator.scaler is not None,
        gradient_norm=norm.take,
        in_backward=_in_backward(resolved),
    )
    chosen: list[TrainerCallback] = [modules, guard, MetricsLog(), progress_display()]
    if resolved.torch_compile:
        from whet.training.callbacks.compiling import CompileLayers  # imports torch's compiler

        chosen.append(CompileLayers(resolved))
    if resolved.optimizer in SCHEDULE_FREE:
        chosen.append(Averages(lambda: trainer.optimizer, trainer.model))
    if loop.neftune_noise_alpha is not None:
        chosen.append(EmbeddingNoise(loop.neftune_noise_alpha))
    if resolved.config.model.lisa_n_layers is not None:
        chosen.append(layer_sampling(trainer.model, resolved.config))
    if loop.save_first_step:
        chosen.append(SaveFirstStep())
    qat = resolved.config.quant.qat
    if qat is not None and qat.fake_quant_after_n_steps:
        chosen.append(RoundAfter(qat.fake_quant_after_n_steps))
    if loop.early_stopping_patience is not None:
        chosen.append(EarlyStopping(early_stopping_patience=loop.early_stopping_patience))
    if loop.loss_watchdog_threshold is not None:
        chosen.append(LossWatchdog(loop.loss_watchdog_threshold, loop.loss_watchdog_patience))
    memory = resolved.config.memory
    if every := memory.gc_collect_steps or memory.gc_steps:
        chosen.append(CollectGarbage(every))
    if beside is not None:
        chosen.append(SaveBeside(beside))
    if resolved.config.adapter.relora:
        from whet.training.callbacks.relora import relora  # imports peft

        restarts = relora(trainer.model, resolved.config)
        chosen += [restarts, SaveBeside(restarts.take, restarts.restore)]
    chosen += [IntervalsOfTheConfig(), PendingFigures(trainer), DueEvaluation(trainer.evaluate_as_due)]
    parts = [each for each in (*chosen, *carried) if isinstance(each, Carried)]
    chosen.append(Memory(parts, trainer.args.process_index, trainer.args.world_size))
    trainer.checkpoints = CheckpointWriter(Path(resolved.output_dir), loop.save_total_limit)
    trainer.room = Room(Path(resolved.output_dir), seconds_to_wait(resolved))
    trainer.writes_in_background = _may_write_in_background(resolved)
    for callback in chosen:
        trainer.add_callback(callback)
    guard_trackers(trainer, resolved)
    if loop.rehearse_saving:  # before a tracker has opened a run
        trainer.callback_handler.callbacks.insert(0, Rehearsal(trainer, resolved.config.where("rehearse_saving")))


def _may_write_in_background(resolved: ResolvedRun) -> bool:
    """Not where others read each checkpoint as soon as transformers says that it is there."""
    tracking = resolved.config.tracking
    return tracking.wandb_log_model != "checkpoint" and not tracking.hf_mlflow_log_artifacts


def _in_backward(resolved: ResolvedRun) -> Literal["", "protected", "unprotected"]:
    """See `NonFiniteGuard`."""
    if resolved.optimizer in IN_BACKWARD:
        return "unprotected"
    return "protected" if resolved.config.memory.optimizer_in_backward else ""


def _norm_in_backward(trainer: Trainer) -> torch.Tensor | None:
    optimizer = in_backward(trainer.optimizer)
    return None if optimizer is None else optimizer.gradient_norm()
