"""What an earlier run has left in an output folder beside its checkpoints: its result, its figures, what is made of it.

A new run in the folder would stand beside them as if they were its own until it has a result, and one that is stopped
leaves it so: whoever merges, exports or talks to "the run" then takes the earlier one's weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from whet.artefacts.card import may_be_replaced
from whet.artefacts.card_facts import CARD_NAME
from whet.artefacts.parity import RECORD_NAME as PARITY_NAME
from whet.artefacts.publish import FAILED
from whet.artefacts.save import KNOWN_BY
from whet.config.files import PATH_KEYS
from whet.model.identity import IDENTITY_NAME
from whet.model.weight_files import INDEX, SINGLE
from whet.record import RECORD_NAME, read_record
from whet.training.callbacks.metrics_log import METRICS
from whet.training.checkpoint import has_a_checkpoint_s_name
from whet.training.uploads import QUEUE_NAME

_REPLACED = (
    *KNOWN_BY,  # first: without them the rest is taken for no model
    *(SINGLE, INDEX, "model-*-of-*.safetensors", "adapter_model.*", "generation_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", PARITY_NAME, METRICS),
)
"""What a run writes, or removes so that it is not taken for its own: lost at its end if it stayed."""
_FILES = (
    *_REPLACED,
    *(IDENTITY_NAME, "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "spiece.model"),
    QUEUE_NAME,  # what it names are the files above
)
_MADE_OF_IT = ("merged", "quantized", "adapter", "gguf", "gguf-adapter", f"*{FAILED}")
_EXAMPLES = "eval"


def earlier_result(folder: Path, values: Mapping[str, Any]) -> list[Path]:
    """Files and folders of a run that has begun here and left its ``run.json``; of what is somebody else's, only files
    that the new run's result would take the place of.

    Args:
        folder: an output folder.
        values: of the config of the run that is to begin there. What its keys name stays where it is.
    """
    used = {place.resolve() for place in _paths(values)}
    if folder.resolve() in used:
        return []
    found = _of_a_run(folder) if _has_begun(read_record(folder / RECORD_NAME)) else _files(folder, _REPLACED)
    return [path for path in found if not any(place.is_relative_to(path.resolve()) for place in used)]


def _has_begun(record: Mapping[str, Any] | None) -> bool:
    """Whether it is that of a run that took the folder: not refused before, nor of the run that asks."""
    return record is not None and record.get("kind") == "train" and record.get("begun", "not noted then") is not None


def _files(folder: Path, patterns: Sequence[str]) -> Iterator[Path]:
    for pattern in patterns:
        yield from (path for path in sorted(folder.glob(pattern)) if path.is_file())


def _of_a_run(folder: Path) -> Iterator[Path]:
    yield from _files(folder, _FILES)
    if (folder / CARD_NAME).is_file() and may_be_replaced(folder / CARD_NAME):
        yield folder / CARD_NAME
    for pattern in _MADE_OF_IT:
        made = (path for path in sorted(folder.glob(pattern)) if path.is_dir())
        yield from (path for path in made if (path / RECORD_NAME).is_file() or path.name.endswith(FAILED))
    if any((folder / _EXAMPLES).glob("examples*.jsonl")):
        yield folder / _EXAMPLES


def checkpoint_read(folder: Path, values: Mapping[str, Any]) -> Path | None:
    """A checkpoint of an output folder that a key of the config names, or a file in it; None where there is none."""
    for place in _paths(values):
        for path in (place.absolute(), place.resolve()):
            for each in (path, *path.parents):
                if has_a_checkpoint_s_name(each) and each.parent.resolve() == folder.resolve():
                    return each
    return None


def _paths(values: Mapping[str, Any]) -> Iterator[Path]:
    named = [values.get(key) for key in PATH_KEYS]
    for rows in (values.get("datasets"), values.get("test_datasets")):
        named += [row.get("path") for row in rows or () if isinstance(row, Mapping)]
    for name in named:
        if isinstance(name, str) and "\n" not in name and "://" not in name:
            yield Path(name).expanduser()
