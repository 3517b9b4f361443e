"""Checkpoints become official, old ones go, and the first step can be saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from whet.training.checkpoint import publish, remove_old


class PublishCheckpoints(TrainerCallback):
    """Writes the manifest of each checkpoint once every rank has written its part, then removes old checkpoints.

    Args:
        keep: newest checkpoints that stay; 0 keeps all. The best one stays too.
    """

    def __init__(self, keep: int) -> None:
        self._keep = keep

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # A resumed run takes its intervals from the checkpoint; what the config says now shall count.
        state.compute_steps(args, state.max_steps)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if args.world_size > 1:
            torch.distributed.barrier()
        if args.should_save:
            output_dir = Path(args.output_dir or ".")
            publish(output_dir / f"checkpoint-{state.global_step}", state.global_step)
            best = Path(state.best_model_checkpoint) if state.best_model_checkpoint else None
            remove_old(output_dir, self._keep, best)


class SaveBeside(TrainerCallback):
    """Puts what the run needs, beside what transformers writes, into each checkpoint; before it is published.

    Args:
        write: is given the checkpoint's folder.
        restore: is given the folder of the checkpoint that a run goes on from, before it does.
    """

    def __init__(
        self, write: Callable[[Path], None], restore: Callable[[Path], None] = lambda checkpoint: None
    ) -> None:
        self._write, self.restore = write, restore

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if args.should_save:
            self._write(Path(args.output_dir or ".") / f"checkpoint-{state.global_step}")


class SaveFirstStep(TrainerCallback):
    """A checkpoint after the first step, to learn at once whether saving works."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step == 1:
            control.should_save = True
