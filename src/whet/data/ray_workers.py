"""Encoding chunks on the machines of a Ray cluster, by Ray Data; the files are those that one machine makes.

Every machine must see the sources and the folder of prepared sets under the same paths: chunks go to the workers as
places in files, and what comes back is an account of a file that the worker wrote.
"""

from __future__ import annotations

import logging
import pickle
import signal
import threading
from collections.abc import Iterator
from typing import Any

from whet.core.errors import DataError, Problem, WhetError
from whet.data.chunk_file import ChunkAccount, reuse
from whet.data.chunks import Chunk
from whet.data.workers import EncoderRecipe, encode_chunk

CHUNKS_AT_ONCE = 1024
"""Chunks of one pass through the cluster: about 4 GB of rows, which workers read from their files."""
BYTES_AT_ONCE = 256 << 20
"""Rows of one pass that have no place in a file, and so are held here and sent."""


class _ChunkEncoder:
    """An actor of Ray Data: makes its encoder once and encodes one chunk after the other."""

    def __init__(self, recipe: EncoderRecipe) -> None:
        self._recipe = recipe
        self._encoder = recipe.make()

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        result: ChunkAccount | Exception
        try:
            result = encode_chunk(pickle.loads(item["chunk"]), self._encoder, self._recipe)
        except (WhetError, OSError) as error:
            result = error
        return {"number": item["number"], "result": pickle.dumps(result)}


def encode_with_ray(
    chunks: Iterator[Chunk], recipe: EncoderRecipe, *, refresh: bool = False
) -> Iterator[tuple[Chunk, ChunkAccount]]:
    """As `whet.data.workers.encode_chunks`, on the Ray cluster that is there (RAY_ADDRESS), or one on this machine.

    Raises:
        DataError: Ray is not installed, or rows cannot be read or used.
    """
    ray = _connected(recipe)
    for block in _blocks(chunks):
        accounts = [None if refresh else reuse(recipe.pool, chunk.digest) for chunk in block]
        missing = [number for number, account in enumerate(accounts) if account is None]
        if missing:
            items = [{"number": number, "chunk": pickle.dumps(block[number])} for number in missing]
            workers = max(1, min(len(missing), int(ray.cluster_resources().get("CPU", 1))))
            encoded = ray.data.from_items(items, override_num_blocks=len(items)).map(
                _ChunkEncoder,
                fn_constructor_args=(recipe,),
                compute=ray.data.ActorPoolStrategy(size=workers),
                num_cpus=1,
            )
            for row in encoded.iter_rows():
                result = pickle.loads(row["result"])  # written by our own actor a moment ago
                if isinstance(result, Exception):
                    raise result
                accounts[row["number"]] = result
        for chunk, account in zip(block, accounts, strict=True):
            assert account is not None, "Ray Data lost a chunk"
            yield chunk, account


def _blocks(chunks: Iterator[Chunk]) -> Iterator[list[Chunk]]:
    """The chunks, so many at a time as may be held."""
    block: list[Chunk] = []
    held = 0
    for chunk in chunks:
        block.append(chunk)
        held += len(chunk.lines or b"")
        if len(block) == CHUNKS_AT_ONCE or held >= BYTES_AT_ONCE:
            yield block
            block, held = [], 0
    if block:
        yield block


def start(ray: Any, **options: Any) -> None:
    """Starts Ray or joins its cluster, and leaves the answer to SIGTERM as it was.

    `ray.init` has SIGTERM end the process by `sys.exit(15)` from then on, training and saving included.
    """
    if threading.current_thread() is not threading.main_thread():
        ray.init(log_to_driver=False, logging_level="ERROR", include_dashboard=False, **options)
        return
    answer = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(log_to_driver=False, logging_level="ERROR", include_dashboard=False, **options)
    finally:
        if answer is not None:  # None: set by another language
            signal.signal(signal.SIGTERM, answer)


def _connected(recipe: EncoderRecipe) -> Any:
    where = recipe.config.where("prepare_with")
    try:
        import ray
        import ray.data
    except ImportError as error:
        fix = "pip install 'ray[data]', or leave prepare_with out"
        raise DataError(Problem(where, f"prepare_with: ray needs Ray ({error})", fix, "prepare_with")) from error
    if not ray.is_initialized():
        try:
            start(ray)
        except (ConnectionError, ValueError, RuntimeError) as error:
            found = f"there is no Ray cluster to be had ({str(error).splitlines()[0] if str(error) else error!r})"
            fix = "start it, correct RAY_ADDRESS, or leave prepare_with out"
            raise DataError(Problem(where, found, fix, "prepare_with")) from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray
