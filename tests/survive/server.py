"""A warm process that forks one that runs a command of whet for each order: imports cost seconds, a fork costs none.

Orders come as JSON lines on standard input, answers go as JSON lines to standard output:

    {"folder": ..., "command": [...], ...}   ->  {"pid": 1}      see `Order`
    {"wait": 1, "seconds": 60}               ->  {"code": 0}     its exit code, negative for a signal; null: it did not
                                                                 end, and was killed
    {"warm": [...]}                          ->  {}              imports these modules, before later orders
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Order:
    """What a process does.

    Attributes:
        folder: where it works.
        logs: folder for ``out.txt``, ``err.txt`` and ``counts.json``.
        command: words of ``whet``.
        fault: values of `tests.survive.faults.Fault`.
        phases: functions whose ticks are counted apart.
        environment: variables.
        stdout, stderr: files that take the place of these logs.
        before: ``module:function`` of tests, called with ``options`` in the process before the command.
    """

    folder: str
    logs: str
    command: list[str]
    fault: dict[str, Any] = field(default_factory=dict)
    phases: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    before: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    stdout: str = ""
    stderr: str = ""


def obey(order: Order) -> int:
    """The life of a forked process; returns its exit code."""
    from tests.survive.faults import Fault, Faults, write_counts
    from whet.cli.main import run_command

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    os.setsid()  # a group of its own: a terminal's Ctrl-C, or a kill, goes to all of it
    os.chdir(order.folder)
    os.environ.update(order.environment)
    logs = Path(order.logs)
    streams = (
        (0, os.devnull, os.O_RDONLY),
        (1, order.stdout or logs / "out.txt", _FRESH),
        (2, order.stderr or logs / "err.txt", _FRESH),
    )
    for number, path, flags in streams:
        os.dup2(os.open(path, flags, 0o644), number)
    faults = Faults(Path(order.folder), tuple(order.phases), Fault(**order.fault))
    try:
        if order.before:
            module, _, function = order.before.partition(":")
            getattr(importlib.import_module(module), function)(**order.options)
        faults.install()
        code = run_command(order.command)
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        code = 70
    faults.remove()
    write_counts(faults, logs / "counts.json")
    (logs / "modules.txt").write_text("\n".join(sys.modules))
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            code = code or 74
    return code


_FRESH = os.O_WRONLY | os.O_CREAT | os.O_TRUNC


def wait(pid: int, seconds: float) -> int | None:
    """The exit code of a child; None if it had to be killed."""
    descriptor = os.pidfd_open(pid)
    ended = bool(select.select([descriptor], [], [], seconds)[0])
    os.close(descriptor)
    if not ended:
        os.killpg(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    return os.waitstatus_to_exitcode(status) if ended else None


def warm_up(modules: list[str]) -> None:
    """Import what a run imports, and start no thread: a fork would lose it."""
    for name in modules:
        with contextlib.suppress(ImportError, AttributeError):  # names that libraries make up for themselves
            importlib.import_module(name)


def main() -> None:
    """Obey until standard input ends."""
    from whet.cli.session import quiet_libraries, settle_on_processor
    from whet.model.startup import import_libraries

    quiet_libraries()
    settle_on_processor()
    import_libraries(adapter=True)
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            answer = {"code": wait(order["wait"], order["seconds"])}
        elif "warm" in order:
            warm_up(order["warm"])
            answer = {}
        else:
            pid = os.fork()
            if pid == 0:
                code = obey(Order(**order))
                os._exit(code)
            answer = {"pid": pid}
        print(json.dumps(answer), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
