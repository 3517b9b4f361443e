"""A warm process that forks one that prepares for each order it gets: imports cost seconds, a fork costs none.

Orders come as JSON lines on standard input, answers go as JSON lines to standard output:

    {"folder": ..., "keys": {...}, ...}  ->  {"pid": 1}      see `Order`
    {"wait": 1}                          ->  {"code": 0}     its exit code, negative for a signal

What a process prepares is told to the FIFO ``events`` of its folder, if one is there. Each chunk that is encoded is a
line of ``encoded.log``; where the FIFO ``gate`` is there, each waits for a byte of it first. Encoding workers are told
and stopped so too, as they import this file as their main module.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import traceback
from dataclasses import dataclass, field
from typing import Any

from whet.data import chunks, workers
from whet.data.workers import encode_chunk

KEYS = {
    "base_model": "org/tiny",
    "datasets": [{"path": "rows.jsonl", "type": "chat_template"}],
    "chat_template": "chatml",
    "learning_rate": 1e-4,
    "sequence_len": 256,
    "output_dir": "out",
    "dataset_num_proc": 1,
}

SMALL = chunks.Cut(least=1000, most=4000, every=500)
"""Chunks of some ten rows."""


@dataclass
class Order:
    """What a process does.

    Attributes:
        folder: where it works.
        keys: of the config, beside `KEYS`.
        command: words of ``whet``, to be run in place of `prepare`.
        refresh: as of `prepare`.
        die_at: number of the call, of all that Python makes, before which the process kills itself; 0: it lives.
    """

    folder: str
    keys: dict[str, Any] = field(default_factory=dict)
    command: list[str] = field(default_factory=list)
    refresh: bool = False
    die_at: int = 0


def tell(event: str) -> None:
    """A line to whoever reads the FIFO of this folder."""
    if os.path.exists("events"):
        descriptor = os.open("events", os.O_WRONLY)
        os.write(descriptor, f"{event}\n".encode())
        os.close(descriptor)


def encode_and_tell(chunk: Any, *rest: Any) -> Any:
    with open("encoded.log", "a") as log:
        log.write(f"{chunk.digest}\n")
    tell(f"encoding {os.getpid()}")
    if os.path.exists("gate"):
        with open("gate", "rb", buffering=0) as gate:
            gate.read(1)
    return encode_chunk(chunk, *rest)


# As a program alone, and in the workers that it starts: pytest imports this file too when it looks for doctests.
if __name__ in ("__main__", "__mp_main__"):
    workers.encode_chunk = encode_and_tell
    workers.SECONDS_BEFORE_WORKERS = 0.0
    chunks.chunks_of_stream.__defaults__ = (None, SMALL)


class _Teller(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        tell(f"say {record.getMessage()}")


class Countdown:
    """Kills the process before one of its calls, or counts them."""

    def __init__(self, die_at: int) -> None:
        self.calls, self._die_at = 0, die_at

    def __call__(self, frame: Any, event: str, argument: Any) -> None:
        if event in ("call", "c_call"):
            self.calls += 1
            if self.calls == self._die_at:
                os.kill(os.getpid(), signal.SIGKILL)


def prepare_as(order: Order) -> dict[str, Any]:
    """What came of it."""
    from whet.config import make_config
    from whet.config.resolve import resolve
    from whet.core.errors import WhetError
    from whet.core.types import Hardware
    from whet.data.prepare import prepare

    config = make_config({**KEYS, **order.keys}, check_files=False)
    countdown = Countdown(order.die_at)
    sys.setprofile(countdown)
    try:
        prepared = prepare(config, resolve(config, Hardware("cpu")), TOKENIZER, refresh=order.refresh)
    except WhetError as error:
        return {"error": type(error).__name__, "message": str(error)}
    finally:
        sys.setprofile(None)
    return {"path": str(prepared.path), "samples": len(prepared.train), "calls": countdown.calls}


def obey(order: Order) -> int:
    """The life of a forked process; returns its exit code."""
    os.setsid()  # a terminal's Ctrl-C goes to all of a group
    os.chdir(order.folder)
    errors = os.open("stderr.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(errors, stream)
    logging.getLogger("whet").addHandler(_Teller())
    logging.getLogger("whet").setLevel(logging.INFO)
    try:
        if order.command:
            from whet.cli.main import run_command

            code = run_command(order.command)
            if code:
                tell("failed")
            return code
        tell(f"done {json.dumps(prepare_as(order))}")
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        tell("failed")
        return 1
    return 0


def main() -> None:
    """Obey until standard input ends."""
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            answer = {"code": os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1])}
        else:
            pid = os.fork()
            if pid == 0:
                os._exit(obey(Order(**order)))
            answer = {"pid": pid}
        print(json.dumps(answer), flush=True)  # noqa: T201


if __name__ == "__main__":
    from tests.tiny_tokenizers import tiny_tokenizer

    from whet.distributed.hardware import probe

    probe()  # imports torch, which commands do
    TOKENIZER = tiny_tokenizer("chatml")
    main()
