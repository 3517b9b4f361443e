"""Encoding chunks, here or on several cores; workers share nothing but files, and results come in the chunks' order."""

from __future__ import annotations

import contextlib
import gc
import io
import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from datetime import date
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from whet.config import Config
from whet.core.errors import DataError, Problem, RowError, RowLeftOut, WhetError
from whet.core.log import say
from whet.data.chunk_file import ChunkAccount, ChunkWriter, reuse
from whet.data.chunks import Chunk
from whet.data.readers import BadRow, parse_line
from whet.data.samples import Kind, kind_of
from whet.data.tokenise import SampleEncoder

SECONDS_BEFORE_WORKERS = 8.0
"""Seconds that this process encodes alone: starting workers costs seconds, which a small set never wins back."""


@dataclass(frozen=True)
class EncoderRecipe:
    """What it takes to encode a dataset, in this process or another.

    Attributes:
        key, number: of the dataset in the config.
        kinds: kinds of samples that the method trains on; the first where there are none.
        pool: folder of this recipe's chunk files.
        today: the day that a template is told which asks for it; the day of the call where it is left out.
    """

    config: Config
    key: Literal["datasets", "test_datasets"]
    number: int
    tokenizer: Any
    kinds: tuple[Kind, ...]
    pool: Path
    today: date | None = None

    def make(self) -> SampleEncoder:
        return SampleEncoder(getattr(self.config.data, self.key)[self.number], self.config, self.tokenizer, self.today)


def encode_chunk(chunk: Chunk, encoder: SampleEncoder, recipe: EncoderRecipe) -> ChunkAccount:
    """Encode a chunk and publish its file.

    Raises:
        DataError: its rows cannot be read, or are of a kind that the method does not train on.
        OSError: the file cannot be written.
    """
    return encode_rows(chunk, encoder, recipe).write(recipe.pool, chunk.digest, encoder.engine)


def encode_rows(chunk: Chunk, encoder: SampleEncoder, recipe: EncoderRecipe) -> ChunkWriter:
    """Encode a chunk in memory; raises DataError as `encode_chunk`."""
    with _no_collection():
        lines, rows = [], []
        bad: list[tuple[int, BadRow]] = []
        for line, text in enumerate(io.BytesIO(chunk.load())):
            if text.isspace():
                continue
            value = parse_line(text, chunk.first + line if chunk.by_line and chunk.numbers is None else 0)
            if isinstance(value, BadRow):
                bad.append((line, value))
            else:
                lines.append(line)
                rows.append(value)
        writer: ChunkWriter | None = None
        faults = [(line, fault.reason, fault.detail, True) for line, fault in bad]
        outcomes = encoder.encode(rows)
        for line, outcome in zip(lines, outcomes, strict=True):
            if isinstance(outcome, RowError):
                faults.append((line, outcome.reason, outcome.detail, not isinstance(outcome, RowLeftOut)))
                continue
            if writer is None:
                writer = ChunkWriter(_checked_kind(kind_of(outcome[0]), recipe))
            if any(kind_of(sample) != writer.kind for sample in outcome):
                raise _wrong_kind(recipe, "samples of several kinds")
            writer.add(line, outcome)
        writer = writer or ChunkWriter(recipe.kinds[0])
        for line, reason, detail, is_bad in sorted(faults):
            writer.fault(line, reason, detail, bad=is_bad)
        return writer


def encode_chunks(
    chunks: Iterator[Chunk], encoder: SampleEncoder, recipe: EncoderRecipe, num_proc: int, *, refresh: bool = False
) -> Iterator[tuple[Chunk, ChunkAccount]]:
    """Each chunk with the account of its file, in order; files that are in the pool are not made again.

    Args:
        encoder: made by the recipe; encodes the first chunks here, and all of them with ``num_proc`` 1.
        num_proc: processes for the rest.
        refresh: make every file again.

    Raises:
        DataError: rows cannot be read or used, or a worker died.
    """
    begin = time.monotonic()
    for chunk in chunks:
        account = None if refresh else reuse(recipe.pool, chunk.digest)
        yield chunk, account or encode_chunk(chunk, encoder, recipe)
        if account is None and num_proc > 1 and time.monotonic() - begin >= SECONDS_BEFORE_WORKERS:
            yield from _encode_in_workers(chunks, recipe, num_proc, refresh=refresh)


def _encode_in_workers(
    chunks: Iterator[Chunk], recipe: EncoderRecipe, num_proc: int, *, refresh: bool
) -> Iterator[tuple[Chunk, ChunkAccount]]:
    """A chunk to each worker in turn; results are taken in the same turn, so their order is that of the chunks."""
    waiting: deque[tuple[Chunk, ChunkAccount | Connection]] = deque()
    with ExitStack() as stack:
        idle = [_start(stack, recipe) for _ in range(num_proc)]
        say(f"encoding with {num_proc} processes")
        while True:
            while idle and len(waiting) < 2 * num_proc and (chunk := next(chunks, None)) is not None:
                account = None if refresh else reuse(recipe.pool, chunk.digest)
                if account is None:
                    worker = idle.pop(0)
                    _send(worker, chunk, recipe)
                    waiting.append((replace(chunk, lines=None), worker))
                else:
                    waiting.append((replace(chunk, lines=None), account))
            if not waiting:
                return
            chunk, result = waiting.popleft()
            if isinstance(result, Connection):
                idle.append(result)
                yield chunk, _received(result, recipe)
            else:
                yield chunk, result


def _start(stack: ExitStack, recipe: EncoderRecipe) -> Connection:
    """A worker that ends with the stack. Spawned, not forked: this process may have threads."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, recipe), daemon=True)
    try:
        with _deaf_to_interrupts():
            process.start()
    except BrokenPipeError as error:
        raise _death(recipe) from error
    theirs.close()
    stack.callback(process.join)
    stack.enter_context(closing(ours))
    return ours


def _work(connection: Connection, recipe: EncoderRecipe) -> None:
    """A worker's life: chunks in, accounts or the user's error out, until the other end closes (as on Ctrl-C)."""
    encoder = recipe.make()
    with contextlib.suppress(EOFError, ConnectionError):  # reset, where what was sent last is not read any more
        while True:
            chunk = connection.recv()
            try:
                connection.send(encode_chunk(chunk, encoder, recipe))
            except (WhetError, OSError) as error:
                connection.send(error)


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Ctrl-C waits meanwhile, and a process that is started never hears it: it reaches all that share a terminal."""
    resource_tracker.ensure_running()  # starting a process starts this one too, which would let signals through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _send(worker: Connection, chunk: Chunk, recipe: EncoderRecipe) -> None:
    try:
        worker.send(chunk)
    except ConnectionError as error:
        raise _death(recipe) from error


def _received(worker: Connection, recipe: EncoderRecipe) -> ChunkAccount:
    try:
        result: ChunkAccount | Exception = worker.recv()
    except (EOFError, ConnectionError) as error:
        raise _death(recipe) from error
    if isinstance(result, Exception):
        raise result
    return result


def _death(recipe: EncoderRecipe) -> DataError:
    where = recipe.config.where("dataset_num_proc")
    fix = "look above for its traceback; if there is none memory ran out: lower dataset_num_proc"
    return DataError(Problem(where, "a process that encodes rows has died", fix))


def _checked_kind(kind: Kind, recipe: EncoderRecipe) -> Kind:
    if kind not in recipe.kinds:
        raise _wrong_kind(recipe, _DESCRIPTIONS[kind])
    return kind


_DESCRIPTIONS: dict[Kind, str] = {
    "tokens": "one answer",
    "preference": "a chosen and a rejected answer",
    "unpaired": "an answer that is wanted or not",
    "stepwise": "judged steps",
    "prompts": "a prompt to be answered",
}


def _wrong_kind(recipe: EncoderRecipe, found: str) -> DataError:
    dataset = getattr(recipe.config.data, recipe.key)[recipe.number]
    where = recipe.config.where((recipe.key, recipe.number, "path"))
    wanted = " or ".join(_DESCRIPTIONS[kind] for kind in recipe.kinds)
    if recipe.kinds == ("preference",):
        message = f"'{dataset.path}' has no preferences: its rows (type '{dataset.type}') hold {found}"
        return DataError(Problem(where, message, "for `rl`, use a type with a chosen and a rejected answer"))
    if recipe.kinds == ("tokens",) and found == _DESCRIPTIONS["preference"]:
        message = (
            f"'{dataset.path}' has preferences (type '{dataset.type}'), and no `rl` method is set that learns from them"
        )
        return DataError(Problem(where, message, "set `rl: dpo`, or another type"))
    message = f"'{dataset.path}': rows of type '{dataset.type}' hold {found}, this method trains on {wanted}"
    return DataError(Problem(where, message, "set another `type`, or another method"))


@contextmanager
def _no_collection() -> Iterator[None]:
    """No search for reference cycles meanwhile: the thousands of rows in flight hold none."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
