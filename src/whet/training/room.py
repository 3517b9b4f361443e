"""Room on the disk for checkpoints: foreseen before the run, awaited before each one."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import SaveStrategy

from whet.config.resolve import ResolvedRun
from whet.core.errors import ConfigError, Problem
from whet.core.log import say, warn
from whet.training.checkpoint import steps_done
from whet.training.host_copy import state_bytes
from whet.training.lost_process import TORCH_TIMEOUT
from whet.training.publishing import last_step_of_run, own_checkpoints

POLL_SECONDS = 5.0
OVERHEAD = 1.01
"""Headers, and what a file system needs for itself, beside the tensors."""
SMALL_FILES = 256 * 1024
_BITS_OF_MOMENTS = {"8bit": 8, "4bit": 4, "fp8": 8}
_WITHOUT_MOMENTS = ("lomo", "adalomo", "adafactor", "sgd", "rmsprop")


def free_bytes(folder: Path) -> int:
    """What an ordinary user may still write to the file system of a folder."""
    return shutil.disk_usage(folder).free


def seconds_to_wait(resolved: ResolvedRun) -> float:
    """How long the first rank may wait for room: the others wait for it in a collective, which ends after its time."""
    asked = 60.0 * resolved.config.loop.save_wait_minutes
    most = (resolved.config.distributed.ddp_timeout or TORCH_TIMEOUT) / 2
    if resolved.world_size == 1 or asked <= most:
        return asked
    where = resolved.config.where("save_wait_minutes")
    say(
        f"{where}: save_wait_minutes: on a full disk it is {most:.0f} seconds, half of ddp_timeout, the ranks' patience"
    )
    return most


class Room:
    """Waits until there is room for what is to be written.

    Args:
        folder: where.
        wait_seconds: how long to wait for somebody to make room.
        clock, sleep, free: the time, a pause, and the free bytes of a folder.

    Attributes:
        is_asked_to_stop: ends the waiting early.
    """

    def __init__(
        self,
        folder: Path,
        wait_seconds: float = 0.0,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        free: Callable[[Path], int] = free_bytes,
    ) -> None:
        self._folder, self._wait_seconds = folder, wait_seconds
        self._clock, self._sleep, self._free = clock, sleep, free
        self.is_asked_to_stop: Callable[[], bool] = lambda: False

    def wait_for(self, num_bytes: int, what: str) -> str | None:
        """Wait for room for ``num_bytes`` of tensors.

        Args:
            what: "the checkpoint of step 12".

        Returns:
            Why it cannot be written, in words; None when there is room.
        """
        needed, deadline = with_overhead(num_bytes), self._clock() + self._wait_seconds
        free = self._free(self._folder)
        if free >= needed:
            return None
        if self._wait_seconds:
            minutes = math.ceil(self._wait_seconds / 60)
            warn(
                f"{what} needs {size(needed)} and {self._folder} has {size(free)} free: training pauses until there is "
                f"room, {minutes} minutes at most (save_wait_minutes)"
            )
        while free < needed and self._clock() < deadline and not self.is_asked_to_stop():
            self._sleep(POLL_SECONDS)
            free = self._free(self._folder)
        if free >= needed:
            say(f"there is room again: {size(free)}")
            return None
        return f"it needs {size(needed)} and {self._folder} has {size(free)} free"


@dataclass(frozen=True, slots=True)
class DiskPlan:
    """What a run will have on the disk at once.

    Attributes:
        num_checkpoints: those kept, the one being written and the best; without those that are there already.
        checkpoint_bytes: of one, as estimated.
        weight_bytes: of the weights in it, exactly, and of the result.
    """

    num_checkpoints: int
    checkpoint_bytes: int
    weight_bytes: int

    @property
    def num_bytes(self) -> int:
        return with_overhead(self.num_checkpoints * self.checkpoint_bytes + self.weight_bytes)


def plan_disk(
    model: torch.nn.Module, args: TrainingArguments, resolved: ResolvedRun, resume_from: Path | None = None
) -> DiskPlan:
    """What the checkpoints that a run has yet to write and its result take.

    Args:
        resume_from: the checkpoint that it goes on from.
    """
    loop = resolved.config.loop
    parameters = list(model.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    weight_bytes = state_bytes(trained if hasattr(model, "peft_config") else parameters)
    state = 0 if loop.save_only_model else sum(_moment_bytes(parameter, resolved.optimizer) for parameter in trained)
    at_once = _num_saves(args, steps_done(resume_from) if resume_from is not None else 0)
    if loop.save_total_limit:
        best = 1 if args.metric_for_best_model else 0
        output_dir = Path(resolved.output_dir)  # of what is there, only this run's makes room when it goes
        there = len(own_checkpoints(output_dir, last_step_of_run(output_dir, resume_from)))
        at_once = min(at_once, max(1, loop.save_total_limit + 1 + best - there))
    return DiskPlan(at_once, weight_bytes + state, weight_bytes)


def foresee(plan: DiskPlan, resolved: ResolvedRun, free: Callable[[Path], int] = free_bytes) -> None:
    """Warn of a disk that will be full before the run ends.

    Raises:
        ConfigError: not even one checkpoint, or the result alone, has room.
    """
    where, folder = resolved.config.where("output_dir"), Path(resolved.output_dir)
    there = free(folder)
    if there >= plan.num_bytes:
        return
    least = with_overhead(plan.weight_bytes)
    if there < least:
        found = f"output_dir '{folder}' has {size(there)} free, and the weights alone need {size(least)}"
        raise ConfigError(Problem(where, found, "make room there, or name a folder on another disk", "output_dir"))
    fitting = (there - plan.weight_bytes) // max(1, plan.checkpoint_bytes) - 1
    cure = f"save_total_limit: {fitting} would fit" if fitting >= 1 else "name a folder on another disk"
    needed = f"{plan.num_checkpoints} checkpoints of about {size(plan.checkpoint_bytes)} at once and the result"
    found = f"{needed} need {size(plan.num_bytes)}, and '{folder}' has {size(there)} free: the run will pause for room"
    warn(f"{where}: {found} -> {cure}")


def with_overhead(num_bytes: int) -> int:
    """Bytes on the disk for so many bytes of tensors."""
    return int(num_bytes * OVERHEAD) + SMALL_FILES


def size(num_bytes: int) -> str:
    """In the unit a person would choose.

    >>> size(1_234_567_890), size(2_500_000), size(12_000)
    ('1.2 GB', '2.5 MB', '0.0 MB')
    """
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"


def _moment_bytes(parameter: torch.Tensor, optimizer: str) -> int:
    """Two moments like the parameter, as Adam has them; an estimate for optimizers that are not known here."""
    if optimizer.startswith(_WITHOUT_MOMENTS):
        return 0
    bits = next((bits for name, bits in _BITS_OF_MOMENTS.items() if name in optimizer), None)
    each = parameter.element_size() if bits is None else bits / 8
    num_moments = 1 if "lion" in optimizer else 2
    return int(parameter.numel() * float(each) * num_moments)


def _num_saves(args: TrainingArguments, steps_done: int) -> int:
    """Checkpoints that are yet to come; those of a signal, which may come at any time, are one."""
    saves, done = 1.0, 0
    if args.save_strategy == SaveStrategy.STEPS:
        saves, done = args.max_steps / args.save_steps, int(steps_done // args.save_steps)
    elif args.save_strategy in (SaveStrategy.EPOCH, SaveStrategy.BEST):
        saves, done = args.num_train_epochs, int(args.num_train_epochs * steps_done / args.max_steps)
    return max(1, math.ceil(saves) - done)
