"""The command that starts the ranks of a run."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from datetime import timedelta

from whet.core.errors import ConfigError, Problem


def torchrun_command(
    words: Sequence[str], num_processes: int | None = None, launcher_args: Sequence[str] = ()
) -> list[str]:
    """The command that runs ``whet <words>`` in several processes.

    Args:
        words: the subcommand and its arguments.
        num_processes: on this machine; None is one for each accelerator, or 2 on a CPU-only machine.
        launcher_args: torchrun's own arguments, as ``--nnodes=2 --rdzv-endpoint=host:29500``. Without any that say how
            the ranks find each other, this machine is all there is.

    Returns:
        The command, its first word the path of this Python.

    Raises:
        ConfigError: the number of processes is given twice.
    """
    given = [word.partition("=")[0].lstrip("-").replace("_", "-") for word in launcher_args]
    if num_processes is not None and "nproc-per-node" in given:
        raise ConfigError(Problem("whet train", "the number of processes is given twice", "leave out --num-processes"))
    own = []
    if not {"standalone", "nnodes", "rdzv-endpoint", "master-addr"} & set(given):
        own.append("--standalone")
    if "nproc-per-node" not in given:
        own.append(f"--nproc-per-node={num_processes or default_num_processes()}")
    return [sys.executable, "-m", "whet.distributed.elastic", *own, *launcher_args, "-m", "whet", *words]


_OF_THE_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK")


def environment_of_one() -> dict[str, str]:
    """Environment for a process that a rank starts and that is none: libraries there shall not wait for the others."""
    return {name: value for name, value in os.environ.items() if not _of_the_launcher(name)}


def _of_the_launcher(name: str) -> bool:
    return name in _OF_THE_LAUNCHER or name.startswith(("TORCHELASTIC_", "PMI_", "OMPI_"))


def join_ranks(device: str, world_size: int, timeout_seconds: float | None) -> None:
    """Meet the other ranks on a CPU; elsewhere transformers does, and there alone with `ddp_timeout` (5.23).

    Args:
        timeout_seconds: how long a collective may take; None is PyTorch's default, half an hour.
    """
    if device != "cpu" or world_size == 1:
        return
    import torch

    if not torch.distributed.is_initialized():
        timeout = None if timeout_seconds is None else timedelta(seconds=timeout_seconds)
        torch.distributed.init_process_group("gloo", timeout=timeout)


def leave_ranks() -> None:
    """Part from the other ranks of a run that is over; nothing where there are none.

    A process that ends with the threads of its group alive is now and then aborted after all was saved ("terminate
    called without an active exception", exit code 134; torch 2.13 with gloo, on a machine with other work).
    """
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def default_num_processes() -> int:
    """One process for each accelerator; 2 where there is none, to try a run out."""
    from whet.distributed.hardware import probe

    hardware = probe()
    return hardware.num_devices if hardware.device == "cuda" else 2
