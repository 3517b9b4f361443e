"""Saving, tried before the first step: a checkpoint is written, read back in a new process, compared and deleted."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from whet.core.errors import ArtefactError, Problem
from whet.core.log import say
from whet.distributed.launch import environment_of_one
from whet.training.checkpoint import what_is_wrong
from whet.training.publishing import STAGING, discard, seal
from whet.training.reread import digest
from whet.training.saving import PublishingTrainer

FOLDER = "rehearsal"


class Rehearsal(TrainerCallback):
    """Rehearses when training begins. Of sharded models nothing is rehearsed.

    Args:
        where: the key that asks for it.
    """

    def __init__(self, trainer: PublishingTrainer, where: str) -> None:
        self._trainer, self._where = trainer, where

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._trainer.saves_together():
            say("rehearse_saving: nothing is rehearsed, because every rank writes a part")
            return
        began = time.monotonic()
        num_bytes = rehearse(self._trainer, self._where)
        if num_bytes:
            said = f"a checkpoint of {num_bytes / 1e6:.1f} MB was written, read in a new process, and is the same"
            say(f"rehearsal: {said} ({time.monotonic() - began:.1f} s)")


def rehearse(trainer: PublishingTrainer, where: str) -> int:
    """Write a checkpoint that nobody will find, read it in a new process, compare, delete.

    Returns:
        Its size in bytes, on the first rank.

    Raises:
        ArtefactError: it cannot be read back as it was written.
        SavingFailed: it cannot be written.
    """
    folder = trainer.checkpoints.output_dir / STAGING / FOLDER
    parts, weights, states = trainer.rehearsed_parts()
    with trainer.together():
        if not trainer.args.should_save:
            return 0
        discard(folder)  # of a run that was killed meanwhile
        try:
            with trainer.checkpoints.or_discarded(trainer.state.global_step):
                folder.mkdir(parents=True, exist_ok=True)
                for part in parts:
                    part(folder)
                trainer._save_rng_state(str(folder))
                seal(folder, trainer.state.global_step)
            wrong = what_is_wrong(folder) or what_is_different(read_elsewhere(folder), weights, states)
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        finally:
            discard(folder)
        if wrong:
            found = f"a checkpoint that was written to {trainer.checkpoints.output_dir} for a try is not what was saved"
            raise ArtefactError(Problem(where, f"{found}: {wrong}", "try another optimizer, adapter or disk"))
    return size


def read_elsewhere(folder: Path) -> Mapping[str, Mapping[str, str]] | str:
    """What a new process finds in a checkpoint (`whet.training.reread`); in words, if it cannot read it."""
    # A module in the folder that the run was started in shall not take the place of one of PyTorch's: -P.
    command = [sys.executable, "-P", "-m", "whet.training.reread", str(folder.absolute())]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment_of_one())
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    found: dict[str, dict[str, str]] = json.loads(done.stdout)
    return found


def what_is_different(
    found: Mapping[str, Mapping[str, str]] | str, weights: Mapping[str, torch.Tensor], states: Mapping[str, Any]
) -> str | None:
    """Where a checkpoint, as another process has read it, is unlike the run's weights and states; None if nowhere.

    Weights are looked for by content: files have other names for them, and hold a tied one once.
    """
    if isinstance(found, str):
        return found
    for name, state in states.items():
        if found.get(name, {}).get("") != digest(state):
            return f"{name} is not read as it was written"
    read = {each for name, entries in found.items() if name.endswith(".safetensors") for each in entries.values()}
    missing = [name for name, weight in weights.items() if digest(weight) not in read]
    if not missing:
        return None
    # A few models are stored in another layout than they compute in, experts one by one: then none is found.
    if len(missing) == len(weights):
        return "no weight is found as it is in the model"
    return None if any("experts" in name for name in missing) else f"{missing[0]} is not read as it was written"
