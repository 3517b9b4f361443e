"""Digests of files of weights: of all bytes, known or remembered where that is possible, and of a sample of them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
from contextlib import suppress
from pathlib import Path

from whet.core.disk import replace_text, sha256

BLOCKS, BLOCK_BYTES = 64, 4096
AT_ONCE_BYTES = 64 << 20
"""Weights up to this size are read at once: a tenth of a second."""

_LARGEST_HEADER = 64 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")


def digest(file: Path) -> str:
    """SHA-256 of all bytes, read where they are not known; that of a large file is remembered."""
    known = known_digest(file)
    if known is not None:
        return known
    before = _state(file)
    found = sha256(file)
    if file.stat().st_size > AT_ONCE_BYTES and _state(file) == before:
        _remember(before, found)
    return found


def known_digest(file: Path) -> str | None:
    """From the name that the hub's cache gives a large file, or remembered."""
    real = file.resolve()
    if real.parent.name == "blobs" and _SHA256.fullmatch(real.name):
        return real.name
    try:
        remembered = json.loads(_memory(_state(file)).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return str(remembered) if _SHA256.fullmatch(str(remembered)) else None


def _state(file: Path) -> str:
    facts = file.stat()
    return f"{file.resolve()}\0{facts.st_size}\0{facts.st_mtime_ns}"


def _memory(state: str) -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "whet" / "weights" / f"{hashlib.sha256(state.encode()).hexdigest()}.json"


def _remember(state: str, digest: str) -> None:
    place = _memory(state)
    with suppress(OSError):  # it is read again the next time
        place.parent.mkdir(parents=True, exist_ok=True)
        replace_text(place, json.dumps(digest), has_other_writers=True)


def sampled(file: Path) -> str:
    """SHA-256 over a file's size, header and blocks."""
    size = file.stat().st_size
    digest = hashlib.sha256(f"{size}\0".encode())
    with file.open("rb") as content:
        start = content.read(8)
        digest.update(start)
        if file.suffix == ".safetensors" and len(start) == 8:
            digest.update(content.read(min(struct.unpack("<Q", start)[0], _LARGEST_HEADER)))
        for number in range(BLOCKS):
            content.seek(max(0, size - BLOCK_BYTES) * number // (BLOCKS - 1))
            digest.update(content.read(BLOCK_BYTES))
    return digest.hexdigest()
