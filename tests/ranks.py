"""Several ranks of a run over gloo, forked from one process that has imported everything already."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing import connection
from pathlib import Path
from typing import Any

from tests.ports import free_port

ROOT = Path(__file__).parents[1]
PATIENCE = 240.0
"""Seconds until ranks are given up."""
_IMPORTED = ("tests.resuming", "tests.resume_cases", "whet.methods.sft", "whet.training.trainer", "peft", "trl")


def run_ranks(function: Callable[..., None], *arguments: Any, num_ranks: int = 2) -> None:
    """Call ``function(rank, *arguments)`` in so many processes that find each other as torchrun's do.

    Raises:
        AssertionError: one of them failed, with what it said.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_IMPORTED))
    port = free_port()
    said = [context.Queue() for _ in range(num_ranks)]
    ranks = [
        context.Process(target=_rank, args=(rank, num_ranks, port, said[rank], function, arguments))
        for rank in range(num_ranks)
    ]
    for rank in ranks:
        rank.start()
    failures = []
    running, end = dict(enumerate(ranks)), time.monotonic() + PATIENCE
    while running and (ended := _ended(running, end - time.monotonic())):
        for number in ended:
            exit_code = running.pop(number).exitcode
            if not said[number].empty():
                failures.append(f"rank {number}: {said[number].get()}")
            elif exit_code != 0:
                failures.append(f"rank {number} ended with {exit_code}")
        if failures:  # the others may wait for it for ever, or have something to say about it
            end = min(end, time.monotonic() + 10.0)
    failures += [f"rank {number} did not end" for number in running]
    for rank in ranks:
        if rank.is_alive():
            rank.kill()
    assert not failures, "\n".join(failures)


def _ended(running: dict[int, Any], seconds: float) -> list[int]:
    """The ranks that have ended, as soon as there is one; none where none does for so long."""
    connection.wait([rank.sentinel for rank in running.values()], max(seconds, 0.0))
    return [number for number, rank in running.items() if not rank.is_alive()]


def launch_ranks(script: str, inputs: str | Path, folder: Path) -> None:
    """Start a test's own file twice, as torchrun does: ``python SCRIPT INPUTS FOLDER``, which leaves ``rank-N.pt``.

    Raises:
        AssertionError: it has not, with what was said.
    """
    from whet.distributed.launch import torchrun_command

    done = subprocess.run(
        [*torchrun_command([], num_processes=2)[:-2], script, str(inputs), str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert all((folder / f"rank-{rank}.pt").exists() for rank in (0, 1)), done.stderr[-3000:]


def _rank(
    rank: int, num_ranks: int, port: int, said: Any, function: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(num_ranks),
        "LOCAL_WORLD_SIZE": str(num_ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    import torch

    torch.set_num_threads(1)
    try:
        function(rank, *arguments)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    except BaseException:  # noqa: BLE001  whatever it is, the test says it
        said.put(traceback.format_exc()[-4000:])
        said.close()
        said.join_thread()
        sys.stderr.flush()
        os._exit(1)


def written(folder: Path, num_ranks: int = 2) -> list[Any]:
    """What each rank has left in ``rank-<n>.pt``."""
    import torch

    return [torch.load(folder / f"rank-{rank}.pt", weights_only=False) for rank in range(num_ranks)]
