"""The name of a prepared set: a hash of everything that decides what is in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from importlib.metadata import version
from importlib.resources.abc import Traversable
from typing import Any

from whet.data.chunks import Chunk
from whet.data.engines import tokenizer_json

_ELSEWHERE = ("core/types.py", "config/tasks.py", "config/placeholders.py", "config/user_code.py")
"""Files outside whet.data that formats are made of."""

Inputs = Mapping[str, Any]
"""What decides the content of a set or of a chunk file: a name that a person understands -> a value or its hash."""


def fingerprint(inputs: Inputs) -> str:
    """Hexadecimal SHA-256 of inputs."""
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def rows_identity(chunks: Iterable[Chunk]) -> str:
    """Hash of the rows of a source, with the places that errors and reports name."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(f"{chunk.file}\0{chunk.by_line}\0{chunk.first}\0{chunk.digest}\0{chunk.faults}\0".encode())
        if chunk.numbers is not None:
            digest.update(",".join(map(str, chunk.numbers)).encode())
    return digest.hexdigest()


def tokenizer_identity(tokenizer: Any) -> str:
    """Hash of what a tokenizer does with text, its padding and truncation left out."""
    model = tokenizer_json(tokenizer) if tokenizer.is_fast else fingerprint(tokenizer.get_vocab())
    names = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    hashed = hashlib.sha256(model.encode()).hexdigest()
    splits = bool(getattr(tokenizer, "split_special_tokens", False))
    return fingerprint({"kind": type(tokenizer).__name__, "model": hashed, "names": names, "splits": splits})


def content_identity(manifest: Mapping[str, Any]) -> str:
    """Hash of the samples of a set and of their order in it, whatever folder, version or options made them.

    Args:
        manifest: of a published set.
    """
    files = {name: entry["sha256"] for name, entry in manifest["hashes"].items()}
    return fingerprint({"files": files, "chunks": [chunk["sha256"] for chunk in manifest["chunks"]]})


@cache
def code_identity() -> str:
    """Hash of the source files that decide what becomes of a row, and of the libraries that do: another version of
    whet, of tokenizers or of Jinja may prepare otherwise."""
    versions = [f"{name} {version(name)}" for name in ("tokenizers", "jinja2", "orjson")]
    digest = hashlib.sha256("\n".join(versions).encode())
    elsewhere = [(name, resources.files("whet").joinpath(name).read_bytes()) for name in _ELSEWHERE]
    for name, text in sorted([*_sources(resources.files("whet.data")), *elsewhere]):
        digest.update(f"{name}\0{len(text)}\0".encode() + text)
    return digest.hexdigest()


def _sources(folder: Traversable) -> list[tuple[str, bytes]]:
    found = []
    for entry in folder.iterdir():
        if entry.is_dir() and entry.name != "__pycache__":
            found += [(f"{entry.name}/{name}", text) for name, text in _sources(entry)]
        elif entry.name.endswith((".py", ".jinja")):
            found.append((entry.name, entry.read_bytes()))
    return found
