"""A trainer that goes on from a checkpoint as the same run, where transformers' would not quite.

* Every weight is loaded, or the run is refused (`whet.training.weights`).
* Each rank goes on from its own random state; with another number of ranks it is defined what those without one do.
* A run that is over stays over: transformers would train a step more.
* The loss of the run's last line is that of all its steps.
"""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers.trainer_pt_utils import safe_globals

from whet.core.errors import ArtefactError, Problem
from whet.core.log import say, warn
from whet.model.weight_files import weight_files
from whet.training.callbacks.early_stopping import EarlyStopping
from whet.training.checkpoint import MANIFEST, earlier_runs, what_is_wrong
from whet.training.loader import MicroBatchLoader
from whet.training.optimizers.averages import use_averages
from whet.training.pending import PendingFigures
from whet.training.publishing import published_name
from whet.training.saving import PublishingTrainer
from whet.training.weights import check_adapter, load_weights


class ResumingTrainer(PublishingTrainer):
    """A trainer whose resumed runs are the runs that were stopped."""

    _loader: DataLoader[Any] | None = None
    """What gives the training's micro-batches."""
    _resumed_from: Path | None = None

    def _init_training_state(
        self, max_steps: int, steps_per_epoch: int, num_epochs: int, resume_from_checkpoint: str | None, *args: Any
    ) -> tuple[int, int]:
        """Epochs and micro-batches of the next one that are trained already; all of them in a run that was over."""
        begun = super()._init_training_state(max_steps, steps_per_epoch, num_epochs, resume_from_checkpoint, *args)
        self._saved_step = self.state.global_step  # of the checkpoint; before the first step there is nothing to save
        epochs: tuple[int, int] = begun
        if resume_from_checkpoint is None:
            return epochs
        self.args.eval_on_start = False  # that was before the first step
        self._resumed_from = Path(resume_from_checkpoint)
        self.find_best_beside(self._resumed_from)
        if self.state.global_step < max_steps and not self._has_stopped_early():
            self.pass_over(*epochs)
            return epochs
        self._load_rng_state(resume_from_checkpoint)
        if self.args.process_index == 0:
            ended = "was stopped early" if self.state.global_step < max_steps else "has done all its steps"
            say(f"{resume_from_checkpoint} is of a run that {ended}: nothing is left to train")
        return num_epochs, 0

    def find_best_beside(self, checkpoint: Path) -> None:
        """The best checkpoint stands beside this one, wherever the run's folder has been moved to since.

        Of a checkpoint that was copied out of the output folder, it is set aside, when the run begins, with what was
        left there.
        """
        name, best = f"checkpoint-{self.state.best_global_step}", self.state.best_model_checkpoint
        places = [checkpoint.parent]
        if best and not Path(best).is_dir():
            places += earlier_runs(self.checkpoints.output_dir)
        found = [place / name for place in places if (place / name).is_dir()]
        if self.state.best_global_step and found:
            self.state.best_model_checkpoint = str(found[0])

    def evaluate_as_due(self) -> None:
        super().evaluate_as_due()
        if self._resumed_from is not None:
            self.find_best_beside(self._resumed_from)  # the checkpoint itself may be the best now

    def pass_over(self, epoch: int, num_batches: int) -> None:
        """Tell the order, before training, which micro-batches of a resumed epoch nobody will look at."""
        if isinstance(self._loader, MicroBatchLoader):
            self._loader.batches.pass_over(epoch, num_batches)

    def _has_stopped_early(self) -> bool:
        return any(each.is_over for each in self.callback_handler.callbacks if isinstance(each, EarlyStopping))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        checkpoint = Path(resume_from_checkpoint)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        elif weight_files(checkpoint):
            load_weights(self.model, checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            if hasattr(self.model, "peft_config"):
                check_adapter(self.model, checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """As the base class.

        Raises:
            ArtefactError: parameters are in other groups than those of the checkpoint: a setting that decides them was
                allowed to change.
        """
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        except ValueError as error:
            if "parameter group" not in str(error):
                raise
            found = (
                "its optimizer has parameters in other groups than this run: weight_decay that was 0 or is 0 now, "
                "embedding_lr, LoRA+ and the like decide them"
            )
            fix = "write the old values, or begin a new run from the weights in it, in another output_dir"
            raise ArtefactError(Problem(str(checkpoint), found, fix)) from error

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        self.settle()  # it may be the one that is being written
        if best is not None:
            with self.together("load the best checkpoint"):
                self._verify_best(Path(best))
        if not sharded and best is not None and weight_files(Path(best)):
            load_weights(self.model, Path(best))
            return
        super()._load_best_model()

    def _verify_best(self, best: Path) -> None:
        """It was written long ago perhaps, and transformers would load a damaged one, or go on without one.

        The weights are what is loaded of it: its optimizer may be gone.

        Raises:
            ArtefactError: they are not what was written.
        """
        if self.args.process_index != 0:
            return
        files = (".safetensors", ".index.json", "adapter_config.json") if not self.saves_together() else ("",)
        is_ours = (best / MANIFEST).is_file() or not best.is_dir()
        reason = what_is_wrong(best, ending=files) if is_ours else None
        if reason is not None:
            found = f"the best checkpoint, {best}, cannot be loaded: {reason if best.is_dir() else 'it is gone'}"
            fix = (
                "its weights are lost. To end with those of the last step: load_best_model_at_end: false, the same "
                "command with --resume-from-checkpoint and --allow-change load_best_model_at_end"
            )
            raise ArtefactError(Problem("load_best_model_at_end", found, fix))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """The random state of each rank, from its own file; see `take_random_states` where there is none."""
        if checkpoint is None:
            return
        rank, world_size = self.args.process_index, self.args.world_size
        own = Path(checkpoint) / (f"rng_state_{rank}.pth" if world_size > 1 else "rng_state.pth")
        if own.is_file():
            super()._load_rng_state(checkpoint)
            return
        others = sorted(Path(checkpoint).glob("rng_state*.pth"))
        if not others:
            return  # a checkpoint without any is not of ours
        if rank == 0:
            take_random_states(others[0])
            was = "1 rank" if others[0].name == "rng_state.pth" else f"{len(others)} ranks"
            warn(
                f"{checkpoint} is of {was} and this run has {world_size}: the samples of every step stay as they are, "
                "dropout and other random draws are not those that would have come"
            )
        else:
            begin_random_states(self.args.seed, self.state.global_step, rank)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "train_loss" in logs and self._knows_whole_run():
            logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step, 0.001)
        super().log(logs, start_time)

    def _knows_whole_run(self) -> bool:
        return any(each.knows_whole_run for each in self.callback_handler.callbacks if isinstance(each, PendingFigures))

    def _finalize_training(self, *args: Any) -> Any:
        use_averages(self.optimizer)  # of a run that was over there was no epoch to end
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint is None:
            self._know_why_there_is_no_best()
        return super()._finalize_training(*args)

    def _know_why_there_is_no_best(self) -> None:
        """There was none, or it was removed before the run was resumed: then transformers has forgotten where it was,
        and would end with the last step without a word."""
        if self.state.best_global_step:
            best = published_name(self.checkpoints.output_dir, self.state.best_global_step)
            self.state.best_model_checkpoint = str(best)  # `_load_best_model` says what has become of it
        elif self.args.process_index == 0:
            metric = self.args.metric_for_best_model
            warn(f"load_best_model_at_end: in no evaluation was {metric} a number: the result is that of the last step")


def take_random_states(path: Path) -> None:
    """Go on from the random states in a file of transformers' (of Python, NumPy, PyTorch and this device)."""
    with safe_globals():
        states = torch.load(path, weights_only=True)
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.random.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        of_device = states["cuda"]
        torch.cuda.set_rng_state(of_device[0] if isinstance(of_device, list) else of_device)


def begin_random_states(seed: int, step: int, rank: int) -> None:
    """Random states that follow from (seed, step, rank), for a rank that there was not before."""
    digest = hashlib.sha256(f"{seed} {step} {rank}".encode()).digest()
    begun = int.from_bytes(digest[:4], "little")
    random.seed(begun)
    np.random.seed(begun)
    torch.manual_seed(begun)
