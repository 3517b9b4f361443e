"""The name of a prepared set: a hash of everything that decides what is in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

from whet.config import Config, DatasetConfig
from whet.data.formats import make_format
from whet.data.formats.base import CONFIGURED
from whet.data.sources import Source
from whet.data.templates.resolve import resolve_template

_DATA_OPTIONS = (
    "sequence_len",
    "eval_sequence_len",
    "excess_length_strategy",
    "min_sample_len",
    "train_on_inputs",
    "on_bad_row",
    "dataset_exact_deduplication",
    "val_set_size",
    "shuffle_before_merging_datasets",
)


def fingerprint(
    config: Config, seed: int, tokenizer: Any, datasets: Sequence[DatasetConfig], sources: Sequence[Source]
) -> str:
    """Hexadecimal SHA-256 of the content of a prepared set.

    Args:
        config: the config.
        seed: of the run; part of the name only where rows are drawn with it.
        tokenizer: the tokenizer.
        datasets, sources: the rows of `datasets` then of `test_datasets`, and what each was found to be.
    """
    parts = {
        "options": options(config, seed),
        "datasets": [dataset.model_dump(mode="json") for dataset in datasets],
        "sources": [source.identity() for source in sources],
        "tokenizer": tokenizer_identity(tokenizer),
        "templates": [_template(config, dataset, tokenizer) for dataset in datasets],
        "code": code_identity(),
    }
    return hashlib.sha256(_canonical(parts)).hexdigest()


def options(config: Config, seed: int) -> dict[str, Any]:
    """Every option, beside the datasets' own, that the preparation reads."""
    data = {name: getattr(config.data, name) for name in _DATA_OPTIONS}
    draws = config.data.val_set_size or config.data.shuffle_before_merging_datasets
    template = config.template.model_dump(mode="json")
    num_test = len(config.data.test_datasets)
    return {**data, **template, "rl": config.method.rl, "seed": seed if draws else None, "num_test_datasets": num_test}


def tokenizer_identity(tokenizer: Any) -> str:
    """Hash of what a tokenizer does with text.

    Padding and truncation are left out: they are the state of the last call, not the tokenizer.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        model = {
            key: value for key, value in json.loads(backend.to_str()).items() if key not in ("padding", "truncation")
        }
    else:
        model = tokenizer.get_vocab()
    names = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return hashlib.sha256(_canonical([type(tokenizer).__name__, model, names])).hexdigest()


@cache
def code_identity() -> str:
    """Hash of the source files of this package: another version of whet may prepare otherwise."""
    digest = hashlib.sha256()
    for name, text in sorted(_sources(resources.files("whet.data"))):
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


def _template(config: Config, dataset: DatasetConfig, tokenizer: Any) -> str | None:
    return resolve_template(config, dataset, tokenizer) if make_format(dataset, config).template == CONFIGURED else None


def _canonical(value: Mapping[str, Any] | Sequence[Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str).encode()
