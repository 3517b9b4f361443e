"""The output folder: tried, locked, searched for a checkpoint, and taken when nothing refuses the run any more."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from whet.config import Config
from whet.config.resolve import ResolvedRun
from whet.core.errors import ConfigError, Problem
from whet.core.log import say, warn

if TYPE_CHECKING:
    from transformers import Trainer


def open_output(resolved: ResolvedRun) -> Path:
    """The output folder, made if it is not there and tried by writing to it.

    Raises:
        ConfigError: it cannot be written to, or the run would replace a checkpoint in it that it is to read.
    """
    folder = Path(resolved.output_dir)
    _refuse_own_checkpoint(folder, resolved)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".whet-can-write"
        probe.touch()
        probe.unlink(missing_ok=True)  # another rank may have been quicker
    except OSError as error:
        where = resolved.config.where("output_dir")
        found = f"output_dir '{folder}' cannot be written to ({error.strerror})"
        raise ConfigError(Problem(where, found, "name a folder that you may write to", "output_dir")) from error
    _refuse_links(folder, resolved.config)
    return folder


def _refuse_own_checkpoint(folder: Path, resolved: ResolvedRun) -> None:
    """Raises ConfigError: a key names a checkpoint of the output folder, which the run would move or replace."""
    from whet.artefacts.earlier_result import checkpoint_read
    from whet.config.facts import facts_of

    read = checkpoint_read(folder, facts_of(resolved).values)
    if read is not None:
        found = f"output_dir: the run begins from '{read}', which it would move out of the way of its own checkpoints"
        fix = "name another output_dir, or move that checkpoint out of this one"
        raise ConfigError(Problem(resolved.config.where("output_dir"), found, fix, "output_dir"))


def _refuse_links(folder: Path, config: Config) -> None:
    """Raises ConfigError: a name in the output folder is a link, and what the run writes there would go elsewhere."""
    from whet.core.disk import link_leading_out

    link = link_leading_out(folder)
    if link is not None:
        found = f"output_dir: '{link}' is a link to '{os.readlink(link)}', outside of the folder"
        fix = "remove the link, or name another output_dir (which may be a link itself)"
        raise ConfigError(Problem(config.where("output_dir"), found, fix, "output_dir"))


def lock_output(resolved: ResolvedRun) -> AbstractContextManager[object]:
    """Keep every other run out of the output folder until the result is left.

    Raises:
        ConfigError: another run is in it.
    """
    from whet.core.lock import FolderLock, Locked

    if resolved.hardware.rank != 0:
        return nullcontext()
    where, output_dir = resolved.config.where("output_dir"), resolved.output_dir
    try:
        lock = FolderLock(Path(output_dir))
    except Locked as locked:
        found = f"another run writes to output_dir '{output_dir}': {locked.holder}"
        fix = "wait for it, end it, or name another folder"
        raise ConfigError(Problem(where, found, fix, "output_dir")) from None
    if not lock.is_real:
        warn(f"{output_dir} is on a file system without locks: see to it yourself that no two runs write there at once")
    if lock.died:
        say(f"the last run in {output_dir} ({lock.died}) ended without a word")
    return lock


def find_checkpoint(resolved: ResolvedRun, resume: str | bool | None) -> Path | None:
    """The checkpoint to go on from: what the command line says, else the config.

    The first rank alone looks for it and reads every byte of it; `fit` tells the others.
    """
    from whet.training.checkpoint import checkpoint_to_resume, newest_complete
    from whet.training.publishing import finish_publishing

    if resolved.hardware.rank != 0:
        return None
    output_dir = Path(resolved.output_dir)
    for folder in finish_publishing(output_dir):
        say(f"an earlier run ended after it had written {folder}, and before it gave it its name; it has it now")
    loop = resolved.config.loop
    where = resolved.config.where("resume_from_checkpoint") if resume is None else "--resume-from-checkpoint"
    asked = loop.resume_from_checkpoint if resume is None else resume
    if asked is not None or not loop.auto_resume_from_checkpoints:
        checkpoint, passed_over = checkpoint_to_resume(asked, resolved.output_dir, where)
    else:
        found = newest_complete(output_dir, with_optimizer=True)
        checkpoint, passed_over = found.path, found.passed_over
    for item in passed_over:
        warn(f"{item.path}: passed over, because {item.reason}")
    if checkpoint is not None:
        say(f"resuming from {checkpoint}")
    return checkpoint


def foresee_disk(resolved: ResolvedRun, trainer: Trainer, checkpoint: Path | None) -> None:
    """Whether checkpoints and the result will have room; told by the first rank.

    Raises:
        ConfigError: the disk is full.
    """
    from whet.training.room import foresee, plan_disk

    if resolved.hardware.rank == 0:
        foresee(plan_disk(trainer.model, trainer.args, resolved, checkpoint), resolved)


def take_folder(resolved: ResolvedRun, checkpoint: Path | None) -> Path | None:
    """Make the output folder this run's: remove what a dead run had not finished, and set aside what is not of this
    run, the checkpoints and the result of an earlier one, or the checkpoints after the one that it goes on from.

    Only when nothing can refuse the run any more: one that is refused leaves the folder as it was.

    Returns:
        Where they are now.

    Raises:
        ConfigError: they cannot be moved.
    """
    from whet.artefacts.earlier_result import earlier_result
    from whet.config.facts import facts_of
    from whet.training.publishing import clear_leftovers, last_step_of_run, set_aside
    from whet.training.uploads import QUEUE_NAME, UploadQueue, push_command

    output_dir = Path(resolved.output_dir)
    last = last_step_of_run(output_dir, checkpoint)
    try:
        others = earlier_result(output_dir, facts_of(resolved).values) if last < 0 else []
        removed = clear_leftovers(output_dir)  # first: it looks which names are taken
        with UploadQueue(output_dir).alone() if output_dir / QUEUE_NAME in others else nullcontext():
            place = set_aside(output_dir, last, others)
    except OSError as error:
        found = f"what an earlier run has left in '{output_dir}' cannot be moved ({error.strerror}: {error.filename})"
        fix = "see to the folder's permissions, or name another output_dir"
        raise ConfigError(Problem(resolved.config.where("output_dir"), found, fix, "output_dir")) from error
    if removed:
        warn(f"an earlier run ended while it wrote {', '.join(removed)}; what was there of it is removed")
    if place:
        newer = f"checkpoints that are newer than checkpoint-{last}; they are"
        warn(f"{output_dir} held {newer if last >= 0 else 'what an earlier run had left; it is'} in {place} now")
        if (place / QUEUE_NAME).is_file():
            command = push_command(resolved.config, place)
            warn(f"the hub or a tracker does not have everything of that run yet; to send it: {command}")
    return place
