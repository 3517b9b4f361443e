"""``python -m whet.distributed.elastic``: torchrun, ending as the rank that failed first ended.

torchrun itself answers a rank's failure with a traceback of its own and exit code 1, whatever the rank had to say. Here
a user's mistake keeps its exit code 2, and what is read last is what the rank printed.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from whet.core.errors import ConfigError, Problem
from whet.core.nearest import suggestion
from whet.core.secrets import redact_process
from whet.distributed.lost_rank import ended_ranks

_SIGNALLED = 128


def main(argv: Sequence[str] | None = None) -> int:
    """Run torchrun with these arguments (the process's own by default) and return the exit code."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    redact_process()  # the ranks hide what is secret in their own words; their command may hold a secret
    # They report each child's end at length; the exit code says the same.
    for name in ("multiprocessing.api", "agent.server.api"):
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL)
    try:
        run.main(list(sys.argv[1:] if argv is None else argv))
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        for problem in ended_ranks(error.failures):
            sys.stderr.write(f"error: {problem}\n")
        return failure.exitcode if failure.exitcode >= 0 else _SIGNALLED - failure.exitcode
    except SignalException as signalled:
        return _SIGNALLED + int(signalled.sigval)
    return 0


def refuse_unknown(launcher_args: Sequence[str]) -> None:
    """Compare arguments meant for torchrun with those it has, before anything else is done.

    Raises:
        ConfigError: names each that it does not have.
    """
    from torch.distributed.run import get_args_parser

    parser = get_args_parser()
    _, unknown = parser.parse_known_args([*launcher_args, "script"])
    known = [option for action in parser._actions for option in action.option_strings]
    problems = [
        Problem("whet train", f"torchrun has no argument '{word}'", suggestion(word.partition("=")[0], known))
        for word in unknown
        if word.startswith("-")
    ]
    if problems:
        raise ConfigError(problems)


def share_threads(num_processes: int, num_cpus: int) -> None:
    """Divide the cores among the ranks, unless the user has said how many threads each gets.

    torchrun would give each rank a single thread, and say so in a banner.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, num_cpus // num_processes)))


if __name__ == "__main__":
    raise SystemExit(main())
