"""Training that ends because another process has: said in words, with what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from whet.config.resolve import ResolvedRun
from whet.core.errors import Problem, TrainingStopped
from whet.distributed.lost_rank import lost_rank
from whet.training.checkpoint import checkpoints

TORCH_TIMEOUT = 1800.0
"""Seconds that a collective may take where `ddp_timeout` does not say; PyTorch's and transformers' own default."""

_WORKER = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? [^)]*\) (is killed by signal: (?P<signal>\w+)|exited unexpectedly)"
)


@contextmanager
def others_alive(resolved: ResolvedRun) -> Iterator[None]:
    """Within it, the death of a rank or of a process that loads rows is an end in words.

    Raises:
        TrainingStopped: another process is gone; checkpoints are as they were.
    """
    try:
        yield
    except RuntimeError as error:
        problem = _lost_worker(error, resolved)
        if problem is None and resolved.world_size > 1:
            problem = lost_rank(error, resolved.config.distributed.ddp_timeout or TORCH_TIMEOUT)
        if problem is None:
            raise
        there = checkpoints(Path(resolved.output_dir))
        kept = f"{there[-1]} is kept" if there else "there is no checkpoint yet"
        raise TrainingStopped(Problem(problem.where, f"{problem.found}; {kept}", problem.fix, problem.key)) from error


def _lost_worker(error: RuntimeError, resolved: ResolvedRun) -> Problem | None:
    found = _WORKER.search(str(error))
    if found is None:
        return None
    key, number = "dataloader_num_workers", resolved.config.data.dataloader_num_workers
    how = f"was ended by the system ({found['signal']})" if found["signal"] else "has ended"
    fix = (
        f"memory ran out, as a rule (or /dev/shm): write {key}: {max((number or 1) - 1, 0)}, 0 loads rows "
        "without processes; then the same command with --resume-from-checkpoint"
    )
    return Problem(resolved.config.where(key), f"{key}: {number}: a process that loads rows {how}", fix, key)
