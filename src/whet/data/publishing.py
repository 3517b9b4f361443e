"""Writing a prepared set: beside its place first, then under its name, whole."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from whet.data import store
from whet.data.assembly import Assembly
from whet.data.sample_table import EncodedChunk, EncodedPart

_LEFTOVER_SECONDS = 24 * 3600.0


def publish_set(final: Path, facts: Mapping[str, Any], parts: Sequence[EncodedPart], assembly: Assembly) -> None:
    """Write a set and give it its name. The caller holds its lock.

    Args:
        final: the set's folder.
        facts: what the manifest says beside what is known here.
        parts: training datasets, then test datasets.
        assembly: of the parts.

    Raises:
        OSError: the set cannot be written; nothing of it is left then.
    """
    for leftover in final.parent.glob(f".{final.name}.*"):  # of a preparation that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
    try:
        folder.chmod(0o755)
        chunks = [(number, encoded) for number, part in enumerate(parts) for encoded in part.chunks]
        listed = [_listed(f"{at:05}.arrow", number, encoded) for at, (number, encoded) in enumerate(chunks)]
        for entry, (_, encoded) in zip(listed, chunks, strict=True):
            store.link_chunk(encoded.path, folder, entry["name"])
        store.write_index(folder / store.INDEX, assembly.index)
        store.write_indices(folder, "train", assembly.train)
        if assembly.validation is not None:
            store.write_indices(folder, "validation", assembly.validation)
        ledgers = [ledger.as_dict() for ledger in assembly.ledgers]
        store.write_manifest(folder, {**facts, "ledgers": ledgers, **assembly.findings, "chunks": listed})
        store.publish(folder, final)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def clear_leftovers(pool: Path) -> None:
    """Remove chunk files that killed preparations left half-written; not what another process may be writing now."""
    old = time.time() - _LEFTOVER_SECONDS
    for path in pool.glob(".*"):
        try:
            if path.stat().st_mtime < old:
                path.unlink()
        except FileNotFoundError:
            continue


def _listed(name: str, part: int, encoded: EncodedChunk) -> dict[str, Any]:
    """What the manifest says of a chunk: its file in the set, its rows, and which dataset they are of."""
    chunk, account = encoded.chunk, encoded.account
    return {
        "name": name,
        "dataset": part,
        "file": chunk.file,
        "by_line": chunk.by_line,
        "first": chunk.first,
        "last": chunk.last,
        "digest": chunk.digest,
        "bytes": account.num_bytes,
        "sha256": account.sha256,
    }
