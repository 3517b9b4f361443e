"""What a process says when one of the others is gone: which, where and why, as far as it can be known."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Mapping
from typing import Any

from whet.core.errors import Problem

# How gloo and NCCL (torch 2.11 to 2.13) tell that another rank has closed its connections, or does not answer.
_GONE = re.compile(
    r"connection (closed|reset) by peer|broken pipe|socket.{0,40}(closed|reset)|remote process exited"
    r"|NCCL (communicator was aborted|error)|failed to (recv|connect)|connection was likely closed",
    re.IGNORECASE,
)
_SILENT = re.compile(r"timed? ?out|watchdog caught collective operation timeout", re.IGNORECASE)
_PEER = re.compile(r"peer \[?([\w.:]+)\]")
_MEMORY = "the system kills the process that takes most when memory runs out: lower micro_batch_size or sequence_len"


def lost_rank(error: BaseException, timeout_seconds: float) -> Problem | None:
    """What to tell of an error of a collective that says that another rank is gone; None for any other error.

    Args:
        timeout_seconds: how long a collective may take (`ddp_timeout`).
    """
    text = str(error)
    if not isinstance(error, RuntimeError) or not (_GONE.search(text) or _SILENT.search(text)):
        return None
    here = f"rank {os.environ.get('RANK', '0')} on {socket.gethostname()}"
    if _GONE.search(text):
        peer = _PEER.search(text)
        where = f" at {peer[1]}" if peer else ""
        found = f"another rank{where} has ended, and with it the run"
        fix = "look at what that rank and the launcher say; go on with the same command and --resume-from-checkpoint"
    else:
        found = f"another rank has not answered for {timeout_seconds:.0f} seconds (ddp_timeout)"
        fix = (
            "look at what the ranks did last; raise ddp_timeout if one was only slow; --resume-from-checkpoint goes on"
        )
    return Problem(here, found, fix)


def ended_ranks(failures: Mapping[int, Any]) -> list[Problem]:
    """What the launcher tells of the ranks of this machine that failed; those that it has stopped itself are left out.

    Args:
        failures: global rank -> torch's `ProcessFailure` (its exit code is negative for a signal).
    """
    host = socket.gethostname()
    killed = {
        rank: failure
        for rank, failure in failures.items()
        if failure.exitcode < 0 and -failure.exitcode != signal.SIGTERM
    }
    if killed:
        return [_killed(rank, failure, host) for rank, failure in sorted(killed.items())]
    rank, failure = min(failures.items(), key=lambda item: (item[1].timestamp, item[0]))
    found = f"it ended with exit code {failure.exitcode}, and the other ranks with it"
    return [Problem(f"rank {rank} on {host}", found, "what it said stands above")]


def _killed(rank: int, failure: Any, host: str) -> Problem:
    number = -failure.exitcode
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    fix = "go on with the same command and --resume-from-checkpoint"
    if number == signal.SIGKILL:
        fix = f"{_MEMORY}; then {fix}"
    return Problem(f"rank {rank} on {host}", f"it was killed by {name}, and the other ranks were ended", fix)
