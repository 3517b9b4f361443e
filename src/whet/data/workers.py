"""Encoding on several cores, with the results of one core in the order of one core."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Literal

from whet.config import Config
from whet.core.errors import DataError, Problem, RowError
from whet.core.log import say
from whet.data.readers import BadRow, Row
from whet.data.tokenise import Encoded, EncodedPreference, SampleEncoder

Outcome = Encoded | EncodedPreference | RowError
Chunk = Sequence[Row]

CHUNKS_BEFORE_WORKERS = 20
"""Chunks that are encoded in this process first: starting workers costs seconds, which a small set never wins back."""


@dataclass(frozen=True)
class EncoderRecipe:
    """What it takes to make a dataset's encoder, in this process or another."""

    config: Config
    key: Literal["datasets", "test_datasets"]
    number: int
    tokenizer: Any

    def make(self) -> SampleEncoder:
        return SampleEncoder(getattr(self.config.data, self.key)[self.number], self.config, self.tokenizer)


def encode_chunks(
    chunks: Iterator[Chunk], encoder: SampleEncoder, recipe: EncoderRecipe, num_proc: int
) -> Iterator[tuple[Chunk, list[Outcome]]]:
    """Each chunk of rows with what became of its readable rows, in order.

    Args:
        chunks: rows; those that could not be read are passed over.
        encoder: made by the recipe; encodes the first chunks here, and all of them with ``num_proc`` 1.
        num_proc: processes for the rest.

    Raises:
        DataError: a worker died.
    """
    for number, chunk in enumerate(chunks, start=1):
        yield chunk, encoder.encode_rows(_readable(chunk))
        if number == CHUNKS_BEFORE_WORKERS and num_proc > 1:
            yield from _encode_in_workers(chunks, recipe, num_proc)


def _encode_in_workers(
    chunks: Iterator[Chunk], recipe: EncoderRecipe, num_proc: int
) -> Iterator[tuple[Chunk, list[Outcome]]]:
    """A chunk to each worker in turn; results are taken in the same turn, so their order is that of the chunks."""
    waiting: deque[tuple[Connection, Chunk]] = deque()
    with ExitStack() as stack:
        for _ in range(num_proc):
            chunk = next(chunks, None)
            if chunk is None:
                break
            worker = _start(stack, recipe)
            worker.send(_readable(chunk))
            waiting.append((worker, chunk))
        say(f"encoding with {len(waiting)} processes")
        while waiting:
            worker, chunk = waiting.popleft()
            outcomes = _received(worker, recipe)
            following = next(chunks, None)
            if following is not None:
                worker.send(_readable(following))
                waiting.append((worker, following))
            yield chunk, outcomes


def _start(stack: ExitStack, recipe: EncoderRecipe) -> Connection:
    """A worker that ends with the stack. Spawned, not forked: this process may have threads."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, recipe.make), daemon=True)
    process.start()
    theirs.close()
    stack.callback(process.join)
    stack.enter_context(closing(ours))
    return ours


def _work(connection: Connection, make: Callable[[], SampleEncoder]) -> None:
    """A worker's life: rows in, outcomes or the failure out, until the other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the other end closes, which ends this one
    encoder = make()
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            connection.send(encoder.encode_rows(connection.recv()))


def _received(worker: Connection, recipe: EncoderRecipe) -> list[Outcome]:
    try:
        outcomes: list[Outcome] = worker.recv()
    except EOFError as error:
        where = recipe.config.where("dataset_num_proc")
        fix = "look above for its traceback; if there is none memory ran out: lower dataset_num_proc"
        raise DataError(Problem(where, "a process that encodes rows has died", fix)) from error
    return outcomes


def _readable(chunk: Chunk) -> list[Any]:
    return [row.value for row in chunk if not isinstance(row.value, BadRow)]
