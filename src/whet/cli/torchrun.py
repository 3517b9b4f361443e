"""``whet train --launcher torchrun``: prepare once, then become the launcher of the ranks."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from whet.core.errors import ConfigError, Problem

if TYPE_CHECKING:
    from whet.config import Config


def refuse_launcher_options(num_processes: int | None, launcher_args: Sequence[str]) -> None:
    """Options for torchrun mean nothing without it.

    Raises:
        ConfigError: names each such option.
    """
    problems = []
    if num_processes is not None:
        problems.append(
            Problem("whet train", "--num-processes has no meaning for one process", "add --launcher torchrun")
        )
    if launcher_args:
        given = " ".join(launcher_args)
        problems.append(
            Problem("whet train", f"nothing takes the arguments after '--': {given}", "add --launcher torchrun")
        )
    if problems:
        raise ConfigError(problems)


def launch_ranks(config: Config, words: Sequence[str], launcher_args: Sequence[str], num_processes: int | None) -> None:
    """Prepare the data in this process, then replace it by torchrun, whose ranks find the prepared set on disk.

    One process prepares because two would do the same work twice; and a mistake in the data is told once, before any
    rank exists.

    Args:
        words: the command of each rank, without ``whet``.
    """
    from whet.distributed.elastic import refuse_unknown, share_threads
    from whet.distributed.hardware import num_cpus
    from whet.distributed.launch import default_num_processes, torchrun_command
    from whet.run import preprocess
    from whet.stages import refuse_untrainable

    refuse_untrainable(config)
    refuse_unknown(launcher_args)
    preprocess(config)
    command = torchrun_command(words, num_processes=num_processes, launcher_args=launcher_args)
    share_threads(num_processes or default_num_processes(), num_cpus())
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(command[0], command)


def says_how_many(launcher_args: Sequence[str]) -> bool:
    """Whether torchrun's own arguments say how many processes there are on a machine."""
    return any(word.partition("=")[0].lstrip("-").replace("_", "-") == "nproc-per-node" for word in launcher_args)


def resume_tokens(resume: str | bool | None) -> list[str]:
    """The option that says the same to a rank."""
    return [] if resume is None else ["--resume-from-checkpoint", str(resume)]
